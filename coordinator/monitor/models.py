"""What `status --json` prints, and the words for a sandbox that was given up."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from coordinator.sandboxes.health import SandboxHealth

FAILED_REMEDY = "`signalmesh history alert` says more; mend it, and start `signalmesh up` again"


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxStatus:
    """A sandbox whose host was heard, or (`status` "being made" or "given up", without a pid) of which its provider
    says why none is. `provider` is that of swarm.toml; `endpoint` says where that made it: E2B, or else that it is
    another one. None: its host does not say, as on this machine. `reason` is the beginning of why it was given up;
    None for all others, and where the stream does not hold it any more.
    """

    name: str
    provider: str | None
    endpoint: str | None
    status: str
    agents: list[str]
    uptime_s: float | None
    pid: int | None
    health: SandboxHealth
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStatus:
    """One agent. `status`: active, starting, restoring, draining, silent, stopped; of one that does not run what the
    watchdog says: waiting, restarting, backoff, drained, quarantined; external: somebody else runs it; unknown: it has
    a vote, and nothing else is known of it.

    `epoch` is that of its heartbeat, else of its newest claim. `restarts` counts claims beyond the first one that the
    stream still holds; `lag` are inputs not yet read, `poison` and `skipped` messages set aside and events that its
    handler raised on. Of an external one `outputs` are its messages in the stream, and `last_output_at` is when the
    newest of them was stored (None for all others).
    """

    name: str
    kind: str
    agent_id: str
    status: str
    epoch: int
    pid: int | None
    sandbox: str
    capabilities: list[str]
    restarts: int
    heartbeat_age_ms: int | None
    cursor: int | None
    lag: int | None
    outputs: int | None
    poison: int | None
    skipped: int | None
    last_output_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchdogStatus:
    """A watchdog that was heard; `term` is None for one that stands by."""

    pid: int
    machine: str | None
    term: int | None
    heartbeat_age_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionCount:
    """Decisions of the swarm's own deciders that the stream holds, and the time of the newest one's event.

    `from_other_writers` are decisions of other writers, which are not the swarm's.
    """

    count: int
    last_at: datetime | None
    from_other_writers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorStatus:
    """A mirror that was heard. `status`: waiting, catching-up, live, failing, diverged, draining.

    `behind` rows are not in `file` yet; the oldest of those that it has read was stored `behind_ms` ago.
    """

    file: str
    cursor: int
    lag: int
    behind_ms: int
    status: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderStatus:
    """The provider of sandboxes elsewhere, where it was heard. `status`: live; retrying: what it asks for fails, and
    is asked again; refused: running sandboxes cannot be renewed; waiting: the bus is away. `endpoint`: E2B, or else
    that it is another one; None where it did not say.
    """

    pid: int
    status: str
    endpoint: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """`status --json`. `watchdog_term` is None when nobody was heard that leads; `watchdogs` are the leader and those
    that stand by. `provider` is None when none was heard.
    """

    swarm: str
    nats: str
    active_agents: int
    processes: int
    watchdog_term: int | None
    watchdogs: list[WatchdogStatus] = field(default_factory=list)
    sandboxes: list[SandboxStatus] = field(default_factory=list)
    agents: list[AgentStatus] = field(default_factory=list)
    decisions: DecisionCount
    mirror: MirrorStatus | None = None
    provider: ProviderStatus | None = None


def failed_text(sandbox: SandboxStatus) -> str:
    """That `sandbox` was given up, and why."""
    why = f": {sandbox.reason}" if sandbox.reason else ""
    return f"{sandbox.name}: its provider has given it up{why}"
