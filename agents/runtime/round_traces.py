"""The trace of each open round, for agents that collect the answers of others.

The vote that closes a round may belong to another trace, and a timer to none. Only tracing needs this, so it is not
part of the agent's state.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bus.messages import Alert, Event, MarketData, Sentiment, Signal
from bus.observability.spans import Context, read_sampled

VOTES = (Signal, Sentiment)
MAX_ROUNDS = 4096
"""Rounds remembered at most; as many as the coordinator keeps open."""
Key = tuple[str, int | str]


def round_of(message: Event | Alert) -> tuple[str | None, int | None]:
    """Symbol and number of the round that a message is of; the number is None where it has none."""
    number = message.sequence if type(message) is MarketData else getattr(message, "round", None)
    return getattr(message, "symbol", None), number


@dataclass(slots=True)
class TracedRound:
    """A sampled round: the tick's context, source and stream sequence; `votes` are the spans of its votes."""

    key: Key
    context: Context
    source: str
    sequence: int
    votes: dict[str, str] = field(default_factory=dict)


class RoundTraces:
    """The open rounds of one agent, by symbol and number; by time where a tick has no number.

    Of a round that is not sampled there is only the header to pass on.
    """

    def __init__(self) -> None:
        self._open: dict[Key, list[TracedRound]] = {}
        self._by_trace: dict[str, TracedRound] = {}
        self._unsampled: dict[Key, str] = {}
        """Their headers, which are empty unless another program published the tick."""
        self._by_time = False
        """Whether there was ever a tick without a number."""

    def unsampled(self, message: Event) -> str | None:
        """The header of the round of a vote, empty or not, where that round is known and not sampled."""
        if type(message) not in VOTES:
            return None
        key: Any = (message.symbol, message.round)  # type: ignore[union-attr]
        return None if key in self._open else self._unsampled.get(key)

    def take(self, message: Event, header: str, context: Context | None, sequence: int) -> None:
        """Remember an input. `context` None: it is in no sampled trace."""
        if type(message) is MarketData:
            number = message.sequence
            self._by_time = self._by_time or number is None
            key: Key = (message.symbol, message.timestamp.isoformat() if number is None else number)
            if context is not None:
                self._add(TracedRound(key, context, message.source, sequence))
            else:
                self._unsampled[key] = header
                if len(self._unsampled) > MAX_ROUNDS:
                    del self._unsampled[next(iter(self._unsampled))]
        elif (
            context is not None
            and type(message) in VOTES
            and (opened := self._by_trace.get(context.trace_id)) is not None
        ):
            opened.votes.setdefault(message.source, context.span_id)

    def _add(self, opened: TracedRound) -> None:
        while len(self._open) >= MAX_ROUNDS and opened.key not in self._open:
            for old in self._open.pop(next(iter(self._open))):
                self._forget(old)
        self._open.setdefault(opened.key, []).append(opened)
        self._by_trace[opened.context.trace_id] = opened

    def _forget(self, opened: TracedRound) -> None:
        self._by_trace.pop(opened.context.trace_id, None)

    def find(self, message: Event | Alert, *, ends: bool) -> TracedRound | str | None:
        """The open round of an output, or only its header (or none: "") if it is not sampled; `ends` removes it.

        Rounds of several sources may have the same symbol and number: then the decision's id, symbol:source:sequence,
        identifies the round.
        """
        symbol, number = getattr(message, "symbol", None), getattr(message, "round", None)
        if symbol is None:
            return None
        key: Key = (symbol, "" if number is None else number)
        if self._by_time and key not in self._open and key not in self._unsampled:
            key = (symbol, message.timestamp.isoformat())
        if (candidates := self._open.get(key)) is not None:
            parts = (getattr(message, "decision_id", None) or "").rsplit(":", 2)
            source = parts[1].partition("=")[0] if len(parts) == 3 else ""
            opened = next((each for each in candidates if not source or each.source == source), None)
            if opened is None and key not in self._unsampled:
                opened = candidates[0]
            if opened is not None:
                if ends:
                    candidates.remove(opened)
                    if not candidates:
                        del self._open[key]
                    self._forget(opened)
                return opened
        return self._unsampled.pop(key, None) if ends else self._unsampled.get(key)

    def save(self) -> list[list[Any]]:
        """The sampled rounds."""
        return [
            [*each.key, each.context.header, each.source, each.sequence, each.votes] for each in self._by_trace.values()
        ]

    def load(self, saved: list[list[Any]]) -> None:
        """Begin again with these."""
        self._open.clear()
        self._by_trace.clear()
        self._unsampled.clear()
        for symbol, number, header, source, sequence, votes in saved:
            if (context := read_sampled(header)[0]) is not None:
                self._by_time = self._by_time or isinstance(number, str)
                self._add(TracedRound((symbol, number), context, source, sequence, dict(votes)))
