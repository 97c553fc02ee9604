"""How risky a decision is and how large a position it may take: pure functions over raw windows of closes.

Owns volatility, CVaR, paper drawdown, risk score and position size. Knows nothing of votes, rounds or messages but
the limits in VotingConfig. A window is at most WINDOW closes, oldest first, of one feed: a return is only meaningful
within one source's series. All returns are per candle; nothing is annualised.

Nothing here claims a profit. On the recorded example (synthesis.py; no volatility, no drawdown) the risk is 0.3488
and the size 0.2518.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from bus.messages import FLOAT_PLACES, Side, VotingConfig
from coordinator.decisions.pooling import Synthesis

WINDOW = 250
"""Closes that are kept for one feed: what the strategies' indicators need as well (notes: RSI is exact from 250)."""
MIN_RETURNS = 20
"""Below this many returns volatility and CVaR are unknown: 20 is the least at which a 5 % tail holds one of them."""
CVAR_LEVEL = 0.95
"""Confidence level of CVaR: the mean of the worst 5 % of candles."""

Floats = npt.NDArray[np.float64]
_NO_RETURNS: Floats = np.empty(0)


@dataclass(frozen=True, slots=True)
class Market:
    """What is known of a feed's risk before any vote: `returns` (per candle, oldest first) and derived values.

    `volatility` is None while it is unknown; `drawdown` is in [0, 1].
    """

    returns: Floats
    volatility: float | None
    drawdown: float


@dataclass(frozen=True, slots=True)
class RiskFactors:
    """What the risks leave of full safety, each in [0, 1]; 1 takes nothing away."""

    agreement: float
    volatility: float
    drawdown: float


SizeBound = Literal["hold", "no edge", "edge", "cvar", "position_cap"]
"""What determines a size: the action, the linear pool against the action, the edge after risk, or one of two caps."""


@dataclass(frozen=True, slots=True)
class Sizing:
    """A size and its terms. `edge` is None for hold; `uncapped` is the edge after risk; `cvar_cap` None: no cap."""

    edge: float | None
    uncapped: float
    cvar_cap: float | None
    size: float
    bound: SizeBound


@dataclass(frozen=True, slots=True)
class Assessment:
    """What one decision risks and may take. `volatility` and `cvar` are None while they are unknown (or not needed).

    `risk_score` and `position_size` lie in [0, 1] and are rounded to the published precision.
    """

    volatility: float | None
    cvar: float | None
    drawdown: float
    risk_score: float
    position_size: float
    factors: RiskFactors
    sizing: Sizing


def simple_returns(closes: Sequence[float]) -> Floats:
    """c[i+1] / c[i] - 1 for n closes (all more than 0): n - 1 fractions, or none of fewer than two closes."""
    if len(closes) < 2:
        return _NO_RETURNS
    prices = np.array(closes, dtype=np.float64)
    returns: Floats = prices[1:] / prices[:-1]
    returns -= 1.0
    return returns


def volatility(returns: Floats) -> float | None:
    """Realised volatility per candle: the sample standard deviation (n - 1) of the log returns.

    None with fewer than MIN_RETURNS; infinite where the returns themselves overflow, which then counts as full risk.
    """
    count = len(returns)
    if count < MIN_RETURNS:
        return None
    logs: Floats = np.log1p(returns)
    logs -= np.add.reduce(logs) / count
    logs *= logs
    variance = float(np.add.reduce(logs)) / (count - 1)
    return math.sqrt(variance) if math.isfinite(variance) else math.inf


def cvar(returns: Floats, action: Side) -> float | None:
    """Mean loss per candle, as a fraction of the position, in the worst 5 % of candles for the side of `action`.

    Historical simulation with the exact share of the candle at the quantile (Rockafellar and Uryasev 2002, Journal of
    Banking & Finance 26:7, for discrete distributions): of 249 returns the worst 12.45. A long position loses by
    falls, a short one by rises. Negative if even those candles gained. None with fewer than MIN_RETURNS or for hold.
    """
    count = len(returns)
    if count < MIN_RETURNS or action == "hold":
        return None
    ordered = np.sort(returns)  # sorted, not partitioned: the sum below then has one order
    tail = count * (1.0 - CVAR_LEVEL)
    whole = int(tail)
    if action == "buy":
        worst, partial = ordered[:whole], ordered[whole]
    else:
        worst, partial = -ordered[count - whole :], -ordered[count - whole - 1]
    total = float(np.add.reduce(worst)) + (tail - whole) * float(partial)
    loss = -total / tail
    return loss if math.isfinite(loss) else math.inf


def paper_drawdown(returns: Floats, held: Sequence[float]) -> float:
    """What following the decisions would have lost by now from its best point within the window, in [0, 1].

    `held[i]` is the signed position (fraction of capital, short below 0, flat at hold) decided at close i and held
    until close i + 1, so it has as many entries as `returns`. Equity is the running product of 1 + held * return; it
    starts at 1 and stays at 0 once lost. On paper: no fees, no slippage, no financing, every close tradable.
    """
    if not any(held):
        return 0.0
    growth: Floats = np.array(held, dtype=np.float64)
    growth *= returns
    growth += 1.0
    np.maximum(growth, 0.0, out=growth)  # ruin is final: the product of two negative factors would be a gain
    equity = np.multiply.accumulate(growth)
    drawdown = 1.0 - float(equity[-1]) / max(1.0, float(np.maximum.reduce(equity)))
    return drawdown if math.isfinite(drawdown) else 1.0


def risk_factors(disagreement: float, volatility: float | None, drawdown: float, config: VotingConfig) -> RiskFactors:
    """The shares of the three risks that are left: 1 - disagreement, min(1, vol_target / volatility), and
    1 - drawdown / drawdown_max, at least 0. An unknown volatility (None) takes nothing away.
    """
    calm = volatility is None or volatility <= config.vol_target
    return RiskFactors(
        agreement=1.0 - disagreement,
        volatility=1.0 if calm else config.vol_target / volatility,  # type: ignore[operator]
        drawdown=max(0.0, 1.0 - drawdown / config.drawdown_max),
    )


def risk_score(factors: RiskFactors) -> float:
    """1 - (1 - disagreement) min(1, vol_target / volatility) (1 - drawdown / drawdown_max), in [0, 1].

    A noisy-or of three risks: that the model is wrong, that the market moves more than the target, and that losses
    have used up what may be lost.
    """
    safety = factors.agreement * factors.volatility * factors.drawdown
    return min(max(round(1.0 - safety, FLOAT_PLACES), 0.0), 1.0)


def cap_by_cvar(cvar: float | None, config: VotingConfig) -> float | None:
    """cvar_max / cvar, rounded down: a cap is not rounded up. None: unknown, or even the worst candles gain."""
    if cvar is None or cvar <= 0.0:
        return None
    cap = config.cvar_max / cvar * 10**FLOAT_PLACES
    return math.floor(cap) / 10**FLOAT_PLACES if math.isfinite(cap) else None


def size_position(action: Side, mean: float, risk: float, cvar: float | None, config: VotingConfig) -> Sizing:
    """min(position_cap, cvar_max / cvar, |2 mean - 1| (1 - risk)): a fraction of capital in [0, position_cap].

    |2m - 1| is Kelly's stake for an even bet that is won with probability m, shrunk by the risk. 0 for hold, and where
    the linear pool `mean` disagrees with the action (which the log pool chose). An unknown CVaR (None) caps nothing.
    """
    edge = 2.0 * mean - 1.0 if action == "buy" else 1.0 - 2.0 * mean
    cvar_cap = cap_by_cvar(cvar, config)
    if action == "hold":
        return Sizing(None, 0.0, cvar_cap, 0.0, "hold")
    if edge <= 0.0:
        return Sizing(edge, 0.0, cvar_cap, 0.0, "no edge")
    uncapped = size = round(edge * (1.0 - risk), FLOAT_PLACES)
    bound: SizeBound = "edge"
    if cvar is not None and cvar_cap is not None and cvar * size > config.cvar_max:
        size, bound = cvar_cap, "cvar"
    cap = max(config.position_cap, 0.0)
    if cap < size:
        size, bound = cap, "position_cap"
    return Sizing(edge, uncapped, cvar_cap, size, bound)


def measure(closes: Sequence[float], held: Sequence[float]) -> Market:
    """The risk at the newest of `closes`; `held` are the positions at all closes before it.

    Raises:
        ValueError: `held` is not one shorter than `closes` (but for both empty).
    """
    if len(held) != max(len(closes) - 1, 0):
        raise ValueError(f"held: expected {max(len(closes) - 1, 0)} positions, not {len(held)}")
    # Prices that are absurdly far apart overflow to infinities, which the functions above read as full risk.
    with np.errstate(all="ignore"):
        returns = simple_returns(closes)
        return Market(returns, volatility(returns), paper_drawdown(returns, held))


def assess(synthesis: Synthesis, market: Market, config: VotingConfig) -> Assessment:
    """Risk and size of a decision in this market."""
    with np.errstate(all="ignore"):
        tail_loss = cvar(market.returns, synthesis.action)
    factors = risk_factors(synthesis.disagreement, market.volatility, market.drawdown, config)
    risk = risk_score(factors)
    sizing = size_position(synthesis.action, synthesis.mean, risk, tail_loss, config)
    return Assessment(
        volatility=market.volatility,
        cvar=tail_loss,
        drawdown=market.drawdown,
        risk_score=risk,
        position_size=sizing.size,
        factors=factors,
        sizing=sizing,
    )
