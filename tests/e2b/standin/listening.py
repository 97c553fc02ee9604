"""A port that is served, can be closed with all its connections, and opened again."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp, Scope


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # several servers share the process: it is the process that minds the signals


class Port:
    def __init__(self, number: int) -> None:
        """`number` 0: a free one, kept whenever it is opened again."""
        self._socket = listening(number)
        self.number: int = self._socket.getsockname()[1]
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.number}"

    async def open(self, app: ASGIApp) -> None:
        if self._task is not None:
            return
        if self._socket.fileno() < 0:
            self._socket = listening(self.number)
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_keep_alive=300)
        self._server = _Server(config)
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]), name=f"port {self.number}")
        while not self._server.started and not self._task.done():
            await asyncio.sleep(0.001)

    async def close(self) -> None:
        """Refuse connections from now on, and break those there are."""
        if self._server is None or self._task is None:
            return
        self._server.should_exit = self._server.force_exit = True
        for server in self._server.servers:
            server.close()
        self._socket.close()
        for connection in tuple(self._server.server_state.connections):
            self._abort(connection)
        await self._task
        self._server = self._task = None

    def break_off(self, scope: Scope) -> None:
        """Break the connection on which this request came."""
        if self._server is None:
            return
        for connection in tuple(self._server.server_state.connections):
            if getattr(connection, "client", None) == tuple(scope["client"]):
                self._abort(connection)

    def _abort(self, connection: object) -> None:
        transport = getattr(connection, "transport", None)
        if transport is not None:
            transport.abort()


def listening(number: int) -> socket.socket:
    new_ones = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    new_ones.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    new_ones.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # inherited; 40 ms an answer else
    new_ones.bind(("127.0.0.1", number))
    new_ones.listen(128)
    return new_ones
