"""Which trace a round belongs to, for agents that gather the answers of others: the vote that closes a round may be of
another one, and a timer of none. Only tracing needs it, so it is kept beside the agent's state.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bus.messages import Alert, Event, MarketData, Sentiment, Signal
from bus.tracing import Context, read_context

MAX_ROUNDS = 4096
"""Rounds remembered at most; as many as the coordinator keeps open."""
Key = tuple[str, int | str]


@dataclass(slots=True)
class Open:
    """A round: the tick's `traceparent`, source and stream sequence; `votes` are the spans of the sampled ones."""

    key: Key
    header: str
    source: str
    sequence: int
    votes: dict[str, str] = field(default_factory=dict)


class Rounds:
    """The open rounds of one agent, by symbol and number; by time where a tick has no number."""

    def __init__(self) -> None:
        self._open: dict[Key, list[Open]] = {}
        self._by_trace: dict[str, Open] = {}

    def take(self, message: Event, header: str, context: Context | None, sequence: int) -> int | None:
        """Remember an input; returns the number of its round. `context` None: it is in no sampled trace."""
        if type(message) is MarketData:
            if header:
                at = message.timestamp.isoformat() if message.sequence is None else message.sequence
                self._add(Open((message.symbol, at), header, message.source, sequence), context)
            return message.sequence
        if isinstance(message, (Signal, Sentiment)):
            if context is not None and (opened := self._by_trace.get(context.trace_id)) is not None:
                opened.votes.setdefault(message.source, context.span_id)
            return message.round
        return None

    def _add(self, opened: Open, context: Context | None) -> None:
        while len(self._open) >= MAX_ROUNDS and opened.key not in self._open:
            for old in self._open.pop(next(iter(self._open))):
                self._forget(old)
        self._open.setdefault(opened.key, []).append(opened)
        if context is not None:
            self._by_trace[context.trace_id] = opened

    def _forget(self, opened: Open) -> None:
        self._by_trace.pop(opened.header[3:35], None)

    def find(self, message: Event | Alert, *, ends: bool) -> Open | None:
        """The round that an output is of, if it is open; `ends` it if asked."""
        symbol, number = getattr(message, "symbol", None), getattr(message, "round", None)
        if symbol is None:
            return None
        key: Key = (symbol, message.timestamp.isoformat())
        if number is not None and (symbol, number) in self._open:
            key = (symbol, number)
        candidates = self._open.get(key)
        if candidates is None:
            return None
        opened = candidates[0]
        if len(candidates) > 1:  # of several sources: symbol:source:sequence says which
            parts = (getattr(message, "decision_id", None) or "").rsplit(":", 2)
            source = parts[1].partition("=")[0] if len(parts) == 3 else ""
            opened = next((each for each in candidates if each.source == source), opened)
        if ends:
            candidates.remove(opened)
            if not candidates:
                del self._open[key]
            self._forget(opened)
        return opened

    def save(self) -> list[list[Any]]:
        """The sampled rounds."""
        return [[*each.key, each.header, each.source, each.sequence, each.votes] for each in self._by_trace.values()]

    def load(self, saved: list[list[Any]]) -> None:
        """Begin anew with these."""
        self._open.clear()
        self._by_trace.clear()
        for symbol, number, header, source, sequence, votes in saved:
            self._add(Open((symbol, number), header, source, sequence, dict(votes)), read_context(header))
