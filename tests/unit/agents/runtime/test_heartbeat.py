"""The watch for an incarnation that sends heartbeats and makes no progress."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from agents.agent import Agent
from agents.runtime import heartbeat
from agents.runtime.heartbeat import StallWatch, StartHeartbeats, send_heartbeats
from agents.runtime.inputs import InputState
from agents.runtime.runtime import Runtime
from bus.errors import MeshError
from bus.interface import ReceivedMessage
from bus.messages import Heartbeat, MarketData, encode
from bus.testing.memory_bus import MemoryBus, MemoryServer
from tests.support.collecting import Collector
from tests.support.runtime import claim_runtime

INTERVAL_S, LIMIT_S = 0.01, 0.1


def awaiting(handle: Callable[[int], Awaitable[Any]], limit_s: float | None = None) -> Agent:
    """An agent whose handler awaits `handle(sequence)`."""

    class Awaiting(Agent):
        kind = "awaiting"
        listens = ("market",)
        handler_limit_s = limit_s

        async def on_market(self, tick: MarketData) -> None:
            await handle(tick.sequence or 0)

    return Awaiting("agent")


async def run(agent: Agent, ticks: int, until: Callable[[Runtime], bool]) -> None:
    """Run the agent over so many ticks with its heartbeats, until it ends or `until` is true."""
    server = MemoryServer()
    for n in range(1, ticks + 1):
        tick = MarketData(
            symbol="A", price=1.0, volume=1.0, timestamp=datetime(2020, 1, 1, tzinfo=UTC), source="feed", sequence=n
        )
        server.store("in.swarm.market.A.feed", encode(tick), {})
    bus = MemoryBus(server)
    runtime = await claim_runtime(agent, bus)
    running = asyncio.create_task(runtime.run())
    heartbeats = asyncio.create_task(send_heartbeats(runtime, INTERVAL_S, LIMIT_S))
    try:
        async with asyncio.timeout(20):
            while not running.done() and not until(runtime):
                await asyncio.sleep(INTERVAL_S)
            if running.done():
                await running
    finally:
        for task in (running, heartbeats):
            task.cancel()
        await asyncio.gather(running, heartbeats, return_exceptions=True)
        await bus.close()


async def wait_for_ever(sequence: int) -> None:
    if sequence == 2:
        await asyncio.Event().wait()


async def test_a_handler_that_never_finishes_ends_the_incarnation_with_its_name():
    with pytest.raises(MeshError, match=r"agent agent: on_market over message \d+ has not finished within 0\.1 s"):
        await run(awaiting(wait_for_ever), 3, lambda _: False)


async def test_handlers_that_are_slow_one_after_another_are_progress():
    async def slow(_: int) -> None:
        await asyncio.sleep(LIMIT_S / 3)

    await run(awaiting(slow), 12, lambda runtime: runtime.input_processor.inputs == 12)


async def test_an_agent_may_have_a_longer_limit():
    async def slow(_: int) -> None:
        await asyncio.sleep(3 * LIMIT_S)

    await run(awaiting(slow, limit_s=60.0), 2, lambda runtime: runtime.input_processor.inputs == 2)


async def test_an_idle_agent_is_not_stalled():
    beats: list[InputState] = []

    def long_enough(runtime: Runtime) -> bool:
        beats.append(runtime.input_processor.state)
        return len(beats) * INTERVAL_S > 3 * LIMIT_S and runtime.input_processor.inputs == 1

    async def nothing(_: int) -> None:
        await asyncio.sleep(0)

    await run(awaiting(nothing), 1, long_enough)
    assert beats[-1] is InputState.READING


async def test_an_incarnation_that_failed_and_does_not_end_is_ended_by_force():
    """A source that ignores its cancellation keeps the incarnation from ending."""
    released = asyncio.Event()
    ended: list[MeshError] = []

    class Stubborn(Agent):
        kind = "stubborn"
        publishes = ("market",)

        async def produce(self, _: Any) -> AsyncIterator[MarketData]:
            while not released.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await released.wait()
            events: tuple[MarketData, ...] = ()
            for event in events:
                yield event

    def end(error: MeshError) -> None:
        ended.append(error)
        released.set()

    bus = MemoryBus(MemoryServer())
    runtime = await claim_runtime(Stubborn("agent"), bus)
    running = asyncio.create_task(runtime.run())
    heartbeats = asyncio.create_task(send_heartbeats(runtime, INTERVAL_S, LIMIT_S, end))
    await runtime.ready.wait()
    runtime.fail(error := MeshError("the reason"))
    with pytest.raises(MeshError, match="the reason"):
        await running
    heartbeats.cancel()
    await bus.close()
    assert ended[:1] == [error]


async def test_a_heartbeat_states_when_the_next_one_is_due():
    bus = MemoryBus(MemoryServer())
    runtime = await claim_runtime(awaiting(wait_for_ever), bus)
    received: Collector[ReceivedMessage] = Collector()
    await bus.listen(bus.subjects.heartbeat("agent"), received)
    sending = asyncio.create_task(send_heartbeats(runtime, 30.0))
    [first] = await received.reach(1)
    assert orjson.loads(first.data)["interval_ms"] == 30_000
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    await bus.close()


async def test_an_agent_that_is_live_says_so_at_once():
    bus = MemoryBus(MemoryServer())
    runtime = await claim_runtime(awaiting(wait_for_ever), bus)
    received: Collector[ReceivedMessage] = Collector()
    await bus.listen(bus.subjects.heartbeat("agent"), received)
    sending = asyncio.create_task(send_heartbeats(runtime, 3600.0))
    await received.reach(1)
    running = asyncio.create_task(runtime.run())
    beats = await received.reach(2)
    assert [orjson.loads(beat.data)["status"] for beat in beats] == ["starting", "live"]
    for task in (sending, running):
        task.cancel()
    await asyncio.gather(sending, running, return_exceptions=True)
    await bus.close()


class Watched:
    """The part of a Runtime that a StallWatch reads."""

    def __init__(self, state: InputState, status: str) -> None:
        self.name, self.status, self.failure = "agent", status, None
        self.agent = SimpleNamespace(handler_limit_s=None)
        self.input_processor = SimpleNamespace(inputs=3, skips=0, state=state, fault=None, handling="on_market over 4")
        self.output_log = SimpleNamespace(outputs=3)
        self.bus = SimpleNamespace(is_ready=True)
        self.failures: list[str] = []

    def fail(self, error: MeshError) -> None:
        self.failures.append(str(error))


def watch(state: InputState, status: str = "live") -> tuple[Watched, Callable[[float], None]]:
    """What is watched, and the check of it after a first look."""
    watched: Any = Watched(state, status)
    check = StallWatch(watched, 1.0, lambda _: None).check
    check(0.5)
    return watched, check


@pytest.mark.parametrize("state", [InputState.HANDLING, InputState.FAULTED, InputState.INTERRUPTED])
@pytest.mark.parametrize("status", ["restoring", "live"])
def test_an_unfinished_input_is_watched_in_every_phase(state, status):
    watched, check = watch(state, status)
    check(1.0)
    assert watched.failures == []  # as long as the limit
    check(0.5)
    assert watched.failures == ["agent agent: on_market over 4 has not finished within 1 s"]


@pytest.mark.parametrize(
    ("state", "status", "ends"),
    [
        (InputState.READING, "live", False),
        (InputState.STOPPED, "restoring", False),
        (InputState.STOPPED, "draining", False),
        (InputState.STOPPED, "live", True),
        (InputState.STOPPED, "finished", True),
    ],
)
def test_an_agent_that_reads_restores_or_drains_is_not_stalled(state, status, ends):
    watched, check = watch(state, status)
    check(5.0)
    assert bool(watched.failures) == ends


@pytest.mark.parametrize("part", ["inputs", "skips", "outputs", "bus"])
def test_progress_and_an_unconnected_bus_start_the_time_again(part):
    watched, check = watch(InputState.HANDLING)
    check(0.75)
    if part == "bus":
        watched.bus.is_ready = False
    elif part == "outputs":
        watched.output_log.outputs += 1
    else:
        setattr(watched.input_processor, part, 4)
    check(0.75)
    watched.bus.is_ready = True
    check(0.75)
    assert watched.failures == []
    check(0.75)
    assert len(watched.failures) == 1


async def test_no_snapshot_is_taken_while_an_asynchronous_handler_runs():
    """Its state may be half changed."""
    handling, go_on = asyncio.Event(), asyncio.Event()
    captured: list[Any] = []

    async def handle(_: int) -> None:
        handling.set()
        await go_on.wait()

    def until(runtime: Runtime) -> bool:
        if handling.is_set() and not go_on.is_set():
            captured.append(runtime.capture_snapshot())
            go_on.set()
        if runtime.input_processor.inputs == 1 and runtime.between_inputs:
            captured.append(runtime.capture_snapshot())
            return True
        return False

    await run(awaiting(handle), 1, until)
    assert captured[0] is None
    assert captured[-1].inputs == 1


class Connecting:
    """Buses for the heartbeats of a start, and the subject of each heartbeat that arrives."""

    def __init__(self, *, slow: bool = False) -> None:
        self.server = MemoryServer()
        self.received: list[Heartbeat] = []
        self.arrived = threading.Event()
        self.connecting = threading.Event()
        self.closed = threading.Event()
        self._slow = slow
        self.server.add_listener("swarm.heartbeat.agent", self._take)

    def _take(self, received: ReceivedMessage) -> None:
        message = received.decode(self.server.subjects)
        assert isinstance(message, Heartbeat)
        self.received.append(message)
        if len(self.received) == 3:
            self.arrived.set()

    async def connect(self) -> MemoryBus:
        self.connecting.set()
        if self._slow:
            try:
                await asyncio.Event().wait()
            finally:
                self.closed.set()
        return MemoryBus(self.server)

    def heartbeats(self) -> StartHeartbeats:
        def make(number: int, doing: str) -> Heartbeat:
            return Heartbeat(
                agent="agent", agent_id="id", epoch=3, sequence=number, progress=0, status="starting", interval_ms=10,
                sandbox="base", pid=9, doing=doing,
            )  # fmt: skip

        return StartHeartbeats(self.connect, make, 0.005)


def test_a_process_that_starts_slowly_sends_numbered_heartbeats_with_what_it_does(monkeypatch):
    monkeypatch.setattr(heartbeat, "START_DELAY_S", 0.0)
    world = Connecting()
    with world.heartbeats() as heartbeats:
        heartbeats.doing = "importing slow.py"
        assert world.arrived.wait(20)
    count = len(world.received)
    assert [one.sequence for one in world.received] == list(range(1, count + 1))
    assert {(one.status, one.doing) for one in world.received[1:]} == {("starting", "importing slow.py")}
    assert not heartbeats._thread.is_alive()


def test_a_process_that_starts_soon_opens_no_second_connection():
    world = Connecting()
    with world.heartbeats():
        pass
    assert not world.connecting.is_set()


def test_the_end_of_a_start_does_not_wait_for_a_connection(monkeypatch):
    monkeypatch.setattr(heartbeat, "START_DELAY_S", 0.0)
    world = Connecting(slow=True)
    with world.heartbeats():
        assert world.connecting.wait(20)
    assert world.closed.wait(20)
    assert world.received == []
