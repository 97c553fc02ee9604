"""The bounds of HTTP connections: how many are open, and how long one may send no request or take no answer."""

from __future__ import annotations

import asyncio

import h11
import structlog
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from coordinator.dashboard.guard import SECURITY_HEADERS, error

MOST_CONNECTIONS = 512
"""Connections that are served; a browser has up to 6. A process may usually have 1,024 files open."""
MOST_REFUSED = 128
"""Connections beyond these that get the answer 503; more are ended unread."""
RETRY_S = 2
"""When one that was refused may ask again."""
REQUEST_S = 10.0
"""How long a request may take to arrive, and how long a new connection may wait to send one."""
IDLE_S = 5
"""How long a connection is kept for the next request."""
BUFFER_BYTES = 64 << 10
"""What a connection holds for its peer before more has to wait."""
STALLED_S = 30.0
"""A connection whose peer takes no byte for so long is ended; longer than SEND_TIMEOUT_S, which counts viewers."""
FULL = "connections: as many are open as the dashboard serves; close other pages of it, or try again in some seconds"
UNFINISHED = (h11.IDLE, h11.SEND_BODY)
"""States of a peer that owes bytes of a request."""

Transports = dict[tuple[str, int], asyncio.Transport]
"""The address of a client -> its connection."""

log = structlog.get_logger("signalmesh.dashboard")


class _StallWatch:
    """Ends the connection of a peer that takes none of the bytes that wait for it for STALLED_S."""

    def __init__(self, transport: asyncio.Transport, client: tuple[str, int] | None) -> None:
        self._transport, self._client = transport, client
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Bytes wait from now on."""
        waiting = self._transport.get_write_buffer_size()
        self._timer = asyncio.get_running_loop().call_later(STALLED_S, self._check, waiting)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _check(self, before: int) -> None:
        waiting = self._transport.get_write_buffer_size()
        if waiting < before:
            self.start()
        else:
            client = None if self._client is None else self._client[0]
            log.warning("connection_stalled", client=client, waiting=waiting)
            self._transport.abort()


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer that there are too many connections."""
    answer = error(503, FULL)
    answer.headers.update({**SECURITY_HEADERS, "Retry-After": str(RETRY_S), "Connection": "close"})
    await answer(scope, receive, send)


class _Bounded(H11Protocol):
    """uvicorn's protocol within the bounds of this module."""

    transports: Transports
    full = False
    watch: _StallWatch
    late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(BUFFER_BYTES)
        self.watch = _StallWatch(transport, self.client)
        if self.client is not None:
            self.transports[self.client] = transport
        others = len(self.connections) - 1
        self._note_full(others >= MOST_CONNECTIONS)
        if others >= MOST_CONNECTIONS + MOST_REFUSED:
            transport.abort()
            return
        if others >= MOST_CONNECTIONS:
            self.app = _refuse
        self._time_request()

    @classmethod
    def _note_full(cls, full: bool) -> None:
        if full and not cls.full:
            log.warning("connections_full", limit=MOST_CONNECTIONS)
        cls.full = full

    def _time_request(self) -> None:
        """Run a timer while the peer owes bytes of a request. Between two requests uvicorn has one of its own."""
        if self.conn.their_state in UNFINISHED and self.timeout_keep_alive_task is None:
            self.late = self.late or self.loop.call_later(REQUEST_S, self._end_late)
        else:
            self._stop_timer()

    def _stop_timer(self) -> None:
        if self.late is not None:
            self.late.cancel()
            self.late = None

    def _end_late(self) -> None:
        log.debug("request_late", client=None if self.client is None else self.client[0])
        self.transport.abort()

    def handle_events(self) -> None:
        super().handle_events()
        self._time_request()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.watch.start()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.watch.stop()

    def connection_lost(self, exc: Exception | None) -> None:
        self.watch.stop()
        self._stop_timer()
        if self.client is not None:
            self.transports.pop(self.client, None)
        super().connection_lost(exc)


def make_protocol(open_ones: Transports) -> type[H11Protocol]:
    """The protocol of one server; it keeps the open connections in `open_ones`."""

    class OfServer(_Bounded):
        transports = open_ones

    return OfServer
