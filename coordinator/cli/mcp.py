"""The role `mcp`: its options."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from bus.errors import UsageError
from coordinator.cli.options import (
    STATE_DIR,
    ConfigFile,
    LogLevel,
    MirrorPath,
    Nats,
    StateDir,
    Swarm,
    connected,
    find_target,
    mirror_file,
)

if TYPE_CHECKING:
    from bus.nats.bus import NatsBus
    from coordinator.runner.dashboard_link import OpenPort

T = TypeVar("T")


def mcp(
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Serve streamable HTTP there, on loopback only, with the token in mcp.token of the state directory; "
            "default: standard input and output.",
        ),
    ] = None,
    allow_control: Annotated[
        bool, typer.Option("--allow-control", help="Also offer tools that act, such as agent_kill and swarm_down.")
    ] = False,
    file: MirrorPath = None,
    config: ConfigFile = None,
    nats: Nats = None,
    state_dir: StateDir = STATE_DIR,
    swarm: Swarm = None,
    log_level: LogLevel = "warning",
) -> None:
    """Role: tools for assistants by the Model Context Protocol: status, decisions and why, memory, audit, replay."""
    if find_spec("mcp") is None:
        raise UsageError("mcp: expected the MCP SDK, which is not installed; pip install 'signalmesh[mcp]'")
    from bus.nats.urls import check_url
    from bus.observability.logging import set_up_logs
    from coordinator.mcp.swarm import ServedSwarm

    if nats is not None:
        check_url(nats)

    async def on_bus(work: Callable[[NatsBus], Awaitable[T]]) -> T:
        return await connected(find_target(nats, state_dir, swarm, config), work)

    served = ServedSwarm(
        state_dir=state_dir,
        mirror=mirror_file(file, state_dir),
        nats=nats,
        swarm=swarm,
        config=config,
        allow_control=allow_control,
        on_bus=on_bus,
        run=lambda: find_target(nats, state_dir, swarm, config).run,
    )
    set_up_logs(log_level)
    if listen is not None:
        host, port = _listen_on_loopback(listen)  # before the SDK is imported, which takes seconds
        from coordinator.mcp.http import serve_http

        raise typer.Exit(serve_http(served, port, host))
    from coordinator.mcp.stdio import serve_stdio

    raise typer.Exit(serve_stdio(served))


def _listen_on_loopback(listen: str) -> tuple[str, OpenPort]:
    """The host of `listen` (HOST:PORT), and the port to serve at.

    Raises:
        UsageError: it is not on loopback, or is in use.
    """
    from bus.nats.urls import is_loopback
    from coordinator.config.telemetry import ListenAddress
    from coordinator.runner.dashboard_link import open_port

    address = ListenAddress.parse(listen, "--listen")
    if not is_loopback(address.host):
        raise UsageError(
            f"--listen {listen}: expected a loopback address such as 127.0.0.1:8765; to reach it from another machine, "
            "forward that port by ssh"
        )
    return address.host, open_port(listen, "--listen", others=False)
