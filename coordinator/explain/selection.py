"""Finds the decision that a selector means, or says why there is none.

Rounds of one feed are numbered in order, so a decision is found by bisection. Where a symbol has several sources,
deciders or numberings, all decisions on it are read.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import datetime

from bus.errors import MessageError, UsageError
from bus.interface import StoredMessage
from bus.messages import Decision, MarketData, VotingConfig
from bus.messages import headers as h
from bus.messages.subjects import WATCHDOG, escape_topic, unescape_topic
from coordinator.decisions.rounds import RoundName, parse_round_id
from coordinator.explain.errors import MOST_NAMED, AmbiguousRound, RoundOpen, RoundRemoved, UnknownRound
from coordinator.explain.sources import Filter, MessageSource, read_all

LATEST = "latest"
LONGEST_NAMED = 300
"""Characters of a selector that an error repeats."""
LONGEST_NUMBER = 18
"""Digits of a stream sequence."""
EXPECTED = "expected a decision_id like BTC/USD:research-1:42, the sequence of its message, or latest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """Which decision: `decision` is its id, the stream sequence of its message, or "latest"; else symbol and round."""

    decision: str | None = None
    symbol: str | None = None
    round: int | None = None

    def __str__(self) -> str:
        text = self.decision if self.decision is not None else f"--round {self.round} --symbol {self.symbol}"
        return text if len(text) <= LONGEST_NAMED else f"{text[:LONGEST_NAMED]}…"


def make_selector(decision: str | None, symbol: str | None, number: int | None) -> Selector:
    """The selector of a command's arguments.

    Raises:
        UsageError: neither or both of the two forms are given, or one of them is incomplete.
    """
    by_round = symbol is not None or number is not None
    if decision is not None and by_round:
        raise UsageError(f"explain {decision} with --round or --symbol: expected one or the other")
    if decision is None and (symbol is None or number is None):
        given = (
            "--round without --symbol" if number is not None else "--symbol without --round" if by_round else "explain"
        )
        raise UsageError(f"{given}: expected DECISION_ID, latest, or --round N --symbol S")
    if symbol == "":
        raise UsageError("--symbol: expected a symbol like BTC/USD, not an empty text")
    return Selector(decision=decision, symbol=symbol, round=number)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectedDecision:
    """A decision of a coordinator: `cause` is the sequence of the message that closed its round."""

    stored: StoredMessage
    decision: Decision
    name: RoundName
    decider: str
    cause: int

    @property
    def decision_id(self) -> str:
        return self.decision.decision_id or ""

    @property
    def topic(self) -> str:
        return escape_topic(self.name.symbol)


@dataclass(frozen=True, slots=True)
class _Candidate:
    stored: StoredMessage
    decision: Decision


async def select(source: MessageSource, selector: Selector) -> SelectedDecision:
    """The decision that `selector` means.

    Raises:
        UnknownRound: no decision is meant, or there is no such one.
        AmbiguousRound: several match.
        RoundOpen: the round has no decision yet.
        RoundRemoved: the decision is no longer stored.
    """
    wanted = selector.decision
    if wanted == LATEST:
        return _selected(await _newest(source), selector)
    if wanted is not None and (sequence := _number(wanted)) is not None:
        return _selected(await _by_sequence(source, sequence), selector)
    if wanted is not None:
        name = parse_round_id(wanted)
        if name is None:
            raise UnknownRound(f"explain {selector}: {EXPECTED}; `signalmesh history decision` lists the newest")
        symbol, number = name.symbol, name.sequence
    else:
        name, symbol, number = None, selector.symbol or "", selector.round or 0
    candidates = await _find(source, symbol, number)
    found = [one for one in candidates if wanted is None or one.decision.decision_id == wanted]
    if not found:
        raise await _reason(source, selector, symbol, number, name)
    if len(found) > 1:
        ids = [one.decision.decision_id or "" for one in found]
        distinct = len(set(ids)) == len(ids)
        raise AmbiguousRound(str(selector), ids if distinct else [str(one.stored.sequence) for one in found])
    return _selected(found[0], selector)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= LONGEST_NUMBER else None


def _candidate(source: MessageSource, stored: StoredMessage | None) -> _Candidate | None:
    if stored is not None:
        with contextlib.suppress(MessageError):
            message = stored.decode(source.subjects)
            if isinstance(message, Decision):
                return _Candidate(stored, message)
    return None


def _selected(found: _Candidate, selector: Selector) -> SelectedDecision:
    stored, decision = found.stored, found.decision
    name, cause = parse_round_id(decision.decision_id or ""), h.number(stored.headers, h.CAUSE)
    if name is None or cause is None or name.symbol != decision.symbol:
        missing = f"no header {h.CAUSE}" if cause is None else f"the decision_id {decision.decision_id!r}"
        raise UnknownRound(
            f"explain {selector}: message {stored.sequence} by {decision.source} has {missing}: it is not of a "
            "built-in coordinator, so how it was decided is unknown; name a decision of the swarm's coordinator"
        )
    return SelectedDecision(stored=stored, decision=decision, name=name, decider=decision.source, cause=cause)


async def _newest(source: MessageSource) -> _Candidate:
    stored = await source.newest(Filter("config", "swarm", WATCHDOG))
    config = None
    if stored is not None:
        with contextlib.suppress(MessageError):
            config = stored.decode(source.subjects)
    deciders = config.deciders if isinstance(config, VotingConfig) else ()
    wanted = [Filter("decision", agent=agent) for agent in deciders] or [Filter("decision")]
    found = [one for each in wanted if (one := _candidate(source, await source.newest(each))) is not None]
    if not found:
        raise UnknownRound(f"explain {LATEST}: {source.name} has no decision yet; `signalmesh status` shows what runs")
    return max(found, key=lambda one: one.stored.sequence)


async def _by_sequence(source: MessageSource, sequence: int) -> _Candidate:
    found = _candidate(source, await source.first_from(Filter("decision"), sequence))
    if found is not None and found.stored.sequence == sequence:
        return found
    if (missing := await source.missing(sequence, sequence)) is not None:
        raise RoundRemoved(f"explain {sequence}: {missing}; {source.elsewhere}")
    raise UnknownRound(f"explain {sequence}: message {sequence} is no decision; {EXPECTED}")


async def _find(source: MessageSource, symbol: str, number: int) -> list[_Candidate]:
    """All decisions on `symbol` with this round number."""
    wanted, last = Filter("decision", escape_topic(symbol)), await source.last_sequence()
    if await _in_order(source, symbol):
        found = await _bisect(source, wanted, number, last)
        if found is not None and found.decision.round == number:
            return [found]
    candidates = []
    async for stored in read_all(source, (wanted,), 1, last):
        one = _candidate(source, stored)
        if one is not None and one.decision.round == number:
            candidates.append(one)
    return candidates


async def _in_order(source: MessageSource, symbol: str) -> bool:
    """Whether the decisions on `symbol` are those of one decider on one feed that has never changed its numbers."""
    topic = escape_topic(symbol)
    of_topic = {
        kind: [subject for subject in await source.writers(kind) if subject.split(".")[2:3] == [topic]]
        for kind in ("decision", "market")
    }
    if any(len(subjects) != 1 for subjects in of_topic.values()):
        return False
    snapshot = await source.snapshot(of_topic["decision"][0].rpartition(".")[2])
    state = snapshot.state if snapshot is not None and isinstance(snapshot.state, dict) else {}
    feeds = list(state.get("feeds", {}).get(symbol, {}).values())
    return len(feeds) == 1 and feeds[0].get("runs") == 1


async def _bisect(source: MessageSource, wanted: Filter, number: int, last: int) -> _Candidate | None:
    """The first decision with this round number or a higher one, if they are in order."""
    low, high = 1, last + 1
    best: _Candidate | None = None
    while low < high:
        middle = (low + high) // 2
        found = _candidate(source, await source.first_from(wanted, middle))
        if found is None or found.decision.round is None or found.decision.round >= number:
            high, best = middle, found if found is not None else best
        else:
            low = found.stored.sequence + 1
    return best


@dataclass(slots=True)
class _Ticks:
    """The ticks of a symbol: the last one `number`, the first one that the newest decision is on, and all numbers."""

    number: int
    newest: tuple[int | None, datetime] | None
    mine: int | None = None
    decided: int | None = None
    lowest: int | None = None
    highest: int | None = None

    def take(self, tick: MarketData, sequence: int) -> None:
        number = tick.sequence
        if number == self.number:
            self.mine = sequence
        if self.decided is None and (number, tick.timestamp) == self.newest:
            self.decided = sequence
        if number is not None:
            self.lowest = number if self.lowest is None else min(number, self.lowest)
            self.highest = number if self.highest is None else max(number, self.highest)


async def _reason(
    source: MessageSource, selector: Selector, symbol: str, number: int, name: RoundName | None
) -> UnknownRound | RoundOpen | RoundRemoved:
    """Why there is no such decision."""
    topic, last = escape_topic(symbol), await source.last_sequence()
    newest = _candidate(source, await source.newest(Filter("decision", topic)))
    ticks = _Ticks(number, None if newest is None else (newest.decision.round, newest.decision.timestamp))
    async for stored in read_all(source, (Filter("market", topic),), 1, last):
        with contextlib.suppress(MessageError):
            tick = stored.decode(source.subjects)
            if isinstance(tick, MarketData) and (name is None or tick.source == name.source):
                ticks.take(tick, stored.sequence)
    mine, decided, lowest, highest = ticks.mine, ticks.decided, ticks.lowest, ticks.highest
    if mine is not None:
        if decided is not None and decided > mine:
            return UnknownRound(
                f"explain {selector}: tick {number} of {symbol} is message {mine}, but it opened no round: it was "
                "repeated, out of order or refused; `signalmesh history alert` says which"
            )
        return RoundOpen(
            f"explain {selector}: this round is still open: its tick is message {mine}, and no decision is stored "
            "yet; it comes with the last vote, or after round_timeout_ms; run the command again, or see "
            "`signalmesh status` if it does not come"
        )
    missing = await source.missing(1, last)
    if missing is not None and (lowest is None or number < lowest):
        return RoundRemoved(f"explain {selector}: this round is no longer stored: {missing}; {source.elsewhere}")
    if lowest is not None:
        there = f"the rounds of {symbol} are {lowest} to {highest}"
        if name is not None:
            there = f"those of {symbol} by {name.source} are {lowest} to {highest}"
    else:
        there = f"expected one of {await named_symbols(source)}"
        if name is not None:
            there += f", and a source that publishes ticks of it, not {name.source[:100]}"
    return UnknownRound(f"explain {selector}: there is no such round; {there}")


async def named_symbols(source: MessageSource) -> str:
    """The symbols with decisions, as text."""
    found = set()
    for subject in await source.writers("decision"):
        with contextlib.suppress(ValueError, LookupError):
            found.add(unescape_topic(subject.split(".")[2]))
    names = sorted(found)
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"the symbols {', '.join(names[:MOST_NAMED])}{more}" if names else "no symbol, as there is no decision yet"
