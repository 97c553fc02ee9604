"""Which trace an output belongs to (agents/runtime/tracing.py)."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from agents.agent import Agent
from agents.runtime.output_validation import Prepared
from agents.runtime.tracing import AgentTracing
from bus.interface import StoredMessage
from bus.messages import Decision, Event, MarketData, Signal
from bus.messages import headers as h
from bus.messages.subjects import Subjects
from bus.observability.otel_env import Settings
from bus.observability.spans import Context
from bus.observability.tracer import Tracer

AT = datetime(2026, 1, 1, tzinfo=UTC)
SAMPLED = Context(f"{1:032x}", f"{2:016x}")


class Source(Agent):
    kind = "source"
    publishes = ("market",)


class Voter(Agent):
    kind = "voter"
    listens = ("market",)
    publishes = ("signal",)


class Decider(Agent):
    kind = "decider"
    listens = ("market", "signal")
    publishes = ("decision",)


def tick(number: int, symbol: str = "BTC/USD") -> MarketData:
    return MarketData(symbol=symbol, price=1.0, volume=1.0, timestamp=AT, source="feed", sequence=number)


def vote(number: int, symbol: str = "BTC/USD") -> Signal:
    return Signal(signal="buy", strength=0.5, indicators={}, timestamp=AT, source="v", symbol=symbol, round=number)


def decision(number: int, symbol: str = "BTC/USD") -> Decision:
    return Decision(
        final_decision="hold", position_size=0.0, risk_score=0.0, consensus_level=0.0, agents_consulted=(),
        timestamp=AT, source="decider", symbol=symbol, round=number, decision_id=f"{symbol}:feed:{number}", absent=(),
    )  # fmt: skip


def traced(cls: type[Agent], sampler: str = "always_on") -> AgentTracing:
    return AgentTracing(Tracer(Settings(sampler=sampler), dict), cls(cls.kind), Subjects("swarm"))


def take(tracing: AgentTracing, message: Event, header: str, sequence: int = 7) -> None:
    headers = {h.TRACEPARENT: header} if header else {}
    tracing.begin(StoredMessage("swarm.market.X.feed", sequence, b"", headers), message)


def sign(tracing: AgentTracing, kind: str, message: Event, cause: int | None = 7) -> str:
    return tracing.sign(Prepared(subject=f"swarm.{kind}.X.a", data=b"", kind=kind, message=message), 1, cause)


def test_a_source_gives_a_context_to_sampled_ticks_only():
    assert sign(traced(Source), "market", tick(1), None).endswith("-01")
    assert sign(traced(Source, "always_off"), "market", tick(1), None) == ""


@pytest.mark.parametrize(("header", "passed"), [("", ""), (SAMPLED._replace(sampled=False).header,) * 2])
def test_an_answer_to_what_is_not_sampled_has_no_context_of_its_own(header, passed):
    tracing = traced(Voter)
    take(tracing, tick(1), header)
    assert sign(tracing, "signal", vote(1)) == passed


def test_an_answer_to_a_sampled_tick_is_in_its_trace():
    tracing = traced(Voter)
    take(tracing, tick(1), SAMPLED.header)
    assert sign(tracing, "signal", vote(1)).split("-")[1] == SAMPLED.trace_id


@pytest.mark.parametrize("tick_was_read", [True, False])
def test_a_sampled_vote_that_closes_an_unsampled_round_of_another_symbol_is_not_its_parent(tick_was_read):
    """Rounds close in order: the last vote on one may close the one behind it as well."""
    tracing = traced(Decider)
    if tick_was_read:  # else its predecessor has read it
        take(tracing, tick(1, "ETH/USD"), "")
    take(tracing, tick(1), SAMPLED.header)
    take(tracing, vote(1), SAMPLED.header)
    assert sign(tracing, "decision", decision(1)).split("-")[1] == SAMPLED.trace_id
    assert sign(tracing, "decision", decision(1, "ETH/USD")) == ""
