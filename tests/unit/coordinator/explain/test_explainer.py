"""`explain` over the stream that a real coordinator has left: every decision is the same to the last digit."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.messages import Decision, Epoch, Event, Lifecycle, MarketData, Sentiment
from bus.messages import headers as h
from coordinator.decisions.risk import WINDOW
from coordinator.decisions.rounds import round_id
from coordinator.explain.errors import RoundRemoved
from coordinator.explain.explainer import explain
from coordinator.explain.models import Explanation
from coordinator.explain.selection import LATEST, Selector
from tests.support.coordinator_rounds import (
    CONFIG,
    MOMENTUM,
    NEWS,
    NOON,
    REVERSION,
    SYMBOL,
    VOTERS,
    tick,
    timer,
    vote,
)
from tests.support.recorded_rounds import RecordedRounds

OTHER = "ETH/USD"


async def explained(recorded: RecordedRounds, decision: str = LATEST) -> Explanation:
    return await explain(recorded, Selector(decision=decision))


async def assert_all_the_same(recorded: RecordedRounds, every: int = 1) -> None:
    for stored in recorded.decisions[::every]:
        found = await explained(recorded, str(stored.sequence))
        assert found.differences == []
        assert found.same
        assert found.closing.reason != "unknown"


def rounds(count: int, first: int = 1, price: float = 100.0) -> list[Event]:
    """Ticks of a price that moves, each with all votes."""
    found: list[Event] = []
    for n in range(first, first + count):
        found.append(tick(n, price + (n * 7 % 13)))
        found += [vote(voter, n, (n * (at + 3) % 11) / 10) for at, voter in enumerate(VOTERS)]
    return found


async def test_a_decision_with_all_its_terms() -> None:
    recorded = RecordedRounds()
    recorded.play([CONFIG, *rounds(40)])
    opened = recorded.add(tick(41, 105.0))
    recorded.add(
        Sentiment(
            sentiment="bullish",
            confidence=0.78,
            sources=("wire",),
            timestamp=NOON,
            source=NEWS,
            symbol=SYMBOL,
            round=41,
        )
    )
    recorded.add(replace(vote(MOMENTUM, 41, 0.85), signal="buy", indicators={"rsi": 65.0}))
    last = recorded.add(vote(REVERSION, 41, 0.45))
    [stored] = recorded.flush()
    found = await explained(recorded)
    assert (found.decision_id, found.round, found.symbol) == (f"{SYMBOL}:research-1:41", 41, SYMBOL)
    assert (found.sequence, found.epoch, found.decider) == (stored.sequence, 2, "coordinator")
    assert found.trace_id == "0af7651916cd43dd8448eb211c80319c"
    assert (found.tick.sequence, found.tick.price, found.after_tick_ms) == (opened.sequence, 105.0, 4.0)
    news, reversion, momentum = found.voters
    assert (news.name, news.side, news.sources, news.p_up, news.after_tick_ms) == (NEWS, "bullish", ["wire"], 0.78, 1.0)
    assert (momentum.side, momentum.indicators, momentum.status) == ("buy", {"rsi": 65.0}, "counted")
    assert reversion.configured_weight == 1.0
    assert reversion.weight == pytest.approx(1 / 3)
    assert found.published.final_decision == "buy"
    assert sum(voter.log_odds for voter in found.voters) == pytest.approx(found.pools.log_odds)
    assert round(found.pools.log_pool, 4) == 0.7177
    assert (found.closing.reason, found.closing.by, found.closing.sequence) == ("votes", REVERSION, last.sequence)
    risk = found.risk
    assert (len(risk.closes), len(risk.positions)) == (41, 40)
    assert risk.volatility is not None
    assert round(1 - risk.agreement * risk.volatility_factor * risk.drawdown_factor, 10) == risk.risk_score
    assert found.size.bound_by in ("edge", "cvar")
    assert found.published == found.computed
    assert found.same


async def test_every_round_of_a_long_feed_is_the_same_whether_its_window_is_full_or_not() -> None:
    recorded = RecordedRounds()
    recorded.play([CONFIG, *rounds(WINDOW + 20)])
    await assert_all_the_same(recorded, every=9)
    found = await explained(recorded)
    assert len(found.risk.closes) == WINDOW


async def test_the_cost_does_not_grow_with_the_stream() -> None:
    recorded = RecordedRounds()
    recorded.play([CONFIG, *rounds(3 * WINDOW)])
    recorded.reads = 0
    await explained(recorded)
    early = recorded.reads
    recorded.play(rounds(6 * WINDOW, 3 * WINDOW + 1))
    recorded.reads = 0
    await explained(recorded)
    assert recorded.reads <= early


async def test_an_absent_voter_and_its_late_vote() -> None:
    recorded = RecordedRounds()
    recorded.play([CONFIG, *rounds(2)])
    recorded.add(Lifecycle(event="declared_dead", agent=MOMENTUM, timestamp=NOON, source="watchdog", reason="silent"))
    recorded.add(tick(3, 101.0))
    claim = recorded.add(
        Epoch(agent=MOMENTUM, claim="c", claimed_by="watchdog", sandbox="nodejs", timestamp=NOON, source="watchdog")
    )
    recorded.add(vote(NEWS, 3, 0.9))
    recorded.add(vote(REVERSION, 3, 0.8))
    timed_out = recorded.add(timer(round_id(SYMBOL, "research-1", 3)))
    late = recorded.add(replace(vote(MOMENTUM, 3, 0.1), timestamp=tick(3).timestamp))
    recorded.flush()
    found = await explained(recorded)
    assert found.same
    momentum = next(voter for voter in found.voters if voter.name == MOMENTUM)
    assert (momentum.status, momentum.p_up, momentum.voted_p_up) == ("late", 0.5, 0.1)
    assert momentum.sequence == late.sequence
    assert found.published.absent == [MOMENTUM]
    assert (found.closing.reason, found.closing.sequence) == ("timer", timed_out.sequence)
    assert (momentum.flip.with_late_vote, momentum.flip.without) == ("buy", "buy")
    [claimed] = found.events
    assert (claimed.event, claimed.epoch) == ("claimed", claim.sequence)


async def test_an_absent_voter_that_died_before_the_round_has_its_death_listed() -> None:
    recorded = RecordedRounds()
    recorded.play([CONFIG, *rounds(2)])
    recorded.add(Lifecycle(event="declared_dead", agent=MOMENTUM, timestamp=NOON, source="watchdog", reason="silent"))
    recorded.play([tick(3, 101.0), vote(NEWS, 3, 0.9), vote(REVERSION, 3, 0.8)])
    recorded.play([timer(round_id(SYMBOL, "research-1", 3))])
    [death] = (await explained(recorded)).events
    assert (death.event, death.reason, death.after_tick_ms) == ("declared_dead", "silent", -1.0)


async def test_a_config_that_changes_inside_the_round_and_closes_it() -> None:
    recorded = RecordedRounds()
    recorded.play([CONFIG, *rounds(3)])
    recorded.add(tick(4, 100.0))
    recorded.add(vote(NEWS, 4, 0.9))
    recorded.add(vote(REVERSION, 4, 0.8))
    recorded.add(vote("a-stranger", 4, 0.8))
    changed = recorded.add(replace(CONFIG, voters={NEWS: 3.0, REVERSION: 1.0}, buy_at=0.9))
    recorded.flush()
    found = await explained(recorded)
    assert found.same
    assert (found.closing.reason, found.config.sequence, found.config.changed_in_round) == (
        "config", changed.sequence, True,
    )  # fmt: skip
    assert [voter.weight for voter in found.voters] == [0.75, 0.25]
    assert [(one.voter, one.reason) for one in found.ignored] == [("a-stranger", "unknown")]


async def test_a_round_that_waits_for_the_one_before_it() -> None:
    recorded = RecordedRounds()
    recorded.play([CONFIG, tick(1), tick(2), *(vote(voter, 2) for voter in VOTERS), vote(NEWS, 2)])
    recorded.play([vote(voter, 1) for voter in VOTERS])
    await assert_all_the_same(recorded)
    found = await explained(recorded)
    assert (found.round, found.closing.reason) == (2, "order")
    assert [(one.voter, one.reason) for one in found.ignored] == [(NEWS, "repeated")]


async def test_two_sources_of_one_symbol_with_the_same_numbers() -> None:
    recorded = RecordedRounds()
    recorded.play([CONFIG, tick(1, source="a"), tick(1, source="b")])
    for p_up in (0.9, 0.2):  # the first of each voter is for a, the second for b
        recorded.play([vote(voter, 1, p_up) for voter in VOTERS])
    await assert_all_the_same(recorded)
    sides = {(await explained(recorded, f"{SYMBOL}:{name}:1")).published.final_decision for name in "ab"}
    assert sides == {"buy", "sell"}


async def test_ticks_and_votes_without_numbers() -> None:
    recorded = RecordedRounds()
    recorded.play([CONFIG])
    for hour in range(5):
        at = NOON + timedelta(hours=hour)
        recorded.play([replace(tick(None, 100.0 + hour), timestamp=at), *(vote(v, None, 0.7) for v in VOTERS)])
    await assert_all_the_same(recorded)
    assert (await explained(recorded)).round == 5


async def test_a_feed_that_starts_its_numbers_again() -> None:
    recorded = RecordedRounds()
    recorded.play([CONFIG, *rounds(5)])
    for n in (1, 2):
        recorded.play([replace(tick(n, 90.0), timestamp=NOON + timedelta(days=n))])
        recorded.play([vote(voter, n, 0.7) for voter in VOTERS])
    await assert_all_the_same(recorded)
    found = await explained(recorded)
    assert found.decision_id == f"{SYMBOL}:research-1=2:2"
    assert len(found.risk.closes) == 7


async def test_decisions_before_any_config() -> None:
    recorded = RecordedRounds()
    recorded.play([tick(1), vote(NEWS, 1), timer(round_id(SYMBOL, "research-1", 1))])
    found = await explained(recorded)
    assert found.same
    assert (found.config.sequence, found.voters, found.published.final_decision) == (None, [], "hold")


async def test_a_message_that_the_coordinator_skipped_does_not_count() -> None:
    recorded = RecordedRounds()
    recorded.play([CONFIG, *rounds(2), tick(3)])
    skipped = recorded.add(vote(NEWS, 3, 0.9), skip=True)
    recorded.add(
        Lifecycle(
            event="skipped", agent="coordinator", timestamp=NOON, source="coordinator",
            detail={"sequence": skipped.sequence},
        )
    )  # fmt: skip
    recorded.play([vote(MOMENTUM, 3), vote(REVERSION, 3), timer(round_id(SYMBOL, "research-1", 3))])
    found = await explained(recorded)
    assert found.same
    assert found.published.absent == [NEWS]


async def test_windows_are_shorter_with_many_feeds() -> None:
    recorded = RecordedRounds()
    symbols = [f"S{n}/USD" for n in range(80)]
    recorded.play([replace(CONFIG, voters={NEWS: 1.0})])
    for n in range(1, 121):  # 100 closes each, once all 80 feeds are there
        for symbol in symbols if n == 2 else symbols[:2]:
            recorded.play([tick(n, 100.0 + n % 7, symbol=symbol), vote(NEWS, n, 0.7, symbol)])
    for n in (1, 3, 90, 120):
        assert (await explain(recorded, Selector(symbol=symbols[1], round=n))).same
    found = await explain(recorded, Selector(symbol=symbols[0], round=120))
    assert found.same
    assert len(found.risk.closes) == 100


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"position_size": 0.123}, "position_size"),
        ({"risk_score": 0.1234567891}, "risk_score"),
        ({"final_decision": "sell"}, "final_decision"),
        ({"absent": ("x",)}, "absent"),
    ],
)
async def test_what_was_published_differently_is_shown(change: dict[str, Any], field: str) -> None:
    recorded = RecordedRounds()
    recorded.play([CONFIG, *rounds(30)])
    stored = recorded.decisions[-1]
    decision = stored.decode(recorded.subjects)
    assert isinstance(decision, Decision)
    recorded.replace(stored.sequence, replace(decision, **change))
    found = await explained(recorded)
    assert not found.same
    assert [one.field for one in found.differences] == [field]
    assert found.published != found.computed


async def test_a_vote_that_was_changed_is_noticed() -> None:
    recorded = RecordedRounds()
    recorded.play([CONFIG, *rounds(3)])
    voted = next(stored for stored in reversed(recorded.messages) if ".signal." in stored.subject)
    recorded.replace(voted.sequence, vote(voted.subject.rpartition(".")[2], 3, 0.999))
    assert not (await explained(recorded)).same


async def test_a_decision_before_its_last_vote_is_noticed() -> None:
    recorded = RecordedRounds()
    recorded.play([CONFIG, *rounds(3)])
    stored = recorded.decisions[-1]
    cause = h.number(stored.headers, h.CAUSE)
    assert cause is not None
    recorded.messages = [
        replace(one, headers={**one.headers, h.CAUSE: str(cause - 1)}) if one is stored else one
        for one in recorded.messages
    ]
    found = await explained(recorded)
    assert h.CAUSE in [one.field for one in found.differences]
    assert found.closing.reason == "unknown"


async def test_a_round_whose_window_was_removed_is_named() -> None:
    recorded = RecordedRounds()
    recorded.play([CONFIG, *rounds(WINDOW + 60)])
    recorded.remove(until=recorded.decisions[30].sequence)
    assert (await explained(recorded)).same
    decision = recorded.decisions[WINDOW - 10].decode(recorded.subjects)
    assert isinstance(decision, Decision)
    with pytest.raises(RoundRemoved, match=r"the 249 rounds of research-1 before it.*are gone; look elsewhere"):
        await explained(recorded, decision.decision_id or "")


p_up = st.sampled_from([0.0, 0.1, 0.3, 0.45, 0.5, 0.55, 0.62, 0.78, 0.9, 1.0])
CONFIGS = (
    CONFIG,
    replace(CONFIG, voters={NEWS: 2.0, MOMENTUM: 1.0}),
    replace(CONFIG, voters={NEWS: 1.0, MOMENTUM: 0.0, REVERSION: 5.0}, quorum=0.8, position_cap=0.01),
    replace(CONFIG, vol_target=1e-4, cvar_max=1e-3, buy_at=0.6, sell_at=0.2),
)


@st.composite
def events(draw: st.DrawFn) -> list[Event]:
    """Anything that a coordinator may be sent, in any order: ticks of two feeds and symbols, votes, timers, Configs."""
    found: list[Event] = []
    numbers = {("a", SYMBOL): 0, ("b", SYMBOL): 0, ("a", OTHER): 0}
    for _ in range(draw(st.integers(5, 60))):
        kind = draw(st.sampled_from(["tick"] * 3 + ["vote"] * 8 + ["timer", "config"]))
        source, symbol = draw(st.sampled_from(sorted(numbers)))
        newest = numbers[source, symbol]
        number = max(1, newest - draw(st.integers(0, 3)))
        if kind == "tick":
            step = draw(st.sampled_from([1, 1, 1, 1, 0, 2, 300]))
            numbers[source, symbol] = newest + step
            sequence = None if draw(st.integers(0, 9)) == 0 else newest + step
            at = NOON + timedelta(minutes=len(found))
            price = draw(st.floats(50.0, 200.0))
            found.append(
                MarketData(symbol=symbol, price=price, volume=1.0, timestamp=at, source=source, sequence=sequence)
            )
        elif kind == "vote":
            round_number = None if draw(st.integers(0, 9)) == 0 else number
            found.append(vote(draw(st.sampled_from([*VOTERS, "stranger"])), round_number, draw(p_up), symbol))
        elif kind == "timer":
            found.append(timer(round_id(symbol, source, number)))
        else:
            found.append(draw(st.sampled_from(CONFIGS)))
    return found


@settings(max_examples=60, deadline=None)
@given(events(), st.lists(st.booleans(), min_size=60, max_size=60))
async def test_whatever_happened_every_decision_is_the_same(sent: list[Event], stored_at_once: list[bool]) -> None:
    recorded = RecordedRounds()
    for event, at_once in zip(sent, stored_at_once, strict=False):
        recorded.add(event)
        if at_once:
            recorded.flush()
    recorded.flush()
    await assert_all_the_same(recorded)
