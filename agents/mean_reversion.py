"""A strategy that goes against the move: the further from the mean, and outside the bands, the likelier the way back.

It owns this combination only; the indicators are agents/indicators.py's, the decision is the coordinator's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from agents import indicators
from agents.agent import Agent
from agents.indicators import LIKELIHOOD_RATIO, sigmoid
from bus.messages import MarketData, Signal

PULL = 10.0
"""Log odds per unit of distance from the mean: 2 % above it gives 0.4502 (docs/formulas.md)."""
SHORTEST = indicators.BAND_PERIOD + 1
"""Closes from which on all three indicators can be measured: so many returns need one close more."""


def probability(position: float, mean_distance: float) -> float:
    """Probability of a rise: sigmoid(-PULL x mean_distance), its odds shifted once where the price left the bands.

    Oversold (below the lower band) multiplies the odds by LIKELIHOOD_RATIO, overbought divides them; inside the bands
    the position says nothing that the distance does not, so that it leaves them alone.
    """
    log_odds = -PULL * mean_distance
    if indicators.is_oversold(position):
        log_odds += math.log(LIKELIHOOD_RATIO)
    elif indicators.is_overbought(position):
        log_odds -= math.log(LIKELIHOOD_RATIO)
    return sigmoid(log_odds)


class MeanReversionAgent(Agent):
    """One Signal for each candle; hold at 0.5 with no indicators while the window is too short to measure them."""

    kind = "mean-reversion"
    listens = ("market",)
    publishes = ("signal",)
    capabilities = ("mean_reversion_strategy", "volatility_analysis", "oversold_detection")
    memory_key = "signal"

    @dataclass
    class State:
        """`closes` maps a symbol and its source to the last closes, oldest first, in the quote currency."""

        closes: dict[str, list[float]] = field(default_factory=dict)

    @dataclass(frozen=True)
    class Options:
        """`window` is how many closes are kept; what is measured here needs the last 21 only."""

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
        """Vote on the round of `tick`. `volatility` is per candle; it informs and does not vote."""
        closes = indicators.push(self.state.closes, tick, self.options.window)
        band, volatility = indicators.bands(closes), indicators.volatility(closes)
        if band is None or volatility is None:
            return self.signal(tick, "hold", 0.5, {}, 0.5)
        position, distance = band
        p_up = probability(position, distance)
        side, strength = indicators.vote(p_up)
        measured = {"bollinger_position": position, "volatility": volatility, "mean_distance": distance}
        return self.signal(tick, side, strength, measured, p_up)
