"""A TCP proxy in front of a NATS server. On demand it resets connections and pauses, delays or drops traffic.

In front of a server with TLS it is the server to its clients, with a certificate, and a client to the server: the name
of a client, by which faults choose it, is inside of TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

import orjson

from bus.utils.aio import start_tls

__all__ = ["DOWN", "UP", "Proxy", "ProxyTls"]

UP = "up"
"""From client to server."""
DOWN = "down"
"""From server to client."""
_CONNECT = re.compile(rb"CONNECT (\{.*?\})\r\n", re.DOTALL)
TLS_S = 5.0
"""For the handshakes with a client and the server."""
EVERY_AGENT: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class ProxyTls:
    """TLS at both sides: `accepting` has the certificate that clients verify, `connecting` verifies the server's."""

    accepting: ssl.SSLContext
    connecting: ssl.SSLContext


_Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_Writers = tuple[asyncio.StreamWriter, asyncio.StreamWriter]
"""To the client, and to the server."""


class _Link:
    """One client's connection and its counterpart to the server. `name` is the name in the client's CONNECT."""

    def __init__(self, writers: _Writers) -> None:
        self.writers = writers
        self.name = ""
        self.dropped: set[str] = set()

    def read_name(self, data: bytes) -> None:
        """Look for CONNECT in the client's bytes."""
        if not self.name and (match := _CONNECT.search(data)):
            with contextlib.suppress(ValueError, AttributeError):
                self.name = str(orjson.loads(match[1]).get("name") or "")


class Proxy:
    """Forwards `url` to the server at `target`. `pause` stops a direction, `drop` discards its traffic, `reset` resets.

    Methods with `names` affect the connections of clients with these names, by default all connections.
    """

    def __init__(
        self, target: str, listener: socket.socket | None = None, tls: Callable[[], ProxyTls] | None = None
    ) -> None:
        """Prepare the proxy; `async with` opens it. `listener` is a listening socket to accept from.

        `tls` is needed in front of a server that demands TLS after its first line; it is called for each connection.
        """
        self._tls = tls
        parts = urlsplit(target)
        self._host, self._port = parts.hostname or "", parts.port or 4222
        self._listener = listener
        self._server: asyncio.Server | None = None
        self._closed = False
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = {UP: asyncio.Event(), DOWN: asyncio.Event()}
        for event in self._open.values():
            event.set()
        self._delays: dict[str, float] = {}
        self._delay_of_all = 0.0
        self.accepted = 0
        self.bytes_seen = {UP: 0, DOWN: 0}

    @property
    def url(self) -> str:
        assert self._server is not None
        scheme = "nats" if self._tls is None else "tls"
        return f"{scheme}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    @property
    def names(self) -> list[str]:
        """Names of the clients with open connections."""
        return sorted(link.name for link in self._links)

    async def __aenter__(self) -> Self:
        if self._listener is not None:
            self._server = await asyncio.start_server(self._accept, sock=self._listener)
        else:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._closed = True
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _of(self, names: Collection[str]) -> list[_Link]:
        return [link for link in self._links if not names or link.name in names]

    def reset(self, names: Collection[str] = EVERY_AGENT) -> int:
        """Reset the open connections; returns how many."""
        links = self._of(names)
        for link in links:
            for writer in link.writers:
                writer.transport.abort()
        return len(links)

    def pause(self, direction: str) -> None:
        """Pause the traffic in `direction` until `release`."""
        self._open[direction].clear()

    def release(self, direction: str) -> None:
        self._open[direction].set()

    def delay(self, seconds: float, names: Collection[str] = EVERY_AGENT) -> int:
        """Delay the traffic in both directions, on present and new connections; 0 ends it. Returns how many are open.

        Bytes that arrive while an earlier piece is delayed go with the next piece: they take up to twice as long.
        """
        if names:
            self._delays.update(dict.fromkeys(names, seconds))
        else:
            self._delay_of_all = seconds
        return len(self._of(names))

    def drop(self, *directions: str, names: Collection[str] = EVERY_AGENT) -> int:
        """Drop all traffic of the open connections (black hole). New connections are not affected.

        Returns how many connections are affected.
        """
        links = self._of(names)
        for link in links:
            link.dropped.update(directions)
        return len(links)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._closed:  # the kernel had accepted it before
            writer.transport.abort()
            return
        task = self._start(self._forward(reader, writer), "proxy-connection")
        # A task that is cancelled before its first step executes nothing of `_forward`.
        task.add_done_callback(lambda _: writer.transport.abort())

    def _start(self, running: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(running, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward a connection until one end closes it; the one to the server is then closed."""
        up_writer: asyncio.StreamWriter | None = None
        try:
            up_reader, up_writer = await asyncio.open_connection(self._host, self._port)
            ends: _Writers | None = (writer, up_writer)
            if self._tls is not None:
                ends = await self._begin_tls(self._tls(), (reader, writer), (up_reader, up_writer))
            if ends is not None:
                await self._forward_both(_Link(ends), reader, up_reader)
        except OSError:
            pass
        finally:
            if up_writer is not None:
                up_writer.transport.abort()

    async def _forward_both(self, link: _Link, reader: asyncio.StreamReader, up_reader: asyncio.StreamReader) -> None:
        self.accepted += 1
        self._links.add(link)
        pumps = [
            self._start(self._pump(link, UP, reader, link.writers[1]), "proxy-up"),
            self._start(self._pump(link, DOWN, up_reader, link.writers[0]), "proxy-down"),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            self._links.discard(link)
            for end in link.writers:
                end.transport.abort()

    async def _begin_tls(self, tls: ProxyTls, client: _Stream, server: _Stream) -> _Writers | None:
        """Pass on the server's first line, and begin TLS with both; None if one of them has not."""
        (reader, writer), (up_reader, up_writer) = client, server
        try:
            async with asyncio.timeout(TLS_S):
                info = await up_reader.readline()
                to_server = await start_tls(up_reader, up_writer, tls.connecting, self._host)
                writer.transport.pause_reading()  # type: ignore[attr-defined]  # what the client sends now is TLS
                writer.write(info)
                return await start_tls(reader, writer, tls.accepting, server_side=True), to_server
        except OSError:  # ssl's errors and TimeoutError are OSErrors
            return None

    async def _pump(
        self, link: _Link, direction: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                self.bytes_seen[direction] += len(data)
                if direction == UP:
                    link.read_name(data)
                if delay_s := self._delays.get(link.name, 0.0) or self._delay_of_all:
                    await asyncio.sleep(delay_s)
                await self._open[direction].wait()
                if direction not in link.dropped:
                    writer.write(data)
                    await writer.drain()
