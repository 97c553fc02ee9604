"""The figures that `signalmesh metrics` shows: their names, their labels, and what counts towards them.

Names and units follow Prometheus: seconds, bytes, `_total` for what only grows. Labels are bounded
(coordinator/telemetry/labels.py). Nothing is estimated: a figure comes from a message, from the server's time of
storing it, or from a heartbeat (coordinator/telemetry/heartbeat_metrics.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from bus.errors import MessageError
from bus.interface import StoredMessage
from bus.messages import KINDS, Alert, Config, Decision, Epoch, Lifecycle, MarketData, Message, Side, decode
from bus.messages.headers import CAUSE, number
from bus.messages.subjects import KEPT_KINDS, WATCHDOG, Subjects
from coordinator.telemetry.labels import OTHER, Names
from coordinator.telemetry.recovery_metrics import RecoveryMetrics

REMEMBERED = 32_768
"""Of so many messages, and ticks, it is known when they were stored; what answers an older one has no latency."""
WEBHOOK_OUTCOMES = ("delivered", "failed", "refused", "unreadable")
LATENCY_BUCKETS = (
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.4, 0.8, 2.0, 10.0,
)  # fmt: skip
NANOSECOND = 1e-9

disable_created_metrics()  # type: ignore[no-untyped-call] # a second series for each counter, of which nothing here makes use


class StreamMetrics:
    """Counts what the stream of one swarm says, message by message and in its order.

    `agents` are those of the configuration: what befalls them is counted from 0, and so is all else whose labels are
    known. Prometheus sees no increase in a series that begins at 1.
    """

    def __init__(self, subjects: Subjects, names: Names, agents: Iterable[str] = ()) -> None:
        self._subjects, self.names, self._codes = subjects, names, Names(())
        self.registry = CollectorRegistry()
        self._config: Config | None = None
        self._stored: OrderedDict[int, int] = OrderedDict()
        self._ticks: OrderedDict[tuple[str, str, int], int] = OrderedDict()
        self.restored_through = 0
        """Up to here a rebuild has put the messages back: the server's time is that of the rebuild."""
        registry = self.registry
        self.messages = Counter(
            "signalmesh_messages", "Messages stored in the stream, by kind.", ["kind"], registry=registry
        )
        self.unreadable = Counter(
            "signalmesh_unreadable_messages",
            "Stored messages that could not be read (poison), by kind.",
            ["kind"],
            registry=registry,
        )
        self.decisions = Counter(
            "signalmesh_decisions", "Decisions of the swarm's own deciders, by side.", ["side"], registry=registry
        )
        self.foreign_decisions = Counter(
            "signalmesh_foreign_decisions", "Decisions by anybody else, which are not the swarm's.", registry=registry
        )
        self.degraded_decisions = Counter(
            "signalmesh_degraded_decisions", "Decisions made without a vote that was expected.", registry=registry
        )
        self.hops = Histogram(
            "signalmesh_hop_latency_seconds",
            "From the storing of an input to that of the output that answers it, by the output's kind and agent.",
            ["kind", "agent"],
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.tick_to_decision = Histogram(
            "signalmesh_tick_to_decision_seconds",
            "From the storing of a tick to that of its decision.",
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.alerts = Counter(
            "signalmesh_alerts", "Alerts, by severity and code.", ["severity", "code"], registry=registry
        )
        self.claims = Counter("signalmesh_claims", "Claims of a new incarnation.", ["agent"], registry=registry)
        self.terms = Counter(
            "signalmesh_watchdog_term_changes", "Terms of leading watchdogs that have begun.", registry=registry
        )
        self.stream_messages = Gauge("signalmesh_stream_messages", "Messages that the stream holds.", registry=registry)
        self.stream_bytes = Gauge("signalmesh_stream_bytes", "Bytes that the stream holds.", registry=registry)
        self.observer_lag = Gauge(
            "signalmesh_observer_lag_messages",
            "Stored messages that these figures do not count yet.",
            registry=registry,
        )
        self.observer_connected = Gauge(
            "signalmesh_observer_connected", "Whether these figures follow the bus now.", registry=registry
        )
        self.webhook = Counter(
            "signalmesh_webhook_attempts",
            "Attempts to post an alert to the webhook, by what came of them.",
            ["outcome"],
            registry=registry,
        )
        self.webhook_waiting = Gauge(
            "signalmesh_webhook_waiting_alerts", "Alerts that the webhook has not been given yet.", registry=registry
        )
        self.recoveries = RecoveryMetrics(registry, names, tuple(agents))
        self._begin(tuple(agents))

    def _begin(self, agents: tuple[str, ...]) -> None:
        """Have each series at 0 whose labels are known; those of strangers and of alerts begin when they come."""
        self.messages.labels(OTHER)
        for kind in KEPT_KINDS:
            self.messages.labels(kind)
            self.unreadable.labels(kind)
        for side in get_args(Side):
            self.decisions.labels(side)
        for outcome in WEBHOOK_OUTCOMES:
            self.webhook.labels(outcome)
        self.claims.labels(WATCHDOG)
        for agent in agents:
            self.claims.labels(agent)

    def use(self, config: Config) -> None:
        """Go by `config` from now on: whose decisions are the swarm's."""
        self._config = config

    def has_noted(self, stored: StoredMessage) -> bool:
        """Whether this very message was counted or remembered, as far back as is known (REMEMBERED)."""
        return bool(stored.stored_ns) and self._stored.get(stored.sequence) == stored.stored_ns

    def noted_from(self, default: int) -> int:
        """Sequence of the oldest message that `has_noted` knows; `default` where it knows none."""
        return next(iter(self._stored), default)

    def remember(self, stored: StoredMessage) -> None:
        """Note a message without counting it: later ones may answer it."""
        self._note(stored)
        kind = stored.subject.split(".", 2)[1]
        if kind == "market":
            self._read(stored, kind, count=False)

    def count(self, stored: StoredMessage) -> None:
        """Count the next message of the stream."""
        self._note(stored)
        kind = stored.subject.split(".", 2)[1]
        kind = kind if kind in KEPT_KINDS else OTHER
        self.messages.labels(kind).inc()
        cause = number(stored.headers, CAUSE)
        if cause is not None:
            latency_s = self._since(self._stored.get(cause), stored)
            if latency_s is not None:
                self.hops.labels(kind, self.names.label(stored.subject.rpartition(".")[2])).observe(latency_s)
        if kind in KINDS:
            self._read(stored, kind, count=True)

    def _note(self, stored: StoredMessage) -> None:
        if stored.stored_ns and stored.sequence > self.restored_through:
            self._stored[stored.sequence] = stored.stored_ns
            if len(self._stored) > REMEMBERED:
                self._stored.popitem(last=False)

    def _since(self, stored_ns: int | None, stored: StoredMessage) -> float | None:
        """Seconds from then to this message; None if unknown, or if the server's clock was set back between."""
        if stored_ns is None or stored.stored_ns < stored_ns:
            return None
        return (stored.stored_ns - stored_ns) * NANOSECOND

    def _read(self, stored: StoredMessage, kind: str, *, count: bool) -> None:
        try:
            address = self._subjects.parse(stored.subject)
            message = decode(address, stored.subject, stored.data)
        except MessageError:
            if count:
                self.unreadable.labels(kind).inc()
            return
        if isinstance(message, MarketData):
            self._tick(message, stored)
        elif count:
            self._take(message, stored, address.agent)

    def _take(self, message: Message, stored: StoredMessage, writer: str) -> None:
        match message:
            case Decision():
                self._decided(message, stored)
            case Alert():
                known = writer in self.names.known
                self.alerts.labels(message.severity, self._codes.label(message.code) if known else OTHER).inc()
            case Config() if writer == WATCHDOG:
                self._config = message
            case Lifecycle():
                self.recoveries.take(message, stored.stored_ns if stored.sequence > self.restored_through else 0)
            case Epoch():
                self.claims.labels(self.names.label(writer)).inc()
                if writer == WATCHDOG:
                    self.terms.inc()
            case _:
                pass

    def _tick(self, tick: MarketData, stored: StoredMessage) -> None:
        if tick.sequence is not None and stored.stored_ns and stored.sequence > self.restored_through:
            self._ticks[tick.symbol, tick.source, tick.sequence] = stored.stored_ns
            if len(self._ticks) > REMEMBERED:
                self._ticks.popitem(last=False)

    def _decided(self, decision: Decision, stored: StoredMessage) -> None:
        deciders = self._config.deciders if self._config else ()
        if deciders and decision.source not in deciders:
            self.foreign_decisions.inc()
            return
        self.decisions.labels(decision.final_decision).inc()
        if decision.absent:
            self.degraded_decisions.inc()
        if decision.decision_id is None or decision.symbol is None or decision.round is None:
            return
        # symbol:source:sequence, or symbol:source=run:sequence where a feed has numbered its ticks anew
        _, _, source = decision.decision_id.rpartition(":")[0].rpartition(":")
        tick_ns = self._ticks.get((decision.symbol, source.partition("=")[0], decision.round))
        latency_s = self._since(tick_ns, stored)
        if latency_s is not None:
            self.tick_to_decision.observe(latency_s)
