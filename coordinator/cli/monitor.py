"""The read-only commands: `status`, `watch`, `health`, `history`, `explain`."""

from __future__ import annotations

import gc
import os
from typing import Annotated

import typer

from bus.errors import EXIT_DONE, EXIT_FAILED, UsageError
from bus.messages import HeartbeatRole
from bus.utils.aio import run_to_end
from bus.utils.terminal import escape_control
from coordinator.cli.options import (
    STATE_DIR,
    Json,
    MirrorPath,
    Nats,
    ReadMirror,
    StateDir,
    Swarm,
    check_seconds,
    find_target,
    mirror_file,
    on_bus,
    print_json,
)

RARELY = 100_000
"""Objects made between two collections of garbage, where most of them are those of imports."""


def status(nats: Nats = None, state_dir: StateDir = STATE_DIR, swarm: Swarm = None, json: Json = False) -> None:
    """Show what runs, from half a second of heartbeats and the contents of the stream."""
    from coordinator.monitor.run_files import RunFiles
    from coordinator.monitor.status import collect_status
    from coordinator.monitor.status_table import print_status

    target = find_target(nats, state_dir, swarm)
    files = RunFiles(target.run, state_dir)
    found = on_bus(target, lambda bus: collect_status(bus, files=files))
    if json:
        print_json(found)
    else:
        print_status(found)


def watch(
    kind: Annotated[
        str | None, typer.Argument(help="Only this kind: market, headline, sentiment, signal, decision …")
    ] = None,
    nats: Nats = None,
    state_dir: StateDir = STATE_DIR,
    swarm: Swarm = None,
    json: Json = False,
) -> None:
    """Print messages as they are stored, of all kinds or of one. Ctrl-C ends it."""
    from bus.messages import KINDS
    from coordinator.config.convert import similar
    from coordinator.monitor.message_lines import watch_bus

    if kind is not None and kind not in KINDS:
        raise UsageError(f"watch {kind}: unknown kind{similar(kind, KINDS)}; expected one of {', '.join(KINDS)}")
    on_bus(find_target(nats, state_dir, swarm), lambda bus: watch_bus(bus, kind, json))


def health(
    role: Annotated[HeartbeatRole, typer.Argument(help="The role that must send heartbeats.")] = "any",
    within_s: Annotated[float, typer.Option("--timeout", help="Seconds to wait for a heartbeat.")] = 3.0,
    nats: Nats = None,
    state_dir: StateDir = STATE_DIR,
    swarm: Swarm = None,
    json: Json = False,
) -> None:
    """Check that a role on this machine (or in this container) sends heartbeats; exit code 1 if not."""
    from coordinator.monitor.health_check import check_health

    check_seconds("--timeout", within_s)
    found = on_bus(find_target(nats, state_dir, swarm), lambda bus: check_health(bus, role, within_s), requests=False)
    if json:
        print_json(found)
    else:
        typer.echo(escape_control(found.text))
    raise typer.Exit(EXIT_DONE if found.ok else EXIT_FAILED)


def history(
    kind: Annotated[str, typer.Argument(help="A kind of message, or snapshot.")],
    since: Annotated[
        str | None, typer.Option(help="Only messages stored since: a duration (10m, 2h) or an ISO time.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000_000, help="Maximum number of messages, the newest.")] = 20,
    file: MirrorPath = None,
    state_dir: StateDir = STATE_DIR,
    json: Json = False,
) -> None:
    """Print the messages in the mirror, oldest first; works while the bus is down."""
    from coordinator.monitor.history import print_history, read_history

    found = read_history(mirror_file(file, state_dir), kind, since, limit)
    if json:
        print_json(found)
    else:
        print_history(found)


def explain(
    decision: Annotated[
        str | None, typer.Argument(metavar="[DECISION]", help="A decision_id, the sequence of its message, or latest.")
    ] = None,
    number: Annotated[
        int | None, typer.Option("--round", metavar="N", help="The round's number, with --symbol.")
    ] = None,
    symbol: Annotated[str | None, typer.Option(metavar="S", help="The round's symbol, with --round.")] = None,
    file: ReadMirror = None,
    nats: Nats = None,
    state_dir: StateDir = STATE_DIR,
    swarm: Swarm = None,
    json: Json = False,
) -> None:
    """Show why a decision was made, computed again from the stored messages; exit code 1 if it differs."""
    # numpy adds and sorts a few hundred numbers here: starting the threads of its BLAS would take longer.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    gc.set_threshold(RARELY)
    from coordinator.explain.explainer import explain_bus, explain_file
    from coordinator.explain.selection import make_selector
    from coordinator.explain.text import print_explanation

    selector = make_selector(decision, symbol, number)
    if file is not None:
        found = run_to_end(explain_file(file, selector))
    else:
        found = on_bus(find_target(nats, state_dir, swarm), lambda bus: explain_bus(bus, selector))
    if json:
        print_json(found)
    else:
        print_explanation(found)
    raise typer.Exit(EXIT_DONE if found.same else EXIT_FAILED)
