"""The watchdog's vocabulary: what is known of an agent and of a host, and the actions that the policy can ask for.

All times are seconds of one monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from coordinator.supervisor.crash_loop import CrashHistory

Phase = Literal["waiting", "starting", "running", "restarting", "backoff", "quarantined", "drained", "external"]
StoppedPhase = Literal["quarantined", "drained"]
"""Phases that last until the agent is revived."""


@dataclass(frozen=True, slots=True)
class Spawn:
    """Claim the next epoch of `agent` and start it in `sandbox`. `reason` is why, None for the first start."""

    agent: str
    sandbox: str
    reason: str | None = None
    moved_from: str | None = None


@dataclass(frozen=True, slots=True)
class ProbeProcess:
    """Ask the host of `agent` about its process."""

    agent: str
    sandbox: str
    epoch: int


@dataclass(frozen=True, slots=True)
class VerifyDrain:
    """Read in the stream whether this incarnation, which has ended with exit code 0, has reported that it drained."""

    agent: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Suspect:
    agent: str
    silent_ms: int


@dataclass(frozen=True, slots=True)
class Dead:
    """`agent`'s incarnation is dead; a Spawn follows, at once or later, unless it is quarantined.

    `hung`: it ran, but a handler did not give it back in time.
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
    """`agent` has drained, and stays away."""

    agent: str


@dataclass(frozen=True, slots=True)
class SandboxLost:
    sandbox: str
    agents: tuple[str, ...]


Action = Spawn | ProbeProcess | VerifyDrain | Suspect | Dead | Quarantine | Drained | SandboxLost


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long the watchdog waits, in seconds; deaths counted within `window_s` up to `deaths` before quarantine."""

    suspect_s: float = 0.3
    dead_s: float = 0.6
    grace_s: float = 3.0
    starved_s: float = 5.0
    deaths: int = 10
    window_s: float = 30.0


@dataclass(frozen=True, slots=True)
class UnreportedExit:
    """An incarnation that a new leader finds ended. `since` is when that was first known; `exit_code` is None where its
    host went with it.
    """

    epoch: int
    sandbox: str
    pid: int
    agent_id: str
    exit_code: int | None
    since: float


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Seconds for which a process has used a CPU, and waited for one, since its start."""

    used_s: float
    waited_s: float


@dataclass(frozen=True, slots=True)
class ProbeHistory:
    """The first and the newest probe of a process during one silence."""

    first: CpuTimes
    last: CpuTimes


@dataclass(slots=True)
class AgentState:
    """What is known of one agent."""

    name: str
    preferred: str
    is_source: bool = False
    phase: Phase = "waiting"
    sandbox: str = ""
    pid: int = 0
    epoch: int = 0
    known_epoch: int | None = None
    """The claim that we expect to be the newest; None: whichever it is."""
    agent_id: str = ""
    status: str = ""
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
    """When its end with exit code 0 was heard, as long as nothing says that it has drained."""
    drained_epoch: int = 0
    """The newest incarnation that has reported to have drained."""
    requested_epoch: int = 0
    """The newest incarnation that we have asked to drain, to be started anew."""
    unreported_exit: UnreportedExit | None = None
    """The newest incarnation that a host reported as ended before the first decision."""
    deaths: CrashHistory = field(default_factory=CrashHistory)
    retry_at: float = 0.0
    reason: str | None = None


@dataclass(slots=True)
class HostState:
    """What is known of one sandbox host. `group` is the sandbox that it serves, by itself or as one of several."""

    name: str
    group: str
    host_id: str = ""
    heartbeat_at: float = -1e9
    alive: bool = False
