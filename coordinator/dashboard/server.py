"""The role `dashboard`: opens the port, serves the application, follows the bus, and sends heartbeats."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog
import uvicorn

from bus.errors import EXIT_DONE
from bus.heartbeats import send_heartbeats
from bus.messages.subjects import DASHBOARD
from bus.observability.logging import set_up_logs
from bus.utils.aio import end_tasks, run_to_end
from bus.utils.processes import on_signals
from coordinator.dashboard.api import Dashboard
from coordinator.dashboard.app import make_app
from coordinator.dashboard.connections import IDLE_S, Transports, make_protocol
from coordinator.dashboard.guard import Access
from coordinator.dashboard.hub import Hub
from coordinator.dashboard.live_source import LiveSource
from coordinator.dashboard.mirror_source import MirrorSource
from coordinator.dashboard.source import Source
from coordinator.monitor.run_files import RunFiles

HEARTBEAT_S = 0.2
"""`status` listens for half a second."""
CLOSE_S = 1
"""How long answers under way may take, on SIGTERM."""

log = structlog.get_logger("signalmesh.dashboard")


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the role's own business."""
        yield


def make_server(dashboard: Dashboard, access: Access, transports: Transports) -> uvicorn.Server:
    """The HTTP server; `transports` has those of the connections that are open."""

    def drop(client: tuple[str, int] | None) -> None:
        # Not close: that would wait for a peer that reads nothing.
        if client is not None and (transport := transports.get(tuple(client))) is not None:  # type: ignore[arg-type]
            transport.abort()

    return _Server(uvicorn.Config(
        make_app(dashboard, access, drop), http=make_protocol(transports), ws="none", lifespan="off", log_config=None,
        access_log=False, server_header=False, timeout_graceful_shutdown=CLOSE_S, timeout_keep_alive=IDLE_S,
        proxy_headers=False,
    ))  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class DashboardOptions:
    """What the role is started with. Either `url` and `swarm`, or `file`."""

    token: str
    host_name: str = ""
    """The host in --listen or in the configuration: browsers may call the server by it."""
    url: str = ""
    swarm: str = ""
    file: Path | None = None
    state_dir: Path
    files: RunFiles
    jaeger_url: str = ""
    log_level: str = "info"


def run_dashboard(options: DashboardOptions, listener: socket.socket) -> int:
    """Serve until SIGTERM or SIGINT on `listener`, which is bound already.

    Raises:
        MirrorUnusable: --file names no mirror, or one of another version.
    """
    set_up_logs(options.log_level)
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # Guard logs what a request raises
    return run_to_end(_serve(options, listener))


async def _serve(options: DashboardOptions, listener: socket.socket) -> int:
    hub = Hub()
    source: Source
    if options.file is not None:
        source = await asyncio.to_thread(MirrorSource, options.file)
    else:
        source = LiveSource(options.url, options.swarm, hub, options.files)
    host, port = listener.getsockname()[:2]
    logs = options.state_dir / "logs"
    dashboard = Dashboard(source, hub, logs if options.file is None and logs.is_dir() else None, options.jaeger_url)
    server = make_server(dashboard, Access.of(host, port, options.token, options.host_name), {})
    stop = asyncio.Event()
    on_signals(stop.set)
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="dashboard-http")
    tasks = [serving]
    if isinstance(source, LiveSource):
        tasks.append(asyncio.create_task(_follow(source), name="dashboard-bus"))
    log.info("dashboard_served", url=f"http://{'localhost' if host == '::1' else host}:{port}/")
    stopping = asyncio.create_task(stop.wait(), name="dashboard-stop")
    try:
        done, _ = await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
        for task in done - {stopping}:
            task.result()
    finally:
        hub.close()
        server.should_exit = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S + 1):
                await asyncio.wait([serving])
        await end_tasks([*tasks, stopping])
    return EXIT_DONE


async def _follow(source: LiveSource) -> None:
    beating = asyncio.create_task(_beat(source), name="dashboard-heartbeats")
    try:
        await source.run()
    finally:
        await end_tasks([beating])


async def _beat(source: LiveSource) -> None:
    while source.bus is None:  # noqa: ASYNC110 - the first connection, of which nothing reports
        await asyncio.sleep(0.1)
    await send_heartbeats(source.bus, DASHBOARD, "dashboard", HEARTBEAT_S, source.heartbeat_fields)
