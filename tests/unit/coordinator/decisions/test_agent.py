"""Rounds of the coordinator: opening, matching, waiting, closing in order (coordinator/decisions/agent.py)."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import orjson
import pytest

import coordinator.decisions.agent as module
from agents.agent import check_class, published_kinds
from bus.durable.snapshots import MAX_SNAPSHOT_BYTES
from bus.messages import Alert, Decision, Sentiment, Signal, encode
from coordinator.decisions.agent import DEFAULT_TIMEOUT_MS, MAX_FEEDS, CoordinatorAgent
from coordinator.decisions.risk import WINDOW
from coordinator.decisions.rounds import MAX_EARLY_VOTES, round_id
from coordinator.decisions.tick_order import MAX_SEQUENCE
from tests.support.coordinator_rounds import (
    CONFIG,
    MOMENTUM,
    NEWS,
    NOON,
    REVERSION,
    SYMBOL,
    VOTERS,
    check_invariants,
    figures_of,
    fire,
    outputs,
    play,
    reload,
    tick,
    timer,
    vote,
)


@pytest.fixture
def agent() -> CoordinatorAgent:
    created = CoordinatorAgent("coordinator")
    assert created.on_config(CONFIG) == []
    return created


def test_the_class_is_well_formed() -> None:
    check_class(CoordinatorAgent, "coordinator")
    assert published_kinds(CoordinatorAgent) == ("decision",)
    assert CoordinatorAgent.memory_key == "decision"
    assert CoordinatorAgent.capabilities == ("decision_synthesis", "risk_management")


def test_recorded_example_without_rounds(agent: CoordinatorAgent) -> None:
    mood = Sentiment(
        sentiment="bullish", confidence=0.78, sources=("news",), timestamp=NOON, source=NEWS, symbol=SYMBOL
    )
    rising = Signal(signal="buy", strength=0.85, indicators={}, timestamp=NOON, source=MOMENTUM, symbol=SYMBOL)
    calm = Signal(signal="hold", strength=0.45, indicators={}, timestamp=NOON, source=REVERSION, symbol=SYMBOL)
    start = tick(None)
    assert play(agent, [start]) == []
    assert agent.on_sentiment(mood) == []
    assert agent.on_signal(rising) == []
    (decision,) = agent.on_signal(calm)
    assert decision == Decision(
        final_decision="buy",
        position_size=decision.position_size,
        risk_score=decision.risk_score,
        consensus_level=decision.consensus_level,
        agents_consulted=(NEWS, REVERSION, MOMENTUM),
        timestamp=start.timestamp,
        source="coordinator",
        decision_id="BTC/USD:research-1:1",
        symbol=SYMBOL,
        round=1,
        absent=(),
    )
    assert tuple(round(figure, 4) for figure in figures_of(decision)) == (0.2518, 0.3488, 0.7177)
    assert encode(decision).startswith(
        b'{"final_decision":"buy","position_size":0.2517821198,"risk_score":0.3488393454,'
    )
    assert agent.timers == {}


def test_a_round_waits_for_every_voter_and_later_ticks_close_nothing(agent: CoordinatorAgent) -> None:
    assert play(agent, [tick(1), tick(2), vote(NEWS, 1), vote(MOMENTUM, 1), tick(3), tick(4)]) == []
    assert [d.round for d in agent.on_signal(vote(REVERSION, 1))] == [1]
    assert agent.state.open_rounds == 3
    assert sorted(agent.timers) == [round_id(SYMBOL, "research-1", n) for n in (2, 3, 4)]


def test_rounds_close_in_order_in_one_chain(agent: CoordinatorAgent) -> None:
    play(agent, [tick(n) for n in (1, 2, 3, 4)])
    for n in (3, 2):
        assert play(agent, [vote(name, n) for name in VOTERS]) == []
    chain = play(agent, [vote(name, 1) for name in VOTERS])
    assert [d.round for d in chain] == [1, 2, 3]
    assert [d.timestamp for d in chain] == [NOON + timedelta(hours=n) for n in (1, 2, 3)]
    check_invariants(agent)


def test_the_timer_closes_with_the_absent_named(agent: CoordinatorAgent) -> None:
    play(agent, [tick(1), vote(NEWS, 1, 0.9), vote(MOMENTUM, 1, 0.9)])
    assert agent.timers[round_id(SYMBOL, "research-1", 1)].after_ms == CONFIG.round_timeout_ms
    (decision,) = fire(agent, 1)
    assert decision.final_decision == "buy"
    assert (decision.agents_consulted, decision.absent) == ((NEWS, MOMENTUM), (REVERSION,))
    assert decision.consensus_level < 0.9


def test_without_quorum_the_timer_closes_with_hold(agent: CoordinatorAgent) -> None:
    play(agent, [tick(1), tick(2), vote(NEWS, 1, 0.99)])
    (alone,) = fire(agent, 1)
    (no_process,) = fire(agent, 2)
    assert (alone.final_decision, alone.position_size, alone.absent) == ("hold", 0.0, (REVERSION, MOMENTUM))
    assert alone.agents_consulted == (NEWS,)
    assert (no_process.final_decision, no_process.position_size, no_process.agents_consulted) == ("hold", 0.0, ())
    assert (no_process.consensus_level, no_process.absent) == (0.5, VOTERS)


def test_a_round_timed_out_behind_the_head_waits_for_it_and_still_takes_votes(agent: CoordinatorAgent) -> None:
    play(agent, [tick(1), tick(2)])
    assert fire(agent, 2) == []
    assert agent.on_signal(vote(NEWS, 2)) == []
    decisions = fire(agent, 1)
    assert [(d.round, d.agents_consulted) for d in decisions] == [(1, ()), (2, (NEWS,))]


def test_a_timer_that_crossed_the_last_vote_changes_nothing(agent: CoordinatorAgent) -> None:
    play(agent, [tick(1), *(vote(name, 1) for name in VOTERS)])
    before = orjson.dumps(agent.state)
    assert agent.on_timer(timer(round_id(SYMBOL, "research-1", 1))) == []
    assert agent.on_timer(timer("nothing of ours")) == []
    assert orjson.dumps(agent.state) == before


def test_late_repeated_and_strange_votes_are_counted_and_change_nothing(agent: CoordinatorAgent) -> None:
    play(agent, [tick(1), tick(2), *(vote(name, 1) for name in VOTERS), vote(NEWS, 2, 0.9)])
    before = orjson.dumps(agent.state.rounds), orjson.dumps(agent.state.feeds)
    events = [vote(NEWS, 1), vote(MOMENTUM, 7), vote(NEWS, 2, 0.1), vote("stranger", 2), vote(NEWS, 2, symbol="X")]
    assert play(agent, events) == []
    assert agent.on_signal(replace(vote(NEWS, 2), symbol=None)) == []
    assert (orjson.dumps(agent.state.rounds), orjson.dumps(agent.state.feeds)) == before
    counts = agent.state.counts
    assert (counts.late_votes, counts.repeated_votes, counts.unknown_writers) == (4, 1, 1)


def test_repeated_ticks_are_counted_and_open_nothing(agent: CoordinatorAgent) -> None:
    play(agent, [tick(5), tick(5, 1.0), tick(4), tick(6), tick(5, source="other"), tick(5, symbol="ETH/USD")])
    assert agent.state.counts.repeated_ticks == 2
    assert [(r.source, r.sequence) for r in agent.state.rounds[SYMBOL]] == [
        ("research-1", 5),
        ("research-1", 6),
        ("other", 5),
    ]
    play(agent, [vote(name, n) for n in (5, 6) for name in VOTERS])
    assert play(agent, [tick(6)]) == []  # also once its round is closed
    assert agent.state.counts.repeated_ticks == 3


def test_ticks_without_sequence_count_on_from_the_last(agent: CoordinatorAgent) -> None:
    play(agent, [tick(None), tick(None), tick(10), tick(None), tick(None, source="other")])
    assert [r.sequence for r in agent.state.rounds[SYMBOL]] == [1, 2, 10, 11, 1]


def test_a_vote_without_round_is_for_the_newest_open_one(agent: CoordinatorAgent) -> None:
    play(agent, [tick(1), tick(2), vote(NEWS, None, 0.6), vote(NEWS, None, 0.7)])
    assert [r.votes for r in agent.state.rounds[SYMBOL]] == [{}, {NEWS: 0.6}]
    assert agent.state.counts.repeated_votes == 1


def test_two_sources_of_one_sequence_are_served_first_in_first_out(agent: CoordinatorAgent) -> None:
    play(agent, [tick(1, source="a"), tick(1, source="b")])
    play(agent, [vote(NEWS, 1, 0.6), vote(NEWS, 1, 0.8), vote(MOMENTUM, 1, 0.6), vote(REVERSION, 1, 0.6)])
    decisions = play(agent, [vote(MOMENTUM, 1, 0.8), vote(REVERSION, 1, 0.8)])
    assert [d.decision_id for d in decisions] == [round_id(SYMBOL, "b", 1)]
    assert decisions[0].consensus_level == pytest.approx(0.8)
    assert agent.state.feeds[SYMBOL]["a"].last == agent.state.feeds[SYMBOL]["b"].last == 1


def test_windows_are_kept_for_each_source(agent: CoordinatorAgent) -> None:
    for n in range(1, 4):
        play(agent, [tick(n, 100.0 + n, "a"), tick(n, 900.0 + n, "b")])
        assert len(play(agent, [vote(name, n) for name in VOTERS for _ in "ab"])) == 2
    assert agent.state.feeds[SYMBOL]["a"].closes == [101.0, 102.0, 103.0]
    assert agent.state.feeds[SYMBOL]["b"].closes == [901.0, 902.0, 903.0]


def test_a_source_with_a_colon_cannot_share_an_id() -> None:
    names = {round_id("a:b", "c", 1), round_id("a", "b:c", 1), round_id("a", "b=3Ac", 1), round_id("a", "b", 1)}
    assert len(names) == 4
    agent = CoordinatorAgent("coordinator")
    agent.on_market(tick(1, source="b:c", symbol="a"))
    assert len(fire(agent, 1, "b:c", "a")) == 1


def test_before_any_config_rounds_wait_and_keep_their_votes() -> None:
    agent = CoordinatorAgent("coordinator")
    assert play(agent, [tick(1), *(vote(name, 1, 0.8) for name in VOTERS), vote("stranger", 1), tick(2)]) == []
    assert agent.timers[round_id(SYMBOL, "research-1", 1)].after_ms == DEFAULT_TIMEOUT_MS
    (decision,) = play(agent, [CONFIG])
    assert decision.agents_consulted == (NEWS, REVERSION, MOMENTUM)
    assert decision.final_decision == "buy"


def test_before_any_config_the_timer_closes_with_hold() -> None:
    agent = CoordinatorAgent("coordinator")
    play(agent, [tick(1), *(vote(name, 1, 0.9) for name in VOTERS)])
    (decision,) = fire(agent, 1)
    assert (decision.final_decision, decision.position_size, decision.consensus_level) == ("hold", 0.0, 0.5)
    assert (decision.agents_consulted, decision.absent) == ((), ())


def test_before_any_config_votes_are_bounded() -> None:
    agent = CoordinatorAgent("coordinator")
    play(agent, [tick(1), *(vote(f"v{n}", 1) for n in range(MAX_EARLY_VOTES + 5))])
    assert len(agent.state.rounds[SYMBOL][0].votes) == MAX_EARLY_VOTES
    assert agent.state.counts.refused_votes == 5


def test_a_quarantined_voter_is_no_longer_waited_for(agent: CoordinatorAgent) -> None:
    play(agent, [tick(1), tick(2), tick(3)])
    play(agent, [vote(name, n, 0.8) for n in (1, 2) for name in (NEWS, MOMENTUM)])
    smaller = replace(CONFIG, voters={NEWS: 1.0, MOMENTUM: 1.0})
    decisions = play(agent, [smaller])
    assert [(d.round, d.agents_consulted, d.absent) for d in decisions] == [
        (1, (NEWS, MOMENTUM), ()),
        (2, (NEWS, MOMENTUM), ()),
    ]
    assert decisions[0].consensus_level == pytest.approx(0.8)  # its weight is gone, not absent
    assert agent.on_signal(vote(REVERSION, 3)) == []
    assert agent.state.counts.unknown_writers == 1


def test_the_config_in_force_at_closing_rules_the_round(agent: CoordinatorAgent) -> None:
    play(agent, [tick(1), vote(REVERSION, 1, 0.1), vote(NEWS, 1, 0.6)])
    strict = replace(CONFIG, voters={NEWS: 1.0, MOMENTUM: 3.0}, buy_at=0.7, round_timeout_ms=900)
    assert play(agent, [strict]) == []
    (decision,) = agent.on_signal(vote(MOMENTUM, 1, 0.6))
    assert (decision.final_decision, decision.agents_consulted) == ("hold", (NEWS, MOMENTUM))
    assert decision.consensus_level == pytest.approx(0.6)
    agent.on_market(tick(2))
    assert agent.timers[round_id(SYMBOL, "research-1", 2)].after_ms == 900


def test_a_new_voter_is_waited_for_from_the_next_tick_on(agent: CoordinatorAgent) -> None:
    play(agent, [tick(1), vote(NEWS, 1), vote(MOMENTUM, 1)])
    agent.on_config(replace(CONFIG, voters={**CONFIG.voters, "breakout": 5.0}))
    agent.state = reload(agent.state)
    assert agent.on_signal(vote("breakout", 1, 0.01)) == []
    (closed,) = agent.on_signal(vote(REVERSION, 1))
    assert (closed.agents_consulted, closed.absent) == (VOTERS, ())
    assert closed.consensus_level == pytest.approx(0.7)
    assert agent.state.counts.unknown_writers == 1
    assert play(agent, [tick(2), *(vote(voter, 2) for voter in VOTERS)]) == []
    (closed,) = agent.on_signal(vote("breakout", 2, 0.01))
    assert closed.agents_consulted == ("breakout", *VOTERS)


def test_a_voter_that_left_and_came_back_is_new(agent: CoordinatorAgent) -> None:
    play(agent, [tick(1), vote(NEWS, 1), vote(MOMENTUM, 1)])
    agent.on_config(replace(CONFIG, voters={NEWS: 1.0, REVERSION: 1.0}))
    agent.on_config(CONFIG)
    (closed,) = agent.on_signal(vote(REVERSION, 1))
    assert (closed.agents_consulted, closed.absent) == ((NEWS, REVERSION), ())
    assert play(agent, [tick(2), vote(NEWS, 2), vote(REVERSION, 2)]) == []
    assert len(agent.on_signal(vote(MOMENTUM, 2))) == 1


def test_changes_at_run_time_do_not_swell_the_state(agent: CoordinatorAgent) -> None:
    agent.on_config(replace(CONFIG, changes={"revision": 1, "agents": {"x": {"table": {}, "after": 1}}}))
    assert agent.state.config == CONFIG


def test_with_no_voters_left_a_round_closes_at_its_tick(agent: CoordinatorAgent) -> None:
    agent.on_config(replace(CONFIG, voters={}))
    (decision,) = play(agent, [tick(1)])
    assert (decision.final_decision, decision.position_size) == ("hold", 0.0)
    assert agent.timers == {}


def test_later_prices_do_not_leak_into_an_earlier_round() -> None:
    def decisions(*, early: bool) -> list[Decision]:
        agent = CoordinatorAgent("coordinator")
        agent.on_config(CONFIG)
        ticks = [tick(n, 7000.0 * (1.0 + 0.05 * (n % 3))) for n in range(1, 60)]
        if early:
            play(agent, ticks)
        return [
            d
            for t in ticks
            for d in play(agent, [*([] if early else [t]), *(vote(name, t.sequence, 0.8) for name in VOTERS)])
        ]

    assert decisions(early=True) == decisions(early=False)
    assert len({d.risk_score for d in decisions(early=True)}) > 10


def test_windows_stay_bounded_and_hold_what_was_decided(agent: CoordinatorAgent) -> None:
    created = []
    for n in range(1, WINDOW + 51):
        created += play(agent, [tick(n, 100.0 + n % 7), *(vote(name, n, 0.2 + (n % 5) / 8) for name in VOTERS)])
        check_invariants(agent)
    feed = agent.state.feeds[SYMBOL]["research-1"]
    assert feed.closes == [100.0 + n % 7 for n in range(51, WINDOW + 51)]
    signed = [-d.position_size if d.final_decision == "sell" else d.position_size for d in created]
    assert feed.held == signed[-WINDOW:]
    assert min(feed.held) < 0 < max(feed.held)
    assert len(orjson.dumps(agent.state)) < 8192


@pytest.mark.slow
def test_many_feeds_share_a_budget_and_still_fit_a_snapshot(agent: CoordinatorAgent) -> None:
    names = [f"SYM{n}/USD" for n in range(MAX_FEEDS)]
    created: list[Decision] = []

    def step(symbol: str, n: int) -> None:
        price = round(7000.0 + 900.0 * ((n * 7919) % 100) / 99, 2)
        created.extend(play(agent, [tick(n, price, symbol=symbol), *(vote(name, n, 0.62, symbol) for name in VOTERS)]))

    for symbol in names[:32]:
        for n in range(1, WINDOW + 3):
            step(symbol, n)
    assert {len(feed.closes) for feeds in agent.state.feeds.values() for feed in feeds.values()} == {WINDOW}
    assert len(orjson.dumps(agent.state)) < MAX_SNAPSHOT_BYTES
    for n in range(1, 40):
        for symbol in names[32:]:
            step(symbol, n)
    assert {len(feed.closes) for feeds in agent.state.feeds.values() for feed in feeds.values()} == {31}
    assert len(orjson.dumps(agent.state)) < MAX_SNAPSHOT_BYTES
    assert (
        created[-1].risk_score > created[32 * (WINDOW + 2)].risk_score
    )  # volatility is still seen, unlike at the first
    check_invariants(agent)
    assert play(agent, [tick(1, symbol="one too many")]) == []
    assert agent.state.counts.refused_ticks == 1


def test_a_window_that_shrinks_while_a_round_waits_is_measured_anew(agent: CoordinatorAgent) -> None:
    voters = list(CONFIG.voters)
    for n in range(1, WINDOW + 10):
        play(agent, [tick(n, 7000.0 * 1.01 ** (n % 7 * (n < 100))), *(vote(voter, n) for voter in voters)])
    play(agent, [tick(WINDOW + 10), *(tick(1, source=f"s{n}") for n in range(40))])
    restored = CoordinatorAgent("coordinator")
    restored.state, restored.timers = reload(agent.state), dict(agent.timers)
    last = [vote(voter, WINDOW + 10) for voter in voters]
    assert play(agent, last) == play(restored, last)


def test_ticks_beyond_the_bounds_are_refused(agent: CoordinatorAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_OPEN_ROUNDS", 3)
    monkeypatch.setattr(module, "MAX_FEEDS", 2)
    ticks = [tick(1), tick(2), tick(1, symbol="ETH/USD"), tick(3), tick(1, symbol="XRP/USD")]
    answers = [answer for each in ticks for answer in outputs(agent, each)]
    assert (agent.state.open_rounds, agent.state.counts.refused_ticks) == (3, 2)
    refusals = [answer for answer in answers if isinstance(answer, Alert) and answer.code == "tick_refused"]
    assert [alert.detail["refused"] for alert in refusals] == [1]  # of the first ten
    play(agent, [vote(name, 1) for name in VOTERS])
    play(agent, [tick(1, symbol="XRP/USD"), tick(MAX_SEQUENCE + 1), tick(4), tick(5)])
    assert agent.state.counts.refused_ticks == 5
    assert [r.sequence for r in agent.state.rounds[SYMBOL]] == [2, 4]
    check_invariants(agent)


def test_after_the_largest_sequence_it_begins_anew(agent: CoordinatorAgent) -> None:
    play(agent, [replace(tick(1), sequence=MAX_SEQUENCE), tick(None), tick(None)])
    assert [(r.run, r.sequence) for r in agent.state.rounds[SYMBOL]] == [(1, MAX_SEQUENCE), (2, 1), (2, 2)]
    assert reload(agent.state) == agent.state


# -- properties ------------------------------------------------------------------------------------------------------
