"""What is kept of a stream is bounded, in order, and names its message."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from bus.interface import StoredMessage
from bus.messages import Alert, Decision, MarketData, VotingConfig, encode
from bus.messages.subjects import Subjects
from coordinator.dashboard.model import LONGEST_TEXT, MAX_CANDLES, MAX_SYMBOLS, SECOND_NS, WINDOW_S, SwarmModel

SUBJECTS = Subjects("swarm")
AT = datetime(2026, 1, 1, tzinfo=UTC)
NS = int(AT.timestamp()) * SECOND_NS


class Feed:
    """A model, and messages for it."""

    def __init__(self) -> None:
        self.model = SwarmModel(SUBJECTS)
        self.sequence = 0

    def put(self, subject: str, message: Any, at_ms: int = 0, cause: int | None = None) -> list[Any]:
        self.sequence += 1
        headers = {} if cause is None else {"Mesh-Cause": str(cause)}
        data = message if isinstance(message, bytes) else encode(message)
        stored = StoredMessage(subject, self.sequence, data, headers, 0, NS + at_ms * 1_000_000)
        return self.model.take(stored)

    def tick(self, number: int, price: float = 1.0, at_ms: int = 0, symbol: str = "BTC/USD", **rest: Any) -> list[Any]:
        tick = MarketData(
            symbol=symbol, price=price, volume=1.0, timestamp=AT + timedelta(hours=number), source="feed",
            sequence=number, **rest,
        )  # fmt: skip
        return self.put(SUBJECTS.event("market", symbol, "feed"), tick, at_ms)

    def decide(self, number: int, at_ms: int, writer: str = "coordinator") -> list[Any]:
        decision = Decision(
            final_decision="sell", position_size=0.1, risk_score=0.2, consensus_level=0.3, agents_consulted=("a",),
            timestamp=AT + timedelta(hours=number), source=writer, decision_id=f"BTC/USD:feed:{number}",
            symbol="BTC/USD", round=number,
        )  # fmt: skip
        return self.put(SUBJECTS.event("decision", "BTC/USD", writer), decision, at_ms, self.sequence)


def test_a_latency_is_from_storing_the_tick_to_storing_its_decision():
    feed = Feed()
    feed.tick(1)
    [(name, row)] = feed.decide(1, at_ms=12)
    assert (name, row["latency_ms"], row["sequence"], row["stored_at"]) == (
        "decision", 12.0, 2, "2026-01-01T00:00:00.012Z",
    )  # fmt: skip
    [(_, unknown)] = feed.decide(7, at_ms=20)
    assert unknown["latency_ms"] is None
    rates = feed.model.rates(NS + 10 * SECOND_NS)
    assert (rates["n"], rates["p50_ms"], rates["decisions_per_s"], rates["window_s"]) == (1, 12.0, 0.2, 10.0)
    later = feed.model.rates(NS + (WINDOW_S + 10) * SECOND_NS)
    assert (later["n"], later["p50_ms"], later["decisions_per_s"]) == (0, None, 0.0)


def test_nothing_read_is_nothing_measured():
    rates = SwarmModel(SUBJECTS).rates(NS)
    assert (rates["n"], rates["p50_ms"], rates["decisions_per_s"]) == (0, None, None)


def test_decisions_of_other_writers_are_not_the_swarms():
    feed = Feed()
    config = VotingConfig(voters={"a": 1.0}, timestamp=AT, source="watchdog", deciders=("coordinator",))
    feed.put(SUBJECTS.config("watchdog"), config)
    assert feed.decide(1, 1, writer="stranger") == []
    assert len(feed.decide(1, 2)) == 1


def test_candles_are_in_order_and_a_feed_that_begins_anew_clears_them():
    feed = Feed()
    feed.tick(1, 10.0, open=8.0, high=12.0, low=7.0)
    feed.tick(1, 11.0)
    [candle] = feed.model.candles_of("BTC/USD")
    assert [candle[key] for key in "ohlc"] == [8.0, 12.0, 7.0, 11.0]
    assert candle["sequence"] == 2
    feed.tick(5)
    [(_, event)] = feed.tick(2)
    assert event["reset"]
    assert len(feed.model.candles_of("BTC/USD")) == 1


def test_what_is_kept_is_bounded():
    feed = Feed()
    for number in range(MAX_CANDLES + 5):
        feed.tick(number)
    assert len(feed.model.candles_of("BTC/USD")) == MAX_CANDLES
    for number in range(MAX_SYMBOLS + 3):
        feed.tick(1, symbol=f"S{number}")
    assert len(feed.model.candles) == MAX_SYMBOLS
    assert feed.model.symbols_left_off == 4
    alert = Alert(severity="info", code="c", message="x" * 100_000, timestamp=AT, source="up")
    [(_, shown)] = feed.put(SUBJECTS.alert("info", "up"), alert)
    assert len(shown["message"]) == LONGEST_TEXT + 1


def test_an_edge_is_an_output_that_cites_its_input():
    feed = Feed()
    feed.tick(1)
    feed.decide(1, at_ms=1)
    assert feed.model.edges(NS + SECOND_NS) == [{"from": "feed", "to": "coordinator", "count": 1, "last_sequence": 2}]
    assert feed.model.edges(NS + (WINDOW_S + 1) * SECOND_NS) == []


def test_what_cannot_be_read_is_counted_and_changes_nothing():
    feed = Feed()
    for subject, data in (
        ("swarm.market.BTC-USD.feed", b"{"), ("swarm.market.=ZZ.feed", b"{}"), ("swarm.decision.BTC-USD.c", b"[]"),
    ):  # fmt: skip
        assert feed.put(subject, data) == []
    assert feed.model.unreadable == 3
    assert feed.put("swarm.unknown", b"\xff") == []
