"""A strategy that goes against the move: the further from the mean, and outside the bands, the likelier the way back.

It owns this combination only; the indicators are agents/builtin/indicators.py's, the decision is the coordinator's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from agents.builtin import indicators
from agents.builtin.indicators import LIKELIHOOD_RATIO, Closes, sigmoid
from agents.builtin.strategy import Strategy

PULL = 10.0
"""Log odds per unit of distance from the mean: 2 % above it gives 0.4502 (docs/concepts/decisions.md)."""


def probability(position: float, mean_distance: float) -> float:
    """Probability of a rise: sigmoid(-PULL x mean_distance), its odds shifted once where the price left the bands.

    Oversold (below the lower band) multiplies the odds by LIKELIHOOD_RATIO, overbought divides them; inside the bands
    the position adds no information to the distance, so the odds stay as they are.
    """
    log_odds = -PULL * mean_distance
    if indicators.is_oversold(position):
        log_odds += math.log(LIKELIHOOD_RATIO)
    elif indicators.is_overbought(position):
        log_odds -= math.log(LIKELIHOOD_RATIO)
    return sigmoid(log_odds)


class MeanReversionAgent(Strategy):
    """Goes against the move. `volatility` is per candle; it informs and does not vote."""

    kind = "mean-reversion"
    capabilities = ("mean_reversion_strategy", "volatility_analysis", "oversold_detection")

    @dataclass(frozen=True)
    class Options(Strategy.Options):
        """Options of `mean-reversion`."""

        band_period: int = indicators.BAND_PERIOD
        """Candles of the bands and of the volatility. At least 2."""

    options: Options

    @property
    def periods(self) -> dict[str, int]:
        return {"band_period": self.options.band_period}

    @property
    def shortest(self) -> int:
        return self.options.band_period + 1  # so many returns need one close more

    def measure(self, closes: Closes) -> tuple[float, dict[str, float]] | None:
        period = self.options.band_period
        band, volatility = indicators.bands(closes, period), indicators.volatility(closes, period)
        if band is None or volatility is None:
            return None
        position, distance = band
        values = {"bollinger_position": position, "volatility": volatility, "mean_distance": distance}
        return probability(position, distance), values
