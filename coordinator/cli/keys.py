"""The command `keys`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bus.errors import EXIT_DONE, EXIT_FAILED, UsageError
from coordinator.cli.options import (
    STATE_DIR,
    AgentCount,
    AuthenticationOption,
    ConfigFile,
    Json,
    Nats,
    StateDir,
    Swarm,
    print_json,
)

if TYPE_CHECKING:
    from coordinator.config.connection import Authentication
    from coordinator.config.settings import ResolvedSwarm
    from coordinator.runner.run_record import Run
    from coordinator.security.listing import KeyList

Action = Literal["list", "init", "add", "rotate", "revoke", "resume", "export"]


def keys(
    action: Annotated[Action, typer.Argument(help="What to do.")],
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="Identities, such as agent-research-1, or names, such as research-1; default: all.",
        ),
    ] = None,
    role: Annotated[
        Literal["voter", "subscriber", "operator"] | None,
        typer.Option(help="With add: votes under its name, receives decisions alone, or may do everything."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="With rotate: replace every key.")] = False,
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="DIRECTORY",
            help="With init: write a directory for each process there, as for containers, and the users for a server, "
            "which reads them again if it runs at --nats.",
        ),
    ] = None,
    hosts: Annotated[
        int,
        typer.Option(
            min=0, max=100, help="With --to: how many hosts of each sandbox have a key, for `sandbox --replica --keys`."
        ),
    ] = 0,
    tls: Annotated[
        bool,
        typer.Option("--tls", help="With init: make a certificate authority and certificates for TLS, or renew them."),
    ] = False,
    name: Annotated[
        list[str] | None,
        typer.Option(
            help="With --tls: a name or address of the server; default: those of this machine. localhost is always one."
        ),
    ] = None,
    nsc: Annotated[
        str | None,
        typer.Option(
            metavar="ACCOUNT",
            help="With export: print a shell script that makes the users in this account with `nsc`, for a server with "
            "operators.",
        ),
    ] = None,
    authentication: AuthenticationOption = None,
    nats: Nats = None,
    swarm: Swarm = None,
    config: ConfigFile = None,
    agents: AgentCount = None,
    state_dir: StateDir = STATE_DIR,
    json: Json = False,
) -> None:
    """Make, list, replace and remove the keys of a swarm, or export its users.

    `init` makes what the swarm's processes need, as `up` does; with --tls it makes certificates, and no keys. `add`
    makes the key of a person or program outside the swarm, `revoke` removes it, `resume` lets one publish again that
    was suspended for a flood. A running swarm uses changed keys and certificates within a second. `export` prints a
    block of nats-server's configuration, for a server of others; with --nsc a shell script for one whose users are
    JWTs.
    """
    from dataclasses import replace

    from coordinator.runner.run_record import read_run
    from coordinator.security import listing

    named = tuple(names or ())
    _check_arguments(action, named, role, everything=everything, json=json)
    _check_directory(action, to, hosts, json=json)
    if nsc is not None and action != "export":
        raise UsageError("--nsc: expected with export alone")
    if tls or name:
        _check_tls(action, to, tls=tls, json=json)
        raise typer.Exit(_certify(state_dir, tuple(name or ())))
    if to is not None:
        wanted = _swarm(config, agents, state_dir)
        _share(replace(wanted, swarm=swarm or wanted.swarm), state_dir, to, hosts, authentication, nats)
        raise typer.Exit(EXIT_DONE)
    if action == "export":
        from coordinator.security.enforcement import export_commands, export_users
        from coordinator.security.keys import KeyStore

        store, wanted = KeyStore(state_dir), _swarm(config, agents, state_dir)
        typer.echo(export_users(wanted, store) if nsc is None else export_commands(wanted, store, nsc), nl=False)
        raise typer.Exit(EXIT_DONE)
    run = read_run(state_dir)
    run = run if run is not None and run.alive() else None
    match action:
        case "list":
            found = listing.list_keys(state_dir, named)
        case "init":
            found = listing.init_keys(_swarm(config, agents, state_dir), state_dir)
        case "add":
            found = listing.add_key(_swarm(config, agents, state_dir), state_dir, named[0], str(role))
        case "revoke" | "resume":
            change = listing.revoke_keys if action == "revoke" else listing.resume_keys
            found = change(state_dir, named)
        case _:
            _refuse_foreign_server(run)
            found = listing.rotate_keys(state_dir, named)
    if json:
        print_json(found)
    else:
        _show(action, found, run, state_dir)
    raise typer.Exit(EXIT_FAILED if action != "revoke" and any(key.problem for key in found.keys) else EXIT_DONE)


def _show(action: Action, found: KeyList, run: Run | None, state_dir: Path) -> None:
    from coordinator.security.listing import print_keys

    if found.keys:
        print_keys(found)
    for line in _remarks(action, found, run, state_dir):
        typer.echo(line)


def _check_arguments(action: Action, named: tuple[str, ...], role: str | None, *, everything: bool, json: bool) -> None:
    """Refuse what does not fit the action.

    Raises:
        UsageError: it does not.
    """
    if everything and (named or action != "rotate"):
        raise UsageError("--all: expected with rotate, and without names")
    if role is not None and action != "add":
        raise UsageError("--role: expected with add alone: a key keeps its role")
    if action == "rotate" and not (named or everything):
        raise UsageError("keys rotate: expected names, or --all; `signalmesh keys list` shows them")
    if action in ("revoke", "resume") and not named:
        raise UsageError(f"keys {action}: expected names; `signalmesh keys list` shows them")
    if action == "init" and named:
        raise UsageError("keys init: expected no names: it makes all keys that are missing; `keys add` makes others")
    if action == "add" and (len(named) != 1 or role is None):
        raise UsageError(
            "keys add: expected one name and --role: `signalmesh keys add NAME --role voter`, subscriber or operator"
        )
    if action == "export" and (named or json):
        raise UsageError("keys export: expected no names and no --json: it prints all users, as nats-server reads them")


def _check_directory(action: Action, to: Path | None, hosts: int, *, json: bool) -> None:
    """Refuse --to and --hosts where they mean nothing.

    Raises:
        UsageError: they do not fit the action.
    """
    if to is not None and (action != "init" or json):
        raise UsageError("--to: expected with init, and without --json")
    if to is None and hosts:
        raise UsageError("--hosts: expected with --to; `up` runs one host of each sandbox")


def _check_tls(action: Action, to: Path | None, *, tls: bool, json: bool) -> None:
    """Refuse --tls and --name where they mean nothing.

    Raises:
        UsageError: they do not fit the action.
    """
    if not tls:
        raise UsageError("--name: expected with --tls")
    if action != "init" or to is not None or json:
        raise UsageError("--tls: expected with init, and without --to and --json")


def _certify(state_dir: Path, names: tuple[str, ...]) -> int:
    from coordinator.security.certificate_list import make_certificates

    make_certificates(state_dir, names)
    return EXIT_DONE


def _swarm(config: Path | None, agents: int | None, state_dir: Path) -> ResolvedSwarm:
    from coordinator.config.changes import read_changes_file
    from coordinator.config.live_swarm import LiveSwarm
    from coordinator.config.loader import load_swarm
    from coordinator.config.overrides import Overrides
    from coordinator.runner.preflight import check_agents

    return LiveSwarm(check_agents(load_swarm(config, Overrides(agents=agents))), read_changes_file(state_dir)).config


def _share(
    config: ResolvedSwarm,
    state_dir: Path,
    to: Path,
    hosts: int,
    authentication: Authentication | None,
    nats: str | None,
) -> None:
    from bus.observability.logging import set_up_logs
    from bus.utils.aio import run_to_end
    from coordinator.security.keys import KeyStore
    from coordinator.security.shares import make_keys, reload_server, write_shares

    set_up_logs("error")
    store = KeyStore(state_dir)
    is_open = (authentication or config.nats.authentication) == "open"
    made = make_keys(config, store, hosts=hosts)
    write_shares(config, store, to, hosts=hosts, is_open=is_open)
    typer.echo(f"made {len(made)} keys in {store.directory}, and wrote what each process needs to {to}")
    if is_open:
        typer.echo("warning: the server is open: whoever reaches its port may do everything", err=True)
    if nats is not None:
        typer.echo(run_to_end(reload_server(nats, store)))


def _remarks(action: Action, found: KeyList, run: Run | None, state_dir: Path) -> list[str]:
    """What a person does next."""
    server = "the server of `up`"
    if run is not None and run.authentication == "keys":
        foreign = run.child("nats-server") is None
        server = "the server of --nats, once it has the output of `signalmesh keys export`," if foreign else server
    elif run is not None:
        server = "a server with keys (the running swarm is without)"
    directory = state_dir.absolute() / "keys"
    if action == "init":
        made = f"made {len(found.keys)} keys in {directory}" if found.keys else f"nothing was missing in {directory}"
        return [f"{made}; `signalmesh up` writes nats/nats.conf beside it with their public keys and permissions"]
    if action == "revoke":
        return [f"removed: {server} refuses them within a second, and cuts off what is connected with them"]
    if action != "add":
        return []
    [key] = found.keys
    from coordinator.config.connection import DEFAULT_URL
    from coordinator.security.tls_files import cli_options, use_authority

    url = DEFAULT_URL if run is None else run.url
    use_authority(state_dir, url)
    server_options = f"--server {url}{cli_options(url)}"
    lines = [f"{server} admits it within a second; give this file to its user alone: {key.file}"]
    match key.role:
        case "subscriber":
            subject = f"{'swarm' if run is None else run.swarm}.decision.>"
            lines.append(f"nats {server_options} --nkey FILE --inbox-prefix {key.inbox} sub '{subject}'")
        case "voter":
            name = key.identity.partition("-")[2]
            lines.append(f"its votes count if swarm.toml has [agents.{name}] with external = true")
            lines.append(f"nats {server_options} --nkey FILE --inbox-prefix {key.inbox} …")
        case _:
            lines.append(f"signalmesh --nats-nkey FILE status --nats {url}")
    return lines


def _refuse_foreign_server(run: Run | None) -> None:
    """A running swarm could not give new keys to a server whose configuration is not its own."""
    if run is not None and run.authentication == "keys" and run.child("nats-server") is None:
        raise UsageError(
            "keys rotate: the swarm runs on the server of --nats, which would not admit new keys: end the swarm "
            "(`signalmesh down`), rotate, put the output of `signalmesh keys export` into the configuration of that "
            "server, have it reloaded, and start the swarm again"
        )
