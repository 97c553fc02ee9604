"""The types of `certify --json`. Every value was measured in that run, or a `why` has the reason why not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from agents.host.probe import Probe
from coordinator.control.kill import KillReport
from coordinator.reporting.percentiles import Percentiles
from coordinator.sandboxes.health import SandboxHealth
from coordinator.sandboxes.isolation import Isolation

__all__ = [
    "LOST",
    "AgentRow",
    "Audited",
    "Certificate",
    "CertifyTarget",
    "Cleanup",
    "CleanupCheck",
    "Flow",
    "Hop",
    "LastValues",
    "MemoryKey",
    "SandboxRow",
    "SnapshotRow",
    "Step",
    "Throughput",
    "active_sandboxes",
    "judged",
]

LOST = "lost"
"""State of a process with heartbeats during the run and without any at its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifyTarget:
    """One target. `measured` is in `unit`, and must be below `limit`, or `exactly` that.

    A target that could not be measured is not met; `why` then has the reason. `how` describes what was measured.
    """

    name: str
    measured: float | None
    unit: str
    limit: float
    exactly: bool
    ok: bool
    how: str
    why: str = ""


def judged(
    name: str, measured: float | None, unit: str, limit: float, how: str, why: str, *, exactly: bool = False
) -> CertifyTarget:
    """The target with its verdict."""
    ok = measured is not None and (measured == limit if exactly else measured < limit)
    return CertifyTarget(
        name=name,
        measured=measured,
        unit=unit,
        limit=limit,
        exactly=exactly,
        ok=ok,
        how=how,
        why=why if measured is None else "",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step of certify and its duration, s. The swarm runs meanwhile, so this is not the duration of what the step
    waited for.
    """

    name: str
    duration_s: float


@dataclass(slots=True, kw_only=True)
class SandboxRow:
    """A sandbox's host, by its `name`; the `sandbox` may have several.

    `received_ms` counts from the start of `up` to its first heartbeat, `probe_ms` is the probe's round trip,
    `probed_ms` counts from the start of `up` to its answer.

    Its `state` is that at the end of the run; `lost`: its host sent no more heartbeats. Its `health` is from the newest
    heartbeats of its host and of the leading watchdog.
    """

    name: str
    sandbox: str = ""
    provider: str | None = None
    state: str = "no heartbeat"
    received_ms: float | None = None
    probe_ms: float | None = None
    probed_ms: float | None = None
    probe: Probe | None = None
    isolation: Isolation | None = None
    agents: list[str] = field(default_factory=list)
    uptime_s: float | None = None
    health: SandboxHealth = field(default_factory=SandboxHealth)
    why: str = ""


def active_sandboxes(rows: Iterable[SandboxRow]) -> set[str]:
    """The sandboxes, by their names in the configuration, with an active host at the end of the run."""
    return {row.sandbox for row in rows if row.state == "active"}


@dataclass(slots=True, kw_only=True)
class AgentRow:
    """An agent. `spawn_ms` and `ready_ms` count from storing its claim to storing its `spawned` and `ready` events, by
    the server's clock.
    """

    name: str
    kind: str
    agent_id: str
    sandbox: str
    pid: int | None
    epoch: int
    capabilities: list[str]
    status: str
    spawn_ms: float | None = None
    ready_ms: float | None = None
    outputs: int | None = None
    rss_mb: float | None = None
    cpu_s: float | None = None
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """Messages of `kind` by `to` that answer one of `source`: ms from storing the one to storing the other."""

    source: str
    to: str
    kind: str
    ms: Percentiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """The paced rounds of the run: each hop by Mesh-Cause, and whole rounds from tick to decision, in ms.

    `votes` maps each voter to the number of decisions with its vote. Of all decided rounds, `rounds_at_once` came
    without a pause and `rounds_warmup` directly after them: neither is measured. `rounds_awaited` is the number of
    rounds that certify waited for.
    """

    hops: list[Hop] = field(default_factory=list)
    tick_to_decision_ms: Percentiles = field(default_factory=lambda: Percentiles(n=0))
    votes: dict[str, int] = field(default_factory=dict)
    rounds_at_once: int = 0
    rounds_warmup: int = 0
    rounds_awaited: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """The unpaced rounds at the beginning, by the server's clock; all messages of the stream in that time.

    `seconds` and the rates count from the first decision to the last. Ticks and votes may have queued up while the
    coordinator started, so they show its maximum. `whole_s` counts from the first tick to the last decision, with the
    start of the agents.
    """

    rounds: int
    seconds: float | None
    decisions_per_s: float | None
    messages_per_s: float | None
    whole_s: float | None = None
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryKey:
    """A value of the memory bucket, read repeatedly over the bus. `sequence` is the stream message with the same
    digest; None: there is none. `mirrored`: whether its row in the mirror has that digest, too; None: see `why`.
    """

    agent: str
    key: str
    bytes: int | None = None
    revision: int | None = None
    sha256: str | None = None
    read_ms: Percentiles = field(default_factory=lambda: Percentiles(n=0))
    sequence: int | None = None
    mirrored: bool | None = None
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRow:
    """A snapshot in the bus; `mirrored`: whether the mirror has that revision with the same digest."""

    agent: str
    bytes: int
    revision: int
    sha256: str
    mirrored: bool | None = None
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LastValues:
    """The newest message of every subject of the stream, each read with a request of its own."""

    subjects: int
    bytes: int
    read_ms: Percentiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """Summary of the audit after the run; `signalmesh audit --json` has all of it."""

    ok: bool
    messages: int
    gaps: int
    duplicated: int
    rounds_decided: int
    rounds_missing: int
    mirror_compared: int
    mirror_missing: int
    mirror_differing: int
    problems: list[str]
    notes: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanupCheck:
    """What was checked after the run, and `how`. `orphans` are what was left, each with its remedy; None: the check
    did not run, and `why` has the reason.
    """

    what: str
    how: str
    orphans: list[str] | None
    why: str = ""


@dataclass(slots=True, kw_only=True)
class Cleanup:
    """`exit_code` is that of `signalmesh up`. `earlier` lists the leftovers of earlier runs."""

    duration_s: float | None = None
    exit_code: int | None = None
    processes: int = 0
    checks: list[CleanupCheck] = field(default_factory=list)
    earlier: list[str] = field(default_factory=list)

    @property
    def orphans(self) -> list[str]:
        """Everything that is left of this run, or could not be checked."""
        return [
            text
            for one in self.checks
            for text in (
                one.orphans if one.orphans is not None else [f"{one.what}: not known whether any is left: {one.why}"]
            )
        ]

    @property
    def summary(self) -> str:
        """The result in one sentence."""
        ended = "" if self.exit_code in (0, None) else f"`signalmesh up` ended with exit code {self.exit_code}; "
        if self.orphans:
            return f"{ended}left behind: {'; '.join(self.orphans)}"
        checks = ", ".join(f"{one.what} ({one.how})" for one in self.checks)
        return f"{ended}nothing is left: {checks}"

    @property
    def ok(self) -> bool:
        """Whether nothing is left, and the swarm ended in order."""
        return not self.orphans and self.exit_code == 0


@dataclass(slots=True, kw_only=True)
class Certificate:
    """`certify --json`. `problems` are those beyond the targets: steps that failed, failed checks, leftovers.

    `endpoint` is the service that created the sandboxes, E2B or another one; None: all are local. `alerts` counts the
    received ones by code; `alert_texts` has the newest text of each, in one line of at most 1000 characters.
    """

    ok: bool
    version: str
    provider: str
    endpoint: str | None
    started_at: datetime
    duration_s: float
    machine: Probe
    nats_server: str
    steps: list[Step]
    targets: list[CertifyTarget]
    sandboxes: list[SandboxRow]
    agents: list[AgentRow]
    flow: Flow
    throughput: Throughput
    memory: list[MemoryKey]
    snapshots: list[SnapshotRow]
    last_values: LastValues
    fault: KillReport | None
    restored: dict[str, int | None]
    audit: Audited | None
    alerts: dict[str, int]
    alert_texts: dict[str, str]
    cleanup: Cleanup
    problems: list[str]
