"""The types of `explain --json`: a decision with all that it follows from, and the comparison with the published one.

Numbers are exact. `sequence` is a stream sequence; `stored_at` is the server's clock; `after_tick_ms` is the time from
storing the tick to storing the message.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from bus.messages import Side
from coordinator.decisions.risk import SizeBound
from coordinator.reporting.differences import FieldDifference

VoteStatus = Literal["counted", "late", "absent"]
"""counted: in time; late: stored, but not open any more for it; absent: not stored so far."""


ClosingReason = Literal["votes", "timer", "config", "order", "no voters", "unknown"]
"""votes: the last expected one; timer: the round's own; config: another Config, which expects fewer voters; order: the
last open round before it closed; no voters: its tick, as the Config expects none; unknown: nothing that was read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedTick:
    """The market tick that opened the round."""

    symbol: str
    source: str
    number: int
    price: float
    volume: float
    timestamp: datetime
    sequence: int
    stored_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedConfig:
    """The Config that the round was closed by; `sequence` None: there was none yet, so there were no voters."""

    sequence: int | None
    stored_at: datetime | None
    voters: dict[str, float]
    quorum: float
    buy_at: float
    sell_at: float
    round_timeout_ms: int
    position_cap: float
    vol_target: float
    drawdown_max: float
    cvar_max: float
    changed_in_round: bool
    """Whether it came into force between the tick and the decision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """What one voter alone could have changed, with all other votes as they were.

    `p_up` is the nearest value of its p_up that gives another action, `action` that action, and `move` the signed
    distance to it from the value that it counted with; all None if no value of its p_up gives another action.
    `without` is the action if the voter had been absent, `with_late_vote` the one if its late vote had counted (None:
    it has none).
    """

    p_up: float | None
    move: float | None
    action: Side | None
    without: Side
    with_late_vote: Side | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedVoter:
    """One expected voter. `weight` is its share of the voting weight; `p_up` is what it counted with in the pools: its
    vote, or 0.5 if it counted as absent. `log_odds` is weight x logit(p_up), its term of the log pool.

    The answer (`side` and all after it) is that of its vote, also of a late one; None or empty if none is stored.
    `voted_p_up` is the p_up of that vote.
    """

    name: str
    status: VoteStatus
    weight: float
    configured_weight: float
    p_up: float
    log_odds: float
    flip: Flip
    side: str | None = None
    strength: float | None = None
    voted_p_up: float | None = None
    indicators: dict[str, Any] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)
    sequence: int | None = None
    stored_at: datetime | None = None
    after_tick_ms: float | None = None
    epoch: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IgnoredVote:
    """A vote on this round, stored before the decision, that changed nothing. `reason`: repeated, unknown, refused."""

    voter: str
    reason: str
    p_up: float
    sequence: int
    stored_at: datetime
    after_tick_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedPools:
    """The pools over all voters. `log_pool` decides the action, `linear_pool` sizes the position."""

    log_odds: float
    log_pool: float
    linear_pool: float
    disagreement: float
    consensus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedQuorum:
    """`present` is the share of the voting weight that voted; it must be more than `required`."""

    present: float
    required: float
    reached: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedRisk:
    """risk_score = 1 - agreement x volatility_factor x drawdown_factor, each factor in [0, 1].

    `volatility` (per candle) and `cvar` (loss per candle in the worst 5 %) are None while there are too few returns
    (`cvar` also for hold). `closes` are the prices of the feed's last rounds up to this one, `positions` the signed
    positions that were published at all but the last of them: what volatility, CVaR and drawdown are computed from.
    `first_sequence` is the tick of the first close.
    """

    agreement: float
    volatility: float | None
    volatility_factor: float
    drawdown: float
    drawdown_factor: float
    cvar: float | None
    risk_score: float
    first_sequence: int
    closes: list[float]
    positions: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedSize:
    """position_size = min(edge x (1 - risk_score), cvar_max / cvar, position_cap); `bound_by` is which one it is.

    `edge` is 2m - 1 for buy and 1 - 2m for sell, of the linear pool m; None for hold. `cvar_cap` is None if the CVaR
    is unknown or the worst candles gained.
    """

    edge: float | None
    uncapped: float
    cvar_cap: float | None
    position_cap: float
    position_size: float
    bound_by: SizeBound


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundEvent:
    """A claim (`event` "claimed") or lifecycle event of an agent between the tick and the decision."""

    event: str
    agent: str
    epoch: int | None
    reason: str | None
    sequence: int
    stored_at: datetime
    after_tick_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing:
    """The message that closed the round, and why it did. `by` is the writer of that message."""

    reason: ClosingReason
    by: str
    sequence: int
    stored_at: datetime
    after_tick_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedDecision:
    """The fields of a Decision that are compared."""

    final_decision: Side
    position_size: float
    risk_score: float
    consensus_level: float
    agents_consulted: list[str]
    absent: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """`explain --json`. `same`: the decision computed from the stored messages has the bytes of the published one.

    `source` is the URL of the bus or the path of the mirror's file. `published` is what the stream has (`sequence`,
    `stored_at`, `epoch` of its decider), `computed` what was computed from the other messages; in `differences` the
    former is `recorded`, the latter `replayed`. `trace_id` is None if the decision carries none. `read` counts the
    messages that were read for it.
    """

    same: bool
    swarm: str
    source: str
    decision_id: str
    symbol: str
    round: int
    decider: str
    sequence: int
    stored_at: datetime
    after_tick_ms: float
    epoch: int | None
    trace_id: str | None
    tick: ExplainedTick
    config: ExplainedConfig
    voters: list[ExplainedVoter]
    ignored: list[IgnoredVote]
    pools: ExplainedPools
    quorum: ExplainedQuorum
    risk: ExplainedRisk
    size: ExplainedSize
    closing: Closing
    events: list[RoundEvent]
    published: PublishedDecision
    computed: PublishedDecision
    differences: list[FieldDifference]
    notes: list[str]
    read: int
    duration_ms: float
