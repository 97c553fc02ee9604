"""Which round an answer belongs to (agents/runtime/round_traces.py): sampled or not, of one source or of several."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from agents.runtime.round_traces import MAX_ROUNDS, RoundTraces, TracedRound, round_of
from bus.messages import Decision, MarketData, Signal
from bus.observability.spans import Context, read_sampled

AT = datetime(2026, 1, 1, tzinfo=UTC)


def header(number: int, *, sampled: bool) -> str:
    return Context(f"{number:032x}", f"{number:016x}", sampled).header


def tick(number: int | None, source: str = "research-1") -> MarketData:
    return MarketData(symbol="BTC/USD", price=1.0, volume=1.0, timestamp=AT, source=source, sequence=number)


def vote(number: int) -> Signal:
    return Signal(signal="buy", strength=0.5, indicators={}, timestamp=AT, source="v", symbol="BTC/USD", round=number)


def decision(number: int | None, source: str = "research-1") -> Decision:
    fields: dict[str, Any] = {"final_decision": "hold", "position_size": 0.0, "risk_score": 0.0, "consensus_level": 0.0}
    return Decision(
        **fields, agents_consulted=(), timestamp=AT, source="coordinator", symbol="BTC/USD", round=number,
        decision_id=f"BTC/USD:{source}:{number}", absent=(),
    )  # fmt: skip


def take(rounds: RoundTraces, message: MarketData | Signal, traceparent: str) -> None:
    rounds.take(message, traceparent, read_sampled(traceparent)[0], 1)


@pytest.fixture
def rounds() -> RoundTraces:
    return RoundTraces()


def test_an_unsampled_round_has_a_header_until_it_is_decided(rounds):
    take(rounds, tick(1), header(1, sampled=False))
    assert rounds.unsampled(vote(1)) == header(1, sampled=False)
    assert rounds.unsampled(vote(2)) is None
    assert rounds.find(decision(1), ends=True) == header(1, sampled=False)
    assert rounds.find(decision(1), ends=True) is None
    assert rounds.unsampled(vote(1)) is None


def test_a_sampled_round_remembers_its_votes(rounds):
    take(rounds, tick(1), header(1, sampled=True))
    assert rounds.unsampled(vote(1)) is None
    take(rounds, vote(1), Context(f"{1:032x}", f"{9:016x}").header)
    found = rounds.find(decision(1), ends=True)
    assert isinstance(found, TracedRound)
    assert found.votes == {"v": f"{9:016x}"}


def test_an_unsampled_round_without_a_header_is_known_until_it_is_decided(rounds):
    take(rounds, tick(1), "")
    assert rounds.unsampled(vote(1)) == ""
    assert rounds.find(decision(1), ends=True) == ""
    assert rounds.find(decision(1), ends=True) is None


def test_votes_and_decisions_are_of_their_symbol_and_round():
    assert round_of(tick(3)) == round_of(vote(3)) == round_of(decision(3)) == ("BTC/USD", 3)
    assert round_of(tick(None)) == ("BTC/USD", None)


@pytest.mark.parametrize("foreign", [True, False])
@pytest.mark.parametrize("first", ["a", "b"])
def test_a_sampled_and_an_unsampled_source_with_the_same_numbers(rounds, first, foreign):
    headers = {"a": header(1, sampled=True), "b": header(2, sampled=False) if foreign else ""}
    for source, traceparent in headers.items():
        take(rounds, tick(7, source), traceparent)
    assert rounds.unsampled(vote(7)) is None, "it may be a vote on the sampled one: its own header says so"
    found = {source: rounds.find(decision(7, source), ends=True) for source in (first, "ab".replace(first, ""))}
    assert isinstance(found["a"], TracedRound)
    assert (found["a"].context.header, found["b"]) == (headers["a"], headers["b"])


def test_a_source_whose_name_is_written_otherwise_in_the_id(rounds):
    take(rounds, tick(1, "a:b"), header(1, sampled=True))
    found = rounds.find(decision(1, "a=3Ab"), ends=True)
    assert isinstance(found, TracedRound)


@pytest.mark.parametrize("sampled", [True, False])
def test_a_tick_without_a_number_is_known_by_its_time(rounds, sampled):
    take(rounds, tick(None), header(1, sampled=sampled))
    found = rounds.find(decision(12), ends=True)
    assert (found.context.header if isinstance(found, TracedRound) else found) == header(1, sampled=sampled)


def test_what_is_remembered_is_bounded(rounds):
    for number in range(1, MAX_ROUNDS + 3):
        take(rounds, tick(number), header(number, sampled=False))
    retained = [rounds.find(decision(number), ends=False) is not None for number in (1, 2, 3, MAX_ROUNDS + 2)]
    assert retained == [False, False, True, True]


def test_sampled_rounds_survive_in_a_snapshot(rounds):
    take(rounds, tick(1), header(1, sampled=True))
    take(rounds, tick(2), header(2, sampled=False))
    another = RoundTraces()
    another.load(rounds.save())
    assert isinstance(another.find(decision(1), ends=True), TracedRound)
    assert another.find(decision(2), ends=True) is None


def test_a_sampled_round_that_is_one_too_many_ends_the_oldest(rounds):
    for number in range(1, MAX_ROUNDS + 2):
        take(rounds, tick(number), header(number, sampled=True))
    assert rounds.find(decision(1), ends=False) is None
    assert isinstance(rounds.find(decision(2), ends=False), TracedRound)
    saved = rounds.save()
    assert len(saved) == MAX_ROUNDS
    assert saved[0][1] == 2


def test_a_round_that_ended_is_not_found_again(rounds):
    take(rounds, tick(1), header(1, sampled=True))
    assert isinstance(rounds.find(decision(1), ends=False), TracedRound)
    assert isinstance(rounds.find(decision(1), ends=True), TracedRound)
    assert rounds.find(decision(1), ends=True) is None
    assert rounds.save() == []


def test_without_ticks_that_have_no_number_no_time_is_looked_up(rounds):
    """Reading the time of every alert would cost more than the rest."""
    take(rounds, tick(1), header(1, sampled=True))

    class Timeless:
        symbol, round = "A", 9

    message: Any = Timeless()
    assert rounds.find(message, ends=False) is None
