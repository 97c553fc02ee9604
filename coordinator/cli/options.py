"""Options that many commands share, which swarm they mean, and the connection to its bus."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from bus.errors import NoSuchSwarm, NoSwarmThere, PermissionDenied, Refused, UsageError
from bus.utils.aio import end_tasks, run_to_end
from coordinator.config.connection import CONNECT_S, DEFAULT_URL, Authentication

if TYPE_CHECKING:
    from bus.nats.bus import NatsBus
    from bus.nats.connection import Denial
    from coordinator.runner.run_record import Run

LONGEST_WAIT_S = 86_400.0
OPTIONAL = ("$JS.API.CONSUMER.DELETE.",)
"""The server removes a consumer itself, some seconds later."""
INBOXES = "_INBOX."
SERVER_LOG_VARIABLE, SERVER_USERS_VARIABLE = "SIGNALMESH_SERVER_LOG", "SIGNALMESH_SERVER_USERS"
STDOUT, STDERR = 1, 2
"""Their descriptors."""

Nats = Annotated[
    str | None,
    typer.Option(
        "--nats", envvar="SIGNALMESH_NATS", help="NATS URL; default: that of the swarm in the state directory."
    ),
]
StateDir = Annotated[
    Path,
    typer.Option(
        "--state-dir",
        envvar="SIGNALMESH_STATE_DIR",
        help="Directory in which `up` keeps its store and the record of its run.",
    ),
]
Swarm = Annotated[
    str | None,
    typer.Option(
        "--swarm", envvar="SIGNALMESH_SWARM", help="Name of the swarm; default: from the record, else from swarm.toml."
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        envvar="SIGNALMESH_CONFIG",
        help="Configuration file; default: ./swarm.toml, else built-in settings.",
    ),
]
AgentCount = Annotated[
    int | None,
    typer.Option("--agents", envvar="SIGNALMESH_AGENTS", help="Total number of agents; adds generated strategies."),
]
MaxAgents = Annotated[
    int | None,
    typer.Option(
        "--max-agents",
        envvar="SIGNALMESH_MAX_AGENTS",
        min=1,
        help="Largest number of agents, with those that are added at run time; default: as swarm.toml says.",
    ),
]
ServerLog = Annotated[
    Path | None,
    typer.Option(
        "--server-log",
        metavar="FILE",
        envvar=SERVER_LOG_VARIABLE,
        help="Log of the nats-server that is not the swarm's own: what it refuses to clients becomes alerts.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Level = Literal["debug", "info", "warning", "error"]
LogLevel = Annotated[Level, typer.Option("--log-level", envvar="SIGNALMESH_LOG_LEVEL", help="Lowest level to log.")]
AuthenticationOption = Annotated[
    Authentication | None,
    typer.Option(
        "--authentication",
        envvar="SIGNALMESH_AUTHENTICATION",
        help="How the server admits clients; default: as swarm.toml says, or keys on the embedded server.",
    ),
]
Open = Annotated[
    bool,
    typer.Option("--open", help="Admit every client without a key: short for --authentication open."),
]
STATE_DIR = Path(".signalmesh")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Target:
    """Which swarm on which bus a command is about. `run` is its record, if the state directory has it.

    `config` is --config.
    """

    url: str
    swarm: str
    run: Run | None = None
    config: Path | None = None


def find_target(nats: str | None, state_dir: Path, swarm: str | None, config: Path | None = None) -> Target:
    """The swarm that --nats, --swarm and the state directory mean; `config` is --config.

    If that swarm has keys, this process connects with the operator's from now on.

    Raises:
        UsageError: --state-dir names a directory without a swarm, or a file cannot be read.
        NoSuchSwarm: the embedded server has keys, and none for `swarm`.
    """
    url, run = find_run(nats, state_dir)
    if run is not None and swarm not in (None, run.swarm):
        if run.authentication == "keys" and run.child("nats-server") is not None and run.alive():
            raise NoSuchSwarm(url, str(swarm), "user of it")  # `up` would report the refused attempt as an attack
        run = None
    _use_key(state_dir, run)
    if swarm is None:
        swarm = run.swarm if run is not None else _configured_swarm()
    return Target(url, swarm, run, config)


def find_run(nats: str | None, state_dir: Path) -> tuple[str, Run | None]:
    """The address of the bus, and the record of the swarm there if the state directory has it.

    Raises:
        UsageError: as `find_target`.
    """
    from bus.nats.urls import check_url, is_same_server
    from coordinator.runner.run_record import read_run

    run = read_run(state_dir)
    if nats is None and run is None and state_dir != STATE_DIR:
        # A directory was named on the command line: falling back to the default server could act on another swarm.
        if not state_dir.exists():
            raise UsageError(f"--state-dir {state_dir}: there is no such directory; expected one that `up` has created")
        raise NoSwarmThere(str(state_dir))
    url = nats or (run.url if run else DEFAULT_URL)
    if nats is not None and run is not None and not is_same_server(check_url(nats), run.url):
        run = None
    return url, run


def _use_key(state_dir: Path, run: Run | None) -> None:
    if run is not None and run.url.startswith(("tls://", "wss://")):
        from coordinator.security.tls_files import use_authority

        use_authority(state_dir, run.url)
    if run is not None and run.authentication == "keys":
        from coordinator.security.keys import use_operator_key

        use_operator_key(state_dir, run.authentication)


def _configured_swarm() -> str:
    from coordinator.config.loader import load_swarm

    return load_swarm().swarm


def on_bus(target: Target, work: Callable[[NatsBus], Awaitable[T]], *, requests: bool = True) -> T:
    """As `connected`, to its end."""
    from bus.observability.logging import set_up_logs

    set_up_logs("error")
    with contextlib.suppress(KeyboardInterrupt):
        return run_to_end(connected(target, work, requests=requests))
    raise typer.Exit(130)


async def connected(target: Target, work: Callable[[NatsBus], Awaitable[T]], *, requests: bool = True) -> T:
    """Connect, do `work`, close the connection.

    Without `requests` it works for a client without a key, which may have no inbox.

    Raises:
        NoSuchSwarm: the server has no stream of that swarm.
        PermissionDenied: the server denies what `work` needs.
        ConfigError: the credentials that swarm.toml names cannot be read.
    """
    from bus.nats.bus import NatsBus
    from coordinator.config.secrets import offer_bus_credentials

    offer_bus_credentials(target.config)
    bus = await NatsBus.connect(target.url, target.swarm, "signalmesh", wait_s=CONNECT_S)
    try:
        return await _unless_denied(bus, work(bus), OPTIONAL if requests else (*OPTIONAL, INBOXES))
    except Refused as error:
        if error.code != 10059:
            raise
        raise NoSuchSwarm(bus.url, target.swarm, f"stream for {error.subject}") from None
    finally:
        await bus.close()


async def _unless_denied(bus: NatsBus, work: Awaitable[T], optional: tuple[str, ...]) -> T:
    """The result of `work`. It ends with the error if the server denies what no request waits for: it would wait on.

    Subjects that begin with one of `optional` are not needed.
    """
    denied: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_denied(denial: Denial) -> None:
        if not (denied.done() or denial.awaited or denial.subject.startswith(optional)):
            denied.set_exception(PermissionDenied(denial.problem))

    end = bus.connection.watch_denials(on_denied)
    working = asyncio.ensure_future(work)
    try:
        either: list[asyncio.Future[Any]] = [working, denied]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if denied.done():
            denied.result()
        return await working
    finally:
        end()
        await end_tasks([working])
        denied.cancel()


def check_seconds(option: str, value: float) -> None:
    """Refuse a duration that is out of range.

    Raises:
        UsageError: `value` is negative, more than a day, or not a number.
    """
    if not 0 <= value <= LONGEST_WAIT_S:
        raise UsageError(f"{option} {value:g}: expected 0 to {LONGEST_WAIT_S:g} seconds")


def print_json(value: Any) -> None:
    import orjson

    typer.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_UTC_Z).decode())


@contextlib.contextmanager
def json_alone(json: bool) -> Iterator[None]:
    """With --json, whatever is written to standard output meanwhile goes to standard error: classes of users print
    when they are imported, as do the programs and libraries that they start.
    """
    if not json:
        yield
        return
    sys.stdout.flush()
    output = os.dup(STDOUT)
    os.dup2(STDERR, STDOUT)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stdout.flush()
        os.dup2(output, STDOUT)
        os.close(output)


def role_url(nats: str | None, state_dir: Path, config: Path | None = None) -> str:
    from bus.nats.urls import check_url
    from coordinator.config.secrets import offer_bus_credentials

    offer_bus_credentials(config)
    url, run = find_run(nats, state_dir)
    if run is not None and run.alive():
        _use_key(state_dir, run)
    return check_url(url)


MirrorPath = Annotated[
    Path | None, typer.Option("--file", help="File of the mirror; default: mirror.sqlite in the state directory.")
]


def mirror_file(file: Path | None, state_dir: Path) -> Path:
    """The file that --file or the state directory means."""
    from bus.mirror.reader import MIRROR_FILE

    return file or state_dir / MIRROR_FILE


ReadMirror = Annotated[
    Path | None, typer.Option("--file", metavar="FILE", help="Read the file of a mirror instead of the bus.")
]
