"""The metrics that `signalmesh metrics` takes from the stream.

Names and units follow Prometheus: seconds, bytes, `_total` for counters. Labels are bounded
(coordinator/telemetry/labels.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from bus.errors import MessageError
from bus.interface import StoredMessage
from bus.messages import (
    KINDS,
    Alert,
    Decision,
    Epoch,
    Lifecycle,
    MarketData,
    Message,
    Side,
    VotingConfig,
    check_lifetime,
    decode,
)
from bus.messages.headers import CAUSE, TRACEPARENT, number
from bus.messages.reporters import ClaimedHosts
from bus.messages.subjects import STORED_KINDS, WATCHDOG, Subjects
from bus.observability.spans import read_sampled
from coordinator.config.changes import Changes
from coordinator.security.permissions import UNNAMED
from coordinator.security.refusals import UNKNOWN_KEY, refusal_in
from coordinator.supervisor.config_publisher import changes_in
from coordinator.telemetry.decision_latency import REMEMBERED, TickTimes, seconds_between
from coordinator.telemetry.labels import OTHER, Names
from coordinator.telemetry.recovery_metrics import RecoveryMetrics

WEBHOOK_OUTCOMES = ("delivered", "failed", "refused", "unreadable")
LATENCY_BUCKETS = (
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.4, 0.8, 2.0, 10.0,
)  # fmt: skip

disable_created_metrics()  # type: ignore[no-untyped-call] # else there is a second series for each counter, and nothing uses it


class Instruments:
    """The instruments of the stream's metrics: name, help text, labels."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"signalmesh_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"signalmesh_{name}", text, registry=registry)

        def latency(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(f"signalmesh_{name}", text, labels, buckets=LATENCY_BUCKETS, registry=registry)

        self.messages = counter("messages", "Messages stored in the stream, by kind.", "kind")
        self.unreadable = counter("unreadable_messages", "Stored messages that cannot be decoded, by kind.", "kind")
        self.decisions = counter("decisions", "Decisions of the swarm's own deciders, by side.", "side")
        self.decisions_from_unknown_writers = counter(
            "decisions_from_unknown_writers", "Decisions by writers that are not deciders of the swarm."
        )
        self.degraded_decisions = counter("degraded_decisions", "Decisions without a vote that was expected.")
        self.hops = latency(
            "hop_latency_seconds",
            "From storing an input to storing the output that answers it, by the output's kind and agent.",
            "kind",
            "agent",
        )
        self.tick_to_decision = latency("tick_to_decision_seconds", "From storing a tick to storing its decision.")
        self.alerts = counter("alerts", "Alerts, by severity and code.", "severity", "code")
        self.refused_attempts = counter(
            "refused_attempts",
            "What the server, the watchdog or a host has refused to a client, by whose key it was and the attempt.",
            "identity",
            "attempt",
        )
        self.claims = counter("claims", "Epochs claimed by new agent processes.", "agent")
        self.terms = counter("watchdog_term_changes", "Terms of leading watchdogs that have started.")
        self.stream_messages = gauge("stream_messages", "Messages in the stream.")
        self.stream_bytes = gauge("stream_bytes", "Bytes in the stream.")
        self.observer_lag = gauge("observer_lag_messages", "Stored messages that are not counted yet.")
        self.observer_connected = gauge("observer_connected", "1 while the metrics process follows the stream.")
        self.webhook = counter("webhook_attempts", "Attempts to post an alert to the webhook, by outcome.", "outcome")
        self.webhook_waiting = gauge("webhook_waiting_alerts", "Alerts that the webhook has not received yet.")


class StreamMetrics(Instruments):
    """Counts the messages of the stream of one swarm, in the stream's order.

    `agents` are those of the configuration. Their series start at 0, as do all others whose labels are known.
    """

    def __init__(self, subjects: Subjects, names: Names, agents: Iterable[str] = ()) -> None:
        self.registry = CollectorRegistry()
        super().__init__(self.registry)
        self._subjects, self.names, self._codes, self._identities = subjects, names, Names(()), Names(())
        self._config: VotingConfig | None = None
        self._agents = frozenset(agents)
        self._stored: OrderedDict[int, int] = OrderedDict()
        self._ticks = TickTimes()
        self.restored_through = 0
        """Last sequence that a restore has written; the server's time of these messages is that of the restore."""
        self._hosts = ClaimedHosts()
        self.recoveries = RecoveryMetrics(self.registry, names, tuple(self._agents))
        self._begin(tuple(self._agents))

    def learn(self, changes: Changes) -> None:
        """The agents and sandboxes that were added at run time are known as those of the configuration are.

        Those that were removed keep their labels, and are not missed.
        """
        self.names.removed = frozenset((*changes.removed, *changes.removed_sandboxes))
        self.names.learn(tuple(changes.sandboxes))
        if new := tuple(name for name in changes.agents if name not in self._agents):
            self._agents |= frozenset(new)
            self.names.learn(new)
            self._begin(new)
            self.recoveries.begin(new)

    def _begin(self, agents: tuple[str, ...]) -> None:
        """Start each series with known labels at 0; those of unknown writers and alerts start later."""
        # Prometheus sees no increase in a series that starts at 1.
        self.messages.labels(OTHER)
        for kind in STORED_KINDS:
            self.messages.labels(kind)
            self.unreadable.labels(kind)
        for side in get_args(Side):
            self.decisions.labels(side)
        for outcome in WEBHOOK_OUTCOMES:
            self.webhook.labels(outcome)
        self.claims.labels(WATCHDOG)
        for agent in agents:
            self.claims.labels(agent)

    def use(self, config: VotingConfig) -> None:
        """Use `config` from now on: it lists the deciders of the swarm."""
        self._config = config

    def has_noted(self, stored: StoredMessage) -> bool:
        """Whether this very message was counted or remembered, among the last REMEMBERED."""
        return bool(stored.stored_ns) and self._stored.get(stored.sequence) == stored.stored_ns

    def noted_from(self, default: int) -> int:
        """Sequence of the oldest message that `has_noted` knows; `default` where it knows none."""
        return next(iter(self._stored), default)

    def remember(self, stored: StoredMessage) -> None:
        """Remember a message without counting it: later ones may answer it."""
        self._note(stored)
        kind = stored.subject.split(".", 2)[1]
        if kind in ("market", "epoch"):
            self._read(stored, kind, count=False)

    def learn_claim(self, stored: StoredMessage) -> None:
        """Learn which host runs an agent, by a claim from before the first message that is counted or remembered."""
        self._read(stored, "epoch", count=False)

    def count(self, stored: StoredMessage) -> None:
        """Count the next message of the stream."""
        self._note(stored)
        kind = stored.subject.split(".", 2)[1]
        kind = kind if kind in STORED_KINDS else OTHER
        self.messages.labels(kind).inc()
        cause = number(stored.headers, CAUSE)
        if cause is not None:
            latency_s = seconds_between(self._stored.get(cause, 0), stored.stored_ns)
            if latency_s is not None:
                self.hops.labels(kind, self.names.label(stored.subject.rpartition(".")[2])).observe(latency_s)
        if kind in KINDS or self._subjects.is_hidden(stored.subject):
            self._read(stored, kind, count=True)

    def _note(self, stored: StoredMessage) -> None:
        if stored.stored_ns and stored.sequence > self.restored_through:
            self._stored[stored.sequence] = stored.stored_ns
            if len(self._stored) > REMEMBERED:
                self._stored.popitem(last=False)

    def _read(self, stored: StoredMessage, kind: str, *, count: bool) -> None:
        try:
            address = self._subjects.parse(stored.subject)
            check_lifetime(address, stored.subject, stored.headers)
            message = decode(address, stored.subject, stored.data)
        except MessageError:
            if count:
                self.unreadable.labels(kind).inc()
            return
        if isinstance(message, MarketData):
            if stored.sequence > self.restored_through:
                self._ticks.take(message, stored.stored_ns)
        elif isinstance(message, Epoch) and not count:
            self._hosts.claimed(address.agent, stored.sequence, message.sandbox)
        elif count:
            self._take(message, stored, address.agent)

    def _take(self, message: Message, stored: StoredMessage, writer: str) -> None:
        match message:
            case Decision():
                self._decided(message, stored)
            case Alert():
                known = writer in self.names.known
                self.alerts.labels(message.severity, self._codes.label(message.code) if known else OTHER).inc()
                if known and writer not in self._agents and (refusal := refusal_in(message, writer)) is not None:
                    self.refused_attempts.labels(self._identity(refusal.who), refusal.attempt).inc(refusal.count)
            case VotingConfig() if writer == WATCHDOG:
                self._config = message
                self.learn(changes_in(message))
            case Lifecycle() if self._hosts.may_report(message.event, message.agent, message.epoch, writer):
                self.recoveries.take(message, stored.stored_ns if stored.sequence > self.restored_through else 0)
            case Epoch():
                self._hosts.claimed(writer, stored.sequence, message.sandbox)
                self.claims.labels(self.names.label(writer)).inc()
                if writer == WATCHDOG:
                    self.terms.inc()
            case _:
                pass

    def _identity(self, owner: str) -> str:
        """The label of the owner of a key: its identity, `(no key)` or `(unknown key)`."""
        if owner == UNKNOWN_KEY:
            return "(unknown key)"
        if owner == UNNAMED:
            return "(no key)"
        return self._identities.label(owner.rpartition(" ")[2])  # it may be "the revoked key of …"

    def _decided(self, decision: Decision, stored: StoredMessage) -> None:
        deciders = self._config.deciders if self._config else ()
        if deciders and decision.source not in deciders:
            self.decisions_from_unknown_writers.inc()
            return
        self.decisions.labels(decision.final_decision).inc()
        if decision.absent:
            self.degraded_decisions.inc()
        if (latency_s := self._ticks.latency_s(decision, stored.stored_ns)) is not None:
            context, _ = read_sampled(stored.headers.get(TRACEPARENT, ""))
            # An unsampled trace was not exported: a link to it would lead nowhere.
            self.tick_to_decision.observe(latency_s, {"trace_id": context.trace_id} if context else None)
