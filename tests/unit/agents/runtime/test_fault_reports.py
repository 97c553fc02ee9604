"""Whatever a handler raises, and whenever: its input is skipped with a readable reason, or the agent ends with one."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections.abc import Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import orjson
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents.agent import Agent
from agents.runtime.fault_reports import MAX_FULL_REPORTS, FaultReporter
from agents.runtime.inputs import Fault
from bus.errors import MeshError
from bus.messages import MAX_PAYLOAD_BYTES, MarketData, Signal, encode
from bus.testing.memory_bus import MemoryBus, MemoryServer
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
