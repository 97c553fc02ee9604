"""What an agent publishes is counted: a burst passes, a faster agent waits, and a flood ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from agents.agent import Agent
from agents.runtime import output_rate
from agents.runtime.output_rate import Flooding, OutputRate
from agents.runtime.output_validation import MAX_OUTPUTS, BadOutput, OutputValidator
from bus.errors import EXIT_USAGE, MeshError
from bus.messages import MarketData, Signal, now
from bus.messages.subjects import Subjects


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.s = 100.0
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: self.s)


@pytest.fixture
async def clock(monkeypatch):
    return Clock(monkeypatch)


def make(per_s: int) -> tuple[OutputRate, list[MeshError]]:
    ended: list[MeshError] = []
    return OutputRate("me", per_s, ended.append), ended


async def test_a_burst_passes_and_a_faster_agent_waits(clock):
    rate, ended = make(100)
    for _ in range(100):
        rate.count("s", 10)
        assert rate.pause_s() == 0.0
    rate.count("s", 10)
    assert rate.pause_s() == pytest.approx(0.01)
    clock.s += 0.01
    assert rate.pause_s() == 0.0
    for _ in range(1000):  # exactly as fast as it may be
        rate.count("s", 10)
        clock.s += 0.0101
        assert rate.pause_s() == 0.0
    assert ended == []


async def test_a_large_output_counts_as_several(clock):
    rate, _ = make(100)
    rate.count("s", 200 * 1024)
    assert rate.pause_s() == pytest.approx(1.0)


async def test_a_flood_ends_the_agent_and_a_pause_forgives(clock):
    rate, ended = make(100)
    for _ in range(9):
        rate.count("s", 200 * 1024)
        rate.pause_s()
        clock.s += 1.0
    clock.s += 60.0
    assert rate.pause_s() == 0.0
    for _ in range(25):
        rate.count("swarm.signal.A.me", 200 * 1024)
        rate.pause_s()
        assert (ended == []) == (clock.s < 100 + 69 + output_rate.FLOOD_S)
        clock.s += 1.0
    [first, *_] = ended
    assert isinstance(first, Flooding)
    assert first.exit_code == EXIT_USAGE, "no restart"
    for word in ("agent me", "100 outputs", "swarm.signal.A.me", "max_outputs_per_s", "signalmesh revive me"):
        assert word in str(first)


class Endless(Agent):
    kind = "endless"
    listens = ("market",)

    def on_market(self, tick: MarketData) -> Iterator[Signal]:
        while True:
            yield self.signal(tick, "buy", 0.5)


def tick() -> MarketData:
    return MarketData(symbol="A", price=1.0, volume=1.0, timestamp=now(), source="x", sequence=1)


def test_outputs_without_end_are_a_fault_of_the_handler():
    agent = Endless("me")
    validator = OutputValidator(agent, Subjects("swarm"))
    with pytest.raises(BadOutput, match=f"on_market returned {MAX_OUTPUTS + 1} messages .*at most {MAX_OUTPUTS} of"):
        validator.prepare(agent.on_market(tick()), "on_market returned", "A")
    large: Any = Signal(signal="buy", strength=0.5, indicators={"x": "y" * 200_000}, timestamp=now(), source="me")
    with pytest.raises(BadOutput, match="messages of 168"):
        validator.prepare([large] * 100, "on_market returned", "A")
    assert len(validator.prepare([large] * 10, "on_market returned", "A")) == 10
