"""A coordinator agent without a bus: ticks, votes, timers that run out, and what must hold after each of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

import msgspec
import orjson

from bus.messages import Alert, Decision, Event, MarketData, Sentiment, Signal, Timer, VotingConfig
from coordinator.decisions.agent import CoordinatorAgent
from coordinator.decisions.risk import WINDOW
from coordinator.decisions.rounds import round_id

NOON = datetime(2019, 5, 13, 12, tzinfo=UTC)
NEWS, MOMENTUM, REVERSION = "research-2", "strategy-momentum", "strategy-mean-reversion"
VOTERS = (NEWS, REVERSION, MOMENTUM)  # sorted by name
CONFIG = VotingConfig(voters={NEWS: 1.0, MOMENTUM: 1.0, REVERSION: 1.0}, timestamp=NOON, source="watchdog")
SYMBOL = "BTC/USD"


def tick(sequence: int | None, price: float = 7000.0, source: str = "research-1", symbol: str = SYMBOL) -> MarketData:
    at = NOON + timedelta(hours=min(sequence or 0, 1000))
    return MarketData(symbol=symbol, price=price, volume=1.0, timestamp=at, source=source, sequence=sequence)


def vote(voter: str, sequence: int | None, p_up: float = 0.7, symbol: str = SYMBOL) -> Signal:
    return Signal(
        signal="hold", strength=p_up, indicators={}, timestamp=NOON, source=voter, symbol=symbol, round=sequence
    )


def timer(name: str) -> Timer:
    return Timer(name=name, number=1, timestamp=NOON, source="coordinator")


def fire(agent: CoordinatorAgent, sequence: int, source: str = "research-1", symbol: str = SYMBOL) -> list[Decision]:
    """Let the timer of this round run out, as the runtime would: it is gone when its event is handled."""
    name = round_id(symbol, source, sequence)
    assert agent.timers.pop(name).topic == symbol
    return agent.on_timer(timer(name))


def outputs(agent: CoordinatorAgent, event: Event) -> Sequence[Decision | Alert]:
    match event:
        case MarketData():
            return agent.on_market(event)
        case Sentiment():
            return agent.on_sentiment(event)
        case Signal():
            return agent.on_signal(event)
        case VotingConfig():
            return agent.on_config(event)
        case Timer():
            agent.timers.pop(event.name, None)
            return agent.on_timer(event)
    raise AssertionError(event)


def handle(agent: CoordinatorAgent, event: Event) -> list[Decision]:
    return [output for output in outputs(agent, event) if isinstance(output, Decision)]


def play(agent: CoordinatorAgent, events: Iterable[Event]) -> list[Decision]:
    return [decision for event in events for decision in handle(agent, event)]


def reload(state: CoordinatorAgent.State) -> CoordinatorAgent.State:
    return msgspec.convert(orjson.loads(orjson.dumps(state)), CoordinatorAgent.State)


def figures_of(decision: Decision) -> tuple[float, float, float]:
    return decision.position_size, decision.risk_score, decision.consensus_level


def check_invariants(agent: CoordinatorAgent) -> None:
    """What holds after any event: sizes are counted right, windows match, each waiting round has its timer."""
    state = agent.state
    assert state.open_rounds == sum(map(len, state.rounds.values()))
    assert state.feed_count == sum(map(len, state.feeds.values()))
    for feeds in state.feeds.values():
        for feed in feeds.values():
            assert len(feed.closes) == len(feed.held) <= WINDOW
    waiting = {
        round_id(s, r.source, r.sequence, r.run)
        for s, rounds in state.rounds.items()
        for r in rounds
        if not r.timed_out
    }
    assert waiting == set(agent.timers)
