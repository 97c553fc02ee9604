"""What tracing costs at full speed: off, as by default, and every trace; the same swarm, taking turns."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import os
import statistics
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psutil

from benchmarks.report import Result
from benchmarks.swarm import DECISIONS, Rounds, swarm

OFF, DEFAULT, ALL = "off", "default, 50 traces/s", "all traces"
WAYS: dict[str, dict[str, str]] = {OFF: {}, DEFAULT: {}, ALL: {"OTEL_TRACES_SAMPLER": "always_on"}}
GOAL = 0.05
WAIT_S = 180.0


class _Taker(http.server.BaseHTTPRequestHandler):
    """Takes whatever is posted: the least that a collector could do."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Quiet."""


def serve() -> None:
    """A collector in a process of its own; prints its port."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Taker)
    print(server.server_port, flush=True)
    server.serve_forever()


@asynccontextmanager
async def _collector() -> AsyncIterator[str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from benchmarks.tracing import serve; serve()", stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(await process.stdout.readline())}"
    finally:
        process.kill()
        await process.wait()


@contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """These OTEL_* variables and no others, for what is started within."""
    before = {name: value for name, value in os.environ.items() if name.startswith("OTEL_")}
    for name in before:
        del os.environ[name]
    os.environ.update(settings)
    try:
        yield
    finally:
        for name in settings:
            os.environ.pop(name, None)
        os.environ.update(before)


def _cpu_s(pid: int) -> float:
    """CPU time of a process and of all below it so far, seconds."""
    top = psutil.Process(pid)
    total = 0.0
    for process in (top, *top.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


async def _run(rounds: Rounds) -> tuple[float, float]:
    """Decisions a second, and ms of CPU of the whole swarm for each."""
    async with swarm(0) as running:
        await running.client.subscribe(DECISIONS, cb=rounds.on_decision)
        async with asyncio.timeout(WAIT_S):
            await rounds.begun.wait()
            before_s = await asyncio.to_thread(_cpu_s, running.process.pid)
            first = max(rounds.decisions)
            await rounds.done.wait()
        used_s = await asyncio.to_thread(_cpu_s, running.process.pid) - before_s
        return rounds.rate(), used_s * 1000 / (max(rounds.decisions) - first)


async def tracing(*, quick: bool) -> Result:
    measured, turns = (3000, 3) if quick else (8000, 5)
    rates: dict[str, list[float]] = {name: [] for name in WAYS}
    cpu: dict[str, list[float]] = {name: [] for name in WAYS}
    async with _collector() as url:
        for turn in range(turns):
            order = list(WAYS)[turn % len(WAYS) :] + list(WAYS)[: turn % len(WAYS)]
            for name in order:
                endpoint = {} if name == OFF else {"OTEL_EXPORTER_OTLP_ENDPOINT": url}
                with _environment({**endpoint, **WAYS[name]}):
                    rate, used = await _run(Rounds(501, 500 + measured))
                rates[name].append(rate)
                cpu[name].append(used)
    slower = {
        name: 1 - statistics.median(ours / off for ours, off in zip(rates[name], rates[OFF], strict=True))
        for name in WAYS
    }
    dearer = {
        name: statistics.median(ours / off for ours, off in zip(cpu[name], cpu[OFF], strict=True)) - 1 for name in WAYS
    }
    rows = [
        {
            "tracing": name,
            "decisions/s": statistics.median(rates[name]),
            "slower": f"{slower[name]:+.1%}",
            "CPU ms a decision": statistics.median(cpu[name]),
            "dearer": f"{dearer[name]:+.1%}",
            "turns": ", ".join(f"{value:,.0f}" for value in rates[name]),
        }
        for name in WAYS
    ]
    return Result(
        name="tracing",
        title="What tracing costs",
        conditions=f"The default swarm at --speed 0, {measured:,} rounds after the first 500, {turns} turns, "
        "interleaved; the collector is a process on the same machine that reads and answers. CPU is that of all "
        "processes of the swarm, nats-server among them; `slower` and `dearer`: medians of the turns' ratios to off.",
        rows=rows,
        goal=f"by default less than {GOAL:.0%}",
        verdict=f"By throughput {slower[DEFAULT]:+.1%}, by CPU {dearer[DEFAULT]:+.1%}: "
        f"{'met' if max(slower[DEFAULT], dearer[DEFAULT]) < GOAL else 'missed'}.",
        raw={"decisions_per_s": rates, "cpu_ms_a_decision": cpu},
    )
