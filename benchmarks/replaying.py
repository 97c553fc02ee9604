"""Replaying a recorded run: one pass of `signalmesh replay`, and each agent's own recovery without a snapshot."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncGenerator
from pathlib import Path

from agents.runtime.process import make_agent
from agents.runtime.runtime import Runtime
from benchmarks.report import Result
from benchmarks.swarm import Rounds, swarm
from bus.durable.fencing import claim, new_agent_id
from bus.interface import StoredMessage
from bus.observability.logging import set_up_logs
from bus.testing.memory_bus import MemoryBus, MemoryServer
from coordinator.config.loader import load_swarm
from coordinator.config.settings import SwarmConfig
from coordinator.replay.runner import Recording, Replayer, ReplayRange, reported_by_agents

GOAL = 20_000
WAIT_S = 120.0


async def record(rounds: int) -> list[StoredMessage]:
    """The stream of a real swarm after `rounds` rounds at full speed."""
    received = Rounds(1, rounds)
    async with swarm(0, limit=rounds) as running:
        await running.client.subscribe("swarm.decision.*.*", cb=received.on_decision)
        bus = await running.connect()
        try:
            async with asyncio.timeout(WAIT_S):
                await received.done.wait()
            return await bus.read_back(("swarm.>",), 1)
        finally:
            await bus.close()


async def _in_one_pass(messages: list[StoredMessage], config: SwarmConfig) -> tuple[int, float, float]:
    async def rows() -> AsyncGenerator[StoredMessage, None]:
        for stored in messages:
            yield stored

    subjects = MemoryServer().subjects
    recording = Recording("memory", subjects, 1, len(messages), reported_by_agents(subjects, messages), rows())
    replayer = Replayer(recording, config, ReplayRange())
    wall, cpu = time.perf_counter(), time.process_time()
    await replayer.run(recording.messages, None)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    await replayer.close()
    found = replayer.build_report(wall)
    assert found.ok, found.differences
    return found.inputs, wall, cpu


async def _by_recovery(messages: list[StoredMessage], config: SwarmConfig) -> tuple[int, float, float]:
    """Each agent's runtime on the memory bus, from no snapshot to ready: the replay of a restart."""
    inputs = 0
    wall = cpu = 0.0
    for settings in config.agents:
        server = MemoryServer()
        for stored in messages:
            server.store(f"in.{stored.subject}", stored.data, stored.headers)
        agent, bus, agent_id = make_agent(settings.spec), MemoryBus(server), new_agent_id()
        epoch = await claim(bus, agent.name, agent_id=agent_id, claimed_by=agent.name, sandbox="")
        runtime = Runtime(agent, bus, epoch, agent_id=agent_id)
        started_wall, started_cpu = time.perf_counter(), time.process_time()
        running = asyncio.create_task(runtime.run())
        async with asyncio.timeout(WAIT_S):
            await runtime.ready.wait()
        wall += time.perf_counter() - started_wall
        cpu += time.process_time() - started_cpu
        inputs += runtime.input_processor.inputs
        runtime.drain()
        await running
    return inputs, wall, cpu


async def replaying(*, quick: bool) -> Result:
    rounds, turns = (1000, 1) if quick else (8000, 3)
    set_up_logs("error")
    config = load_swarm(directory=Path("/nonexistent"))
    messages = await record(rounds)
    ways = {"signalmesh replay": _in_one_pass, "recovery of each agent, memory bus": _by_recovery}
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            inputs, wall, cpu = await way(messages, config)
            rates[name].append((inputs / wall, inputs / cpu))
    rows = [
        {
            "inputs/s": name,
            "median": statistics.median(wall for wall, _ in found),
            "best": max(wall for wall, _ in found),
            "per CPU second": statistics.median(cpu for _, cpu in found),
        }
        for name, found in rates.items()
    ]
    best = statistics.median(wall for wall, _ in rates["signalmesh replay"])
    return Result(
        name="replay",
        title="Replaying a recorded run",
        conditions=f"{len(messages):,} messages of the default swarm ({rounds:,} rounds at full speed), in memory; "
        f"{turns} turns. An input is a message given to a handler; each output is encoded, checked, compared.",
        rows=rows,
        goal=f"{GOAL:,} inputs/s",
        verdict=f"Median {best:,.0f}, {'met' if best >= GOAL else 'missed'}.",
        notes=["One process, one core: the agents take turns. Their construction (reading data files) is not counted."],
        raw={"rates": rates},
    )
