"""Payloads of all messages: frozen, slotted, keyword-only dataclasses, their decoding, and their encoding.

`decode` validates (required fields, types, finite numbers, size, the topic) and raises `MessageError` for a poison
message; unknown fields are ignored. `encode` gives the one byte form that is published: fields in order of
definition, None left out, timestamps UTC with a Z, floats rounded to 10 places.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
import orjson

from bus.errors import MessageError
from bus.sandboxes import SandboxAccount, SandboxUsage
from bus.subjects import Address, escape_topic

MAX_PAYLOAD_BYTES = 256 * 1024
"""Largest payload that is read or written; the embedded server's max_payload as well."""
FLOAT_PLACES = 10
"""Published floats are rounded to this many decimal places."""

LARGEST_PRICE = 1e18
"""In the quote currency. No market has quoted more; beyond lie overflows of whoever squares or multiplies prices."""
LARGEST_VOLUME = 1e30
"""In the base currency, some of which are counted in units of 1e-18."""

Side = Literal["buy", "sell", "hold"]
Mood = Literal["bullish", "bearish", "neutral"]
Severity = Literal["info", "warning", "critical"]


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

    sentiment: Mood
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
class Config:
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
    """Something that happened to `agent`, told by `source`. `detail` holds the figures of that event."""

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
    """What a person should know. `code` is stable; `message` says what to do."""

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


Event = MarketData | Headline | Sentiment | Signal | Decision | Timer | Config
"""What a handler can be given, and (but for Timer and Config) what it can return; it can return an Alert as well."""
Message = Event | Epoch | Lifecycle | Alert | Heartbeat

KINDS: dict[str, type[Message]] = {
    "market": MarketData,
    "headline": Headline,
    "sentiment": Sentiment,
    "signal": Signal,
    "decision": Decision,
    "timer": Timer,
    "epoch": Epoch,
    "config": Config,
    "lifecycle": Lifecycle,
    "alert": Alert,
    "heartbeat": Heartbeat,
}
KIND_OF: dict[type, str] = {cls: kind for kind, cls in KINDS.items()}
_UNIT_FIELDS: dict[type, tuple[str, ...]] = {
    Sentiment: ("confidence", "p_up"),
    Signal: ("strength", "p_up"),
    Decision: ("position_size", "risk_score", "consensus_level"),
}
_HAS_SYMBOL = frozenset({"sentiment", "signal", "decision"})
_SIGNED = _HAS_SYMBOL | {"config"}
"""Kinds that are their subject's writer's, whoever their `source` says: who may write where can be restricted."""


def now() -> datetime:
    """The wall clock, UTC. For messages about this machine; handlers take the time of their event instead."""
    return datetime.now(UTC)


def _check_market(tick: MarketData) -> None:
    for name in ("price", "open", "high", "low"):
        price = getattr(tick, name)
        if price is not None and not 0 < price <= LARGEST_PRICE:
            raise ValueError(f"{name}: expected more than 0 and at most {LARGEST_PRICE:g}, not {price}")
    if not 0 <= tick.volume <= LARGEST_VOLUME:
        raise ValueError(f"volume: expected 0 to {LARGEST_VOLUME:g}, not {tick.volume}")
    if tick.low is not None and tick.high is not None and tick.low > tick.high:
        raise ValueError(f"low: expected at most high ({tick.high}), not {tick.low}")


def _check(value: Any) -> None:
    """Ranges that the types do not say; infinities and NaN are already refused by the JSON parser."""
    for name in _UNIT_FIELDS.get(type(value), ()):
        number = getattr(value, name)
        if number is not None and not 0 <= number <= 1:
            raise ValueError(f"{name}: expected a number from 0 to 1, not {number}")
    if isinstance(value, MarketData):
        _check_market(value)
    if isinstance(value, Config):
        if any(weight < 0 for weight in value.voters.values()) or (value.voters and not sum(value.voters.values())):
            raise ValueError("voters: expected weights of 0 or more, not all 0")
        if not 0 <= value.sell_at <= value.buy_at <= 1 or not 0 <= value.quorum < 1:
            raise ValueError("expected 0 <= sell_at <= buy_at <= 1 and 0 <= quorum < 1")
        if value.vol_target <= 0 or value.drawdown_max <= 0 or value.cvar_max <= 0 or value.round_timeout_ms < 1:
            raise ValueError("vol_target, drawdown_max, cvar_max and round_timeout_ms: expected more than 0")


def decode(address: Address, subject: str, data: bytes) -> Message:
    """The message in `data`, which was read under `subject` (already parsed into `address`).

    Raises:
        MessageError: no message type of ours, malformed JSON, a missing or mistyped field, a number that is not
            finite or out of range, a symbol that is not the subject's topic, or more than MAX_PAYLOAD_BYTES.
    """
    cls = KINDS.get(address.kind)
    if cls is None:
        raise MessageError(subject, f"unknown kind {address.kind!r}, expected one of {', '.join(KINDS)}")
    if len(data) > MAX_PAYLOAD_BYTES:
        raise MessageError(subject, f"{len(data)} bytes, expected at most {MAX_PAYLOAD_BYTES}")
    try:
        raw = orjson.loads(data)
        if not isinstance(raw, dict):
            raise ValueError(f"expected a JSON object, not {type(raw).__name__}")
        if address.kind in _SIGNED and isinstance(raw.get("source"), str):
            raw["source"] = address.agent
        if address.topic is not None and (address.kind in _HAS_SYMBOL or address.kind == "market"):
            symbol = raw.get("symbol")
            if symbol is None and address.kind in _HAS_SYMBOL:
                raw["symbol"] = address.topic
            elif isinstance(symbol, str) and symbol != address.topic:
                raise ValueError(
                    f"symbol: {symbol!r} does not belong under this subject, expected {address.topic!r} here "
                    f"(its own topic is {escape_topic(symbol) if symbol else 'missing'})"
                )
        value = msgspec.convert(raw, cls)
        _check(value)
        stamp = getattr(value, "timestamp", None)
        if stamp is not None and stamp.utcoffset() != _ZERO:
            value = dataclasses.replace(value, timestamp=_utc(stamp))  # type: ignore[arg-type]
    except (ValueError, msgspec.ValidationError, RecursionError, OverflowError) as error:
        raise MessageError(subject, str(error)) from None
    return value


_ZERO = datetime.now(UTC).utcoffset()


def _utc(stamp: datetime) -> datetime:
    return stamp.replace(tzinfo=UTC) if stamp.tzinfo is None else stamp.astimezone(UTC)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value if value.tzinfo is UTC else _utc(value)
    if isinstance(value, (Child, SandboxUsage, SandboxAccount)):
        fields = ((name, getattr(value, name)) for name in value.__slots__)
        return {name: _plain(item) for name, item in fields if item is not None}
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("expected finite numbers only")
        return round(value, FLOAT_PLACES)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


_FIELDS = {cls: tuple(f.name for f in dataclasses.fields(cls)) for cls in KINDS.values()}


def encode(message: Message) -> bytes:
    """The published bytes of a message.

    Raises:
        ValueError: it holds a number that is not finite, or what JSON has no form for.
    """
    fields = {}
    for name in _FIELDS[type(message)]:
        value = getattr(message, name)
        if value is not None:
            fields[name] = value if isinstance(value, (str, int)) else _plain(value)
    try:
        return orjson.dumps(fields, option=orjson.OPT_UTC_Z)
    except orjson.JSONEncodeError as error:
        raise ValueError(str(error)) from None
