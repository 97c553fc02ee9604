"""The commands that change a swarm while it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from coordinator.cli.options import STATE_DIR, Json, Nats, StateDir, Swarm, find_target, on_bus, print_json


def add(
    agent: Annotated[str, typer.Argument(help="The name of the new agent.")],
    class_: Annotated[
        str | None, typer.Option("--class", metavar="MODULE:CLASS", help="The class of an agent of your own.")
    ] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="An agent kind that ships with the project.")] = None,
    command: Annotated[
        str | None, typer.Option("--command", help="Program and arguments of an agent in any language, as in a shell.")
    ] = None,
    listens: Annotated[
        list[str] | None, typer.Option("--listens", help="With --command: a message kind that it receives; repeatable.")
    ] = None,
    publishes: Annotated[
        list[str] | None,
        typer.Option("--publishes", help="With --command: a message kind that it answers with; repeatable."),
    ] = None,
    sandbox: Annotated[
        str | None, typer.Option("--sandbox", help="Where it runs; default: the live one with the fewest agents.")
    ] = None,
    weight: Annotated[float | None, typer.Option("--weight", help="Weight of its vote; default: 1.")] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="An option of its kind; repeatable.")
    ] = None,
    nats: Nats = None,
    state_dir: StateDir = STATE_DIR,
    swarm: Swarm = None,
    json: Json = False,
) -> None:
    """Add an agent to the running swarm; it is kept for the next `up`. If a removed one had its name, it continues it.

    Exactly one of --class, --kind and --command is needed.
    """
    from coordinator.control.added_table import added_table
    from coordinator.control.changes import add as add_agent

    table = added_table(
        kind=kind, class_=class_, command=command, listens=listens, publishes=publishes, sandbox=sandbox,
        weight=weight, options=option,
    )  # fmt: skip
    done = on_bus(find_target(nats, state_dir, swarm), lambda bus: add_agent(bus, agent, table))
    if json:
        print_json(done)
    else:
        typer.echo(f"{agent} runs in {done.sandbox} as epoch {done.epoch}")


def remove(
    agent: Annotated[str, typer.Argument(help="The agent's name.")],
    forget: Annotated[bool, typer.Option("--forget", help="Delete its saved state too, for good.")] = False,
    nats: Nats = None,
    state_dir: StateDir = STATE_DIR,
    swarm: Swarm = None,
    json: Json = False,
) -> None:
    """Remove an agent from the running swarm: no round waits for it any more, it drains, and its key is revoked."""
    from coordinator.control.changes import remove as remove_agent

    done = on_bus(find_target(nats, state_dir, swarm), lambda bus: remove_agent(bus, agent, forget=forget))
    if json:
        print_json(done)
    elif done.forgotten:
        typer.echo(f"{agent} is removed, and its state is deleted")
    else:
        typer.echo(f"{agent} is removed; its state is kept for an agent that is added by this name")


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
