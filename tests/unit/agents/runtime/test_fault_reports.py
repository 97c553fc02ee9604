"""Whatever a handler raises, and whenever: its input is skipped with a readable reason, or the agent ends with one."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents.agent import Agent
from agents.runtime.fault_reports import MAX_FULL_REPORTS, FaultReporter, RepeatedAlerts
from agents.runtime.inputs import Fault
from bus.durable.events import EventPublisher
from bus.errors import MeshError
from bus.messages import MAX_PAYLOAD_BYTES, Alert, MarketData, Signal, encode, now
from bus.messages import headers as h
from bus.testing.memory_bus import MemoryBus, MemoryServer
from bus.utils.attempt_counts import MAX_TOLD_APART, REPORT_S
from bus.utils.error_text import MAX_ERROR_TEXT
from tests.support.runtime import claim_runtime

AT = datetime(2020, 1, 1, tzinfo=UTC)
TICKS = 5
FAILING = 3
LONGEST_REASON = MAX_ERROR_TEXT + 300


class RaisingText(Exception):
    """Its text cannot be read."""

    def __init__(self, instead: BaseException) -> None:
        super().__init__("hidden")
        self._instead = instead

    def __str__(self) -> str:
        raise self._instead


class NoText(Exception):
    def __str__(self) -> Any:
        return 42  # noqa: PLE0307


class Text(str):
    """A text with methods of its own."""

    __slots__ = ()

    def __len__(self) -> int:
        raise RuntimeError("len")

    def __format__(self, _: str) -> str:
        raise RuntimeError("format")

    def encode(self, *_: Any, **__: Any) -> bytes:
        raise RuntimeError("encode")


class OwnText(Exception):
    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def __str__(self) -> str:
        return Text(self._text)


texts = st.builds(
    lambda text, times: text * times,
    st.text(st.characters(), max_size=20),  # halves of characters too
    st.sampled_from([0, 1, 1, 1, 300, 100_000]),
)
plain = st.builds(
    lambda cls, text: cls(text),
    st.sampled_from([ValueError, KeyError, SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, OSError,
                     StopAsyncIteration, asyncio.CancelledError, TimeoutError, RecursionError, BaseException]),
    texts,
)  # fmt: skip
errors = st.one_of(
    plain,
    st.builds(RaisingText, plain),
    st.builds(NoText),
    st.builds(OwnText, texts),
    st.builds(lambda text: ExceptionGroup(text, [ValueError(text)] * 3), texts),
    st.builds(lambda text: ValueError(text, {text: [text]}), texts),
    st.builds(lambda text: type("Named", (Exception,), {"__module__": text, "__qualname__": text})(text), texts),
    st.builds(lambda text: UnicodeEncodeError("utf-8", text or "?", 0, 1, text), texts),
)
moments = st.sampled_from(["call", "await", "after await", "outputs", "timestamp"])


class Broken:
    """An output whose attributes raise."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __iter__(self) -> Iterator[Any]:
        raise self._error


def failing(error: BaseException, moment: str) -> type[Agent]:
    """An agent that raises `error` at this moment of the tick FAILING, and answers all others."""

    class Failing(Agent):
        kind = "failing"
        listens = ("market",)
        publishes = ("signal",)

        def on_market(self, tick: MarketData) -> Any:
            signal = self.signal(tick, "hold", 0.5)
            if tick.sequence != FAILING:
                return signal
            if moment == "call":
                raise error
            if moment == "outputs":
                return Broken(error)
            if moment == "timestamp":
                return Signal(
                    signal="hold", strength=0.5, indicators={}, timestamp=str(error.args)[:10], source="x", symbol="A"  # type: ignore[arg-type]
                )  # fmt: skip
            return self._later()

        async def _later(self) -> Any:
            if moment == "after await":
                await asyncio.sleep(0)
            raise error

    return Failing


class Healthy(Agent):
    kind = "healthy"
    listens = ("market",)
    publishes = ("signal",)

    def on_market(self, tick: MarketData) -> Signal:
        return self.signal(tick, "hold", 0.5)


async def run(cls: type[Agent], name: str, server: MemoryServer) -> str:
    """Run it over all ticks; returns the text of the error that ended it, if one did."""
    bus = MemoryBus(server)
    runtime = await claim_runtime(cls(name), bus)
    running = asyncio.create_task(runtime.run())
    try:
        async with asyncio.timeout(20):
            while not running.done() and runtime.input_processor.cursor < TICKS:
                await asyncio.sleep(0)
            runtime.drain()
            await running
    except MeshError as error:
        return str(error)
    finally:
        await asyncio.gather(running, return_exceptions=True)
        await bus.close()
    return ""


@settings(suppress_health_check=[HealthCheck.data_too_large, HealthCheck.too_slow])
@given(errors, moments)
def test_any_exception_at_any_moment_is_a_skip_or_a_death_with_a_reason(error, moment):
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))

    async def both() -> tuple[str, str]:
        server = MemoryServer()
        for n in range(1, TICKS + 1):
            tick = MarketData(symbol="A", price=1.0, volume=1.0, timestamp=AT, source="feed", sequence=n)
            server.store("in.swarm.market.A.feed", encode(tick), {})
        ends = await asyncio.gather(run(failing(error, moment), "one", server), run(Healthy, "two", server))
        for stored in server.messages:
            assert len(stored.data) <= MAX_PAYLOAD_BYTES
        reports = [orjson.loads(m.data) for m in server.messages if m.subject.endswith(".one")]
        skipped = [report for report in reports if report.get("event") == "skipped"]
        assert len(skipped) == (not ends[0])
        for report in skipped:
            assert report["detail"]["sequence"] == FAILING
            assert 0 < len(report["reason"]) <= LONGEST_REASON
        signals = [m for m in server.messages if ".signal." in m.subject]
        assert sum(m.subject.endswith(".two") for m in signals) == TICKS
        assert sum(m.subject.endswith(".one") for m in signals) == TICKS - 1 or ends[0]
        return ends

    one, two = asyncio.run(both())
    assert two == ""
    assert len(one) <= LONGEST_REASON


async def test_a_reporter_that_is_closed_is_let_go_of_and_reports_nothing_more():
    """An incarnation that has ended must not stay in memory, or report, until a timer of it has run out."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    alerts: list[str] = []
    reports: Any = SimpleNamespace(alert=lambda *args, **_: alerts.append(args[2]))
    reporter = FaultReporter("one", reports)
    for sequence in range(1, MAX_FULL_REPORTS + 3):
        reporter.skipped(Fault(sequence, "on_market raised ValueError"))
    assert len(alerts) == MAX_FULL_REPORTS
    reporter.close()
    assert alerts[MAX_FULL_REPORTS:] == ["agent one: 2 more skipped, message 5 last: on_market raised ValueError"]
    left = weakref.ref(reporter)
    del reporter
    gc.collect()
    assert left() is None


# -- what others publish


class Readers:
    """Agents that read the same messages, with one clock."""

    def __init__(self, server: MemoryServer, publishers: dict[str, EventPublisher]) -> None:
        self.server, self._publishers = server, publishers
        self._now = 0.0
        self._alerts = {name: RepeatedAlerts(name, found, lambda: self._now) for name, found in publishers.items()}

    async def poison(self, writer: str, sequences: range) -> None:
        for alerts in self._alerts.values():
            for sequence in sequences:
                alerts.poison(f"swarm.signal.A.{writer}", sequence, "it is no JSON")
        await self._flush()

    async def pass_minute(self) -> None:
        self._now += REPORT_S
        for alerts in self._alerts.values():
            alerts.check()
        await self._flush()

    async def _flush(self) -> None:
        for publisher in self._publishers.values():
            await publisher.flush()

    def stored(self, code: str = "poison_message") -> list[dict[str, Any]]:
        found = [orjson.loads(m.data) for m in self.server.messages if m.subject.startswith("swarm.alert.")]
        return [alert["detail"] for alert in found if alert["code"] == code]


@pytest.fixture
async def readers() -> AsyncIterator[Readers]:
    server = MemoryServer()
    async with AsyncExitStack() as stack:
        publishers = {}
        for name in ("a", "b", "c"):
            bus = MemoryBus(server)
            stack.push_async_callback(bus.close)
            publishers[name] = await EventPublisher.open(bus, name)
            stack.push_async_exit(publishers[name])
        yield Readers(server, publishers)


async def test_the_first_of_each_writer_is_reported_and_then_their_number(readers):
    await readers.poison("x", range(1, 501))
    await readers.poison("y", range(501, 502))
    first = [(each["writer"], each["sequence"], each["count"]) for each in readers.stored()]
    assert first == [("x", 1, 1), ("y", 501, 1)]
    await readers.poison("x", range(502, 602))
    await readers.pass_minute()
    [more] = readers.stored()[2:]
    assert (more["writer"], more["sequence"], more["count"]) == ("x", 601, 599)
    await readers.pass_minute()
    assert len(readers.stored()) == 3
    assert readers.stored("message_id_squatted") == []


async def test_a_reader_of_fewer_messages_reports_none_of_them_again(readers):
    await readers.poison("x", range(1, 10))
    readers._alerts["c"].poison("swarm.market.A.x", 10, "it is no JSON")
    await readers.pass_minute()
    assert [each["count"] for each in readers.stored()] == [1, 8]
    assert readers.stored("message_id_squatted") == []


@pytest.mark.parametrize("field", ["writer", "code"])
async def test_a_writer_cannot_report_about_itself_in_place_of_others(readers, field, monkeypatch):
    at = now()
    monkeypatch.setattr("agents.runtime.fault_reports.now", lambda: at)
    await readers.poison("x", range(1, 10))
    detail = {"writer": "x" if field == "writer" else "nobody", "count": 1}
    code = "poison_message" if field == "writer" else "other"
    taken = f"poison:x:{at.timestamp() // REPORT_S:.0f}"
    alert = Alert(severity="warning", code=code, message="m", timestamp=at, source="x", detail=detail)
    readers.server.store("in.swarm.alert.warning.x", encode(alert), {h.MSG_ID: taken})
    await readers.pass_minute()
    assert 8 in [each["count"] for each in readers.stored()]
    assert {each["squatter"] for each in readers.stored("message_id_squatted")} == {"x"}


async def test_invented_writers_are_not_told_apart_without_end(readers):
    for number in range(MAX_TOLD_APART + 50):
        await readers.poison(f"x{number}", range(number, number + 1))
    assert len(readers.stored()) == MAX_TOLD_APART + 1
    await readers.pass_minute()
    [rest] = readers.stored()[MAX_TOLD_APART + 1 :]
    assert (rest["writer"], rest["count"]) == ("other writers", 49)


async def test_a_report_whose_first_copy_is_gone_accuses_nobody(readers, monkeypatch):
    async def gone(*_: object) -> None:
        return None

    monkeypatch.setattr(MemoryBus, "message", gone)
    await readers.poison("x", range(1, 2))
    assert [each["sequence"] for each in readers.stored()] == [1, 1, 1], "the stream may have removed the first"
    assert readers.stored("message_id_squatted") == []
