"""What `certify` finds: the types of `certify --json`. All of it was measured in that run; where not, it says why."""

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
"""State of who was heard in the run and no longer at its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifyTarget:
    """One thing that must hold. `measured` is in `unit`, and must be below `limit`, or `exactly` that.

    What could not be measured is not met; `why` then says what was missing. `how` tells what was measured.
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
    """Something that certify did or waited for, and how long that kept it, s. The swarm runs meanwhile, so that this is
    not how long the thing itself took.
    """

    name: str
    duration_s: float


@dataclass(slots=True, kw_only=True)
class SandboxRow:
    """A sandbox's host, by its `name`; the `sandbox` may have several.

    `received_ms` counts from the start of `up` to its first heartbeat, `probe_ms` is the probe's round trip,
    `probed_ms` counts from the start of `up` to its answer.

    Its `state` is that at the end of the run: `lost` is one whose host was no longer heard. Its `health` is by the
    newest heartbeats of its host and of the leading watchdog.
    """

    name: str
    sandbox: str = ""
    provider: str | None = None
    state: str = "not heard"
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
    """The sandboxes, by their names in the configuration, that a host served at the end of the run."""
    return {row.sandbox for row in rows if row.state == "active"}


@dataclass(slots=True, kw_only=True)
class AgentRow:
    """An agent. `spawn_ms` and `ready_ms` count from the storing of its claim to that of what says so, by the server's
    clock: its host had a process, and it was live with its state.
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
    """Messages of `kind` by `to` that answer one of `source`'s: ms from the storing of the one to that of the other."""

    source: str
    to: str
    kind: str
    ms: Percentiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """The paced rounds of the run: each hop by Mesh-Cause, and whole rounds from tick to decision, in ms.

    `votes` maps each voter to the number of decisions that had its vote. Of all rounds that were decided,
    `rounds_at_once` came without a pause and `rounds_settling` right after them: both are left out of the figures.
    `rounds_awaited` is how many of all certify waited for.
    """

    hops: list[Hop] = field(default_factory=list)
    tick_to_decision_ms: Percentiles = field(default_factory=lambda: Percentiles(n=0))
    votes: dict[str, int] = field(default_factory=dict)
    rounds_at_once: int = 0
    rounds_settling: int = 0
    rounds_awaited: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """The unpaced rounds at the beginning, by the server's clock; all messages of the stream in that time.

    `seconds` and the rates go from the first decision to the last: by then ticks and votes may have piled up while the
    coordinator started, so that they tell what it decides at most. `whole_s` goes from the first tick to the last
    decision: the start of the agents is in it.
    """

    rounds: int
    seconds: float | None
    decisions_per_s: float | None
    messages_per_s: float | None
    whole_s: float | None = None
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryKey:
    """A value of the memory bucket, read over the bus again and again. `sequence` is the stream message with the same
    digest; None: there is none. `mirrored`: whether the mirror's row of it has that digest too; None: see `why`.
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
    """A snapshot as the bus holds it; `mirrored`: whether the mirror has that revision with the same digest."""

    agent: str
    bytes: int
    revision: int
    sha256: str
    mirrored: bool | None = None
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LastValues:
    """The newest message of every subject that the stream holds, each asked for by itself."""

    subjects: int
    bytes: int
    read_ms: Percentiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """The audit's result over the whole run, in short; `signalmesh audit --json` has the same in full."""

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
    """What was looked for after the run, and `how`; `left` is what was found of it, None where it could not be seen:
    then `why`. Each one left is a sentence that says what to do.
    """

    what: str
    how: str
    orphans: list[str] | None
    why: str = ""


@dataclass(slots=True, kw_only=True)
class Cleanup:
    """`exit_code` is that of `signalmesh up`. `earlier` tells of runs before this one that did not end in order."""

    duration_s: float | None = None
    exit_code: int | None = None
    processes: int = 0
    checks: list[CleanupCheck] = field(default_factory=list)
    earlier: list[str] = field(default_factory=list)

    @property
    def orphans(self) -> list[str]:
        """Whatever is left of this run, or could not be looked for."""
        return [
            text
            for one in self.checks
            for text in (
                one.orphans if one.orphans is not None else [f"{one.what}: not known whether any is left: {one.why}"]
            )
        ]

    @property
    def summary(self) -> str:
        """What was found, in a sentence."""
        ended = "" if self.exit_code in (0, None) else f"`signalmesh up` ended with exit code {self.exit_code}; "
        if self.orphans:
            return f"{ended}left behind: {'; '.join(self.orphans)}"
        checks = ", ".join(f"{one.what} ({one.how})" for one in self.checks)
        return f"{ended}nothing of it is left: {checks}"

    @property
    def ok(self) -> bool:
        """Whether nothing is left, and the swarm ended in order."""
        return not self.orphans and self.exit_code == 0


@dataclass(slots=True, kw_only=True)
class Certificate:
    """`certify --json`. `problems` are those beyond the targets: what was not found, not whole, or left behind.

    `endpoint` says which service was asked for sandboxes, E2B or another one; None: none was. `alerts` counts those
    heard by their codes; `alert_texts` has the newest text of each, in one line and cut at 1000 characters.
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
