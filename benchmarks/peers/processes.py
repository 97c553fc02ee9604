"""Starts the processes of a peer, passes on what they report, and ends them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import nats
import orjson
from nats.aio.client import Client

from benchmarks.peers.catalogue import Peer
from benchmarks.peers.environments import ROOT
from benchmarks.peers.work import SAID, STREAM, VOTERS, Work
from benchmarks.swarm import scratch
from bus.server.supervisor import NatsServer

READY_S = 60.0
END_S = 15.0
"""For Ray's driver to end what it has started."""


class Pipeline:
    """The running processes of a peer. `started_at` is time.monotonic() before the first of them was started."""

    def __init__(self, peer: Peer, started_at: float) -> None:
        self.started_at = started_at
        self.client: Client | None = None
        """An outside subscriber's, if the peer is on NATS."""
        self.voter_pid = 0
        """The process of VOTERS[0]."""
        self._peer = peer
        self._processes: dict[str, asyncio.subprocess.Process] = {}

    async def start(self, python: Path, role: str, work: Work) -> None:
        """Start the process of `role`, and wait until it is ready for messages.

        Raises:
            RuntimeError: it ended instead.
        """
        process = self._processes[role] = await asyncio.create_subprocess_exec(
            str(python), "-m", self._peer.module, role, work.to_argument(),
            cwd=ROOT, env=environment(), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            start_new_session=True, limit=2**24,
        )  # fmt: skip
        words = (await self._line(role)).split()
        if words[:1] != ["ready"]:
            raise RuntimeError(f"{self._peer.name}: the process of {role} ended before it was ready: {' '.join(words)}")
        if role in {VOTERS[0], "driver"}:
            self.voter_pid = int(words[1]) if len(words) > 1 else process.pid

    def go(self) -> None:
        """Start the source."""
        self._write("driver" if "driver" in self._processes else "source")

    async def measured(self) -> dict[str, Any]:
        """What the coordinator of a peer without NATS measured, once all rounds are decided."""
        return await self._report()

    async def processes(self) -> dict[str, Any]:
        """The processes that VOTERS[0] has had, as this coordinator knows them."""
        self._write(self._reporter)
        return await self._report()

    async def end(self) -> None:
        """End all processes: Ray's driver in order, so that it ends its own, the others at once."""
        for role, process in self._processes.items():
            assert process.stdin is not None
            process.stdin.close()
            if role == "driver":
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), END_S)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    @property
    def _reporter(self) -> str:
        return "driver" if "driver" in self._processes else "coordinator"

    async def _report(self) -> dict[str, Any]:
        line = await self._line(self._reporter)
        if not line:
            raise RuntimeError(f"{self._peer.name}: the process of {self._reporter} ended without its report")
        report: dict[str, Any] = orjson.loads(line)
        return report

    async def _line(self, role: str) -> str:
        process = self._processes[role]
        assert process.stdout is not None
        async with asyncio.timeout(READY_S):
            while line := (await process.stdout.readline()).decode():
                if line.startswith(SAID):
                    return line.removeprefix(SAID)
                print(f"{self._peer.name}, {role}: {line.rstrip()}", file=sys.stderr, flush=True)
        return ""

    def _write(self, role: str) -> None:
        process = self._processes[role]
        assert process.stdin is not None
        process.stdin.write(b"\n")


def environment() -> dict[str, str]:
    """Of a peer's process: without another's settings, and with this checkout to import."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return {**own, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


@asynccontextmanager
async def pipeline(peer: Peer, python: Path, work: Work) -> AsyncIterator[Pipeline]:
    """The processes of `peer`, run by `python`; on NATS with a nats-server of their own, configured like a swarm's."""
    async with AsyncExitStack() as stack:
        directory = await stack.enter_async_context(scratch())
        running = Pipeline(peer, time.monotonic())
        address = f"127.0.0.1:{free_port()}"
        if peer.over_nats:
            server = await stack.enter_async_context(NatsServer(directory, port=0))
            address = server.url
            running.client = await nats.connect(address, name="bench")
            stack.push_async_callback(running.client.close)
            if peer.way == "js":
                await running.client.jetstream().add_stream(name=STREAM, subjects=[f"{STREAM}.>"])
        stack.push_async_callback(running.end)
        given = replace(work, address=address, way=peer.way, directory=str(directory))
        if peer.roles[0] == "host":
            await running.start(python, "host", given)
        rest = [role for role in peer.roles if role != "host"]
        async with asyncio.TaskGroup() as starting:
            for role in rest:
                starting.create_task(running.start(python, role, given))
        yield running
