"""A strategy that goes with the move: RSI as prior odds, MACD and trend as two observations that confirm or deny it.

It owns this combination only; the indicators are agents/builtin/indicators.py's, the decision is the coordinator's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from agents.builtin import indicators
from agents.builtin.indicators import LIKELIHOOD_RATIO, NOISE, Closes, logit, sigmoid, sign
from agents.builtin.strategy import Strategy

PRIOR_BOUND = 0.01
"""The prior stays within [0.01, 0.99]: an RSI of 0 or 100 is a strong reading, not a certainty (infinite odds)."""


def probability(rsi: float, macd: float, trend: float) -> float:
    """Probability of a rise: odds RSI : 100 - RSI, times LIKELIHOOD_RATIO to the power of each vote in {-1, 0, 1}.

    The two votes count as independent of each other and of the RSI, which they are not: overconfident, as any naive
    Bayes. RSI 65 with two votes for a rise gives 0.8505 (docs/concepts/decisions.md).
    """
    prior = min(max(rsi / 100, PRIOR_BOUND), 1 - PRIOR_BOUND)
    votes = sign(macd) + sign(trend)
    return sigmoid(logit(prior) + votes * math.log(LIKELIHOOD_RATIO))


class MomentumAgent(Strategy):
    """Goes with the move. `macd` is the histogram in the quote currency, `trend` a fraction per candle."""

    kind = "momentum"
    capabilities = ("momentum_strategy", "trend_detection", "signal_generation")

    @dataclass(frozen=True)
    class Options(Strategy.Options):
        """Options of `momentum`."""

        rsi_period: int = indicators.RSI_PERIOD
        """Candles of the RSI. At least 2."""
        trend_period: int = indicators.TREND_PERIOD
        """Candles of the trend line. At least 2."""

    options: Options

    @property
    def periods(self) -> dict[str, int]:
        return {"rsi_period": self.options.rsi_period, "trend_period": self.options.trend_period}

    @property
    def shortest(self) -> int:
        macd = indicators.MACD_SLOW + indicators.MACD_SIGNAL - 1
        return max(self.options.rsi_period + 1, macd, self.options.trend_period)

    def measure(self, closes: Closes) -> tuple[float, dict[str, float]] | None:
        rsi, macd = indicators.rsi(closes, self.options.rsi_period), indicators.macd_histogram(closes)
        trend = indicators.trend(closes, self.options.trend_period)
        if rsi is None or macd is None or trend is None:
            return None
        if abs(macd) <= NOISE * closes[-1]:
            macd = 0.0
        if abs(trend) <= NOISE:
            trend = 0.0
        return probability(rsi, macd, trend), {"rsi": rsi, "macd": macd, "trend": trend}
