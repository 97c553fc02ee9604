"""A strategy that goes with the move: RSI as prior odds, MACD and trend as two observations that confirm or deny it.

It owns this combination only; the indicators are agents/indicators.py's, the decision is the coordinator's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from agents import indicators
from agents.agent import Agent
from agents.indicators import LIKELIHOOD_RATIO, NOISE, logit, sigmoid, sign
from bus.messages import MarketData, Signal

PRIOR_BOUND = 0.01
"""The prior stays within [0.01, 0.99]: an RSI of 0 or 100 is a strong reading, not a certainty (infinite odds)."""
SHORTEST = max(indicators.RSI_PERIOD + 1, indicators.MACD_SLOW + indicators.MACD_SIGNAL - 1, indicators.TREND_PERIOD)
"""Closes from which on all three indicators can be measured."""


def probability(rsi: float, macd: float, trend: float) -> float:
    """Probability of a rise: odds RSI : 100 - RSI, times LIKELIHOOD_RATIO to the power of each vote in {-1, 0, 1}.

    The two votes count as independent of each other and of the RSI, which they are not: overconfident, as any naive
    Bayes. RSI 65 with two votes for a rise gives 0.8505 (docs/formulas.md).
    """
    prior = min(max(rsi / 100, PRIOR_BOUND), 1 - PRIOR_BOUND)
    votes = sign(macd) + sign(trend)
    return sigmoid(logit(prior) + votes * math.log(LIKELIHOOD_RATIO))


class MomentumAgent(Agent):
    """One Signal for each candle; hold at 0.5 with no indicators while the window is too short to measure them."""

    kind = "momentum"
    listens = ("market",)
    publishes = ("signal",)
    capabilities = ("momentum_strategy", "trend_detection", "signal_generation")
    memory_key = "signal"

    @dataclass
    class State:
        """`closes` maps a symbol and its source to the last closes, oldest first, in the quote currency."""

        closes: dict[str, list[float]] = field(default_factory=dict)

    @dataclass(frozen=True)
    class Options:
        """`window` is how many closes are kept: from 250 on, the RSI is exact to 2e-6 (docs/formulas.md)."""

        window: int = 250

    state: State
    options: Options

    def setup(self) -> None:
        """Check the window.

        Raises:
            UsageError: it is too short for the indicators.
        """
        indicators.check_window(self, SHORTEST)

    def on_market(self, tick: MarketData) -> Signal:
        """Vote on the round of `tick`. `macd` is the histogram in the quote currency, `trend` a fraction per candle."""
        closes = indicators.push(self.state.closes, tick, self.options.window)
        rsi, macd, trend = indicators.rsi(closes), indicators.macd_histogram(closes), indicators.trend(closes)
        if rsi is None or macd is None or trend is None:
            return self.signal(tick, "hold", 0.5, {}, 0.5)
        if abs(macd) <= NOISE * tick.price:
            macd = 0.0
        if abs(trend) <= NOISE:
            trend = 0.0
        p_up = probability(rsi, macd, trend)
        side, strength = indicators.vote(p_up)
        return self.signal(tick, side, strength, {"rsi": rsi, "macd": macd, "trend": trend}, p_up)
