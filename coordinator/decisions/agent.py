"""The coordinator agent: collects the votes on each market tick in a round, and closes it with one Decision.

Owns opening rounds, matching votes to them, waiting, and closing in order. pooling.py combines votes, risk.py computes
risk and size, tick_order.py decides which tick opens a round. A round is (symbol, source, sequence); see
docs/adr/0003-rounds-and-synthesis.md.

Handlers are functions of (state, event) in stream order. The order of votes does not affect a decision's content.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import ClassVar

from agents.agent import Agent
from bus.messages import Alert, Decision, MarketData, Sentiment, Severity, Signal, Timer, VotingConfig
from bus.messages.subjects import WATCHDOG
from coordinator.decisions.pooling import Electorate, electorate, synthesise, vote_probability
from coordinator.decisions.risk import WINDOW, Market, assess, measure
from coordinator.decisions.tick_order import MAX_SEQUENCE, Feed, TickPosition

MAX_OPEN_ROUNDS = 4096
"""Open rounds over all symbols; ticks beyond are refused. Sixteen feeds at their limit of 256 undecided rounds.

An open round encodes to some 200 bytes: beyond about 800 the state passes bus.durable.snapshots.MAX_STATE_BYTES, and
snapshots pause (the recovery replays more, nothing is lost) until rounds have closed, 400 ms later at most.
"""
MAX_FEEDS = 256
"""Pairs of symbol and source; ticks of further ones are refused."""
WINDOW_BUDGET = 32 * WINDOW
"""Closes kept over all feeds, some 160 KiB encoded, which fits a snapshot. With more than 32 feeds each one's window is
shorter; with MAX_FEEDS it is 31 closes, still enough for risk.MIN_RETURNS."""
MAX_EARLY_VOTES = 64
"""Votes stored for one round before the first VotingConfig names the voters; further ones are refused."""
DEFAULT_TIMEOUT_MS = 400
"""Timer of rounds that open before any VotingConfig (the default of VotingConfig.round_timeout_ms as well)."""

NO_CONFIG = VotingConfig(voters={}, timestamp=datetime(1970, 1, 1, tzinfo=UTC), source="")
"""Used to close a round before any VotingConfig: no voters, so no quorum, so hold."""


@dataclass(slots=True)
class OpenRound:
    """A tick without a decision yet, of its feed's `run`. `votes` maps a voter to its probability of a rise."""

    source: str
    sequence: int
    price: float
    timestamp: datetime
    run: int = 1
    timed_out: bool = False
    votes: dict[str, float] = field(default_factory=dict)


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


def round_id(symbol: str, source: str, sequence: int, run: int = 1) -> str:
    """`symbol:source:sequence`, the decision_id and the timer's name; different rounds never share one.

    From a feed's second run on it is `symbol:source=run:sequence`. A colon in the source (agent names have none, but a
    payload's source may be any text) is written =3A, and = as =3D, so that the last two colons are always the
    separators, and a run is never part of a name.
    """
    if ":" in source or "=" in source:
        source = source.replace("=", "=3D").replace(":", "=3A")
    return f"{symbol}:{source}:{sequence}" if run == 1 else f"{symbol}:{source}={run}:{sequence}"


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
        sequence = tick.sequence
        if sequence is None:
            sequence = 1 if feed is None else feed.next_sequence()
        position: TickPosition = "next" if feed is None else feed.position(sequence, tick.timestamp)
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
        opened = OpenRound(tick.source, sequence, tick.price, tick.timestamp, feed.run)
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
        """Use this VotingConfig from now on, also for the open rounds: they may wait for fewer voters now."""
        if config.source != WATCHDOG:
            return self._config_from_unknown_writer(config)
        self.state.config = config
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
        state, voter = self.state, vote.source
        if state.config is not None and voter not in state.config.voters:
            state.counts.unknown_writers += 1
            return []
        symbol = vote.symbol or ""
        rounds = state.rounds.get(symbol, [])
        # The integer identifies the tick, not its source: of two rounds with one sequence the older is served first.
        known = False
        for waiting in rounds if vote.round is not None else rounds[-1:]:
            if vote.round is None or waiting.sequence == vote.round:
                if voter not in waiting.votes:
                    break
                known = True
        else:
            if known:
                state.counts.repeated_votes += 1
            else:
                state.counts.late_votes += 1
            return []
        if state.config is None and len(waiting.votes) >= MAX_EARLY_VOTES:
            state.counts.refused_votes += 1
            return []
        waiting.votes[voter] = vote_probability(vote)
        return self._close(symbol) if waiting is rounds[0] else []

    def _close(self, symbol: str) -> list[Decision]:
        """Decide the rounds at the head of `symbol` that are complete or timed out, in order, by the active Config."""
        rounds = self.state.rounds[symbol]
        decisions: list[Decision] = []
        for waiting in rounds:
            if not (waiting.timed_out or self._complete(waiting)):
                break
            decisions.append(self._decide(symbol, waiting))
        if decisions:
            del rounds[: len(decisions)]
            self.state.open_rounds -= len(decisions)
        return decisions

    def _complete(self, waiting: OpenRound) -> bool:
        """Whether every expected voter has voted; never before a VotingConfig names them."""
        config = self.state.config
        return config is not None and all(voter in waiting.votes for voter in config.voters)

    def _window(self) -> int:
        """Closes that each feed may keep."""
        return min(WINDOW, WINDOW_BUDGET // self.state.feed_count)

    def _trim_feeds(self) -> None:
        """Shorten the windows of all feeds, idle ones too, after a feed was added."""
        window = self._window()
        self._ahead = None
        if window < WINDOW:
            for feeds in self.state.feeds.values():
                for feed in feeds.values():
                    del feed.closes[:-window], feed.held[:-window]

    def _measure(self, waiting: OpenRound, feed: Feed) -> Market:
        """The risk at the tick of a round that is the next of its feed to close."""
        window = self._window()
        return measure([*feed.closes, waiting.price][-window:], feed.held[1 - window :])

    def _decide(self, symbol: str, closing: OpenRound) -> Decision:
        """The decision on `closing`; its price and position enter the windows only now.

        Later rounds may be open already, but their prices enter the windows only when they close.
        """
        config = self.state.config or NO_CONFIG
        if self._voters_of is not config:
            self._voters_of, self._voters = config, electorate(config.voters)
        feed = self.state.feeds[symbol][closing.source]
        ahead = self._ahead
        market = ahead[1] if ahead is not None and ahead[0] is closing else self._measure(closing, feed)
        feed.closes.append(closing.price)
        window = self._window()
        if len(feed.closes) > window:
            del feed.closes[:-window], feed.held[: 1 - window]
        synthesis = synthesise(closing.votes, self._voters, config)
        assessment = assess(synthesis, market, config)
        size = assessment.position_size
        feed.held.append(-size if synthesis.action == "sell" and size else size)
        name = round_id(symbol, closing.source, closing.sequence, closing.run)
        self.cancel_timer(name)
        return Decision(
            final_decision=synthesis.action,
            position_size=size,
            risk_score=assessment.risk_score,
            consensus_level=synthesis.consensus,
            agents_consulted=synthesis.consulted,
            timestamp=closing.timestamp,
            source=self.name,
            decision_id=name,
            symbol=symbol,
            round=closing.sequence,
            absent=synthesis.absent,
        )
