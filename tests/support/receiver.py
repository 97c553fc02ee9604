"""A receiver of webhooks: a real HTTP server that keeps what it is sent, and answers as the test decides."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.support.collecting import Collector


class Receiver:
    """`asked` has the body of each request, `taken` of those that were answered with 2xx, in order."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        """Statuses for the next requests; 0: read it and never answer. Then 200."""
        self.requested: Collector[dict[str, Any]] = Collector()
        self.taken: Collector[dict[str, Any]] = Collector()
        self.keys: list[str] = []
        self.port = 0
        self.held: list[asyncio.Future[None]] = []
        self.writers: list[asyncio.StreamWriter] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
            body = json.loads(await reader.readexactly(int(fields["content-length"])))
            assert re.match("POST (http://hooks[.]example[.]com)?/hook/s3cret ", head[0])  # to a proxy: with the host
            assert fields["content-type"] == "application/json"
            self.keys.append(fields.get("idempotency-key", ""))
            status = self.answers.pop(0) if self.answers else 200
            if 200 <= status < 300:
                self.taken.put(body)
            self.requested.put(body)
            if status == 0:
                self.held.append(held := asyncio.get_running_loop().create_future())
                await held
            writer.write(b"HTTP/1.1 %d Told\r\nContent-Length: 2\r\n\r\nok" % status)
            await writer.drain()
        writer.close()  # each request on a connection of its own


@asynccontextmanager
async def receiver(port: int = 0) -> AsyncIterator[Receiver]:
    created = Receiver()
    server = await asyncio.start_server(created.answer, "127.0.0.1", port)
    created.port = server.sockets[0].getsockname()[1]
    try:
        yield created
    finally:
        server.close()
        for held in created.held:
            held.cancel()
        for writer in created.writers:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
