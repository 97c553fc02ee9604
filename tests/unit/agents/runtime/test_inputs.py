"""Handlers that raise, or return what nobody could read: their events are skipped, counted and told of."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
import structlog
from structlog.testing import LogCapture

from agents.agent import Agent
from agents.runtime.inputs import MAX_CONSECUTIVE_SKIPS
from agents.runtime.runtime import Runtime
from bus.durable.snapshots import Snapshot
from bus.errors import MeshError, UsageError
from bus.interface import KvEntry
from bus.messages import MarketData, Signal, encode
from bus.messages import headers as h
from bus.testing.memory_bus import MemoryBus, MemoryServer
from tests.support.runtime import claim_runtime

AT = datetime(2020, 1, 1, tzinfo=UTC)


def tick(n: int) -> MarketData:
    return MarketData(symbol="A", price=1.0, volume=1.0, timestamp=AT, source="feed", sequence=n)


def signal(**fields: Any) -> Signal:
    proper: dict[str, Any] = {"signal": "buy", "strength": 0.5, "indicators": {}, "timestamp": AT, "source": "agent"}
    return Signal(**proper | fields)


async def dawdle(step: str) -> None:
    """Reading back takes so long that a source could yield many events meanwhile."""
    for _ in range(100 if step in ("bounds", "read_back") else 0):
        await asyncio.sleep(0)


class Feed:
    """A server with `count` ticks, and the agent's lives on it."""

    def __init__(self, count: int) -> None:
        self.server = MemoryServer()
        for n in range(1, count + 1):
            self.server.store("in.swarm.market.A.feed", encode(tick(n)), {})

    async def live(self, cls: type[Agent], until: Any = None) -> Runtime:
        """One incarnation, drained at the end of the ticks (or when `until` says so); raises what ends it."""
        bus = MemoryBus(self.server, dawdle)
        end = max((m.sequence for m in self.server.messages if m.subject.endswith(".feed")), default=0)
        runtime = await claim_runtime(cls("agent"), bus)
        task = asyncio.create_task(runtime.run())
        try:
            async with asyncio.timeout(10):
                while not task.done() and not (until(runtime) if until else runtime.input_processor.cursor >= end):
                    await asyncio.sleep(0)
                runtime.drain()
                await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await bus.close()
        return runtime

    def stored(self, kind: str) -> list[dict[str, Any]]:
        found = [m for m in self.server.messages if m.subject.startswith(f"swarm.{kind}.")]
        return [orjson.loads(m.data) for m in found if m.subject.endswith(".agent")]

    def skipped(self) -> list[tuple[int, str]]:
        """Sequence and reason of every skipped event, in the order of the stream."""
        events = (report for report in self.stored("lifecycle") if report["event"] == "skipped")
        return [(report["detail"]["sequence"], report["reason"]) for report in events]

    def alerts(self, code: str) -> list[str]:
        return [alert["message"] for alert in self.stored("alert") if alert["code"] == code]

    def numbers(self) -> list[str]:
        return [m.headers[h.OUTPUT] for m in self.server.messages if h.OUTPUT in m.headers]

    async def snapshot(self) -> Snapshot:
        bus = MemoryBus(self.server)
        found = await bus.kv_get(bus.subjects.state_bucket, "agent")
        await bus.close()
        assert found is not None
        return Snapshot(**orjson.loads(found.value))


def returning(what: Any) -> Any:
    """An agent that answers the second tick with `what`, and any other properly."""

    class Answering(Agent):
        kind = "answering"
        listens = ("market",)
        publishes = ("signal",)

        def on_market(self, event: MarketData) -> Any:
            return (what() if callable(what) else what) if event.sequence == 2 else signal()

    return Answering


def raising(error: BaseException) -> Any:
    def now() -> None:
        raise error

    return now


@pytest.mark.parametrize(
    ("what", "reported"),
    [
        pytest.param(42, ["42", "int", "Signal"], id="no message"),
        pytest.param("buy", ["'buy'", "str", "Signal"], id="a string is no list of messages"),
        pytest.param([signal(), None], ["None", "Signal"], id="None among messages"),
        pytest.param(tick(1), ["MarketData", "Signal", "publishes"], id="a kind not declared"),
        pytest.param(signal(signal="maybe"), ["signal", "'maybe'", "buy, sell, hold"], id="enum"),
        pytest.param(signal(strength=7), ["strength", "7", "0 to 1"], id="range"),
        pytest.param(signal(strength=float("nan")), ["strength", "nan", "finite"], id="nan"),
        pytest.param(signal(indicators={"rsi": {"x": [float("inf")]}}), ["indicators.rsi.x[0]", "inf"], id="inf"),
        pytest.param(signal(indicators={"rsi": {1, 2}}), ["indicators.rsi", "set"], id="no JSON"),
        pytest.param(signal(indicators=None), ["indicators", "missing"], id="None for a required field"),
        pytest.param(signal(strength="0.5"), ["strength", "'0.5'", "float"], id="type"),
        pytest.param(signal(round=1.5), ["round", "1.5", "int"], id="integer"),
        pytest.param(signal(timestamp=datetime(2020, 1, 1)), ["timestamp", "time zone"], id="naive"),  # noqa: DTZ001
        pytest.param(signal(source=5), ["source", "5", "str"], id="source"),
        pytest.param(raising(ValueError("told you")), ["ValueError", "told you"], id="raises"),
        pytest.param(raising(SystemExit(0)), ["SystemExit"], id="SystemExit"),
        pytest.param(raising(KeyboardInterrupt()), ["KeyboardInterrupt"], id="KeyboardInterrupt"),
        pytest.param(raising(asyncio.CancelledError()), ["CancelledError"], id="CancelledError of its own"),
    ],
)
@pytest.mark.parametrize("asynchronous", [False, True], ids=["def", "async def"])
async def test_an_output_that_cannot_be_decoded_is_a_fault_of_the_handler(
    what: Any, reported: list[str], asynchronous: bool
):
    feed, cls = Feed(3), returning(what)
    if asynchronous:
        plain = cls.on_market

        async def on_market(self: Any, event: MarketData) -> Any:
            await asyncio.sleep(0)
            return plain(self, event)

        cls.on_market = on_market
    runtime = await feed.live(cls)
    [(sequence, reason)] = feed.skipped()
    assert sequence == 2
    assert all(word in reason for word in ["on_market", *reported]), reason
    [alert] = feed.alerts("handler_failed")
    assert all(word in alert for word in ["agent", "on_market", *reported]), alert
    assert len(feed.stored("signal")) == 2
    assert feed.numbers() == ["1", "2"]
    assert (runtime.input_processor.skips, runtime.input_processor.inputs) == (1, 2)
    assert (await feed.snapshot()).skips == 1


async def test_skips_are_counted_over_restarts():
    feed = Feed(3)
    await feed.live(returning(42))
    runtime = await feed.live(returning(42))
    assert runtime.input_processor.skips == 1
    assert len(feed.skipped()) == 1


class Hopeless(Agent):
    """Raises on every event, but for those whose sequence is in `mended`."""

    kind = "hopeless"
    listens = ("market",)
    publishes = ("signal",)
    fixed: tuple[int, ...] = ()

    def on_market(self, event: MarketData) -> Signal | None:
        if event.sequence not in self.fixed:
            raise ZeroDivisionError(f"by tick {event.sequence}")
        return self.signal(event, "hold", 0.5)


class Fine(Hopeless):
    fixed = tuple(range(100))


async def test_an_agent_that_only_raises_is_ended_and_gets_another_chance_in_a_new_process():
    feed = Feed(3 * MAX_CONSECUTIVE_SKIPS)
    for incarnation in (1, 2):
        with pytest.raises(
            UsageError, match=rf"on_market raised ZeroDivisionError: by tick {incarnation * MAX_CONSECUTIVE_SKIPS}$"
        ):
            await feed.live(Hopeless)
        assert [sequence for sequence, _ in feed.skipped()] == list(range(1, incarnation * MAX_CONSECUTIVE_SKIPS + 1))

    class Mended(Hopeless):
        fixed = tuple(range(1, 1000))

    runtime = await feed.live(Mended)
    assert runtime.input_processor.skips == 2 * MAX_CONSECUTIVE_SKIPS
    assert runtime.input_processor.skips_in_a_row == 0
    assert feed.numbers() == [str(n) for n in range(1, MAX_CONSECUTIVE_SKIPS + 1)]


async def test_one_success_among_faults_keeps_it_going_and_reports_are_bounded():
    class Sometimes(Hopeless):
        fixed = tuple(range(0, 1000, 5))

    feed = Feed(200)
    runtime = await feed.live(Sometimes)
    assert runtime.input_processor.skips == len(feed.skipped()) == 160
    assert len(feed.numbers()) == 40
    full, [rest] = feed.alerts("handler_failed")[:-1], feed.alerts("handler_failed")[-1:]
    assert len(full) == 3
    assert "157 more" in rest
    assert "by tick 199" in rest


class Source(Agent):
    """A source that hears signals and raises on the third of them, while it goes on producing."""

    kind = "source"
    listens = ("signal",)
    publishes = ("market",)

    @dataclass
    class State:
        received: int = 0

    def on_signal(self, event: Signal) -> None:
        self.state.received += 1
        if event.round == 3:
            raise RuntimeError("cannot")

    async def produce(self, last: MarketData | None) -> AsyncIterator[MarketData]:
        for n in range((last.sequence or 0) + 1 if last else 1, 101):
            yield tick(n)
            for _ in range(10):
                await asyncio.sleep(0)


async def test_a_source_that_skips_an_input_numbers_its_events_without_a_gap():
    feed = Feed(0)
    for n in range(1, 6):
        feed.server.store("in.swarm.signal.A.x", encode(signal(round=n, symbol="A")), {})
    await feed.live(Source, lambda runtime: runtime.status == "finished" and runtime.input_processor.cursor >= 5)
    assert [market["sequence"] for market in feed.stored("market")] == list(range(1, 101))
    assert feed.numbers() == [str(n) for n in range(1, 101)]
    assert len(feed.skipped()) == 1
    assert not feed.alerts("output_gap")


async def test_a_source_drops_what_cannot_be_decoded():
    class Broken(Source):
        async def produce(self, last: MarketData | None) -> AsyncIterator[Any]:
            for n in range((last.sequence or 0) + 1 if last else 1, 6):
                yield (
                    signal()
                    if n == 2
                    else MarketData(
                        symbol="A", price=-1.0 if n == 4 else 1.0, volume=1.0, timestamp=AT, source="agent", sequence=n
                    )
                )

    feed = Feed(0)
    runtime = await feed.live(Broken, lambda runtime: runtime.status == "finished")
    assert [market["sequence"] for market in feed.stored("market")] == [1, 3, 5]
    assert feed.numbers() == ["1", "2", "3"]
    assert runtime.input_processor.skips == 2
    undeclared, negative = feed.alerts("handler_failed")
    assert all(word in undeclared for word in ("produce", "Signal", "MarketData")), undeclared
    assert all(word in negative for word in ("produce", "price", "-1.0")), negative


@pytest.mark.parametrize("broken", [MAX_CONSECUTIVE_SKIPS - 1, MAX_CONSECUTIVE_SKIPS])
async def test_a_source_is_ended_by_events_in_a_row_that_cannot_be_decoded_and_one_that_can_ends_the_row(broken):
    class Mostly(Source):
        async def produce(self, last: MarketData | None) -> AsyncIterator[Any]:
            yield tick(1)
            for _ in range(broken):
                yield signal()
            yield tick(2)

    feed = Feed(0)
    if broken < MAX_CONSECUTIVE_SKIPS:
        await feed.live(Mostly, lambda runtime: runtime.status == "finished")
        assert feed.numbers() == ["1", "2"]
    else:
        with pytest.raises(UsageError, match=f"{broken} events in a row were unreadable"):
            await feed.live(Mostly, lambda _: False)
        assert feed.numbers() == ["1"]


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt()], ids=["SystemExit", "KeyboardInterrupt"])
async def test_a_source_that_exits_has_failed(error: BaseException):
    class Exiting(Source):
        async def produce(self, last: MarketData | None) -> AsyncIterator[MarketData]:
            yield tick(1)
            raise error

        async def teardown(self) -> None:
            raise error  # logged, and nothing more

    feed = Feed(0)
    with pytest.raises(MeshError, match=f"agent agent: produce raised {type(error).__name__}"):
        await feed.live(Exiting, lambda _: False)
    assert feed.numbers() == ["1"]


@pytest.mark.parametrize(
    ("value", "reported"),
    [
        ({1, 2}, "seen: .*set"),
        (float("nan"), r"State\.seen: nan .* null"),
        ([1.0, float("inf")], r"State\.seen\[1\]: inf .* null"),
    ],
)
async def test_a_state_that_cannot_be_saved_is_named(value: Any, reported: str):
    class Unsaved(Hopeless):
        @dataclass
        class State:
            maybe: int | None = None
            seen: float | list[float] = 0.0

        def on_market(self, event: MarketData) -> None:
            if event.sequence == 2:
                self.state.seen = value

    with pytest.raises(UsageError, match=f"agent agent: its state cannot be saved: .*{reported}"):
        await Feed(100).live(Unsaved)


async def test_a_saved_state_that_does_not_fit_is_a_mistake_that_no_restart_fixes():
    class Before(Fine):
        @dataclass
        class State:
            seen: int = 5

    class After(Fine):
        @dataclass
        class State:
            seen: str = ""

    feed = Feed(3)
    await feed.live(Before)
    with pytest.raises(UsageError, match=r"agent agent: its saved state does not fit its class any more .*seen"):
        await feed.live(After)


async def test_a_state_that_is_too_large_to_save_is_reported_and_the_agent_goes_on(monkeypatch):
    monkeypatch.setattr("agents.runtime.checkpointer.MAX_SNAPSHOT_BYTES", 10)
    feed = Feed(3)
    runtime = await feed.live(returning(None))
    assert runtime.input_processor.inputs == 3
    [alert] = feed.alerts("state_too_large")
    assert "expected at most" in alert
    assert (await feed.snapshot()).inputs == 0  # that of its start


async def test_a_skipped_message_is_named_in_the_alert():
    feed = Feed(3)
    await feed.live(returning(42))
    [(sequence, _)] = feed.skipped()
    [alert] = [alert for alert in feed.stored("alert") if alert["code"] == "handler_failed"]
    assert (alert["agent"], alert["detail"]) == ("agent", {"sequence": sequence})


async def test_a_snapshot_that_cannot_be_read_is_reported_and_the_state_is_built_again():
    feed = Feed(3)
    await feed.live(returning(None))
    bucket = feed.server.buckets[feed.server.subjects.state_bucket]
    bucket["agent"] = KvEntry(b"{", bucket["agent"].revision)
    before = feed.numbers()
    runtime = await feed.live(returning(None))
    [alert] = feed.alerts("snapshot_unreadable")
    assert "builds its state again from message 1" in alert
    assert feed.numbers() == before
    assert runtime.input_processor.inputs == 3


@pytest.fixture
def logs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is logged about handlers."""
    capture = LogCapture()
    wrapper = structlog.make_filtering_bound_logger(logging.INFO)
    monkeypatch.setattr("agents.runtime.fault_reports.log", structlog.wrap_logger(None, [capture], wrapper))
    return capture.entries


async def test_a_handler_that_holds_up_the_heartbeats_is_named(logs: list[Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("agents.runtime.inputs.SLOW_HANDLER_S", 0.0)  # whatever takes any time at all
    began = time.monotonic()
    await Feed(50).live(Fine)
    elapsed_ms = (time.monotonic() - began) * 1000
    assert [entry["event"] for entry in logs] == ["slow_handler"] * 4
    took_ms = [float(entry["problem"].split()[2]) for entry in logs]
    assert sum(took_ms) <= elapsed_ms + len(logs)  # rounded, each
    assert [entry.get("more") for entry in logs] == [None, None, None, 47]
    assert all("on_market took" in entry["problem"] and " ms over message " in entry["problem"] for entry in logs)


async def test_a_handler_that_is_fast_is_not_reported(logs: list[Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("agents.runtime.inputs.SLOW_HANDLER_S", 60.0)
    await Feed(50).live(Fine)
    assert logs == []


async def test_a_permanently_failing_handler_writes_few_lines(logs: list[Any]):
    with pytest.raises(UsageError):
        await Feed(50).live(Hopeless)
    assert [entry["event"] for entry in logs] == ["handler_failed"] * 3 + ["handler_failed_again"]
    assert isinstance(logs[0]["exc_info"], ZeroDivisionError)
    assert logs[-1]["more"] == MAX_CONSECUTIVE_SKIPS - 3
