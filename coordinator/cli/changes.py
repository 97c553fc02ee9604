"""The commands that change a swarm while it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from coordinator.cli.options import STATE_DIR, Json, Nats, StateDir, Swarm, find_target, on_bus, print_json


def move(
    agent: Annotated[str, typer.Argument(help="The agent's name.")],
    to: Annotated[str, typer.Option("--to", metavar="SANDBOX", help="The sandbox that it runs in from now on.")],
    nats: Nats = None,
    state_dir: StateDir = STATE_DIR,
    swarm: Swarm = None,
    json: Json = False,
) -> None:
    """Move an agent to another sandbox: it drains, which saves its state, and goes on there."""
    from coordinator.control.changes import move as move_agent

    done = on_bus(find_target(nats, state_dir, swarm), lambda bus: move_agent(bus, agent, to))
    if json:
        print_json(done)
    elif done.status in ("quarantined", "drained"):
        typer.echo(f"{agent} is {done.status}; when it is revived, it starts in {to}")
    else:
        typer.echo(f"{agent} runs in {done.sandbox} as epoch {done.epoch}")


def rebalance(nats: Nats = None, state_dir: StateDir = STATE_DIR, swarm: Swarm = None, json: Json = False) -> None:
    """Bring the agents back that run elsewhere, because their sandbox was lost, one after the other."""
    from coordinator.control.changes import rebalance as rebalance_agents

    done = on_bus(find_target(nats, state_dir, swarm), rebalance_agents)
    if json:
        print_json(done)
    elif not done.moved:
        typer.echo("every agent runs in its sandbox, or that has no live host")
    for moved in () if json else done.moved:
        typer.echo(f"{moved.agent} runs in {moved.sandbox} as epoch {moved.epoch}")
