"""The coordinator agent: collects the votes on each market tick in a round, and closes it with one Decision.

Owns opening rounds, waiting, and closing in order. rounds.py matches votes to rounds and makes the decision, pooling.py
combines votes, risk.py computes risk and size, tick_order.py decides which tick opens a round. A round is (symbol,
source, sequence); see docs/adr/0003-rounds-and-synthesis.md.

Handlers are functions of (state, event) in stream order. The order of votes does not affect a decision's content.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from agents.agent import Agent
from bus.messages import Alert, Decision, MarketData, Sentiment, Severity, Signal, Timer, VotingConfig
from bus.messages.subjects import WATCHDOG
from coordinator.decisions.pooling import Electorate, electorate
from coordinator.decisions.risk import WINDOW, Market, measure
from coordinator.decisions.rounds import (
    NO_CONFIG,
    Electors,
    OpenRound,
    close_round,
    count_vote,
    is_complete,
    round_id,
    signed_position,
    window_of,
)
from coordinator.decisions.tick_order import MAX_SEQUENCE, Feed, TickPosition, place_tick

MAX_OPEN_ROUNDS = 4096
"""Open rounds over all symbols; ticks beyond are refused. Sixteen feeds at their limit of 256 undecided rounds.

An open round encodes to some 200 bytes: beyond about 800 the state passes bus.durable.snapshots.MAX_STATE_BYTES, and
snapshots pause (the recovery replays more, nothing is lost) until rounds have closed, 400 ms later at most.
"""
MAX_FEEDS = 256
"""Pairs of symbol and source; ticks of further ones are refused."""
DEFAULT_TIMEOUT_MS = 400
"""Timer of rounds that open before any VotingConfig (the default of VotingConfig.round_timeout_ms as well)."""


@dataclass(slots=True)
class Counts:
    """Number of ignored or unexpected messages, by reason."""

    repeated_ticks: int = 0  # see Feed.position
    odd_ticks: int = 0  # accepted although the feed's numbers went back
    refused_ticks: int = 0  # beyond MAX_OPEN_ROUNDS, MAX_FEEDS or MAX_SEQUENCE
    unknown_writers: int = 0  # votes of agents that are not in VotingConfig.voters
    repeated_votes: int = 0  # the voter has already voted on that open round; its first vote counts
    late_votes: int = 0  # no such round is open
    refused_votes: int = 0  # beyond MAX_EARLY_VOTES
    unknown_writer_configs: int = 0  # of writers other than the watchdog


def is_reported(count: int) -> bool:
    """Whether the `count`-th occurrence is alerted: the 1st, 10th, 100th and so on, to limit the alerts."""
    return str(count).rstrip("0") == "1"


class CoordinatorAgent(Agent):
    """Decides each round when every expected voter has voted, or when its timer has fired; in order per symbol."""

    kind = "coordinator"
    listens = ("market", "sentiment", "signal", "config")
    publishes = ("decision",)
    memory_key = "decision"
    capabilities: ClassVar[tuple[str, ...]] = ("decision_synthesis", "risk_management")

    @dataclass
    class State:
        """`rounds`: the open ones by symbol, in the order of their ticks. `feeds`: by symbol, then by source."""

        config: VotingConfig | None = None
        rounds: dict[str, list[OpenRound]] = field(default_factory=dict)
        feeds: dict[str, dict[str, Feed]] = field(default_factory=dict)
        open_rounds: int = 0
        feed_count: int = 0
        counts: Counts = field(default_factory=Counts)
        electors: Electors = field(default_factory=Electors)

    state: State

    def setup(self) -> None:
        # Not part of the state: derived from state.config, and checked by identity at each use.
        self._voters_of: VotingConfig = NO_CONFIG
        self._voters: Electorate = electorate(NO_CONFIG.voters)
        self._ahead: tuple[OpenRound, Market] | None = None  # measured while the round waited for its votes

    def on_market(self, tick: MarketData) -> list[Decision | Alert]:
        """Open the round of this tick. It closes at once only if the VotingConfig has no voters."""
        state = self.state
        feed = state.feeds.get(tick.symbol, {}).get(tick.source)
        sequence, position = place_tick(feed, tick.sequence, tick.timestamp)
        if feed is not None and position == "repeated":
            return self._repeated(tick, feed)
        if (
            state.open_rounds >= MAX_OPEN_ROUNDS
            or (feed is None and state.feed_count >= MAX_FEEDS)
            or not -MAX_SEQUENCE <= sequence <= MAX_SEQUENCE
        ):
            return self._refused(tick)
        alerts: list[Alert] = []
        if feed is None:
            feed = state.feeds.setdefault(tick.symbol, {})[tick.source] = Feed(sequence, tick.timestamp)
            state.feed_count += 1
            self._trim_feeds()
        else:
            alerts = self._odd(tick, feed, position)
            feed.take(position, sequence, tick.timestamp)
        opened = OpenRound(tick.source, sequence, tick.price, tick.timestamp, feed.run, config=state.electors.number)
        state.rounds.setdefault(tick.symbol, []).append(opened)
        state.open_rounds += 1
        self.set_timer(
            round_id(tick.symbol, tick.source, sequence, feed.run),
            topic=tick.symbol,
            after_ms=DEFAULT_TIMEOUT_MS if state.config is None else state.config.round_timeout_ms,
        )
        if state.rounds[tick.symbol][0] is opened:  # nothing can enter its feed's windows before it does
            self._ahead = opened, self._measure(opened, feed)
        return [*alerts, *self._close(tick.symbol)]

    def _repeated(self, tick: MarketData, feed: Feed) -> list[Decision | Alert]:
        """Count a tick that opens no round, because its feed already published that number."""
        self.state.counts.repeated_ticks += 1
        feed.repeated += 1
        if not is_reported(feed.repeated):
            return []
        problem = (
            f"tick {tick.sequence} of {tick.symbol} by {tick.source} is ignored: the last one was {feed.last}, "
            f"of {feed.at.isoformat()}; number ticks in ascending order, or omit `sequence`"
        )
        return [self._tick_alert("info", "tick_repeated", problem, tick, last=feed.last, repeated=feed.repeated)]

    def _odd(self, tick: MarketData, feed: Feed, position: TickPosition) -> list[Alert]:
        """Count a tick that is accepted although its number does not follow the last one; a leap is not counted yet.

        The next tick shows whether a leap was an outlier or belongs to the feed.
        """
        if position not in ("renumbered", "resumed"):
            return []
        self.state.counts.odd_ticks += 1
        feed_name = f"{tick.symbol} by {tick.source}"
        if position == "resumed":
            feed.outliers += 1
            count, code = feed.outliers, "tick_out_of_order"
            problem = f"{feed_name}: tick {feed.last} was an outlier; {tick.sequence} continues the series before it"
        else:
            count, code = feed.runs, "feed_renumbered"
            problem = f"{feed_name} has restarted its tick numbers: {tick.sequence} came after {feed.last}"
        return (
            [self._tick_alert("warning", code, problem, tick, last=feed.last, times=count)]
            if is_reported(count)
            else []
        )

    def _refused(self, tick: MarketData) -> list[Decision | Alert]:
        """Count a tick beyond the bounds; no decision answers it."""
        counts = self.state.counts
        counts.refused_ticks += 1
        if not is_reported(counts.refused_ticks):
            return []
        problem = (
            f"tick {tick.sequence} of {tick.symbol} by {tick.source} is refused: expected at most {MAX_OPEN_ROUNDS} "
            f"open rounds ({self.state.open_rounds}), {MAX_FEEDS} feeds ({self.state.feed_count}), and a sequence "
            f"within ±{MAX_SEQUENCE}"
        )
        return [self._tick_alert("warning", "tick_refused", problem, tick, refused=counts.refused_ticks)]

    def _tick_alert(self, severity: Severity, code: str, problem: str, tick: MarketData, **values: int) -> Alert:
        return self.alert(
            severity,
            code,
            problem,
            tick.timestamp,
            symbol=tick.symbol,
            of=tick.source,
            sequence=tick.sequence,
            **values,
        )

    def on_sentiment(self, vote: Sentiment) -> list[Decision]:
        """A vote by a sentiment agent."""
        return self._count(vote)

    def on_signal(self, vote: Signal) -> list[Decision]:
        """A vote by a strategy."""
        return self._count(vote)

    def on_config(self, config: VotingConfig) -> list[Decision | Alert]:
        """Use this VotingConfig from now on, also for the open rounds: they may wait for fewer voters now.

        They do not wait for voters that have joined since their ticks.
        """
        if config.source != WATCHDOG:
            return self._config_from_unknown_writer(config)
        self.state.electors.take(self.state.config, config)
        self.state.config = replace(config, changes=None)  # they concern the watchdog, and would swell the snapshots
        decisions: list[Decision | Alert] = []
        for symbol in self.state.rounds:  # in order of each symbol's first tick, which a restored state keeps
            decisions += self._close(symbol)
        return decisions

    def _config_from_unknown_writer(self, config: VotingConfig) -> list[Decision | Alert]:
        """Count a VotingConfig that a process other than the watchdog has published."""
        counts = self.state.counts
        counts.unknown_writer_configs += 1
        if not is_reported(counts.unknown_writer_configs):
            return []
        problem = (
            f"{config.source} has published a VotingConfig, which is ignored: only the {WATCHDOG} may publish one; "
            "check which processes write to this bus"
        )
        return [
            self.alert(
                "warning",
                "config_from_unknown_writer",
                problem,
                config.timestamp,
                writer=config.source,
                unknown_writer_configs=counts.unknown_writer_configs,
            )
        ]

    def on_timer(self, timer: Timer) -> list[Decision]:
        """Mark the round of this name as timed out. It closes now, or after the rounds before it."""
        symbol = timer.name.rsplit(":", 2)[0]
        for waiting in self.state.rounds.get(symbol, ()):
            if round_id(symbol, waiting.source, waiting.sequence, waiting.run) == timer.name:
                waiting.timed_out = True
                return self._close(symbol)
        return []  # its round has closed since the timer fired

    def _count(self, vote: Sentiment | Signal) -> list[Decision]:
        """Add a vote to its round, if that is open and lacks it; close the rounds that it completes."""
        state, symbol = self.state, vote.symbol or ""
        rounds = state.rounds.get(symbol, [])
        outcome, waiting = count_vote(vote, rounds, state.config, state.electors)
        if waiting is None:
            counts = state.counts
            if outcome == "unknown":
                counts.unknown_writers += 1
            elif outcome == "repeated":
                counts.repeated_votes += 1
            elif outcome == "late":
                counts.late_votes += 1
            else:
                counts.refused_votes += 1
            return []
        return self._close(symbol) if waiting is rounds[0] else []

    def _close(self, symbol: str) -> list[Decision]:
        """Decide the rounds at the head of `symbol` that are complete or timed out, in order, by the active Config."""
        rounds = self.state.rounds[symbol]
        decisions: list[Decision] = []
        for waiting in rounds:
            if not (waiting.timed_out or is_complete(waiting, self.state.config, self.state.electors)):
                break
            decisions.append(self._decide(symbol, waiting))
        if decisions:
            del rounds[: len(decisions)]
            self.state.open_rounds -= len(decisions)
        return decisions

    def _trim_feeds(self) -> None:
        """Shorten the windows of all feeds, idle ones too, after a feed was added."""
        window = window_of(self.state.feed_count)
        self._ahead = None
        if window < WINDOW:
            for feeds in self.state.feeds.values():
                for feed in feeds.values():
                    del feed.closes[:-window], feed.held[:-window]

    def _measure(self, waiting: OpenRound, feed: Feed) -> Market:
        """The risk at the tick of a round that is the next of its feed to close."""
        window = window_of(self.state.feed_count)
        return measure([*feed.closes, waiting.price][-window:], feed.held[1 - window :])

    def _decide(self, symbol: str, closing: OpenRound) -> Decision:
        """The decision on `closing`; its price and position enter the windows only now.

        Later rounds may be open already, but their prices enter the windows only when they close.
        """
        config = self.state.config or NO_CONFIG
        if self._voters_of is not config:
            self._voters_of, self._voters = config, electorate(config.voters)
        expected = self.state.electors.voters_of(closing, config)
        voters = self._voters if len(expected) == len(config.voters) else electorate(expected)
        feed = self.state.feeds[symbol][closing.source]
        ahead = self._ahead
        market = ahead[1] if ahead is not None and ahead[0] is closing else self._measure(closing, feed)
        feed.closes.append(closing.price)
        window = window_of(self.state.feed_count)
        if len(feed.closes) > window:
            del feed.closes[:-window], feed.held[: 1 - window]
        closed = close_round(symbol, closing, market, voters, config, self.name)
        decision = closed.decision
        feed.held.append(signed_position(decision.final_decision, decision.position_size))
        self.cancel_timer(round_id(symbol, closing.source, closing.sequence, closing.run))
        return decision
