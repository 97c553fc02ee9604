"""The mirror's role, and the verbs that read its file: they need no bus."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coordinator.options import (
    STATE_DIR,
    ConfigFile,
    Json,
    LogLevel,
    Nats,
    StateDir,
    Swarm,
    find_target,
    print_json,
    role_url,
)

MirrorPath = Annotated[
    Path | None, typer.Option("--file", help="The mirror's file; default: mirror.sqlite in the state directory.")
]


def mirror_file(file: Path | None, state_dir: Path) -> Path:
    """The file that --file or the state directory means."""
    from bus.mirror_read import MIRROR_FILE

    return file or state_dir / MIRROR_FILE


def mirror(
    file: MirrorPath = None,
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild", help="First put back what the bus has lost, as `up` does; run nothing else meanwhile."
        ),
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="With --rebuild: end when that is done.")] = False,
    config: ConfigFile = None,
    nats: Nats = None,
    state_dir: StateDir = STATE_DIR,
    swarm: Swarm = None,
    log_level: LogLevel = "info",
) -> None:
    """Role: follows the bus into an SQLite file, of which it is the only writer."""
    from bus.errors import UsageError
    from coordinator.mirroring import run_mirror, run_rebuild

    if once and not rebuild:
        raise UsageError("--once: expected together with --rebuild; without it, a mirror runs until it is told to end")
    target = find_target(nats, state_dir, swarm)
    path = mirror_file(file, state_dir)
    url = role_url(nats, state_dir)
    if once:
        raise typer.Exit(run_rebuild(url, config, target.swarm, path, log_level))
    raise typer.Exit(run_mirror(url, config, target.swarm, path, log_level, rebuild_first=rebuild))


def history(
    kind: Annotated[str, typer.Argument(help="A kind of message, or snapshot.")],
    since: Annotated[
        str | None, typer.Option(help="Only what was stored since: a duration (10m, 2h) or an ISO time.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000_000, help="The newest so many.")] = 20,
    file: MirrorPath = None,
    state_dir: StateDir = STATE_DIR,
    json: Json = False,
) -> None:
    """What the mirror has kept, oldest first; works with the bus down."""
    from coordinator.history import print_history, read_history

    found = read_history(mirror_file(file, state_dir), kind, since, limit)
    if json:
        print_json(found)
    else:
        print_history(found)
