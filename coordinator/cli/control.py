"""The commands that act on one agent from outside: `kill`, `restart`, `revive`."""

from __future__ import annotations

from typing import Annotated

import typer

from bus.errors import EXIT_DONE, EXIT_FAILED
from coordinator.cli.options import (
    STATE_DIR,
    Json,
    Nats,
    StateDir,
    Swarm,
    check_seconds,
    find_target,
    on_bus,
    print_json,
)


def kill(
    agent: Annotated[str, typer.Argument(help="The agent's name.")],
    signal: Annotated[
        str,
        typer.Option("--signal", "-s", help="KILL, STOP, TERM, … or a number; 0: send none."),
    ] = "KILL",
    wait_s: Annotated[float, typer.Option("--wait", help="Seconds to wait for the recovery.")] = 15.0,
    nats: Nats = None,
    state_dir: StateDir = STATE_DIR,
    swarm: Swarm = None,
    json: Json = False,
) -> None:
    """Send a signal to an agent's process and print its recovery, with the outputs lost and duplicated."""
    from coordinator.control.kill import kill as kill_agent
    from coordinator.control.kill import print_kill_report, signal_number

    number = signal_number(signal)
    check_seconds("--wait", wait_s)
    found = on_bus(find_target(nats, state_dir, swarm), lambda bus: kill_agent(bus, agent, number, wait_s))
    if json:
        print_json(found)
    else:
        print_kill_report(found)
    raise typer.Exit(EXIT_DONE if found.ok else EXIT_FAILED)


def restart(
    agent: Annotated[str, typer.Argument(help="The agent's name.")],
    nats: Nats = None,
    state_dir: StateDir = STATE_DIR,
    swarm: Swarm = None,
    json: Json = False,
) -> None:
    """Drain an agent (it saves its state), start it again, and wait until it is ready."""
    from coordinator.control.watchdog_client import Restarted, request_watchdog

    target = find_target(nats, state_dir, swarm)
    done = on_bus(target, lambda bus: request_watchdog(bus, "restart", agent, Restarted))
    if json:
        print_json(done)
    else:
        before = f"was {done.was}" if done.was else "drained"
        typer.echo(f"{agent}: {before}; ready as epoch {done.epoch_after} after {done.ready_ms:.0f} ms")


def revive(
    agent: Annotated[str, typer.Argument(help="The agent's name.")],
    nats: Nats = None,
    state_dir: StateDir = STATE_DIR,
    swarm: Swarm = None,
    json: Json = False,
) -> None:
    """Start a quarantined or drained agent again and reset its crash counter."""
    from coordinator.control.watchdog_client import Revived, request_watchdog

    done = on_bus(find_target(nats, state_dir, swarm), lambda bus: request_watchdog(bus, "revive", agent, Revived))
    if json:
        print_json(done)
    else:
        typer.echo(f"{agent}: was {done.was}; it is started")
