"""The mirror: its rate on an existing stream, and its lag at a given rate."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from benchmarks.report import Result, percentiles
from benchmarks.swarm import scratch
from bus.errors import BusError, MeshError
from bus.interface import Ack
from bus.mirror.reader import MirrorFile
from bus.nats.bus import NatsBus
from bus.nats.streams import ensure_streams
from bus.server.supervisor import NatsServer
from signalmesh import python_command

PAYLOAD = b'{"symbol":"X","pad":"%s"}' % (b" " * 176)
SUBJECT = "in.swarm.market.X.bench"
RATE, BURST = 2000, 20
POLL_INTERVAL_S = 0.005
WAIT_S = 120.0
GOAL = f"at least 5,000 rows/s, and less than 250 ms behind at {RATE:,} messages/s"


@asynccontextmanager
async def mirror(url: str, file: Path) -> AsyncIterator[psutil.Process]:
    process = await asyncio.create_subprocess_exec(
        *python_command("mirror", "--file", str(file), "--log-level", "error"),
        env={**os.environ, "SIGNALMESH_NATS": url, "SIGNALMESH_SWARM": "swarm"},
    )  # fmt: skip
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        await process.wait()


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def cursor_of(file: Path) -> int:
    try:
        with MirrorFile(file) as found:
            return found.cursor()
    except MeshError:  # the file is not complete yet
        return 0


async def reach(file: Path, sequence: int) -> tuple[float, int]:
    """The time when the file's cursor first was at `sequence` or later, and the cursor."""
    async with asyncio.timeout(WAIT_S):
        while (cursor := await asyncio.to_thread(cursor_of, file)) < sequence:  # noqa: ASYNC110 - another process's file
            await asyncio.sleep(POLL_INTERVAL_S)
    return time.perf_counter(), cursor


async def _publish(bus: NatsBus, count: int, rate: float | None, acked: dict[int, float]) -> None:
    """Publish `count` messages, paced or pipelined; records when each was acknowledged."""
    done, left = asyncio.Event(), count

    def on_done(result: Ack | BusError) -> None:
        nonlocal left
        assert isinstance(result, Ack), result
        acked[result.sequence] = time.perf_counter()
        left -= 1
        if not left:
            done.set()

    started_at = time.perf_counter()
    for number in range(count):
        if number % BURST == 0:
            await asyncio.sleep(0 if rate is None else max(0.0, started_at + number / rate - time.perf_counter()))
            while number - (count - left) > 1000:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        bus.send(SUBJECT, PAYLOAD, {"Nats-Msg-Id": f"bench:{number}:{rate}"}, on_done)
    async with asyncio.timeout(WAIT_S):
        await done.wait()


async def _run(directory: Path, backlog: int, live: int) -> tuple[float, float, list[float], float]:
    file = directory / "mirror.sqlite"
    async with NatsServer(directory, port=0) as server:
        bus = await NatsBus.connect(server.url, "swarm", "bench")
        try:
            await ensure_streams(bus)
            await _publish(bus, backlog, None, {})
            async with mirror(server.url, file) as process:
                first_at, first = await reach(file, 1)
                spent = cpu_s(process)
                last_at, last = await reach(file, backlog)
                spent = cpu_s(process) - spent
                acked: dict[int, float] = {}
                seen: list[tuple[float, int]] = []
                publishing = asyncio.create_task(_publish(bus, live, RATE, acked))
                started_at = time.perf_counter()
                while not seen or seen[-1][1] < backlog + live:
                    seen.append(await reach(file, seen[-1][1] + 1 if seen else backlog + 1))
                await publishing
                duration_s = time.perf_counter() - started_at
        finally:
            with contextlib.suppress(BusError):
                await bus.close()
    behind, at = [], 0
    for sequence in range(backlog + 1, backlog + live + 1):
        while seen[at][1] < sequence:
            at += 1
        behind.append(max(0.0, seen[at][0] - acked[sequence]) * 1000)
    return (last - first) / (last_at - first_at), spent / (last - first) * 1e6, behind, live / duration_s


async def mirroring(*, quick: bool = False) -> Result:
    """Rows a second of a backlog, and the time from an acknowledgement to the row in the file."""
    backlog, live = (20_000, 4_000) if quick else (100_000, 40_000)
    async with scratch() as directory:
        rows_s, cpu_us, behind, rate = await _run(directory, backlog, live)
    ms = percentiles(behind)
    met = rows_s >= 5000 and ms["max"] < 250
    return Result(
        name="mirror",
        title="Mirror",
        conditions=(
            "A process `signalmesh mirror` into a new file (WAL, synchronous FULL) beside nats-server and a publisher; "
            f"payloads of {len(PAYLOAD)} bytes. Backlog: {backlog:,} messages, from the first rows seen to the last. "
            f"Behind: from the acknowledgement of each of {live:,} messages to its row in the file, checked "
            "every 5 ms."
        ),
        rows=[
            {"what": "backlog, rows/s", "value": rows_s},
            {"what": "the mirror's CPU, us a row", "value": cpu_us},
            {"what": f"messages/s published (target {RATE:,})", "value": rate},
            *({"what": f"behind, ms, {name}", "value": ms[name]} for name in ("p50", "p90", "p99", "max")),
        ],
        goal=GOAL,
        verdict=f"{rows_s:,.0f} rows/s; at most {ms['max']:.0f} ms behind: {'met' if met else 'missed'}.",
        raw={"rows_s": rows_s, "cpu_us": cpu_us, "lag_ms": ms, "rate": rate},
    )
