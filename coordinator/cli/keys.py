"""The command `keys`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bus.errors import EXIT_DONE, EXIT_FAILED, UsageError
from coordinator.cli.options import STATE_DIR, AgentCount, ConfigFile, Json, StateDir, print_json


def keys(
    action: Annotated[Literal["list", "rotate", "export"], typer.Argument(help="What to do.")],
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Identities, such as agent-research-1; default: all."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="With rotate: replace every key.")] = False,
    config: ConfigFile = None,
    agents: AgentCount = None,
    state_dir: StateDir = STATE_DIR,
    json: Json = False,
) -> None:
    """List the keys of a swarm with authentication, replace some, or export its users for a server of others.

    A running swarm uses replaced keys at once. `export` prints a block of nats-server's configuration.
    """
    from coordinator.security.listing import list_keys, print_keys, rotate_keys

    named = tuple(names or ())
    if everything and (named or action != "rotate"):
        raise UsageError("--all: expected with rotate, and without names")
    if action == "rotate" and not (named or everything):
        raise UsageError("keys rotate: expected names, or --all; `signalmesh keys list` shows them")
    if action == "export":
        if named or json:
            raise UsageError(
                "keys export: expected no names and no --json: it prints all users, as nats-server reads them"
            )
        from coordinator.config.loader import load_swarm
        from coordinator.config.overrides import Overrides
        from coordinator.runner.preflight import check_agents
        from coordinator.security.enforcement import export_users
        from coordinator.security.keys import KeyStore

        checked = check_agents(load_swarm(config, Overrides(agents=agents)))
        typer.echo(export_users(checked, KeyStore(state_dir)), nl=False)
        raise typer.Exit(EXIT_DONE)
    if action == "rotate":
        _refuse_foreign_server(state_dir)
    found = list_keys(state_dir, named) if action == "list" else rotate_keys(state_dir, named)
    if json:
        print_json(found)
    else:
        print_keys(found)
    raise typer.Exit(EXIT_FAILED if any(key.problem for key in found.keys) else EXIT_DONE)


def _refuse_foreign_server(state_dir: Path) -> None:
    """A running swarm could not give new keys to a server whose configuration is not its own."""
    from coordinator.runner.run_record import read_run

    run = read_run(state_dir)
    if run is not None and run.alive() and run.authentication == "keys" and run.child("nats-server") is None:
        raise UsageError(
            "keys rotate: the swarm runs on the server of --nats, which would not admit new keys: end the swarm "
            "(`signalmesh down`), rotate, put the output of `signalmesh keys export` into the configuration of that "
            "server, have it reloaded, and start the swarm again"
        )
