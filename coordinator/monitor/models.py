"""The types of `status --json`, and the text about a failed sandbox."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from coordinator.config.changes import ChangedAgent
from coordinator.sandboxes.health import SandboxHealth
from coordinator.security.refusals import RefusedAttempts

FAILED_REMEDY = "fix the cause (see `signalmesh history alert`), and start `signalmesh up` again"

NOT_RUNNING = "not running"
"""Status of a configured remote sandbox of which neither a host nor its provider reports anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxStatus:
    """A sandbox with a host, or one without a pid that its provider reports (`status` "creating" or "failed"), or that
    only the configuration has ("not running").

    `provider` is that of swarm.toml; `endpoint` is where it was created: E2B, or another endpoint. None: nothing
    reports it, as on this machine. `reason` is the beginning of the reason for a failure, if the stream still holds
    it, or why the sandbox is not running; None for all others.
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
    """One agent. `status`: active, starting, restoring, draining, silent, stopped; of one that does not run the
    phase that the watchdog reports: waiting, restarting, backoff, drained, quarantined; external: the swarm does not
    run it; unknown: it has a vote, and nothing else is known of it.

    `epoch` is that of its heartbeat, else of its newest claim. `restarts` counts claims beyond the first one that the
    stream still holds, of one that was added at run time since then; `lag` are inputs not yet read, `poison` and
    `skipped` messages set aside and events that its handler failed on. Of an external one `outputs` are its messages in
    the stream, and `last_output_at` is when the newest of them was stored (None for all others).
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
    """A watchdog that sends heartbeats; `term` is None for a standby."""

    pid: int
    machine: str | None
    term: int | None
    heartbeat_age_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionCount:
    """Decisions of the swarm's own deciders in the stream, and the time of the newest one's event.

    `from_other_writers` are decisions of other writers, which are not the swarm's.
    """

    count: int
    last_at: datetime | None
    from_other_writers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorStatus:
    """A mirror that sends heartbeats. `status`: waiting, catching-up, live, failing, diverged, draining.

    `lag` rows are not in `file` yet; the oldest of those that it has read was stored `lag_ms` ago.
    """

    file: str
    cursor: int
    lag: int
    lag_ms: int
    status: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderStatus:
    """The provider of remote sandboxes. `status`: live; retrying: its requests fail and are repeated; refused: running
    sandboxes cannot be renewed; waiting: the bus is away. `endpoint`: E2B, or another one; None: it does not report it.
    """

    pid: int
    status: str
    endpoint: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DashboardStatus:
    """A dashboard that sends heartbeats. `status`: live, or waiting for the bus. `lag` messages are not shown yet."""

    pid: int
    machine: str | None
    status: str
    lag: int
    heartbeat_age_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusals:
    """What was refused to clients, as the alerts `client_refused`, `api_request_refused`, `heartbeat_refused` and
    `host_refused` report it that the stream holds from message `since` on. An alert has the attempts of a minute.
    """

    count: int
    since: int
    by: list[RefusedAttempts]


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """`status --json`. `watchdog_term` is None if no watchdog leads; `watchdogs` are the leader and the standbys.
    `changes` are the agents that are not as swarm.toml has them, changed at run time.
    `mirror`, `provider` and `dashboard` are None if they send no heartbeats, `refused` if no alert reports any: nothing
    was refused, or nobody looks (a server of others, or one without keys).
    """

    swarm: str
    nats: str
    active_agents: int
    processes: int
    watchdog_term: int | None
    watchdogs: list[WatchdogStatus] = field(default_factory=list)
    sandboxes: list[SandboxStatus] = field(default_factory=list)
    agents: list[AgentStatus] = field(default_factory=list)
    changes: list[ChangedAgent] = field(default_factory=list)
    decisions: DecisionCount
    mirror: MirrorStatus | None = None
    provider: ProviderStatus | None = None
    dashboard: DashboardStatus | None = None
    refused: Refusals | None = None


def failed_text(sandbox: SandboxStatus) -> str:
    """That `sandbox` has failed, and why."""
    why = f": {sandbox.reason}" if sandbox.reason else ""
    return f"{sandbox.name}: failed permanently{why}"
