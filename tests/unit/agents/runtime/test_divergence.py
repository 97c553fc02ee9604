"""An agent whose class has changed, or that is no function of its inputs: said loudly, and what is stored stays."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from agents.agent import Agent
from bus.messages import MarketData, Signal, encode
from bus.messages import headers as h
from bus.testing.memory_bus import MemoryBus, MemoryServer
from tests.support.runtime import claim_runtime

TICKS = 6


def tick(n: int) -> MarketData:
    return MarketData(
        symbol="A", price=1.0, volume=1.0, timestamp=datetime(2020, 1, n, tzinfo=UTC), source="feed", sequence=n
    )


def outputs(server: MemoryServer) -> list[tuple[bytes, str, str]]:
    return [(m.data, m.headers[h.OUTPUT], m.headers[h.CAUSE]) for m in server.messages if h.OUTPUT in m.headers]


def answering(*counts: int, word: str = "n") -> type[Agent]:
    """An agent that gives `counts[n]` outputs to its n-th input, then one to each."""

    class Changed(Agent):
        kind = "changed"
        listens = ("market",)
        publishes = ("signal",)

        def on_market(self, event: MarketData) -> list[Signal]:
            at = (event.sequence or 0) - 1
            count = counts[at] if at < len(counts) else 1
            return [self.signal(event, "hold", 0.5, {word: n}) for n in range(count)]

    return Changed


async def run_until(server: MemoryServer, cls: type[Agent], cursor: int) -> None:
    """Run one incarnation without letting it save a state, until it has handled the input at `cursor`."""
    bus = MemoryBus(server)
    runtime = await claim_runtime(cls("agent"), bus, snapshot_inputs=10_000)
    task = asyncio.create_task(runtime.run())
    async with asyncio.timeout(5):
        while runtime.input_processor.cursor < cursor:
            await asyncio.sleep(0)
        await runtime.output_log.flush()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await bus.close()


def alerts(server: MemoryServer) -> list[bytes]:
    return [m.data for m in server.messages if b'"replay_diverged"' in m.data]


@pytest.mark.parametrize(
    ("after", "alarms"),
    [
        pytest.param(answering(2, 2, 2), 0, id="the same"),
        pytest.param(answering(2, 1, 2), 1, id="one output fewer"),
        pytest.param(answering(2, 3, 2), 1, id="one output more"),
        pytest.param(answering(0, 0, 0), 1, id="none any more"),
        pytest.param(answering(2, 2, 2, word="m"), 1, id="other contents"),
    ],
)
async def test_what_is_stored_wins(after: type[Agent], alarms: int, monkeypatch: Any) -> None:
    monkeypatch.setattr("agents.runtime.checkpointer.SNAPSHOT_S", 60.0)
    server = MemoryServer()
    for n in range(1, 4):
        server.store("in.swarm.market.A.feed", encode(tick(n)), {})
    await run_until(server, answering(2, 2, 2), server.last_sequence)
    before = outputs(server)
    assert len(before) == 6
    for n in range(4, TICKS + 1):
        server.store("in.swarm.market.A.feed", encode(tick(n)), {})
    await run_until(server, after, server.last_sequence)
    found = outputs(server)
    assert found[:6] == before
    assert [number for _, number, _ in found] == [str(n) for n in range(1, len(found) + 1)]
    assert len(found) == 6 + 3
    assert bool(alerts(server)) == bool(alarms)
    assert all(
        m.headers.get(h.MSG_ID) for m in server.messages if m.subject.endswith(".agent") and h.EPOCH in m.headers
    )
