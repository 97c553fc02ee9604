"""Payloads of all messages: frozen, slotted, keyword-only dataclasses, and the kinds under which they are published."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

LARGEST_PRICE = 1e18
"""In the quote currency. No market has quoted more; beyond lie overflows of whoever squares or multiplies prices."""
LARGEST_VOLUME = 1e30
"""In the base currency, some of which are counted in units of 1e-18."""

Side = Literal["buy", "sell", "hold"]
SentimentLabel = Literal["bullish", "bearish", "neutral"]
Severity = Literal["info", "warning", "critical"]

MAKING = "being made"
FAILED = "given up"
"""Phases that a provider reports: it makes the sandbox, or cannot make it until a person has mended something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketData:
    """One candle or trade. Prices in the quote currency, volume in the base currency.

    Valid prices are more than 0 and at most LARGEST_PRICE, volumes 0 to LARGEST_VOLUME, and `low` is not above `high`.
    `price` may lie outside of `low` and `high`: feeds mix sources, and round.
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
    """A piece of news, dated to when it could be known."""

    text: str
    timestamp: datetime
    source: str
    url: str | None = None
    symbols: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentiment:
    """A voter's reading of the news. `confidence` and `p_up` (probability of a rise) in [0, 1]."""

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
    """A timer of `source` has run out: time as an event. `number` counts that agent's timers."""

    name: str
    number: int
    timestamp: datetime
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """The claim of an incarnation; the stream sequence of this message is its epoch. `claim` tells claims apart."""

    agent: str
    claim: str
    claimed_by: str
    sandbox: str
    timestamp: datetime
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VotingConfig:
    """What the coordinator goes by from this point of the stream on.

    `voters` maps an agent to its weight (normalised when used); `quorum` is the fraction of the voting weight that
    must be exceeded; `buy_at` and `sell_at` bound the pooled probability of a rise; `round_timeout_ms` counts from
    the moment the tick was read; the limits are fractions (of capital, or of return a candle). `deciders` are the
    agents whose decisions are the swarm's; where it names none, those of anybody are.
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


LifecycleEvent = Literal[
    "spawned", "ready", "exited", "suspected", "declared_dead", "restored", "skipped", "quarantined", "revived",
    "drained", "moved", "rebuilt",
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
    """A process that a sandbox host has started and that still runs (`exit_code` None) or has ended lately."""

    agent: str
    agent_id: str
    epoch: int
    pid: int
    spawned_at: datetime
    exit_code: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxUsage:
    """What a sandbox host and its descendants use: processor seconds since its start, those of ended ones included,
    and MiB of physical memory. `rss_mb` counts pages that several have for each of them; `pss_mb` shares these out
    among all that have them, so that it adds up: measured more rarely, and None where this system does not tell it.

    `rx_bytes` and `tx_bytes` have passed through the interfaces that they see, loopback left out; `network` tells that
    network from all others, so that two who say the same share it, and its figures. None: this system does not tell.
    """

    processes: int
    cpu_s: float
    rss_mb: float
    pss_mb: float | None = None
    network: str | None = None
    rx_bytes: int | None = None
    tx_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxAccount:
    """A sandbox since the leading watchdog first heard its host: seconds in which it could be heard (the bus was not
    ill), and those of them in which it was.

    `price_per_hour` (USD) and where that figure is from are the configuration's; None: no price is set.
    """

    seen_s: float
    alive_s: float
    price_per_hour: float | None = None
    price_source: str | None = None


HeartbeatRole = Literal["any", "sandbox", "watchdog", "mirror", "metrics", "provider", "agent"]
"""Whose heartbeats: those of one role, or any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """Sign of life of an agent, a sandbox host or the watchdog (core NATS, not kept).

    `progress` counts handled inputs and published outputs, `lag` the inputs still unread, `poison` the inputs that
    could not be read, `skipped` the events lost to a fault of a handler: all but `lag` since the agent's first start.
    A host's beat carries its whole `inventory`, and in `group` the sandbox of which it is one of several; the
    watchdog's `epoch` is its term, and its `phases` say of each agent that does not run why: waiting, restarting,
    backoff, quarantined, drained, or external (somebody else runs it). `machine` is the name of the machine (or
    container) that the process runs on. The mirror's `lag` are rows that its `file` does not hold yet, the oldest of
    them read `behind_ms` ago at most. `rss_mb` (MiB of physical memory) and `cpu_s` are the process's, `snapshot_ms`
    is what its newest snapshot took from being taken to being stored. A host's `usage` is that of its whole sandbox,
    the leading watchdog's `accounts` are of all sandboxes. The `endpoint` of a provider says where it makes them,
    that of a host where its provider made it; a provider's `phases` say of a sandbox without a host that
    it is being made, or was given up. A host's
    `uptime_s` is its own, `age_s` the seconds since its provider made the sandbox, where one did.
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
    role: Literal["agent", "sandbox", "watchdog", "mirror", "metrics", "provider"] = "agent"
    provider: str | None = None
    endpoint: str | None = None
    uptime_s: float | None = None
    age_s: float | None = None
    inventory: tuple[Child, ...] | None = None
    phases: dict[str, str] | None = None
    group: str | None = None
    machine: str | None = None
    file: str | None = None
    behind_ms: int | None = None
    snapshot_ms: float | None = None
    rss_mb: float | None = None
    cpu_s: float | None = None
    usage: SandboxUsage | None = None
    accounts: dict[str, SandboxAccount] | None = None


Event = MarketData | Headline | Sentiment | Signal | Decision | Timer | VotingConfig
"""What a handler can receive. It can return these but for Timer and VotingConfig, and an Alert."""
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
    """The sandboxes that `beat`, if it is a provider's, reports as given up."""
    if heartbeat.role != "provider":
        return []
    return sorted(name for name, phase in (heartbeat.phases or {}).items() if phase == FAILED)


def now() -> datetime:
    """The wall clock, UTC. For messages about this machine; handlers take the time of their event instead."""
    return datetime.now(UTC)
