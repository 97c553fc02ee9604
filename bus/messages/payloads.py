"""Payloads of all messages: frozen, slotted, keyword-only dataclasses, and the kinds under which they are published."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

LARGEST_PRICE = 1e18
"""In the quote currency. No market has quoted more; larger prices overflow when they are squared or multiplied."""
LARGEST_VOLUME = 1e30
"""In the base currency, some of which have units of 1e-18."""

Side = Literal["buy", "sell", "hold"]
SentimentLabel = Literal["bullish", "bearish", "neutral"]
Severity = Literal["info", "warning", "critical"]

CREATING = "creating"
FAILED = "failed"
"""Phases that a provider reports: it creates the sandbox, or cannot create it until an operator fixes the cause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketData:
    """One candle or trade. Prices in the quote currency, volume in the base currency.

    Valid prices are more than 0 and at most LARGEST_PRICE, volumes 0 to LARGEST_VOLUME, and `low` is not above `high`.
    `price` may lie outside `low` and `high`: feeds mix sources and round.
    """

    symbol: str
    price: float
    volume: float
    timestamp: datetime
    source: str
    sequence: int | None = None
    open: float | None = None
    high: float | None = None
    low: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """A news item with the time at which it became public."""

    text: str
    timestamp: datetime
    source: str
    url: str | None = None
    symbols: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentiment:
    """A voter's assessment of the news. `confidence` and `p_up` (probability of a rise) in [0, 1]."""

    sentiment: SentimentLabel
    confidence: float
    sources: tuple[str, ...]
    timestamp: datetime
    source: str
    symbol: str | None = None
    round: int | None = None
    p_up: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """A strategy's vote. `strength` and `p_up` (probability of a rise) in [0, 1]."""

    signal: Side
    strength: float
    indicators: dict[str, Any]
    timestamp: datetime
    source: str
    symbol: str | None = None
    round: int | None = None
    p_up: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The coordinator's answer to one round. `position_size` is a fraction of capital; the scores lie in [0, 1]."""

    final_decision: Side
    position_size: float
    risk_score: float
    consensus_level: float
    agents_consulted: tuple[str, ...]
    timestamp: datetime
    source: str
    decision_id: str | None = None
    symbol: str | None = None
    round: int | None = None
    absent: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Timer:
    """A timer of `source` has expired: time as an event. `number` counts that agent's timers."""

    name: str
    number: int
    timestamp: datetime
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """The claim of an incarnation; the stream sequence of this message is its epoch. `claim` is unique."""

    agent: str
    claim: str
    claimed_by: str
    sandbox: str
    timestamp: datetime
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VotingConfig:
    """The coordinator's settings from this point of the stream on.

    `voters` maps an agent to its weight (normalised when used); `quorum` is the fraction of the voting weight that
    must be exceeded; `buy_at` and `sell_at` bound the pooled probability of a rise; `round_timeout_ms` counts from
    when the tick was read; the limits are fractions (of capital, or of return a candle). `deciders` are the
    agents with valid decisions; if it is empty, all agents' decisions are valid. `changes` are those made to the swarm
    at run time; a message without them has none.
    """

    voters: dict[str, float]
    timestamp: datetime
    source: str
    quorum: float = 0.5
    buy_at: float = 0.55
    sell_at: float = 0.45
    round_timeout_ms: int = 400
    position_cap: float = 0.5
    vol_target: float = 0.01
    drawdown_max: float = 0.25
    cvar_max: float = 0.02
    deciders: tuple[str, ...] = ()
    changes: dict[str, Any] | None = None


LifecycleEvent = Literal[
    "spawned", "ready", "exited", "suspected", "declared_dead", "restored", "skipped", "quarantined", "revived",
    "drained", "moved", "removed", "rebuilt",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifecycle:
    """Something that happened to `agent`, reported by `source`. `detail` holds the values of that event."""

    event: LifecycleEvent
    agent: str
    timestamp: datetime
    source: str
    epoch: int | None = None
    sandbox: str | None = None
    pid: int | None = None
    reason: str | None = None
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """A problem for the operator. `code` is stable; `message` contains the remedy."""

    severity: Severity
    code: str
    message: str
    timestamp: datetime
    source: str
    agent: str | None = None
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A process started by a sandbox host that still runs (`exit_code` None) or has ended recently.

    `error` is the exception that ended it, if one did. `started` tells it from a later process of that pid.
    """

    agent: str
    agent_id: str
    epoch: int
    pid: int
    spawned_at: datetime
    exit_code: int | None = None
    error: str | None = None
    started: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxUsage:
    """Resources of a sandbox host and its descendants: processor seconds since its start, including ended processes,
    and MiB of physical memory. `rss_mb` counts a shared page once for each process; `pss_mb` divides it among them, so
    that the values add up: it is measured less often.

    `rx_bytes` and `tx_bytes` are the traffic of the visible interfaces without loopback; `network` identifies the
    network: two hosts with the same value share it and its traffic. None: this system does not report the value.

    `throttled_periods`: those of a CPU quota in which the kernel has held back the container of the host, so far.
    """

    processes: int
    cpu_s: float
    rss_mb: float
    pss_mb: float | None = None
    network: str | None = None
    rx_bytes: int | None = None
    tx_bytes: int | None = None
    throttled_periods: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxAccount:
    """Availability of a sandbox since the leading watchdog first received its host's heartbeat: seconds in which
    heartbeats could arrive (the bus was healthy), and those in which they did.

    `price_per_hour` (USD) and its source are from the configuration; None: no price is set.
    """

    seen_s: float
    alive_s: float
    price_per_hour: float | None = None
    price_source: str | None = None


HeartbeatRole = Literal["any", "sandbox", "watchdog", "mirror", "metrics", "provider", "dashboard", "agent"]
"""Selects heartbeats: of one role, or of any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """Heartbeat of an agent, a sandbox host or another process (core NATS, not stored).

    `progress` counts handled inputs and published outputs, `lag` the unread inputs, `poison` the inputs that could not
    be read, `skipped` the events whose handler failed: all but `lag` since the agent's first start. A host's heartbeat
    contains its whole `inventory`, and in `group` the sandbox that several hosts share. The watchdog's `epoch` is its
    term, and its `phases` give the reason for each agent that does not run: waiting, restarting, backoff, quarantined,
    drained, or external (another process runs it). `machine` is the machine (or container) on which the process runs.
    The mirror's `lag` are rows not yet in its `file`, the oldest of them stored at most `lag_ms` ago. `rss_mb` (MiB of
    physical memory) and `cpu_s` are the process's; `snapshot_ms` is the time from taking to storing its newest
    snapshot. A host's `usage` is that of its whole sandbox; the leading watchdog's `accounts` cover all sandboxes. The
    `endpoint` of a provider is where it creates sandboxes, that of a host where its provider created it. A provider's
    `phases` give the state of each sandbox without a host: being created, or failed. `doing` is the step of an agent's
    start, such as the import of its class. A host's `uptime_s` is its own, `age_s` the seconds since its provider
    created the sandbox.
    """

    agent: str
    agent_id: str
    epoch: int
    sequence: int
    progress: int
    status: str
    interval_ms: int
    sandbox: str
    pid: int
    cursor: int = 0
    lag: int = 0
    outputs: int = 0
    poison: int = 0
    skipped: int = 0
    role: Literal["agent", "sandbox", "watchdog", "mirror", "metrics", "provider", "dashboard"] = "agent"
    provider: str | None = None
    endpoint: str | None = None
    uptime_s: float | None = None
    age_s: float | None = None
    inventory: tuple[Child, ...] | None = None
    phases: dict[str, str] | None = None
    group: str | None = None
    machine: str | None = None
    file: str | None = None
    lag_ms: int | None = None
    snapshot_ms: float | None = None
    rss_mb: float | None = None
    cpu_s: float | None = None
    usage: SandboxUsage | None = None
    accounts: dict[str, SandboxAccount] | None = None
    doing: str | None = None


Event = MarketData | Headline | Sentiment | Signal | Decision | Timer | VotingConfig
"""What a handler can receive. It can return these except Timer and VotingConfig, and an Alert."""
Message = Event | Epoch | Lifecycle | Alert | Heartbeat

KINDS: dict[str, type[Message]] = {
    "market": MarketData,
    "headline": Headline,
    "sentiment": Sentiment,
    "signal": Signal,
    "decision": Decision,
    "timer": Timer,
    "epoch": Epoch,
    "config": VotingConfig,
    "lifecycle": Lifecycle,
    "alert": Alert,
    "heartbeat": Heartbeat,
}
KIND_OF: dict[type, str] = {cls: kind for kind, cls in KINDS.items()}


def failed_sandboxes_of(heartbeat: Heartbeat) -> list[str]:
    """The sandboxes that `heartbeat` reports as failed, if it is a provider's heartbeat."""
    if heartbeat.role != "provider":
        return []
    return sorted(name for name, phase in (heartbeat.phases or {}).items() if phase == FAILED)


def now() -> datetime:
    """The wall clock, UTC. For messages about this machine; handlers take the time of their event instead."""
    return datetime.now(UTC)
