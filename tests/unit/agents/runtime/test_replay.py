"""An agent over its recorded inputs: skips, timers, sources, programs; recorded by real runtimes on the memory bus."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pytest

from agents.agent import Agent
from agents.runtime import replay as replaying
from agents.runtime.process import make_agent
from agents.runtime.replay import Mismatch, Replayed
from agents.spec import AgentSpec
from bus.durable.message_ids import substitute
from bus.interface import StoredMessage
from bus.messages import Event, MarketData, Signal, Timer, encode
from bus.messages import headers as h
from bus.testing.memory_bus import MemoryBus, MemoryServer
from coordinator.replay.runner import Reported, reported_by_agents
from tests.support.collecting import GUARD_S
from tests.support.runtime import claim_runtime

AT = datetime(2020, 1, 1, tzinfo=UTC)
TICKS = 12
PROGRAM = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    seen = asked["state"].get("seen", 0) + 1
    vote = {"kind": "signal", "signal": "buy", "strength": 0.5, "indicators": {"seen": seen}}
    print(json.dumps({"outputs": [vote], "state": {"seen": seen}}), flush=True)
"""


def tick(number: int, price: float | None = None) -> MarketData:
    return MarketData(
        symbol="A", price=price or float(number), volume=1.0, timestamp=AT, source="feed", sequence=number
    )


class Summing(Agent):
    """Raises on the fifth tick after spoiling its state; sets a timer on the third, and answers it."""

    kind = "summing"
    listens = ("market",)
    publishes = ("signal",)

    @dataclass
    class State:
        seen: list[float] = field(default_factory=list)

    def on_market(self, event: MarketData) -> Signal | None:
        self.state.seen.append(event.price)
        if event.sequence == 5:
            raise RuntimeError("cannot")
        if event.sequence == 3:
            self.set_timer("soon", topic="A", after_ms=1)
            return None
        return self.signal(event, "buy", 0.5, {"sum": sum(self.state.seen)})

    def on_timer(self, timer: Timer) -> Signal:
        return Signal(
            signal="hold", strength=0.1, indicators={}, timestamp=AT, source=self.name, symbol="A", p_up=0.5
        )  # fmt: skip


class Source(Agent):
    """Twelve ticks; one of them is unreadable, and left out by its runtime."""

    kind = "source"
    publishes = ("market",)
    price = 0.0
    waits = False

    async def produce(self, last: MarketData | None) -> AsyncIterator[Event]:
        for number in range((last.sequence or 0) + 1 if last else 1, TICKS + 1):
            if self.waits and number == 4:
                await asyncio.Event().wait()
            await asyncio.sleep(0)
            yield tick(number, self.price or None) if number != 7 else replace(tick(7), price=float("nan"))


def outputs_of(server: MemoryServer, name: str) -> list[StoredMessage]:
    return [m for m in server.messages if m.subject.endswith(f".{name}") and h.OUTPUT in m.headers]


async def recorded(agent: Agent, count: int, ticks: int = 0) -> MemoryServer:
    """What a runtime of `agent` stores on `ticks` ticks, once there are `count` outputs of it."""
    server = MemoryServer()
    bus = MemoryBus(server)
    for number in range(1, ticks + 1):
        server.store("in.swarm.market.A.feed", encode(tick(number)), {})
    runtime = await claim_runtime(agent, bus)
    running = asyncio.create_task(runtime.run())
    async with asyncio.timeout(GUARD_S):
        while len(outputs_of(server, agent.name)) < count or (ticks and runtime.input_processor.cursor < ticks):
            assert not running.done(), running
            await asyncio.sleep(0)
        runtime.drain()
        await running
    await bus.close()
    return server


async def replayed(
    agent: Agent, server: MemoryServer, *, reported: Reported | None = None
) -> tuple[Replayed, list[Mismatch]]:
    """`agent` over what `server` holds, and what differs."""
    if reported is None:
        reported = reported_by_agents(server.subjects, server.messages).get(agent.name, Reported())
    incarnation = Replayed(agent, server.subjects, reported.skipped, reported.handled)
    found: list[Mismatch] = []
    try:
        for stored in server.messages:
            kind, writer = stored.subject.split(".")[1], stored.subject.rpartition(".")[2]
            if writer == agent.name and h.OUTPUT in stored.headers:
                if not incarnation.left_out:
                    found += await incarnation.compare(stored)
                elif (failure := incarnation.confirm_failure(stored)) is not None:
                    found.append(failure)
            if kind in (*agent.listens, "timer") and not incarnation.left_out:
                found += [unlike] if (unlike := await incarnation.take(stored)) else []
        found += await incarnation.compare_rest()
    finally:
        await incarnation.close()
    return incarnation, found


async def test_skips_and_timers_are_as_recorded():
    server = await recorded(Summing("one"), TICKS - 1, TICKS)
    assert reported_by_agents(server.subjects, server.messages)["one"].skipped == {5}
    assert any(m.subject.startswith("swarm.timer.") for m in server.messages)
    incarnation, found = await replayed(Summing("one"), server)
    assert found == []
    assert incarnation.outputs == len(outputs_of(server, "one")) == TICKS - 1
    assert incarnation.waiting == 0
    assert incarnation.input_processor.skips == 1


async def test_a_handler_that_raised_although_it_was_not_recorded():
    server = await recorded(Summing("one"), TICKS - 1, TICKS)
    for handled in (0, TICKS):  # known by its later outputs alone, and by its own reports
        incarnation, [unlike] = await replayed(Summing("one"), server, reported=Reported(handled=handled))
        assert unlike.sequence == 5
        assert "RuntimeError: cannot" in unlike.why
        assert incarnation.left_out.startswith("from message 5 on:")


async def test_an_input_that_the_run_had_not_handled_is_no_difference():
    """As of an agent that was quarantined: the inputs after its last one were never given to it."""
    server = await recorded(Summing("one"), 4, 4)
    for number in range(5, TICKS + 1):
        server.store("in.swarm.market.A.feed", encode(tick(number)), {})
    incarnation, found = await replayed(Summing("one"), server)
    assert found == []
    assert "which its run had not handled: on_market raised RuntimeError: cannot" in incarnation.left_out


async def test_what_the_recorded_run_has_not_stored_is_reported():
    server = await recorded(Summing("one"), TICKS - 1, TICKS)
    missing = outputs_of(server, "one")[-2]
    server.messages.remove(missing)
    last = outputs_of(server, "one")[-1]
    _, found = await replayed(Summing("one"), server)
    assert [(unlike.sequence, unlike.recorded) for unlike in found] == [(last.sequence, None), (last.sequence, last)]
    assert found[0].replayed is not None
    assert found[0].replayed.data == missing.data


async def test_an_output_whose_id_was_squatted_is_compared_in_its_place():
    server = await recorded(Summing("one"), TICKS - 1, TICKS)
    early = outputs_of(server, "one")[-3]
    server.messages.remove(early)
    headers = {**early.headers, h.MSG_ID: substitute(early.headers[h.MSG_ID])}
    server.messages.append(StoredMessage(early.subject, server.messages[-1].sequence + 1, early.data, headers))
    _, found = await replayed(Summing("one"), server)
    assert found == []


async def test_what_the_replay_does_not_publish_is_reported():
    server = await recorded(Summing("one"), TICKS - 1, TICKS)
    stored = outputs_of(server, "one")[-1]
    extra = StoredMessage(stored.subject, stored.sequence + 100, stored.data, {**stored.headers, h.OUTPUT: str(TICKS)})
    server.messages.append(extra)
    _, [unlike] = await replayed(Summing("one"), server)
    assert (unlike.recorded, unlike.replayed) == (extra, None)


async def test_a_source_gives_the_same_events_again():
    server = await recorded(Source("feed"), TICKS - 1)
    incarnation, found = await replayed(Source("feed"), server)
    assert found == []
    assert incarnation.outputs == TICKS - 1


async def test_a_source_with_other_data():
    server = await recorded(Source("feed"), TICKS - 1)
    other = Source("feed")
    other.price = 99.0
    _, found = await replayed(other, server)
    assert len(found) == TICKS - 1
    assert found[0].sequence == outputs_of(server, "feed")[0].sequence


async def test_a_source_that_waits_for_the_world_is_left_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(replaying, "PRODUCE_S", 0.05)
    server = await recorded(Source("feed"), TICKS - 1)
    waiting = Source("feed")
    waiting.waits = True
    incarnation, found = await replayed(waiting, server)
    assert found == []
    assert incarnation.source_left_out.startswith("from its output 4 on")


async def test_short_waits_for_a_source_are_not_counted(monkeypatch: pytest.MonkeyPatch):
    server = await recorded(Source("feed"), TICKS - 1)
    incarnation, found = await replayed(Source("feed"), server)
    assert (found, incarnation.source_left_out) == ([], "")
    monkeypatch.setattr(replaying, "PAUSE_S", -1.0)
    monkeypatch.setattr(replaying, "PRODUCE_S", 0.0)
    incarnation, found = await replayed(Source("feed"), server)
    assert found == []
    assert incarnation.source_left_out


async def test_a_program_gets_the_inputs_again():
    spec = AgentSpec(
        name="program", kind="command", command=(sys.executable, "-c", PROGRAM), listens=("market",),
        publishes=("signal",),
    )  # fmt: skip
    server = await recorded(make_agent(spec), TICKS, TICKS)
    incarnation, found = await replayed(make_agent(spec), server)
    assert found == []
    assert incarnation.outputs == TICKS
    other = replace(spec, command=(sys.executable, "-c", PROGRAM.replace('"buy"', '"sell"')))
    _, found = await replayed(make_agent(other), server)
    assert len(found) == TICKS
