"""`signalmesh explain` on a long stream, over the bus and a mirror's file: decisions from the first to the last."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from benchmarks.mirroring import reach
from benchmarks.report import Result, percentiles
from benchmarks.swarm import DECISIONS, Rounds, Swarm, swarm
from bus.mirror.reader import MIRROR_FILE, MirrorFile
from coordinator.explain.explainer import explain
from coordinator.explain.file_source import FileSource
from coordinator.explain.selection import LATEST, Selector
from coordinator.explain.sources import BusSource, MessageSource
from signalmesh import python_command

GOAL_MS = 500.0
WAIT_S = 600.0


async def _explained(source: MessageSource, rounds: int, count: int) -> list[float]:
    """Milliseconds of each of `count` explanations, spread over the stream."""
    found = []
    for at in range(count):
        number = 1 + at * (rounds - 1) // max(count - 1, 1)
        started_at = time.perf_counter()
        explained = await explain(source, Selector(decision=f"BTC/USD:research-1:{number}"))
        found.append((time.perf_counter() - started_at) * 1000)
        assert explained.same, explained.differences
    return found


async def _commands(running: Swarm, count: int) -> list[float]:
    """Milliseconds of `signalmesh explain latest` as a process, from its start to its end."""
    found = []
    for _ in range(count):
        started_at = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            *python_command("explain", LATEST, "--state-dir", str(running.state_dir)),
            stdout=asyncio.subprocess.DEVNULL,
        )
        assert await process.wait() == 0
        found.append((time.perf_counter() - started_at) * 1000)
    return found


async def explaining(*, quick: bool) -> Result:
    rounds, count = (1000, 5) if quick else (20_000, 40)
    received = Rounds(1, rounds)
    async with swarm(0, limit=rounds) as running:
        await running.client.subscribe(DECISIONS, cb=received.on_decision)
        async with asyncio.timeout(WAIT_S):
            await received.done.wait()
        bus = await running.connect()
        try:
            messages = (await bus.bounds()).last
            path = running.state_dir / MIRROR_FILE
            await reach(path, messages)
            ways: dict[str, Callable[[], Awaitable[list[float]]]] = {
                "over the bus": lambda: _explained(BusSource(bus), rounds, count),
                "the command, over the bus": lambda: _commands(running, max(3, count // 4)),
            }
            found = {name: await way() for name, way in ways.items()}
            with MirrorFile(path) as file:
                found["over the mirror's file"] = await _explained(FileSource(file), rounds, count)
        finally:
            await bus.close()
    worst = max([*found["over the bus"], *found["over the mirror's file"]])
    return Result(
        name="explain",
        title="Explaining a decision",
        conditions=f"A stream of {messages:,} messages ({rounds:,} rounds of the default swarm at full speed); the "
        f"swarm still runs, idle. {count} decisions from the first to the last, each computed again and compared.",
        rows=[{"ms": name, **percentiles(values)} for name, values in found.items()],
        goal=f"less than {GOAL_MS:,.0f} ms on 100,000 messages",
        verdict=f"At most {worst:,.0f} ms, {'met' if worst < GOAL_MS else 'missed'}.",
        notes=["The command includes the start of Python and its imports."],
        raw={"ms": found},
    )
