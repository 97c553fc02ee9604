"""Ticks out of number, of any time, of absurd prices; a VotingConfig of a stranger: decisions go on, and it is told."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.messages import LARGEST_PRICE, Alert, Decision, MarketData, Signal, VotingConfig, decode, encode
from bus.messages.subjects import Subjects
from coordinator.decisions.agent import CoordinatorAgent, is_reported
from coordinator.decisions.tick_order import FAR, MAX_SEQUENCE

NOON = datetime(2019, 5, 13, 12, tzinfo=UTC)
NEVER = datetime(9999, 12, 31, tzinfo=UTC)
SYMBOL, SOURCE, VOTER = "BTC/USD", "feed", "voter"
CONFIG = VotingConfig(voters={VOTER: 1.0}, timestamp=NOON, source="watchdog")
SUBJECTS = Subjects("swarm")


def tick(sequence: int | None, at: datetime | int = 0, price: float = 7000.0) -> MarketData:
    """A tick; `at` in hours after NOON."""
    when = at if isinstance(at, datetime) else NOON + timedelta(hours=at)
    return MarketData(symbol=SYMBOL, price=price, volume=1.0, timestamp=when, source=SOURCE, sequence=sequence)


def vote(sequence: int | None, p_up: float = 0.8) -> Signal:
    return Signal(
        signal="hold", strength=p_up, indicators={}, timestamp=NOON, source=VOTER, symbol=SYMBOL, round=sequence
    )


class Desk:
    """A coordinator whose only voter answers at once; every state that it passes is saved and restored."""

    def __init__(self) -> None:
        self.agent = CoordinatorAgent("coordinator")
        self.agent.on_config(CONFIG)
        self.alerts: list[Alert] = []

    def __call__(self, ticks: Iterable[MarketData]) -> list[str]:
        """The ids of the decisions on these, without symbol and source."""
        created: list[str] = []
        for event in ticks:
            for output in [*self.agent.on_market(event), *self.agent.on_signal(vote(event.sequence))]:
                self._check(output)
                if isinstance(output, Decision):
                    created.append((output.decision_id or "").removeprefix(f"{SYMBOL}:{SOURCE}"))
                else:
                    self.alerts.append(output)
            saved = orjson.dumps(self.agent.state)
            self.agent.state = msgspec.convert(orjson.loads(saved), CoordinatorAgent.State)
            assert orjson.dumps(self.agent.state) == saved
        return created

    def _check(self, output: Decision | Alert) -> None:
        kind, topic = ("decision", SYMBOL) if isinstance(output, Decision) else ("alert", output.severity)
        subject = SUBJECTS.event(kind, topic, "coordinator")
        assert decode(SUBJECTS.parse(subject), subject, encode(output)) == output

    @property
    def reported(self) -> list[str]:
        return [alert.code for alert in self.alerts]


def series(first: int, count: int, at: int) -> list[MarketData]:
    return [tick(first + n, at + n) for n in range(count)]


@pytest.mark.parametrize("at", [4, NEVER], ids=["now", "far future"])
def test_after_a_stray_tick_far_ahead_the_series_goes_on(at: datetime | int) -> None:
    desk = Desk()
    created = desk([*series(1, 3, 1), tick(1_000_000, at), *series(4, 3, 5)])
    assert created == [":1", ":2", ":3", ":1000000", ":4", ":5", ":6"]
    assert desk.reported == ["tick_out_of_order"]
    assert desk.alerts[0].detail["last"] == 1_000_000
    assert desk.agent.state.counts.odd_ticks == 1


def test_after_many_stray_ticks_decisions_go_on_under_names_of_their_own() -> None:
    desk = Desk()
    outliers = [tick(10**n, NEVER) for n in range(6, 12)]
    created = desk([*series(1, 3, 1), *outliers, *series(4, 3, 5)])
    assert created[-3:] == ["=2:4", "=2:5", "=2:6"]
    assert desk.reported == ["feed_renumbered"]


def test_a_feed_that_really_leaps_goes_on_without_a_word() -> None:
    desk = Desk()
    assert desk([*series(1, 2, 1), *series(5000, 3, 3)]) == [":1", ":2", ":5000", ":5001", ":5002"]
    assert desk([tick(1_577_880_000_000 + 60_000 * n, 9 + n) for n in range(5)])[-1] == ":1577880240000"
    assert desk.reported == []


@pytest.mark.parametrize(("count", "at"), [(10, 100), (FAR + 2, -1000)], ids=["later", "far below, earlier"])
def test_a_feed_that_begins_anew_is_decided_on_and_told_once(count: int, at: int) -> None:
    desk = Desk()
    first, second = desk(series(1, count, 1)), desk(series(1, count + 3, at))
    assert first == [f":{n}" for n in range(1, count + 1)]
    assert second == [f"=2:{n}" for n in range(1, count + 4)]
    assert desk.reported == ["feed_renumbered"]
    assert desk(series(1, 2, 5000)) == ["=3:1", "=3:2"]
    assert desk.reported == ["feed_renumbered"]  # the second time; the tenth is told again


def test_ticks_sent_again_open_nothing() -> None:
    desk = Desk()
    sent = series(1, FAR, 1)
    desk(sent)
    assert desk(sent) == []
    assert desk([replace(sent[-1], timestamp=NEVER)]) == []  # a number is one round, whatever its time
    assert desk.agent.state.counts.repeated_ticks == FAR + 1
    assert desk.reported == ["tick_repeated"] * 3  # the 1st, the 10th and the 100th
    assert [alert.detail["repeated"] for alert in desk.alerts] == [1, 10, 100]
    assert desk(series(FAR + 1, 2, FAR + 1)) == [f":{FAR + 1}", f":{FAR + 2}"]


def test_a_stray_below_does_not_rename_the_series() -> None:
    desk = Desk()
    desk(series(1, 20, 1))
    assert desk([tick(5, 21), *series(21, 2, 22)]) == ["=2:5", ":21", ":22"]
    assert desk.reported == ["feed_renumbered", "tick_out_of_order"]


def test_only_few_of_many_are_told() -> None:
    assert [n for n in range(1, 5000) if is_reported(n)] == [1, 10, 100, 1000]


def test_a_tick_beyond_the_largest_number_is_refused_and_told() -> None:
    desk = Desk()
    assert desk([tick(1), tick(MAX_SEQUENCE + 1), tick(MAX_SEQUENCE + 1), tick(2, 1)]) == [":1", ":2"]
    assert desk.reported == ["tick_refused"]
    assert desk.agent.state.counts.refused_ticks == 2


whens = st.one_of(st.integers(-50, 50), st.sampled_from([datetime(1, 1, 1, tzinfo=UTC), NEVER]))
numbers = st.one_of(
    st.none(), st.integers(-5, 20), st.integers(FAR - 5, 3 * FAR), st.integers(-MAX_SEQUENCE - 1, MAX_SEQUENCE + 1)
)


@pytest.mark.slow
@settings(max_examples=60)
@given(st.lists(st.builds(tick, numbers, whens), max_size=30), st.integers(1, 10**6), st.integers(-100, 100))
def test_nothing_silences_a_feed_that_counts_upwards(odd: list[MarketData], first: int, at: int) -> None:
    desk = Desk()
    desk(odd)
    created = desk(series(first, FAR + 3, at))
    assert created[-1].rpartition(":")[2] == str(first + FAR + 2)
    assert len(desk.alerts) <= 4 * 4  # by tens of each of four reasons


@settings(max_examples=60)
@given(st.lists(st.builds(tick, st.none() | st.integers(1, FAR), whens), max_size=40))
def test_every_decision_has_a_name_of_its_own(ticks: list[MarketData]) -> None:
    created = Desk()(ticks)
    assert len(set(created)) == len(created)


@settings(max_examples=100)
@given(st.lists(st.floats(min_value=5e-324, max_value=1.7e308), min_size=25, max_size=40), st.floats(0.0, 1.0))
def test_any_finite_prices_give_finite_decisions(prices: list[float], p_up: float) -> None:
    """Whatever passes on_market, not only what decoding lets through."""
    agent = CoordinatorAgent("coordinator")
    agent.on_config(CONFIG)
    for n, price in enumerate(prices, 1):
        agent.on_market(tick(n, n, price))
        (decision,) = agent.on_signal(vote(n, p_up))
        assert isinstance(decision, Decision)
        for figure in (decision.position_size, decision.risk_score, decision.consensus_level):
            assert math.isfinite(figure)
            assert 0.0 <= figure <= 1.0
        encode(decision)


def test_after_an_absurd_price_the_risk_is_finite_and_decisions_go_on() -> None:
    desk = Desk()
    prices = [100.0 + n % 7 for n in range(30)] + [LARGEST_PRICE] + [100.0 + n % 7 for n in range(30)]
    assert len(desk(tick(n, n, price) for n, price in enumerate(prices, 1))) == 61


def test_only_the_watchdogs_config_is_obeyed() -> None:
    agent = CoordinatorAgent("coordinator")
    agent.on_config(CONFIG)
    agent.on_market(tick(1))
    forged = replace(CONFIG, voters={}, source="evil")
    (alert,) = agent.on_config(forged)
    assert isinstance(alert, Alert)
    assert (alert.code, alert.severity, alert.detail["writer"]) == ("config_from_unknown_writer", "warning", "evil")
    assert [agent.on_config(forged) for _ in range(8)] == [[]] * 8
    assert agent.state.config == CONFIG
    assert (agent.state.open_rounds, agent.state.counts.unknown_writer_configs) == (1, 9)
    assert agent.on_config(replace(CONFIG, voters={})) != []
