"""Deaths and recoveries of agents, from their lifecycle events and the server's times of storing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Histogram

from bus.messages import Lifecycle
from coordinator.telemetry.decision_latency import seconds_between
from coordinator.telemetry.labels import Names

RECOVERY_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3.0, 6.0, 15.0, 60.0)
REASONS = ("signal 6", "signal 9", "signal 11", "exit code", "sandbox lost", "silent", "other")
"""The usual classes of deaths; other signals are classes of their own."""
DRAINED = "drained"
"""The reason of a restart without a death."""
SIGNS = ("exit", "silence")
_SIGNAL = re.compile(r"signal \d{1,2}")


def reason_class(reason: str | None) -> str:
    """The class of the reason of a death: `signal 9`, exit code, sandbox lost, silent, other."""
    text = reason or ""
    if _SIGNAL.fullmatch(text):
        return text
    if "exit code" in text:
        return "exit code"
    if "sandbox host" in text:
        return "sandbox lost"
    if "silent" in text or "no progress" in text or "process is gone" in text:
        return "silent"
    return "other"


@dataclass(slots=True)
class _Sign:
    epoch: int
    at_ns: int
    kind: Literal["exit", "silence"]


@dataclass(slots=True)
class _End:
    epoch: int
    at_ns: int
    reason: str
    dead: bool
    spawned: int = 0


class RecoveryMetrics:
    """Measures detection and recovery: from the first sign of a death until the successor is ready.

    `agents` are those of the configuration: each has its series at 0 from the start.
    """

    def __init__(self, registry: CollectorRegistry, names: Names, agents: Iterable[str] = ()) -> None:
        self._names = names
        self.deaths = Counter(
            "signalmesh_deaths", "Agents declared dead, by reason.", ["agent", "reason"], registry=registry
        )
        self.restarts = Counter(
            "signalmesh_restarts",
            "Agent restarts, by the reason of the end before.",
            ["agent", "reason"],
            registry=registry,
        )
        self.detection = Histogram(
            "signalmesh_detection_seconds",
            "From the first sign of a death (the exit reported by the host, or the last heartbeat) to its declaration.",
            ["sign"],
            buckets=RECOVERY_BUCKETS,
            registry=registry,
        )
        self.recovery = Histogram(
            "signalmesh_recovery_seconds",
            "From the declaration of a death until the agent is ready again.",
            ["agent"],
            buckets=RECOVERY_BUCKETS,
            registry=registry,
        )
        for sign in SIGNS:
            self.detection.labels(sign)
        self.begin(agents)
        self._signs: dict[str, _Sign] = {}
        self._ends: dict[str, _End] = {}

    def begin(self, agents: Iterable[str]) -> None:
        """Start the series of these agents at 0."""
        for agent in agents:
            self.recovery.labels(agent)
            self.restarts.labels(agent, DRAINED)
            for reason in REASONS:
                self.deaths.labels(agent, reason)
                self.restarts.labels(agent, reason)

    def take(self, event: Lifecycle, at_ns: int) -> None:
        """The next lifecycle event of the stream, stored at `at_ns`; 0: not known, and nothing is measured."""
        agent = self._names.label(event.agent)
        if agent != event.agent or event.epoch is None:
            return  # beyond the bound; or a sandbox's exit, which has no epoch
        match event.event:
            case "exited":
                self._signs[agent] = _Sign(event.epoch, at_ns, "exit")
            case "suspected":
                silent_ms = event.detail.get("silent_ms")
                if isinstance(silent_ms, (int, float)):
                    self._signs[agent] = _Sign(event.epoch, at_ns - int(silent_ms * 1_000_000), "silence")
            case "declared_dead":
                self._died(agent, event, at_ns)
            case "drained":
                self._ends[agent] = _End(event.epoch, at_ns, DRAINED, dead=False)
            case "quarantined":
                self._ends.pop(agent, None)  # only a person revives it: that is no recovery
            case "spawned" | "ready":
                self._back(agent, event, at_ns)
            case _:
                pass

    def _back(self, agent: str, event: Lifecycle, at_ns: int) -> None:
        end = self._ends.get(agent)
        if end is None or event.epoch is None or event.epoch <= end.epoch:
            return
        if event.event == "ready":
            del self._ends[agent]
            if end.dead and (seconds := seconds_between(end.at_ns, at_ns)) is not None:
                self.recovery.labels(agent).observe(seconds)
        elif event.epoch > end.spawned:
            self.restarts.labels(agent, end.reason).inc()
            end.spawned = event.epoch

    def _died(self, agent: str, event: Lifecycle, at_ns: int) -> None:
        assert event.epoch is not None
        reason = reason_class(event.reason)
        self.deaths.labels(agent, reason).inc()
        sign = self._signs.pop(agent, None)
        if (
            sign is not None
            and sign.epoch == event.epoch
            and (seconds := seconds_between(sign.at_ns, at_ns)) is not None
        ):
            self.detection.labels(sign.kind).observe(seconds)
        before = self._ends.get(agent)
        # One that died again before it was ready has been away since its first death.
        since_ns = before.at_ns if before is not None and before.dead else at_ns
        self._ends[agent] = _End(event.epoch, since_ns, reason, dead=True)
