"""The commands that verify what was recorded: `audit`, `replay`."""

from __future__ import annotations

from typing import Annotated

import typer

from bus.errors import EXIT_DONE, EXIT_FAILED, UsageError
from bus.utils.aio import run_to_end
from coordinator.cli.options import (
    STATE_DIR,
    ConfigFile,
    Json,
    Nats,
    ReadMirror,
    StateDir,
    Swarm,
    find_target,
    json_alone,
    on_bus,
    print_json,
)


def audit(
    file: ReadMirror = None,
    nats: Nats = None,
    state_dir: StateDir = STATE_DIR,
    swarm: Swarm = None,
    json: Json = False,
) -> None:
    """Check the whole stream: nothing lost, duplicated or out of order; snapshots, registry, rounds, mirror match."""
    from bus.mirror.reader import MIRROR_FILE
    from coordinator.audit.runner import audit_bus, audit_file
    from coordinator.audit.table import print_audit
    from coordinator.reporting.formatting import progress_bar

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


def replay(
    first: Annotated[int, typer.Option("--from", metavar="SEQ", help="Compare outputs from this sequence on.")] = 1,
    last: Annotated[int | None, typer.Option("--to", metavar="SEQ", help="Read up to this sequence.")] = None,
    file: ReadMirror = None,
    config: ConfigFile = None,
    nats: Nats = None,
    state_dir: StateDir = STATE_DIR,
    swarm: Swarm = None,
    json: Json = False,
) -> None:
    """Run the recorded inputs through the same agents again, and compare every output with the recorded one."""
    from bus.observability.logging import set_up_logs
    from coordinator.monitor.run_files import config_of
    from coordinator.replay.runner import ReplayRange, replay_bus, replay_file
    from coordinator.replay.table import print_replay
    from coordinator.reporting.formatting import progress_bar

    if first < 1 or (last is not None and last < first):
        given = f"--from {first}" if last is None else f"--from {first} --to {last}"
        raise UsageError(f"{given}: expected 1 or more, and --to not less than --from")
    set_up_logs("error")
    settings, span = config_of(config, state_dir), ReplayRange(first=first, last=last)
    with json_alone(json), progress_bar("replaying") as progress:
        if file is not None:
            found = run_to_end(replay_file(file, settings, span, progress))
        else:
            target = find_target(nats, state_dir, swarm, config)
            found = on_bus(target, lambda bus: replay_bus(bus, settings, span, progress))
    if json:
        print_json(found)
    else:
        print_replay(found)
    raise typer.Exit(EXIT_DONE if found.ok else EXIT_FAILED)
