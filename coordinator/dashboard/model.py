"""What the pages show of a stream: candles, decisions, rates, the mesh, alerts and lifecycle, each with its source.

Takes the messages in the stream's order, live or from a mirror's file, and bounds all that it keeps.
"""

from __future__ import annotations

import itertools
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from bus.errors import MessageError
from bus.interface import StoredMessage
from bus.messages import Alert, Decision, Epoch, Lifecycle, MarketData, VotingConfig, check_lifetime, decode
from bus.messages.headers import CAUSE, TRACEPARENT, number
from bus.messages.subjects import WATCHDOG, Subjects
from bus.observability.spans import read_context
from coordinator.reporting.percentiles import percentiles_of
from coordinator.security.refusals import RefusalCounts
from coordinator.telemetry.decision_latency import REMEMBERED, TickTimes

MAX_SYMBOLS = 256
MAX_CANDLES = 600
MAX_DECISIONS = 2000
MAX_LIFECYCLE = 10_000
MAX_ALERTS = 200
LONGEST_TEXT = 4000
"""Characters of a text that are kept; the page of its message has all of them."""
LARGEST_DETAIL = 4096
"""Bytes of a lifecycle message whose `detail` is kept."""
MAX_RATED = 60_000
"""Decisions whose latencies are kept: those of WINDOW_S, at 1,000 a second."""
WINDOW_S = 60
"""Seconds of the rates and of the mesh."""
END = 1 << 62
"""Above every sequence."""
SECOND_NS = 1_000_000_000
SHOWN_KINDS = frozenset({"market", "decision", "lifecycle", "alert", "epoch", "config"})
"""Kinds whose payload is read; of the others the sender and the cause are enough."""

Row = dict[str, Any]
"""One object of the JSON."""
Event = tuple[str, Row]
"""The name and the data of an event for the viewers."""


def iso(at: datetime) -> str:
    """ISO 8601 in UTC with milliseconds."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def iso_ns(at_ns: int) -> str | None:
    """The same of nanoseconds since 1970; None for 0, which is not known."""
    return iso(datetime.fromtimestamp(at_ns / SECOND_NS, UTC)) if at_ns else None


def epoch_ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)


def source_of(stored: StoredMessage) -> dict[str, Any]:
    """Which message an object comes from."""
    return {"sequence": stored.sequence, "stored_at": iso_ns(stored.stored_ns)}


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"


def trace_of(stored: StoredMessage) -> str | None:
    context = read_context(stored.headers.get(TRACEPARENT))
    return context.trace_id if context is not None and context.sampled else None


def decision_row(decision: Decision, stored: StoredMessage, latency_s: float | None) -> Row:
    """A decision of the tables; `latency_s` is the time from storing its tick, if that is known."""
    return {
        "t": epoch_ms(decision.timestamp), "id": decision.decision_id, "symbol": decision.symbol,
        "round": decision.round, "side": decision.final_decision, "size": decision.position_size,
        "consensus": decision.consensus_level, "risk": decision.risk_score,
        "latency_ms": None if latency_s is None else round(latency_s * 1000, 3),
        "voters": list(decision.agents_consulted), "absent": list(decision.absent), "source": decision.source,
        "trace_id": trace_of(stored), **source_of(stored),
    }  # fmt: skip


def candle_row(tick: MarketData, stored: StoredMessage, before: Row | None) -> Row:
    """A tick as a candle; one of the same time as the candle `before` it continues that one."""
    opened = tick.open if tick.open is not None else tick.price
    candle = {
        "t": epoch_ms(tick.timestamp), "o": opened,
        "h": tick.high if tick.high is not None else max(opened, tick.price),
        "l": tick.low if tick.low is not None else min(opened, tick.price), "c": tick.price, "v": tick.volume,
        **source_of(stored),
    }  # fmt: skip
    if before is not None and candle["t"] == before["t"]:
        candle |= {"o": before["o"], "h": max(before["h"], candle["h"]), "l": min(before["l"], candle["l"])}
    return candle


class SwarmModel:
    """`take` every message in order; the other methods describe what is known by then."""

    def __init__(self, subjects: Subjects) -> None:
        self._subjects = subjects
        self.read_through = 0
        """Sequence of the newest message that was taken."""
        self.newest_ns = 0
        """When it was stored."""
        self.read_from = 0
        """Sequence of the oldest message from which on every message was taken."""
        self.first_ns = 0
        """When the oldest message was stored from which on every message was taken."""
        self.config: VotingConfig | None = None
        self.candles: dict[str, deque[dict[str, Any]]] = {}
        self.symbols_left_off = 0
        self.decisions: deque[dict[str, Any]] = deque(maxlen=MAX_DECISIONS)
        self.counted_decisions = 0
        self.lifecycle: deque[dict[str, Any]] = deque(maxlen=MAX_LIFECYCLE)
        """Lifecycle events, and claims as the event `claimed`."""
        self.alerts: deque[dict[str, Any]] = deque(maxlen=MAX_ALERTS)
        self.refusals = RefusalCounts(1)
        self.unreadable = 0
        self._ticks = TickTimes()
        self._rated: deque[tuple[int, float | None]] = deque(maxlen=MAX_RATED)
        self._senders: OrderedDict[int, str] = OrderedDict()
        self._mesh: deque[tuple[int, Counter[tuple[str, str]]]] = deque(maxlen=WINDOW_S + 1)
        self._last_of_edge: dict[tuple[str, str], int] = {}

    def take(self, stored: StoredMessage, *, whole: bool = True) -> list[Event]:
        """Take the next message; returns what viewers are to be shown. `whole`: no message before it was left out."""
        _, kind, *rest = stored.subject.split(".")
        self.read_through = stored.sequence
        self.newest_ns = max(self.newest_ns, stored.stored_ns)
        if whole:
            self.read_from = self.read_from or stored.sequence
            self.first_ns = self.first_ns or stored.stored_ns
            self._note_edge(stored, rest[-1] if rest else "")
        hidden = self._subjects.is_hidden(stored.subject)
        if hidden or kind not in SHOWN_KINDS:
            self.unreadable += hidden
            return []
        try:
            address = self._subjects.parse(stored.subject)
            check_lifetime(address, stored.subject, stored.headers)
            message = decode(address, stored.subject, stored.data)
        except MessageError:
            self.unreadable += 1
            return []
        match message:
            case MarketData():
                return self._take_tick(message, stored)
            case Decision():
                return self._take_decision(message, stored)
            case Lifecycle():
                return [self._add_lifecycle(message, stored)]
            case Epoch():
                return [self._add_claim(message, stored, address.agent)]
            case Alert():
                alert = {
                    "t": epoch_ms(message.timestamp), "severity": message.severity, "code": message.code,
                    "message": shortened(message.message), "agent": message.agent, "source": message.source,
                    "at": iso(message.timestamp), **source_of(stored),
                }  # fmt: skip
                self.alerts.append(alert)
                self.refusals.take(message, address.agent)
                return [("alert", alert)]
            case VotingConfig() if address.agent == WATCHDOG:
                self.config = message
        return []

    # -- the charts

    def _take_tick(self, tick: MarketData, stored: StoredMessage) -> list[Event]:
        self._ticks.take(tick, stored.stored_ns)
        candles = self.candles.get(tick.symbol)
        if candles is None:
            if len(self.candles) >= MAX_SYMBOLS:
                self.symbols_left_off += 1
                return []
            candles = self.candles[tick.symbol] = deque(maxlen=MAX_CANDLES)
        before = candles[-1] if candles else None
        candle, reset = candle_row(tick, stored, before), False
        if before is not None and candle["t"] == before["t"]:
            candles.pop()
        elif before is not None and candle["t"] < before["t"]:
            candles.clear()  # a recorded feed has begun anew: a chart cannot go back in time
            reset = True
        candles.append(candle)
        return [("market", {"symbol": tick.symbol, "reset": reset, **candle})]

    def _take_decision(self, decision: Decision, stored: StoredMessage) -> list[Event]:
        if self.deciders and decision.source not in self.deciders:
            return []
        latency_s = self._ticks.latency_s(decision, stored.stored_ns)
        row = decision_row(decision, stored, latency_s)
        self.counted_decisions += 1
        self._rated.append((stored.stored_ns, row["latency_ms"]))
        self.decisions.append(row)
        return [("decision", row)]

    @property
    def deciders(self) -> tuple[str, ...]:
        """The agents whose decisions count; empty if all do."""
        return tuple(self.config.deciders) if self.config is not None else ()

    def rates(self, now_ns: int) -> dict[str, Any]:
        """Decisions a second, and tick to decision, of the last WINDOW_S before `now_ns`."""
        since = max(now_ns - WINDOW_S * SECOND_NS, self.first_ns)
        while self._rated and self._rated[0][0] < now_ns - WINDOW_S * SECOND_NS:
            self._rated.popleft()
        rated = [latency for at_ns, latency in self._rated if at_ns >= since]
        found = percentiles_of(latency for latency in rated if latency is not None)
        window_s = (now_ns - since) / SECOND_NS if self.first_ns else 0.0
        begin, end = (iso_ns(since) or "", iso_ns(now_ns) or "") if self.first_ns else ("", "")
        source = (
            f"{len(rated)} decisions stored {begin[11:19]} to {end[11:19]} UTC; from the server's time of storing a "
            f"tick to that of storing its decision, {found.n} with a known tick"
        )
        return {
            "decisions_per_s": round(len(rated) / window_s, 3) if window_s >= 1 else None,
            "p50_ms": found.p50, "p99_ms": found.p99, "n": found.n, "window_s": round(window_s, 1),
            "from": source if self.first_ns else "nothing was read yet",
        }  # fmt: skip

    # -- the mesh

    def _note_edge(self, stored: StoredMessage, writer: str) -> None:
        self._senders[stored.sequence] = writer
        if len(self._senders) > REMEMBERED:
            self._senders.popitem(last=False)
        cause = number(stored.headers, CAUSE)
        sender = None if cause is None else self._senders.get(cause)
        if sender is None:
            return
        second = stored.stored_ns // SECOND_NS
        if not self._mesh or self._mesh[-1][0] < second:
            self._mesh.append((second, Counter()))
        self._mesh[-1][1][sender, writer] += 1
        self._last_of_edge[sender, writer] = stored.sequence

    def edges(self, now_ns: int) -> list[dict[str, Any]]:
        """Who answered whom, in the last WINDOW_S before `now_ns`: an output cites its input in Mesh-Cause."""
        since = now_ns // SECOND_NS - WINDOW_S
        total: Counter[tuple[str, str]] = Counter()
        for second, counts in self._mesh:
            if second > since:
                total.update(counts)
        self._last_of_edge = {edge: self._last_of_edge[edge] for edge in total}
        return [
            {"from": sender, "to": writer, "count": count, "last_sequence": self._last_of_edge[sender, writer]}
            for (sender, writer), count in sorted(total.items())
        ]

    # -- the life of the agents

    def _add_lifecycle(self, event: Lifecycle, stored: StoredMessage) -> Event:
        row = {
            "t": epoch_ms(event.timestamp), "event": event.event, "agent": event.agent, "epoch": event.epoch,
            "sandbox": event.sandbox, "pid": event.pid, "reason": event.reason and shortened(event.reason),
            "detail": event.detail if len(stored.data) <= LARGEST_DETAIL else {},
            "source": event.source, "at": iso(event.timestamp), "trace_id": trace_of(stored), **source_of(stored),
        }  # fmt: skip
        self.lifecycle.append(row)
        return "lifecycle", row

    def _add_claim(self, claim: Epoch, stored: StoredMessage, agent: str) -> Event:
        row = {
            "t": epoch_ms(claim.timestamp), "event": "claimed", "agent": agent, "epoch": stored.sequence,
            "sandbox": claim.sandbox or None, "pid": None, "reason": None, "detail": {"claimed_by": claim.claimed_by},
            "source": claim.source, "at": iso(claim.timestamp), "trace_id": None, **source_of(stored),
        }  # fmt: skip
        self.lifecycle.append(row)
        return "lifecycle", row

    # -- lists

    @property
    def newest_symbol(self) -> str | None:
        """That of the newest decision of which there are candles; else any that has candles."""
        newest = (row["symbol"] for row in reversed(self.decisions) if row["symbol"] in self.candles)
        return next(newest, next(iter(self.candles), None))

    def candles_of(self, symbol: str) -> list[dict[str, Any]]:
        return list(self.candles.get(symbol, ()))

    def decisions_of(self, symbol: str) -> list[dict[str, Any]]:
        """Those in the time of the symbol's candles, oldest first."""
        candles = self.candles.get(symbol)
        first = candles[0]["t"] if candles else 0
        newest = itertools.takewhile(lambda row: row["symbol"] != symbol or row["t"] >= first, reversed(self.decisions))
        return [row for row in newest if row["symbol"] == symbol][::-1]

    @property
    def decisions_from(self) -> int:
        """Sequence from which on `decisions` has every one that is stored; above all if nothing was taken yet."""
        if len(self.decisions) == MAX_DECISIONS:
            return int(self.decisions[0]["sequence"])
        return self.read_from or END

    def newest_decisions(self, limit: int, before: int | None) -> Iterator[dict[str, Any]]:
        """The newest ones below the sequence `before`, newest first."""
        older = (row for row in reversed(self.decisions) if before is None or row["sequence"] < before)
        return itertools.islice(older, limit)
