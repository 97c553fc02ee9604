"""What happened to one round between its tick and its decision: which votes it counted, and which message closed it.

The votes are matched and the round is completed by the functions of coordinator/decisions/rounds.py. When the rounds
beside it opened and closed is taken from their published decisions.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from bus.errors import MessageError
from bus.interface import StoredMessage
from bus.messages import Decision, MarketData, Message, Sentiment, Signal, Timer, VotingConfig
from bus.messages import headers as h
from bus.messages.subjects import WATCHDOG, Subjects
from coordinator.decisions.rounds import (
    Electors,
    OpenRound,
    RoundName,
    VoteOutcome,
    count_vote,
    is_complete,
    parse_round_id,
    round_id,
)
from coordinator.decisions.tick_order import MAX_SEQUENCE, Feed, place_tick
from coordinator.explain.models import ClosingReason

Vote = Sentiment | Signal
DecodedMessage = tuple[StoredMessage, Message | None]
"""A message with its payload; None where that is malformed."""


@dataclass(frozen=True, slots=True)
class DecidedRound:
    """A published decision with its tick."""

    tick: StoredMessage
    market: MarketData
    stored: StoredMessage
    decision: Decision
    name: RoundName
    cause: int

    def opened(self) -> OpenRound:
        """The round as its tick opened it."""
        tick = self.market
        return OpenRound(tick.source, self.name.sequence, tick.price, tick.timestamp, self.name.run)


@dataclass(frozen=True, slots=True)
class StoredVote:
    """A vote and its message."""

    stored: StoredMessage
    vote: Vote


@dataclass(slots=True)
class RoundHistory:
    """A round up to the message that closed it. `closable_at` is the first message after which it had to close."""

    round: OpenRound
    config: VotingConfig | None
    config_message: StoredMessage | None
    config_changed: bool = False
    electors: Electors = field(default_factory=Electors)
    counted: dict[str, StoredVote] = field(default_factory=dict)
    ignored: list[tuple[VoteOutcome, StoredVote]] = field(default_factory=list)
    closable_at: int | None = None
    reason: ClosingReason = "unknown"


def decoded(subjects: Subjects, stored: StoredMessage) -> Message | None:
    """The payload; None where it is malformed, as every agent skips it then."""
    with contextlib.suppress(MessageError):
        return stored.decode(subjects)
    return None


def decode_all(subjects: Subjects, messages: Iterable[StoredMessage]) -> list[DecodedMessage]:
    """Each with its payload."""
    return [(stored, decoded(subjects, stored)) for stored in messages]


def pair_rounds(messages: Iterable[DecodedMessage]) -> list[DecidedRound]:
    """The decisions among `messages` whose ticks are among them too, in the order of the decisions.

    A tick belongs to the decision with its source, number and timestamp; the first one if it was repeated.
    """
    ticks: dict[tuple[str, int | None, datetime], deque[tuple[StoredMessage, MarketData]]] = {}
    found: list[DecidedRound] = []
    for stored, message in messages:
        if isinstance(message, MarketData):
            key = message.source, message.sequence, message.timestamp
            ticks.setdefault(key, deque()).append((stored, message))
        elif isinstance(message, Decision):
            name, cause = parse_round_id(message.decision_id or ""), h.number(stored.headers, h.CAUSE)
            if name is None or cause is None:
                continue
            for number in (name.sequence, None):
                if waiting := ticks.get((name.source, number, message.timestamp)):
                    tick, market = waiting.popleft()
                    found.append(DecidedRound(tick, market, stored, message, name, cause))
                    break
    return found


def later_rounds(messages: Iterable[DecodedMessage], after: int) -> dict[int, OpenRound]:
    """Tick -> its round, of the ticks beyond `after` that opened one, judged by the ticks before them in `messages`."""
    feeds: dict[str, Feed] = {}
    found: dict[int, OpenRound] = {}
    for stored, tick in messages:
        if not isinstance(tick, MarketData):
            continue
        feed = feeds.get(tick.source)
        number, position = place_tick(feed, tick.sequence, tick.timestamp)
        if position == "repeated" or not -MAX_SEQUENCE <= number <= MAX_SEQUENCE:
            continue
        if feed is None:
            feed = feeds[tick.source] = Feed(number, tick.timestamp)
        else:
            feed.take(position, number, tick.timestamp)
        if stored.sequence > after:
            found[stored.sequence] = OpenRound(tick.source, number, tick.price, tick.timestamp, feed.run)
    return found


def follow_round(
    wanted: DecidedRound,
    beside: Sequence[DecidedRound],
    later: Mapping[int, OpenRound],
    configs: Sequence[StoredMessage],
    messages: Sequence[StoredMessage],
    subjects: Subjects,
) -> RoundHistory:
    """Follow the round `wanted` through `messages`, in which the ticks of all rounds are whose votes it could take.

    Args:
        wanted: the decision and its tick.
        beside: decisions on the same symbol by the same decider, `wanted` among them or not.
        later: the rounds of ticks without a decision in `beside`.
        configs: the Configs stored before `messages`, in order.
        messages: ticks, votes, timers and Configs in order, without those that the decider skipped.
        subjects: of the swarm.
    """
    follower = _Follower(wanted, beside, later)
    history = follower.history
    for stored in configs:
        _take_config(history, stored, decoded(subjects, stored))
    history.config_changed = False
    for stored in messages:
        if stored.sequence <= wanted.cause:
            follower.take(stored, decoded(subjects, stored))
    return history


class _Follower:
    """The open rounds of a symbol, message by message."""

    def __init__(self, wanted: DecidedRound, beside: Sequence[DecidedRound], later: Mapping[int, OpenRound]) -> None:
        decided = {one.tick.sequence: one for one in (*beside, wanted)}
        self._wanted = wanted
        self._opened = {**later, **{sequence: one.opened() for sequence, one in decided.items()}}
        self._closed: dict[int, list[OpenRound]] = {}
        for sequence, one in decided.items():
            self._closed.setdefault(one.cause, []).append(self._opened[sequence])
        self._before = [one.cause for one in beside if one.tick.sequence < wanted.tick.sequence]
        self._rounds: list[OpenRound] = []
        self.history = RoundHistory(self._opened[wanted.tick.sequence], None, None)

    def take(self, stored: StoredMessage, message: Message | None) -> None:
        """Handle the next message as the coordinator does."""
        history, sequence = self.history, stored.sequence
        if isinstance(message, MarketData):
            if sequence in self._opened:
                self._opened[sequence].config = history.electors.number
                self._rounds.append(self._opened[sequence])
        elif isinstance(message, VotingConfig):
            _take_config(history, stored, message)
        elif isinstance(message, (Sentiment, Signal)):
            self._take_vote(StoredVote(stored, message))
        elif isinstance(message, Timer):
            self._time_out(message)
        if history.closable_at is None and self._may_close(sequence):
            history.closable_at = sequence
        if sequence == self._wanted.cause:
            history.reason = self._reason(message)
        gone = [id(closed) for closed in self._closed.get(sequence, ())]
        self._rounds = [waiting for waiting in self._rounds if id(waiting) not in gone]

    def _may_close(self, sequence: int) -> bool:
        """Whether the round is open, has all that it waits for, and the rounds before it have closed by `sequence`."""
        mine = self.history.round
        return (
            any(waiting is mine for waiting in self._rounds)
            and not any(cause > sequence for cause in self._before)
            and (mine.timed_out or is_complete(mine, self.history.config, self.history.electors))
        )

    def _time_out(self, timer: Timer) -> None:
        symbol = self._wanted.name.symbol
        for waiting in self._rounds:
            if timer.name == round_id(symbol, waiting.source, waiting.sequence, waiting.run):
                waiting.timed_out = True

    def _take_vote(self, found: StoredVote) -> None:
        history, mine = self.history, self.history.round
        outcome, waiting = count_vote(found.vote, self._rounds, history.config, history.electors)
        if waiting is mine:
            history.counted[found.vote.source] = found
        elif waiting is None and found.vote.round == mine.sequence and any(one is mine for one in self._rounds):
            history.ignored.append((outcome, found))

    def _reason(self, message: Message | None) -> ClosingReason:
        """Why the message that closed the round did so."""
        history, mine = self.history, self.history.round
        if not (mine.timed_out or is_complete(mine, history.config, history.electors)):
            return "unknown"
        if isinstance(message, (Sentiment, Signal)):
            newest = history.counted.get(message.source)
            return "votes" if newest is not None and newest.stored.sequence == self._wanted.cause else "order"
        if isinstance(message, Timer):
            return "timer" if message.name == self._wanted.decision.decision_id else "order"
        if isinstance(message, VotingConfig):
            return "config"
        return "no voters" if isinstance(message, MarketData) and not history.counted else "order"


def _take_config(history: RoundHistory, stored: StoredMessage, message: Message | None) -> None:
    if isinstance(message, VotingConfig) and message.source == WATCHDOG:
        history.electors.take(history.config, message)
        history.config, history.config_message, history.config_changed = message, stored, True
