"""The watchdog's data: the state of agents and hosts, and the actions that the policy can request.

All times are seconds of one monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from coordinator.supervisor.crash_loop import CrashHistory

Phase = Literal["waiting", "starting", "running", "restarting", "backoff", "quarantined", "drained", "external"]
PROVIDER_SILENT_S = 3.0
"""A provider sends five heartbeats a second, and is started again at once when it dies."""
StoppedPhase = Literal["quarantined", "drained"]
"""Phases that last until the agent is revived."""


@dataclass(frozen=True, slots=True)
class Spawn:
    """Claim the next epoch of `agent` and start it in `sandbox`. `reason` is None for the first start."""

    agent: str
    sandbox: str
    reason: str | None = None
    moved_from: str | None = None


@dataclass(frozen=True, slots=True)
class ProbeProcess:
    """Probe the process of `agent` through its host."""

    agent: str
    sandbox: str
    epoch: int


@dataclass(frozen=True, slots=True)
class VerifyDrain:
    """Look up in the stream whether this incarnation, which ended with exit code 0, reported that it drained."""

    agent: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Suspect:
    agent: str
    silent_ms: int


@dataclass(frozen=True, slots=True)
class Dead:
    """The incarnation of `agent` is dead; a Spawn follows, at once or later, unless the agent is quarantined.

    `unresponsive`: the process ran, but a handler did not return in time.
    """

    agent: str
    epoch: int
    sandbox: str
    pid: int
    reason: str
    unresponsive: bool = False


@dataclass(frozen=True, slots=True)
class Quarantine:
    agent: str
    epoch: int
    sandbox: str
    reason: str


@dataclass(frozen=True, slots=True)
class Drained:
    """`agent` has drained; it is not started again until it is revived."""

    agent: str


@dataclass(frozen=True, slots=True)
class SandboxLost:
    sandbox: str
    agents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Joined:
    """`agent`, which was added, is live for the first time: it votes from now on."""

    agent: str


Action = Spawn | ProbeProcess | VerifyDrain | Suspect | Dead | Quarantine | Drained | SandboxLost | Joined


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Timeouts of the watchdog in seconds; `deaths` deaths within `window_s` quarantine an agent."""

    suspect_s: float = 0.3
    dead_s: float = 0.6
    grace_s: float = 3.0
    start_s: float = 60.0
    starved_s: float = 5.0
    deaths: int = 10
    window_s: float = 30.0


@dataclass(frozen=True, slots=True)
class UnreportedExit:
    """An incarnation that ended while there was no leader.

    `since` is when the end was first known. `exit_code` is None if its host ended too. `error` is the exception that
    ended it, if one did.
    """

    epoch: int
    sandbox: str
    pid: int
    agent_id: str
    exit_code: int | None
    since: float
    error: str | None = None


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Seconds for which a process has used a CPU, and waited for one, since its start.

    `throttled_s` and `throttled_periods` of the quota: for which the kernel has held back its control group, as the
    CPU quota was used up (see bus/utils/cgroups.py).
    """

    used_s: float
    waited_s: float
    throttled_s: float = 0.0
    throttled_periods: int = 0


@dataclass(frozen=True, slots=True)
class ProbeHistory:
    """The first and the newest probe of a process during one silence."""

    first: CpuTimes
    last: CpuTimes


@dataclass(slots=True)
class AgentState:
    """The observed state of one agent."""

    name: str
    preferred: str
    is_source: bool = False
    moving: bool = False
    """Its next incarnation starts in the preferred sandbox, wherever it was before."""
    joining: bool = False
    """It was added and was not live yet: no round waits for it."""
    phase: Phase = "waiting"
    sandbox: str = ""
    pid: int = 0
    epoch: int = 0
    known_epoch: int | None = None
    """The claim that is expected to be the newest; None: any."""
    agent_id: str = ""
    status: str = ""
    doing: str = ""
    """The step of its start."""
    progress: int = 0
    progress_at: float = 0.0
    healthy_since: float | None = None
    heartbeat_at: float = 0.0
    lag: int = 0
    cursor: int = 0
    outputs: int = 0
    started_at: float = 0.0
    has_heartbeat: bool = False
    suspected: bool = False
    checked_at: float = -1e9
    probes: ProbeHistory | None = None
    """The probes of its process during the present silence."""
    ended_at: float | None = None
    """When its end with exit code 0 was reported; None once it is known whether it drained."""
    drained_epoch: int = 0
    """The newest incarnation that has reported that it drained."""
    requested_epoch: int = 0
    """The newest incarnation that was requested to drain in order to be started again."""
    unreported_exit: UnreportedExit | None = None
    """The newest incarnation that a host reported as ended before the first decision."""
    deaths: CrashHistory = field(default_factory=CrashHistory)
    retry_at: float = 0.0
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Leftover:
    """A process of an agent that is not in the swarm any more."""

    sandbox: str
    pid: int
    epoch: int


@dataclass(slots=True)
class HostState:
    """The observed state of one sandbox host. `group` is the sandbox that it serves; several hosts may share it."""

    name: str
    group: str
    host_id: str = ""
    heartbeat_at: float = -1e9
    alive: bool = False
    live_since: float = 0.0
    throttled_periods: int | None = None
    """As its newest heartbeat has them; None before the first one."""
    throttled_at: float = -1e9
    """When a heartbeat last reported that its CPU quota had held it back."""


@dataclass(slots=True)
class ProviderState:
    """The provider of sandboxes at E2B, by its newest heartbeat."""

    heartbeat_at: float | None = None
    failed: frozenset[str] = frozenset()
    """Sandboxes that it reports as failed."""

    def is_live(self, now: float) -> bool:
        """Whether it has sent a heartbeat lately."""
        return self.heartbeat_at is not None and now - self.heartbeat_at < PROVIDER_SILENT_S
