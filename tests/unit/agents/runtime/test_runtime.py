"""The runtime under faults at any await: its stored outputs always equal those of an undisturbed run.

Every step of a connection passes a gate. hypothesis chooses at which gate which fault happens: the process dies there,
is frozen there (and thawed later, as a zombie beside its successor), or its connection breaks there, with what is on
the wire stored or lost.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agents.agent import Agent
from agents.runtime.inputs import MAX_CONSECUTIVE_SKIPS, TooManyFailures
from agents.runtime.runtime import Runtime
from bus.durable.fencing import claim, new_agent_id
from bus.errors import Disconnected, MeshError
from bus.messages import Alert, Event, MarketData, Signal, encode
from bus.messages import headers as h
from bus.testing.memory_bus import MemoryBus, MemoryServer
from tests.support.runtime import claim_runtime

START = datetime(2020, 1, 1, tzinfo=UTC)
POISON = b'{"symbol": "A", "price": "high"}'


def tick(n: int) -> MarketData:
    return MarketData(
        symbol="A", price=float(n), volume=1.0, timestamp=START + timedelta(hours=n), source="feed", sequence=n
    )


class Summing(Agent):
    """Two outputs an input, an alert too at every fourth; every seventh has none, and the tenth raises half-way."""

    kind = "summing"
    listens = ("market",)
    publishes = ("signal",)

    @dataclass
    class State:
        seen: list[float] = field(default_factory=list)

    def on_market(self, event: MarketData) -> list[Signal | Alert] | None:
        self.state.seen = [*self.state.seen, event.price][-5:]
        if event.sequence == 10:
            self.state.seen = [-1.0]
            raise RuntimeError("cannot")
        if event.sequence is not None and event.sequence % 7 == 0:
            return None
        total = sum(self.state.seen)
        fourth = event.sequence is not None and event.sequence % 4 == 0
        return [
            *([self.alert("info", "fourth", "look", event.timestamp, total=total)] if fourth else []),
            self.signal(event, "buy", 0.5, {"total": total}),
            self.signal(event, "sell", 0.5, {"total": -total}),
        ]


class Failing(Summing):
    """As that, but it fails on the inputs 5 to 29: on more than it takes to be given up."""

    def on_market(self, event: MarketData) -> list[Signal | Alert] | None:
        answer = super().on_market(event) if event.sequence != 10 else None
        if 5 <= (event.sequence or 0) < 30:
            raise RuntimeError("cannot")
        return answer


class Counting(Agent):
    """A source of twenty events that also answers the signals it hears, but for the seventh, on which it raises."""

    kind = "counting"
    listens = ("signal",)
    publishes = ("market", "signal")

    @dataclass
    class State:
        received: int = 0

    def on_signal(self, event: Signal) -> Signal:
        self.state.received += 1
        if event.round == 7:
            raise RuntimeError("cannot")
        return Signal(
            signal="hold",
            strength=0.5,
            indicators={"heard": self.state.received},
            timestamp=event.timestamp,
            source=self.name,
            symbol="B",
        )

    async def produce(self, last: MarketData | None) -> AsyncIterator[Event]:
        for n in range((last.sequence or 0) + 1 if last else 1, 21):
            yield tick(n)
            await asyncio.sleep(0)


class Gate:
    """Counts the steps of one incarnation; at the chosen ones a fault happens."""

    def __init__(self, faults: dict[int, str], rng: random.Random) -> None:
        self.faults = faults
        self._rng = rng
        self.steps = 0
        self.bus: MemoryBus | None = None
        self.died = asyncio.Event()
        self.frozen = self.brief = False
        self.resumed = asyncio.Event()
        self._hang = asyncio.Event()

    async def __call__(self, name: str) -> None:
        if self.died.is_set():
            if self.frozen:
                await self.resumed.wait()
            else:
                await self._hang.wait()
        self.steps += 1
        fault = self.faults.pop(self.steps, None)
        if fault is None:
            for _ in range(self._rng.randrange(4)):
                await asyncio.sleep(0)
        elif fault == "crash":
            self.died.set()
            await self._hang.wait()
        elif fault in ("freeze", "pause"):
            self.frozen, self.brief = True, fault == "pause"
            self.died.set()
            await self.resumed.wait()
        else:
            assert self.bus is not None
            self.bus.disconnect(lose=fault == "cut_lost")
            asyncio.get_running_loop().call_soon(self._reconnect)
            raise Disconnected(name)

    def _reconnect(self) -> None:
        self._task = asyncio.create_task(self._again())

    async def _again(self) -> None:
        assert self.bus is not None
        try:
            await self.bus.reconnect()
        except Disconnected:
            self._reconnect()


async def live_through(
    server: MemoryServer, cls: type[Agent], lives: list[dict[int, str]], goal: Any, rng: random.Random
) -> list[str]:
    """Run incarnations one after another, the last two without faults, until `goal` says that all is stored.

    Returns why those ended that gave up.
    """
    frozen: list[tuple[Gate, asyncio.Task[None], MemoryBus]] = []
    failed: list[str] = []
    for faults in [*lives, {}, {}]:
        gate = Gate(dict(faults), rng)
        bus = MemoryBus(server, gate)
        gate.bus = bus
        agent_id = new_agent_id()
        epoch = await claim(MemoryBus(server), "agent", agent_id=agent_id, claimed_by="test", sandbox="")
        for zombie_gate, _, _ in frozen:
            if zombie_gate.brief:  # it wakes up beside its successor
                zombie_gate.faults.clear()
                zombie_gate.resumed.set()
        runtime = Runtime(cls("agent"), bus, epoch, agent_id=agent_id, snapshot_inputs=3)
        task = asyncio.create_task(runtime.run())
        done = asyncio.create_task(goal())
        died = asyncio.create_task(gate.died.wait())
        await asyncio.wait({task, done, died}, return_when=asyncio.FIRST_COMPLETED)
        if gate.frozen:
            frozen.append((gate, task, bus))
        else:
            if task.done() and not died.done() and not done.done():
                with_error = task.exception()
                # an incarnation may end itself on a broken connection: it is started again, as the watchdog would
                assert isinstance(with_error, (MeshError, Disconnected)), with_error
                if isinstance(with_error, TooManyFailures):
                    failed.append(str(with_error))
            task.cancel()
        for other in (done, died):
            other.cancel()
        if not faults:
            for gate, zombie, _ in frozen:
                gate.faults.clear()
                gate.resumed.set()
                await asyncio.wait({zombie})
                assert isinstance(zombie.exception(), MeshError)
        await asyncio.gather(task, done, died, return_exceptions=True) if not gate.frozen else None
        if not gate.frozen:
            await bus.close()
    for _, _, bus in frozen:
        await bus.close()
    return failed


def check_fence(server: MemoryServer) -> None:
    """Whatever is stored was published by the incarnation that had claimed last at that moment."""
    claimed = 0
    for message in server.messages:
        if message.subject == "swarm.epoch.agent":
            claimed = message.sequence
        elif (epoch := message.headers.get(h.EPOCH)) is not None:
            assert int(epoch) == claimed


def outputs(server: MemoryServer) -> list[tuple[str, bytes, str, str]]:
    return [
        (m.subject, m.data, m.headers[h.OUTPUT], m.headers.get(h.CAUSE, ""))
        for m in server.messages
        if m.headers.get(h.OUTPUT) and m.subject.endswith(".agent")
    ]


@pytest.fixture(autouse=True)
def snapshots_at_any_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken whenever the loop turns, not just after an input: what does not belong together is then caught apart."""
    monkeypatch.setattr("agents.runtime.checkpointer.SNAPSHOT_S", 0.0)


FAULTS = st.dictionaries(
    st.integers(1, 260), st.sampled_from(["crash", "freeze", "pause", "cut_lost", "cut_stored"]), max_size=4
)


LIVES_AND_SEED = (st.lists(FAULTS, max_size=4), st.integers(0, 2**32))
EXAMPLES = 50
searching = settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))


async def summing_run(lives: list[dict[int, str]], rng: random.Random) -> MemoryServer:
    server = MemoryServer()
    for n in range(1, 41):
        if n == 5:
            server.store("in.swarm.market.A.feed", POISON, {})
        server.store("in.swarm.market.A.feed", encode(tick(n)), {})

    async def goal() -> None:
        while len(outputs(server)) < 77:
            await asyncio.sleep(0)

    await live_through(server, Summing, lives, goal, rng)
    return server


@searching
@given(*LIVES_AND_SEED)
@example(lives=[{20: "cut_stored", 28: "crash"}], seed=0)  # dies before the alert about the poison message is stored
def test_outputs_equal_an_undisturbed_run(lives: list[dict[int, str]], seed: int) -> None:
    async def run() -> None:
        async with asyncio.timeout(10):
            calm = outputs(await summing_run([], random.Random(seed)))
            server = await summing_run(lives, random.Random(seed))
        assert outputs(server) == calm
        check_fence(server)
        assert [number for *_, number, _ in calm] == [str(n) for n in range(1, 78)]
        skipped = [m for m in server.messages if b'"skipped"' in m.data]
        assert len({m.data[: m.data.index(b"timestamp")] for m in skipped}) == 1
        assert sum(b"poison_message" in m.data for m in server.messages) == 1

    asyncio.run(run())


@pytest.mark.slow
@searching
@given(*LIVES_AND_SEED)
def test_an_agent_that_fails_on_everything_is_ended_by_the_stream_alone(lives: list[dict[int, str]], seed: int) -> None:
    async def run(lives: list[dict[int, str]]) -> tuple[MemoryServer, list[str]]:
        server = MemoryServer()
        for n in range(1, 41):
            server.store("in.swarm.market.A.feed", encode(tick(n)), {})

        async def goal() -> None:
            while len(outputs(server)) < 32:
                await asyncio.sleep(0)

        async with asyncio.timeout(10):
            return server, await live_through(server, Failing, lives, goal, random.Random(seed))

    calm, failed = asyncio.run(run([]))
    assert [f"{MAX_CONSECUTIVE_SKIPS} inputs in a row" in why for why in failed] == [True]
    server, failed = asyncio.run(run(lives))
    assert len(failed) <= 1  # none if it died in that very moment
    assert outputs(server) == outputs(calm)
    skipped = {orjson.loads(m.data)["detail"]["sequence"] for m in server.messages if b'"skipped"' in m.data}
    ticks = [m.sequence for m in server.messages if m.subject.endswith(".feed")]
    assert skipped == set(ticks[4:29])
    check_fence(server)


@searching
@given(*LIVES_AND_SEED)
@example(lives=[dict.fromkeys((1, 15, 66), "cut_stored"), {}], seed=263)  # cut before it follows its inputs
def test_a_source_goes_on_after_its_last_stored_event(lives: list[dict[int, str]], seed: int) -> None:
    async def run() -> None:
        server = MemoryServer()
        for n in range(1, 16):
            signal = Signal(signal="buy", strength=1.0, indicators={}, timestamp=START, source="x", symbol="B", round=n)
            server.store("in.swarm.signal.B.x", encode(signal), {})

        async def goal() -> None:
            while len(outputs(server)) < 34:
                await asyncio.sleep(0)

        async with asyncio.timeout(10):
            await live_through(server, Counting, lives, goal, random.Random(seed))
        check_fence(server)
        found = outputs(server)
        assert [number for *_, number, _ in found] == [str(n) for n in range(1, 35)]
        assert [data for subject, data, *_ in found if "market" in subject] == [encode(tick(n)) for n in range(1, 21)]
        answers = [data for subject, data, *_ in found if "signal" in subject]
        assert [f'"heard":{n}'.encode() in data for n, data in enumerate(answers, 1)] == [True] * 14

    asyncio.run(run())


async def test_a_bus_that_goes_away_during_a_skip_is_asked_again_when_it_is_back() -> None:
    server = MemoryServer()
    for n in range(8, 13):
        server.store("in.swarm.market.A.feed", encode(tick(n)), {})
    asked: list[bool] = []

    async def gate(step: str) -> None:
        if step == "bounds":
            if len(asked) == 1:  # the first time it is asked is at the start, the second after the skip
                bus.disconnect()
            asked.append(bus.connected)
            assert len(asked) <= 2 or bus.connected, "asked again while it is away"

    bus = MemoryBus(server, gate)
    runtime = await claim_runtime(Summing("agent"), bus)
    task = asyncio.create_task(runtime.run())
    async with asyncio.timeout(10):
        while not task.done() and len(asked) < 2:
            await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
        assert asked == [True, False]
        await bus.reconnect()
        while not task.done() and len(outputs(server)) < 10:
            await asyncio.sleep(0)
        runtime.drain()
        await task
    assert asked == [True, False, True]
    assert [number for *_, number, _ in outputs(server)] == [str(n) for n in range(1, 11)]
    await bus.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "property_",
    [
        test_outputs_equal_an_undisturbed_run,
        test_an_agent_that_fails_on_everything_is_ended_by_the_stream_alone,
        test_a_source_goes_on_after_its_last_stored_event,
    ],
    ids=lambda tested: tested.__name__,
)
def test_a_search_that_is_five_times_longer(property_: Any) -> None:
    given(*LIVES_AND_SEED)(settings(searching, max_examples=5 * EXAMPLES)(property_.hypothesis.inner_test))()


if __name__ == "__main__":
    pytest.main([__file__, "-x", "-q"])
