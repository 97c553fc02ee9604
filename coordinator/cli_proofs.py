"""The verbs that prove something about what was recorded. Their work is elsewhere, and imported when they run."""

from __future__ import annotations

import typer

from bus.errors import EXIT_DONE, EXIT_FAILED
from coordinator.options import STATE_DIR, Json, Nats, StateDir, Swarm, find_target, on_bus, print_json


def audit(nats: Nats = None, state_dir: StateDir = STATE_DIR, swarm: Swarm = None, json: Json = False) -> None:
    """Check the whole stream: nothing lost, doubled or out of order; snapshots, registry and rounds fit it."""
    from coordinator.audit import audit_bus
    from coordinator.audit_view import print_audit, progress_bar

    target = find_target(nats, state_dir, swarm)
    with progress_bar("auditing") as progress:
        found = on_bus(target, lambda bus: audit_bus(bus, progress))
    if json:
        print_json(found)
    else:
        print_audit(found)
    raise typer.Exit(EXIT_DONE if found.ok else EXIT_FAILED)
