"""One decision per round: every tick that a coordinator accepts is decided once, in the order of its symbol's ticks.

Memory is bounded as in the coordinator: at most MAX_OPEN_ROUNDS ticks wait.
"""

from __future__ import annotations

import copy
from collections import deque
from itertools import groupby

from bus.durable.message_ids import is_substitute
from bus.interface import StoredMessage
from bus.messages import Decision, MarketData
from bus.messages import headers as h
from coordinator.audit.models import Findings, RoundsAudit
from coordinator.config.changes import NO_CHANGES, Changes
from coordinator.decisions.agent import MAX_FEEDS, MAX_OPEN_ROUNDS
from coordinator.decisions.rounds import round_id
from coordinator.decisions.tick_order import MAX_SEQUENCE, Feed, place_tick

Waiting = dict[str, deque[tuple[int, str]]]
"""Symbol -> (stream sequence of the tick, id of its round), in stream order."""
MAX_NAMED = 10
"""Missing rounds that a problem names."""


class _Decider:
    def __init__(self) -> None:
        self.waiting: Waiting = {}
        self.overflown = False
        """More ticks waited than rounds may be open, so the coordinator may have refused some."""
        self.unknown = False
        """Whether there may have been ticks that are not stored."""
        self.ended = False
        """Whether it was removed for good: it decides no later rounds."""
        self.decided: dict[str, None] = {}
        """The newest rounds decided, at most MAX_OPEN_ROUNDS."""
        self.passed_over: dict[str, tuple[tuple[int, str], str, StoredMessage]] = {}
        """Round -> its entry in `waiting`, the decision of a later round, and its message. Its own decision may be
        stored after it, because its id was squatted."""

    def open(self) -> int:
        return sum(map(len, self.waiting.values()))


def _is_late(agent: str, stored: StoredMessage) -> bool:
    """Whether a decision was published again under another id."""
    return is_substitute(stored.headers.get(h.MSG_ID, ""), f"{agent}:{stored.headers.get(h.OUTPUT)}")


class RoundChecker:
    """Follows ticks and decisions. A decider is an agent whose numbered decisions name rounds."""

    def __init__(self, findings: Findings, first: int = 1) -> None:
        """`first` is the sequence at which the stream begins."""
        self._first = first
        self.audit = RoundsAudit()
        self._findings = findings
        self._feeds: dict[tuple[str, str], Feed] = {}
        self._all = _Decider()
        self._deciders: dict[str, _Decider] = {}
        self._skipped: dict[str, set[int]] = {}
        self._changes = NO_CHANGES
        self._starts: dict[str, int] = {}
        """Agent that was added -> the message after which it began to read."""

    def changed(self, changes: Changes) -> None:
        """These are the changes made at run time from now on."""
        before, self._changes = self._changes, changes
        for name, added in changes.agents.items():
            # The first VotingConfig that is kept also has the agents that were added before the stream begins.
            if name not in before.agents and not added.continues and added.after >= self._first - 1:
                self._starts[name] = added.after
                self._deciders.pop(name, None)
        for name, removed in changes.removed.items():
            if removed.forget and before.removed.get(name) != removed and name in self._deciders:
                self._deciders[name].ended = True

    def tick(self, stored: StoredMessage, tick: MarketData) -> None:
        """A tick opens a round if it does in the coordinator."""
        feed = self._feeds.get((tick.symbol, tick.source))
        number, position = place_tick(feed, tick.sequence, tick.timestamp)
        if position == "repeated" or not -MAX_SEQUENCE <= number <= MAX_SEQUENCE:
            return
        if feed is None:
            if len(self._feeds) >= MAX_FEEDS:
                return
            feed = self._feeds[tick.symbol, tick.source] = Feed(number, tick.timestamp)
        else:
            feed.take(position, number, tick.timestamp)
        entry = (stored.sequence, round_id(tick.symbol, tick.source, number, feed.run))
        for decider in (self._all, *self._deciders.values()):
            if decider.ended:
                continue
            if decider.open() >= MAX_OPEN_ROUNDS:
                decider.overflown = decider.unknown = True  # the coordinator may refuse it as well
                continue
            decider.waiting.setdefault(tick.symbol, deque()).append(entry)

    def skipped(self, agent: str, sequence: int) -> None:
        """`agent` skips the message at `sequence`: if that is a tick, it opens no round."""
        if agent in self._deciders:
            self._drop(self._deciders[agent], {sequence})
        elif len(skipped := self._skipped.setdefault(agent, set())) < MAX_OPEN_ROUNDS:
            skipped.add(sequence)

    @staticmethod
    def _drop(decider: _Decider, sequences: set[int]) -> None:
        for symbol, waiting in decider.waiting.items():
            decider.waiting[symbol] = deque(entry for entry in waiting if entry[0] not in sequences)

    def _decider(self, agent: str) -> _Decider:
        if agent not in self._deciders:
            self._deciders[agent] = copy.deepcopy(self._all)
            start = self._starts.get(agent, 0)
            before = {entry[0] for waiting in self._all.waiting.values() for entry in waiting if entry[0] <= start}
            self._drop(self._deciders[agent], before | self._skipped.pop(agent, set()))
        return self._deciders[agent]

    def decision(self, agent: str, stored: StoredMessage, decision: Decision) -> None:
        """A numbered decision. One with an id that names no round (of a user's own coordinator) is not checked."""
        symbol, name = decision.symbol or "", decision.decision_id or ""
        feed, _, number = name.rpartition(":")
        if not feed.startswith(f"{symbol}:") or not number.removeprefix("-").isdecimal():
            return
        self.audit.decided += 1
        decider = self._decider(agent)
        if name in decider.passed_over and _is_late(agent, stored):
            del decider.passed_over[name]
            return
        waiting = decider.waiting.get(symbol, deque())
        at = next((at for at, entry in enumerate(waiting) if entry[1] == name), None)
        repeated = at is None and name in decider.decided
        decider.decided[name] = None
        if len(decider.decided) > MAX_OPEN_ROUNDS:
            del decider.decided[next(iter(decider.decided))]
        if at is None:
            if repeated:
                self.audit.duplicated += 1
                self._problem(agent, stored, "one decision per round", name, f"round {name} is decided again")
            elif not decider.unknown:
                self._problem(agent, stored, "a tick before it", "none", f"round {name} is decided without a tick")
            return
        missing = [waiting.popleft() for _ in range(at)]
        waiting.popleft()
        if not missing or decider.overflown:
            return
        if len(decider.passed_over) + len(missing) > MAX_OPEN_ROUNDS:
            self._report_missing(agent, missing, name, stored)
        else:
            decider.passed_over |= {entry[1]: (entry, name, stored) for entry in missing}

    def _report_missing(self, agent: str, missing: list[tuple[int, str]], name: str, stored: StoredMessage) -> None:
        self.audit.missing += len(missing)
        named = ", ".join(entry[1] for entry in missing[:MAX_NAMED])
        more = f" and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
        text = f"round {name} is decided, but not the rounds before it: {named}{more}"
        self._problem(agent, stored, missing[0][1], name, text, [entry[0] for entry in missing[:MAX_NAMED]])

    def _problem(
        self, agent: str, stored: StoredMessage, expected: str, found: str, text: str, ticks: list[int] | None = None
    ) -> None:
        self._findings.problem(
            "rounds",
            f"{agent}: message {stored.sequence} under {stored.subject}: {text}",
            agent=agent,
            subject=stored.subject,
            sequences=[*(ticks or []), stored.sequence],
            expected=expected,
            found=found,
        )

    def forget(self) -> None:
        """A range of the stream is missing for a known reason, with its ticks and decisions."""
        for decider in (self._all, *self._deciders.values()):
            decider.waiting.clear()
            decider.unknown = True

    def finish(self) -> None:
        """Report the rounds that were not decided later either."""
        for agent, decider in self._deciders.items():
            for (name, _), passed in groupby(
                decider.passed_over.values(), key=lambda each: (each[1], each[2].sequence)
            ):
                found = list(passed)
                self._report_missing(agent, [entry for entry, _, _ in found], name, found[0][2])
        self.audit.waiting = sum(decider.open() for decider in self._deciders.values() if not decider.ended)
