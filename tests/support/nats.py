"""Servers and connections for tests over a real nats-server; whatever is started here ends with its context."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from bus.nats.bus import NatsBus
from bus.nats.streams import ensure_streams
from bus.server.binary import find_binary
from bus.server.supervisor import NatsServer, ServerEvent, ServerRestarted
from tests.support.collecting import GUARD_S, Collector


class Supervised:
    """A server that is brought back when it is killed. `restarted` collects its restarts."""

    def __init__(self, server: NatsServer) -> None:
        self.server = server
        self.restarted: Collector[ServerRestarted] = Collector()

    @property
    def url(self) -> str:
        return self.server.url

    def on_event(self, event: ServerEvent) -> None:
        if isinstance(event, ServerRestarted):
            self.restarted.put(event)

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        assert self.server.pid is not None
        os.kill(self.server.pid, signal.SIGKILL)


@asynccontextmanager
async def supervised_server(directory: Path) -> AsyncIterator[Supervised]:
    async with NatsServer(directory, port=0) as server:
        supervised = Supervised(server)
        task = asyncio.create_task(server.supervise(supervised.on_event), name="supervise")
        try:
            yield supervised
        finally:
            await server.stop()
            async with asyncio.timeout(GUARD_S):
                await task


class Connections(AsyncExitStack):
    """Opens connections and closes them at its end."""

    async def bus(self, url: str, *, streams: bool = False) -> NatsBus:
        bus = await NatsBus.connect(url, "swarm", "test")
        self.push_async_callback(bus.close)
        if streams:
            await ensure_streams(bus)
        return bus


@asynccontextmanager
async def plain_server(directory: Path, *arguments: str) -> AsyncIterator[str]:
    """The url of a bare nats-server with these arguments, on a free port."""
    process = await asyncio.create_subprocess_exec(
        str(find_binary()),
        "-a",
        "127.0.0.1",
        "-p",
        "-1",
        "--ports_file_dir",
        str(directory),
        *arguments,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        async with asyncio.timeout(GUARD_S):
            while b"Server is ready" not in await process.stderr.readline():
                assert process.returncode is None
            port: int | None = None
            while port is None:  # the file is written a moment after
                with contextlib.suppress(ValueError, LookupError, OSError):
                    [ports] = directory.glob("*.ports")
                    port = int(json.loads(ports.read_text())["nats"][0].rsplit(":", 1)[1])
                await asyncio.sleep(0)
        yield f"nats://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
