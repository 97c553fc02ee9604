"""The verbs that prove something about what was recorded. Their work is elsewhere, and imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bus.errors import EXIT_DONE, EXIT_FAILED
from coordinator.options import STATE_DIR, Json, Nats, StateDir, Swarm, find_target, on_bus, print_json

MirrorPath = Annotated[
    Path | None, typer.Option("--file", metavar="FILE", help="Read a mirror's file instead of the bus.")
]


def audit(
    file: MirrorPath = None,
    nats: Nats = None,
    state_dir: StateDir = STATE_DIR,
    swarm: Swarm = None,
    json: Json = False,
) -> None:
    """Check the whole stream: nothing lost, doubled or out of order; snapshots, registry, rounds and mirror fit it."""
    from bus.mirror_read import MIRROR_FILE
    from coordinator.audit import audit_bus, audit_file
    from coordinator.audit_view import print_audit, progress_bar

    with progress_bar("auditing") as progress:
        if file is not None:
            found = audit_file(file, progress)
        else:
            target = find_target(nats, state_dir, swarm)
            found = on_bus(target, lambda bus: audit_bus(bus, state_dir / MIRROR_FILE, progress))
    if json:
        print_json(found)
    else:
        print_audit(found)
    raise typer.Exit(EXIT_DONE if found.ok else EXIT_FAILED)
