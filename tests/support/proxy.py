"""A TCP proxy in front of a server that cuts, holds and swallows what passes; for faults between two live processes."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self
from urllib.parse import urlsplit

UP = "up"
"""From client to server."""
DOWN = "down"
"""From server to client."""


class _Link:
    """One client's connection and its counterpart to the server."""

    def __init__(self, writers: tuple[asyncio.StreamWriter, asyncio.StreamWriter]) -> None:
        self.writers = writers
        self.swallowed: set[str] = set()


class Proxy:
    """Forwards `url` to the server at `target`. `hold` delays a direction, `swallow` loses it, `cut` resets."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._host, self._port = parts.hostname or "", parts.port or 0
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = {UP: asyncio.Event(), DOWN: asyncio.Event()}
        for event in self._open.values():
            event.set()
        self.accepted = 0
        self.bytes_seen = {UP: 0, DOWN: 0}

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Reset every connection that is open now."""
        for link in self._links:
            for writer in link.writers:
                writer.transport.abort()

    def hold(self, direction: str) -> None:
        """Let nothing pass in `direction` until `release`."""
        self._open[direction].clear()

    def release(self, direction: str) -> None:
        self._open[direction].set()

    def swallow(self, *directions: str) -> None:
        """Lose everything that passes on the connections that are open now: a black hole. New ones are not affected."""
        for link in self._links:
            link.swallowed.update(directions)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.transport.abort()
            return
        self.accepted += 1
        link = _Link((writer, up_writer))
        self._links.add(link)
        pumps = [
            asyncio.create_task(self._pump(link, UP, reader, up_writer), name="proxy-up"),
            asyncio.create_task(self._pump(link, DOWN, up_reader, writer), name="proxy-down"),
        ]
        self._tasks.update(pumps)
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            self._links.discard(link)
            for end in link.writers:
                end.transport.abort()

    async def _pump(
        self, link: _Link, direction: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                self.bytes_seen[direction] += len(data)
                await self._open[direction].wait()
                if direction not in link.swallowed:
                    writer.write(data)
                    await writer.drain()
