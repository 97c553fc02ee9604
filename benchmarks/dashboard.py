"""The dashboard: from the bus to a viewer, and what many viewers, or one that reads nothing, cost it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson
import psutil

from benchmarks.report import Result, percentiles
from benchmarks.swarm import scratch
from bus.messages import MarketData, encode
from bus.nats.bus import NatsBus
from bus.nats.streams import ensure_streams
from bus.server.supervisor import NatsServer
from coordinator.dashboard.hub import RING
from coordinator.reporting.percentiles import percentile
from coordinator.telemetry.decision_latency import REMEMBERED
from signalmesh import python_command

RATE = 200
"""Messages a second."""
VIEWERS = 50
BATCH = 500
LINE_BYTES = 1 << 24
GOAL = f"p95 under 100 ms at {RATE} messages/s; {VIEWERS} viewers under 30 % of a core; flat memory with a stalled one"
MIB = 2**20
Row = dict[str, Any]


@asynccontextmanager
async def _dashboard(url: str, state_dir: Path) -> AsyncIterator[tuple[psutil.Process, tuple[str, int]]]:
    process = await asyncio.create_subprocess_exec(
        *python_command("dashboard", "--listen", "127.0.0.1:0", "--state-dir", str(state_dir), "--log-level", "error"),
        env={**os.environ, "SIGNALMESH_NATS": url, "SIGNALMESH_SWARM": "swarm"},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        found = re.search(r"http://\S+/", (await process.stderr.readline()).decode())
        assert found is not None
        parts = urlsplit(found[0])
        yield psutil.Process(process.pid), (parts.hostname or "", parts.port or 0)
    finally:
        process.terminate()
        await process.wait()


async def _viewer(address: tuple[str, int], arrived: dict[int, float] | None) -> None:
    """Read the event stream; note when each tick has arrived, by its sequence."""
    reader, writer = await asyncio.open_connection(*address, limit=LINE_BYTES)
    try:
        writer.write(f"GET /events HTTP/1.0\r\nHost: {address[0]}:{address[1]}\r\n\r\n".encode())
        market = False
        while line := await reader.readline():
            if arrived is None:
                continue
            if line.startswith(b"event: "):
                market = line == b"event: market\n"
            elif market and line.startswith(b"data: "):
                arrived[orjson.loads(line[6:])["sequence"]] = time.perf_counter()
    finally:
        writer.close()


async def _publish(bus: NatsBus, for_s: float, stored: dict[int, float]) -> None:
    """Store RATE ticks a second; note when each was sent, by its sequence."""
    begin = time.perf_counter()
    for number in range(int(for_s * RATE)):
        await asyncio.sleep(max(0.0, begin + number / RATE - time.perf_counter()))
        sent = time.perf_counter()
        stored[(await bus.publish("in.swarm.market.X.bench", encode(_tick(number)))).sequence] = sent


async def _fill(bus: NatsBus, address: tuple[str, int]) -> None:
    """Let the dashboard read as many ticks as it remembers times of: what grows later is not that memory."""
    last = 0
    for first in range(0, REMEMBERED + RING, BATCH):
        acks = await asyncio.gather(
            *(bus.publish("in.swarm.market.X.bench", encode(_tick(number))) for number in range(first, first + BATCH))
        )
        last = acks[-1].sequence
    async with httpx.AsyncClient(base_url=f"http://{address[0]}:{address[1]}") as http:
        while (await http.get("/api/overview")).json()["source"]["read_through"] < last:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


def _tick(number: int) -> MarketData:
    at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number)
    return MarketData(symbol="X", price=100.0 + number % 7, volume=1.0, source="bench", sequence=number, timestamp=at)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def _measure(bus: NatsBus, address: tuple[str, int], process: psutil.Process, viewers: int, for_s: float) -> Row:
    stored: dict[int, float] = {}
    arrived: dict[int, float] = {}
    tasks = [asyncio.create_task(_viewer(address, None if number else arrived)) for number in range(viewers)]
    await asyncio.sleep(1.0)  # they are connected
    cpu, began, rss = _cpu_s(process), time.perf_counter(), process.memory_info().rss
    await _publish(bus, for_s, stored)
    used = (_cpu_s(process) - cpu) / (time.perf_counter() - began) * 100
    await asyncio.sleep(1.0)  # the last ones arrive
    grown = (process.memory_info().rss - rss) / MIB
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    milliseconds = [(at - stored[sequence]) * 1000 for sequence, at in arrived.items() if sequence in stored]
    found = percentiles(milliseconds)
    return {
        "viewers": viewers, "sent": len(stored), "received": len(milliseconds), "p50 (ms)": found.get("p50"),
        "p95 (ms)": percentile(milliseconds, 0.95), "p99 (ms)": found.get("p99"),
        "% of a core": used, "memory (MiB)": process.memory_info().rss / MIB, "grown (MiB)": grown,
    }  # fmt: skip


async def dashboard(*, quick: bool = False) -> Result:
    """One and VIEWERS viewers, then one that reads and one that does not."""
    for_s, stalled_s = (3.0, 3.0) if quick else (30.0, 600.0)
    async with AsyncExitStack() as stack:
        directory = await stack.enter_async_context(scratch())
        server = await stack.enter_async_context(NatsServer(directory, port=0))
        bus = await NatsBus.connect(server.url, "swarm", "bench")
        stack.push_async_callback(bus.close)
        await ensure_streams(bus)
        state_dir = directory / "state"
        process, address = await stack.enter_async_context(_dashboard(server.url, state_dir))
        await asyncio.sleep(2.0)
        await _fill(bus, address)
        rows = [await _measure(bus, address, process, viewers, for_s) for viewers in (1, VIEWERS)]
        with contextlib.closing(socket.create_connection(address)) as stalled:
            stalled.sendall(f"GET /events HTTP/1.1\r\nHost: {address[0]}:{address[1]}\r\n\r\n".encode())
            row = await _measure(bus, address, process, 1, stalled_s)
        rows.append({**row, "viewers": "1, and 1 stalled"})
    p95 = max(row["p95 (ms)"] for row in rows)
    cpu = rows[1]["% of a core"]
    met = p95 < 100 and cpu < 30
    return Result(
        name="dashboard",
        title="Dashboard",
        conditions=f"{RATE} ticks/s for {for_s:.0f} s, with a stalled viewer for {stalled_s:.0f} s; from publishing a "
        "tick to reading its event from the socket.",
        rows=rows,
        goal=GOAL,
        verdict=f"{'Met' if met else 'Missed'}: p95 {p95:.0f} ms, {cpu:.0f} % of a core.",
    )
