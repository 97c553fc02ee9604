"""What the end of a run says, from messages on a bus in memory."""

from __future__ import annotations

import asyncio
from pathlib import Path

from bus.messages import encode
from bus.testing.memory_bus import MemoryBus, MemoryServer
from coordinator.config.loader import load_swarm
from coordinator.runner.outcome import Outcome
from tests.support.counted import heartbeat


class Run:
    """A swarm's outcome; `told` are the texts about the end of its data."""

    def __init__(self, directory: Path) -> None:
        (directory / "swarm.toml").write_text("")
        self.bus = MemoryBus(MemoryServer())
        self.reported: list[str] = []
        self.outcome = Outcome(load_swarm(directory=directory).resolve())
        self.outcome.on_finished = self.reported.append

    async def beat(self, agent: str, status: str, outputs: int = 0) -> None:
        message = heartbeat(agent=agent, status=status, outputs=outputs)
        await self.bus.notify(self.bus.subjects.heartbeat(agent), encode(message))
        for _ in range(10):  # the listener's task takes its turn
            await asyncio.sleep(0)


async def test_the_end_of_the_data_is_told_once_when_every_source_has_ended(tmp_path: Path):
    run = Run(tmp_path)
    await run.outcome.listen(run.bus)
    sources = sorted(load_swarm(directory=tmp_path).resolve().sources)
    assert sources == ["research-1"]
    await run.beat("strategy-momentum", "finished")
    await run.beat("research-1", "live", 599)
    assert run.outcome.ending() is None
    for _ in range(3):
        await run.beat("research-1", "finished", 600)
    assert run.reported == [run.outcome.ending()]
    assert run.reported[0].startswith("the data has ended: research-1 (600 events); ")


async def test_a_source_that_is_restarted_has_not_ended(tmp_path: Path):
    run = Run(tmp_path)
    await run.outcome.listen(run.bus)
    await run.beat("research-1", "finished", 600)
    await run.beat("research-1", "restoring", 600)
    assert run.outcome.ending() is None
