"""What the end of a run says, from messages on a bus in memory."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bus.messages import encode
from bus.testing.memory_bus import MemoryBus, MemoryServer
from coordinator.config.loader import load_swarm
from coordinator.runner import outcome
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


@pytest.mark.parametrize("stored", [True, False])
async def test_what_the_stream_has_not_stored_is_no_decision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: bool
):
    """A captured agent can have an acknowledgement of its message sent to the subject of a decision."""
    monkeypatch.setattr(outcome, "LEAST_RUN_S", 0.0)
    run = Run(tmp_path)
    await run.outcome.listen(run.bus)
    subject = run.bus.subjects.event("decision", "BTC-USD", "coordinator")
    if stored:
        await run.bus.publish(run.bus.subjects.write(subject), b"{}", {})
    else:
        await run.bus.notify(subject, b'{"stream": "swarm_events", "seq": 7}')
    for _ in range(10):
        await asyncio.sleep(0)
    problems = await run.outcome.problems(run.bus, signalled=True)
    assert [text.startswith("no decision was made") for text in problems] == ([] if stored else [True])
