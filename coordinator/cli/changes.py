"""The commands that change a swarm while it runs, and `config` about what they have changed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bus.errors import UsageError
from coordinator.cli.options import (
    STATE_DIR,
    ConfigFile,
    Json,
    Nats,
    StateDir,
    Swarm,
    Target,
    find_target,
    on_bus,
    print_json,
)

ConfigAction = Literal["diff", "save", "reset"]


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
        agent, kind=kind, class_=class_, command=command, listens=listens, publishes=publishes, sandbox=sandbox,
        weight=weight, options=option,
    )  # fmt: skip
    done = on_bus(find_target(nats, state_dir, swarm), lambda bus: add_agent(bus, agent, table))
    if json:
        print_json(done)
    else:
        waits = "; no message has come for it yet, which would start its program" if command and not done.cursor else ""
        typer.echo(f"{agent} runs in {done.sandbox} as epoch {done.epoch}{waits}")


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
    for warning in done.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if json:
        print_json(done)
    elif done.forgotten:
        typer.echo(f"{agent} is removed, and its state is deleted")
    else:
        typer.echo(f"{agent} is removed; its state is kept for an agent that is added by this name")


def scale(
    kind: Annotated[str, typer.Argument(help="momentum or mean-reversion.")],
    count: Annotated[int, typer.Argument(help="How many generated agents of this kind there are to be.")],
    nats: Nats = None,
    state_dir: StateDir = STATE_DIR,
    swarm: Swarm = None,
    json: Json = False,
) -> None:
    """Have so many generated agents of a kind beside the configured ones, named and weighted as those of up --agents.

    All of a kind together weigh as much as one agent. Those beyond the number are removed with their states.
    """
    from coordinator.config.scaling import check_scale
    from coordinator.control.changes import scale as scale_kind

    check_scale(kind, count)
    done = on_bus(find_target(nats, state_dir, swarm), lambda bus: scale_kind(bus, kind, count))
    if json:
        print_json(done)
    elif not done.agents:
        typer.echo(f"there are no generated agents of kind {kind}")
    for agent in () if json else done.agents:
        typer.echo(f"{agent.agent} is {agent.status} in {agent.sandbox} as epoch {agent.epoch}")


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


def change_sandbox(
    action: str, sandbox: str | None, provider: str | None, options: list[str], target: Target, *, json: bool
) -> None:
    """`sandbox add` and `sandbox remove`."""
    from coordinator.config.credential_check import check_no_credentials
    from coordinator.control.added_table import parse_option
    from coordinator.control.changes import add_sandbox, remove_sandbox

    if sandbox is None:
        raise UsageError(f"sandbox {action}: expected the name of a sandbox after it")
    if action == "add":
        table = {**dict(parse_option(text) for text in options), "provider": provider or "local"}
        check_no_credentials(f"sandbox add {sandbox}", {"options": table})  # before it is sent anywhere
        done = on_bus(target, lambda bus: add_sandbox(bus, sandbox, table))
    elif provider is None and not options:
        done = on_bus(target, lambda bus: remove_sandbox(bus, sandbox))
    else:
        raise UsageError("--provider, --option: expected with `sandbox add` alone")
    if json:
        print_json(done)
    elif done.change == "added":
        typer.echo(f"sandbox {sandbox} has a live host")
    else:
        typer.echo(f"sandbox {sandbox} is removed, and its host has ended")
        for agent in done.moved:
            typer.echo(f"{agent.agent} is {agent.status} in {agent.sandbox or 'no sandbox'} as epoch {agent.epoch}")


def config(
    action: Annotated[
        ConfigAction, typer.Argument(help="diff: show the changes; save: write them to a file; reset: forget them.")
    ],
    file: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="With save: the file; default: the configuration's own."),
    ] = None,
    configuration: ConfigFile = None,
    state_dir: StateDir = STATE_DIR,
    json: Json = False,
) -> None:
    """Show, save or forget how the swarm of the state directory differs from swarm.toml after changes at run time.

    `save` writes a swarm.toml that gives the same swarm from scratch, and keeps the old one as FILE.old. After
    `reset`, for which the swarm must be down, the next `up` starts that of swarm.toml.
    """
    from coordinator.config.kept_changes import compare, reset, save
    from coordinator.monitor.run_files import config_of
    from coordinator.runner.run_record import read_run

    if json and action != "diff":
        raise UsageError("--json: expected with diff alone")
    if file is not None and action != "save":
        raise UsageError("--out: expected with save alone")
    swarm = config_of(configuration, state_dir)
    match action:
        case "diff":
            found = compare(swarm, state_dir)
            if json:
                print_json(found)
                return
            for one in found.changes:
                typer.echo(f"{one.change:8}{one.agent}: {one.detail}")
            if not found.changes:
                typer.echo(f"the swarm is that of {found.file}")
        case "save":
            typer.echo(save(swarm, state_dir, file))
        case _:
            if (run := read_run(state_dir)) is not None and run.alive():
                raise UsageError(
                    f"config reset: the swarm in {state_dir} runs: `signalmesh down` first, or undo single changes by "
                    "`add`, `remove` and `move`"
                )
            typer.echo(reset(state_dir))
