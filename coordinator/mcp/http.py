"""Streamable HTTP as the transport, on loopback only, with a token: several assistants may share one server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bus.errors import EXIT_DONE
from bus.utils.aio import end_tasks, run_to_end
from bus.utils.processes import on_signals
from coordinator.dashboard.connections import IDLE_S, make_protocol
from coordinator.dashboard.guard import SECURITY_HEADERS, Access, error
from coordinator.mcp.server import GONE, SwarmServer
from coordinator.mcp.swarm import ServedSwarm
from coordinator.runner.dashboard_link import OpenPort, keep_token

PATH = "/mcp"
TOKEN_FILE = "mcp.token"  # noqa: S105 - a file name
"""Relative to the state directory. Not the dashboard's token, with which agents can be acted on."""
CLOSE_S = 1
"""How long answers under way may take, on SIGTERM."""


class McpGuard:
    """The outermost layer: the Host, Origin and token of each request; and it notices clients that hang up."""

    def __init__(self, app: ASGIApp, access: Access, token_file: Path) -> None:
        self._app, self._access, self._token_file = app, access, token_file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        gone = scope[GONE] = asyncio.Event()

        async def receive_or_note() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect":
                gone.set()
            return message

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await (self._refusal(Headers(scope=scope)) or self._app)(scope, receive_or_note, send_with_headers)

    def _refusal(self, headers: Headers) -> Response | None:
        access = self._access
        if not access.knows_host(headers.get("host", "")):
            return error(400, "Host: expected localhost or a loopback address; use the address that was printed")
        if headers.get("origin") is not None and not access.is_same_origin(headers):
            return error(403, "Origin: expected none, or this server's; pages of other sites are refused")
        if not access.has_bearer(headers):
            refusal = error(401, f"token: expected Authorization: Bearer with the token in {self._token_file}")
            refusal.headers["WWW-Authenticate"] = "Bearer"
            return refusal
        return None


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the role's own business."""
        yield


def serve_http(swarm: ServedSwarm, port: OpenPort, host: str) -> int:
    """Serve at `port`, whose address was given as `host`, until SIGTERM or SIGINT.

    Raises:
        UsageError: the token cannot be kept.
    """
    token_file = swarm.state_dir / TOKEN_FILE
    access = Access.of(port.host, port.port, keep_token(swarm.state_dir, TOKEN_FILE), host)
    print(f"mcp: {port.url.rstrip('/')}{PATH} (Authorization: Bearer with the token in {token_file})", file=sys.stderr)
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
    return run_to_end(_serve(SwarmServer(swarm), access, token_file, port.socket))


async def _serve(server: SwarmServer, access: Access, token_file: Path, listener: socket.socket) -> int:
    stop = asyncio.Event()
    on_signals(stop.set)
    app = server.sdk.streamable_http_app(streamable_http_path=PATH)
    http = _Server(uvicorn.Config(
        McpGuard(app, access, token_file), http=make_protocol({}), ws="none", lifespan="on", log_config=None,
        access_log=False, server_header=False, timeout_graceful_shutdown=CLOSE_S, timeout_keep_alive=IDLE_S,
        proxy_headers=False,
    ))  # fmt: skip
    serving = asyncio.create_task(http.serve(sockets=[listener]), name="mcp-http")
    stopping = asyncio.create_task(stop.wait(), name="mcp-stop")
    try:
        await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
    finally:
        await server.close()
        http.should_exit = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S + 1):
                await asyncio.wait([serving])
        await end_tasks([serving, stopping])
    return EXIT_DONE
