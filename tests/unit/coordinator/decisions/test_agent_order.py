"""The coordinator's decisions do not depend on the order of votes, nor on where it was restored."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.messages import Decision, Event, MarketData, Signal, encode
from coordinator.decisions.agent import CoordinatorAgent
from coordinator.decisions.pooling import electorate, synthesise
from coordinator.decisions.risk import assess, measure
from coordinator.decisions.rounds import round_id
from tests.support.coordinator_rounds import (
    CONFIG,
    SYMBOL,
    VOTERS,
    check_invariants,
    figures_of,
    handle,
    play,
    tick,
    timer,
    vote,
)

p_up = st.sampled_from([0.0, 0.1, 0.3, 0.45, 0.5, 0.55, 0.62, 0.78, 0.9, 1.0])


@st.composite
def interleavings(draw: st.DrawFn) -> tuple[list[MarketData], dict[str, list[Signal]], list[list[Event]]]:
    """Ticks of two symbols, each voter's own votes in order (some doubled, some missing), and two ways to mix them.

    A mix keeps the order of the ticks, the order of each voter, and every vote after its tick.
    """
    ticks = [
        tick(n, draw(st.floats(50.0, 200.0)), symbol=symbol)
        for symbol in ("BTC/USD", "ETH/USD")
        for n in range(1, draw(st.integers(1, 5)) + 1)
    ]
    votes: dict[str, list[Signal]] = {}
    for name in VOTERS:
        order = draw(st.permutations([t for t in ticks for _ in range(draw(st.sampled_from([1, 1, 1, 0, 2])))]))
        votes[name] = [vote(name, t.sequence, draw(p_up), t.symbol) for t in order]
    labels = ["tick"] * len(ticks) + [name for name in VOTERS for _ in votes[name]]
    mixes = []
    for _ in range(2):
        mix: list[Event] = []
        streams = {name: iter(votes[name]) for name in VOTERS}
        left = list(ticks)
        for label in draw(st.permutations(labels)):
            cast = None if label == "tick" else next(streams[label])
            while left and (cast is None or any((t.sequence, t.symbol) == (cast.round, cast.symbol) for t in left)):
                mix.append(left.pop(0))
                if cast is None:
                    break
            if cast is not None:
                mix.append(cast)
        mixes.append([*mix, *left])
    return ticks, votes, mixes


def expected_decisions(
    ticks: list[MarketData], votes: dict[str, list[Signal]], symbol: str
) -> list[tuple[object, ...]]:
    """What the definition says, told without any agent: the first vote of each voter, then the formulas in order."""
    closes: list[float] = []
    held: list[float] = []
    wanted: list[tuple[object, ...]] = []
    for t in (t for t in ticks if t.symbol == symbol):
        cast = {
            name: next(v.strength for v in mine if (v.round, v.symbol) == (t.sequence, symbol))
            for name, mine in votes.items()
            if any((v.round, v.symbol) == (t.sequence, symbol) for v in mine)
        }
        closes.append(t.price)
        synthesis = synthesise(cast, electorate(CONFIG.voters), CONFIG)
        result = assess(synthesis, measure(closes, held), CONFIG)
        held.append(-result.position_size if synthesis.action == "sell" else result.position_size)
        figures = (result.position_size, result.risk_score, synthesis.consensus)
        wanted.append((t.sequence, synthesis.action, *figures, synthesis.consulted, synthesis.absent))
    return wanted


@settings(max_examples=200)
@given(interleavings())
def test_any_order_of_votes_gives_the_same_decisions_each_round_once(
    case: tuple[list[MarketData], dict[str, list[Signal]], list[list[Event]]],
) -> None:
    ticks, votes, mixes = case
    published: list[list[bytes]] = []
    for mix in mixes:
        agent = CoordinatorAgent("coordinator")
        created = play(agent, [CONFIG, *mix])
        created += play(agent, [timer(round_id(t.symbol, t.source, t.sequence or 0)) for t in ticks])
        late = [vote(name, t.sequence, 0.99, t.symbol) for name in VOTERS for t in ticks]
        assert play(agent, late) == []
        assert agent.state.open_rounds == 0
        assert len({d.decision_id for d in created}) == len(created) == len(ticks)
        for symbol in ("BTC/USD", "ETH/USD"):
            reported = [
                (d.round, d.final_decision, *figures_of(d), d.agents_consulted, d.absent)
                for d in created
                if d.symbol == symbol
            ]
            assert reported == expected_decisions(ticks, votes, symbol)
        published.append([encode(d) for d in sorted(created, key=lambda d: d.symbol or "")])
    assert published[0] == published[1]


@settings(max_examples=100)
@given(st.integers(1, 4), st.data())
def test_any_order_of_votes_over_two_sources_gives_the_same_decisions(rounds: int, data: st.DataObject) -> None:
    ticks = data.draw(st.permutations([tick(n, 100.0 + n, source) for n in range(1, rounds + 1) for source in "ab"]))
    ticks = sorted(ticks, key=lambda t: t.sequence or 0)  # each source in order, which of the two first is drawn
    votes = {name: [vote(name, t.sequence, data.draw(p_up)) for t in ticks] for name in VOTERS}
    published = []
    for _ in range(2):
        agent = CoordinatorAgent("coordinator")
        streams = {name: iter(mine) for name, mine in votes.items()}
        order = data.draw(st.permutations([name for name in VOTERS for _ in ticks]))
        created = play(agent, [CONFIG, *ticks, *(next(streams[name]) for name in order)])
        assert [d.decision_id for d in created] == [round_id(SYMBOL, t.source, t.sequence or 0) for t in ticks]
        published.append([encode(d) for d in created])
    assert published[0] == published[1]


configs = st.builds(
    replace,
    st.just(CONFIG),
    voters=st.dictionaries(st.sampled_from((*VOTERS, "breakout")), st.sampled_from([0.5, 1.0, 2.0])),
    quorum=st.sampled_from([0.0, 0.5, 0.8]),
)
sequences = st.none() | st.integers(1, 8)
symbols = st.sampled_from(["BTC/USD", "ETH/USD"])
anything: st.SearchStrategy[Event | int] = st.one_of(
    st.builds(tick, sequences, st.floats(50.0, 200.0), st.sampled_from(["a", "b:c"]), symbols),
    st.builds(vote, st.sampled_from((*VOTERS, "breakout", "stranger")), sequences, p_up, symbols),
    st.integers(0, 50),  # the timer at this place among those that run
    configs,
)


@pytest.mark.slow
@settings(max_examples=300)
@given(st.lists(anything, max_size=60), st.booleans(), st.data())
def test_a_restored_state_goes_on_as_if_nothing_had_happened(
    script: list[Event | int], configured: bool, data: st.DataObject
) -> None:
    steady, restored = CoordinatorAgent("coordinator"), CoordinatorAgent("coordinator")
    created: list[Decision] = []
    for step in [CONFIG, *script] if configured else script:
        event = step
        if isinstance(event, int):
            if not steady.timers:
                continue
            event = timer(sorted(steady.timers)[event % len(steady.timers)])
        if data.draw(st.booleans()):
            snapshot = orjson.dumps(restored.state)
            successor = CoordinatorAgent("coordinator")
            successor.state = msgspec.convert(orjson.loads(snapshot), CoordinatorAgent.State)
            successor.timers, successor.timers_set = dict(restored.timers), restored.timers_set
            assert orjson.dumps(successor.state) == snapshot
            restored = successor
        decisions = handle(steady, event)
        assert handle(restored, event) == decisions
        assert restored.state == steady.state
        assert restored.timers == steady.timers
        check_invariants(steady)
        created += decisions
    assert len({d.decision_id for d in created}) == len(created)
    series: dict[str, list[int]] = {}
    for decision in created:
        series.setdefault((decision.decision_id or "").rsplit(":", 1)[0], []).append(decision.round or 0)
    assert all(order == sorted(order) for order in series.values())
