"""What the strategies measure on a window of closes, and how they turn a probability into a vote.

The mathematics is TA-Lib's; this module owns the cases that TA-Lib answers oddly (a flat series, a short one). All
functions are pure: the same window gives the same values. Nothing here knows of rounds.
"""

from __future__ import annotations

import math

import numpy as np
import talib
from numpy.typing import NDArray

from bus.messages import Side

Closes = NDArray[np.float64]
"""One-dimensional, oldest first, in the quote currency, all above 0."""

BUY_AT = 0.55
SELL_AT = 0.45
"""Probabilities of a rise from which on a strategy takes a side; the coordinator's own defaults."""
LIKELIHOOD_RATIO = 1.75
"""How much one confirming observation multiplies the odds: chosen, not measured (docs/concepts/decisions.md)."""
NOISE = 1e-9
"""Smallest move, as a fraction of the price, that counts as one; below it rounding errors of float64 would vote."""

RSI_PERIOD = 14  # candles; Wilder's own choice and TA-Lib's default
MACD_FAST, MACD_SLOW, MACD_SIGNAL = 12, 26, 9  # candles; Appel's choice and TA-Lib's default
TREND_PERIOD = 50  # candles; about two days of hourly ones
BAND_PERIOD, BAND_WIDTH = 20, 2.0  # candles, standard deviations; Bollinger's choice


def rsi(closes: Closes, period: int = RSI_PERIOD) -> float | None:
    """Wilder's relative strength index over `period` changes, in [0, 100]; None if the window is too short.

    A series that has not moved for so many changes has neither gains nor losses to compare: that is 50, undecided,
    where TA-Lib says 0, which would read as the strongest of all falls.
    """
    if len(closes) <= period:
        return None
    latest = closes[-period - 1 :]
    if latest.max() == latest.min():
        return 50.0
    return float(talib.RSI(closes, period)[-1])


def macd_histogram(closes: Closes) -> float | None:
    """MACD line less its signal line, in the quote currency; None if the window is too short."""
    if len(closes) < MACD_SLOW + MACD_SIGNAL - 1:
        return None
    return float(talib.MACD(closes, MACD_FAST, MACD_SLOW, MACD_SIGNAL)[2][-1])


def trend(closes: Closes, period: int = TREND_PERIOD) -> float | None:
    """Slope of the least-squares line through the last `period` closes; None if the window is too short.

    As a fraction of the last close per candle, so that 0.001 is a tenth of a percent a candle at any price.
    """
    if len(closes) < period:
        return None
    return float(talib.LINEARREG_SLOPE(closes, period)[-1] / closes[-1])


def bands(closes: Closes, period: int = BAND_PERIOD) -> tuple[float, float] | None:
    """(Bollinger position, distance from the mean); None if the window is too short.

    The position is 0 on the lower band and 1 on the upper one, and 0.5 where the bands coincide. The distance is the
    last close less the mean of `period` closes, as a fraction of that mean.
    """
    if len(closes) < period:
        return None
    upper, middle, lower = (float(band[-1]) for band in talib.BBANDS(closes, period, BAND_WIDTH, BAND_WIDTH))
    close = float(closes[-1])
    width = upper - lower
    return (close - lower) / width if width > NOISE * middle else 0.5, (close - middle) / middle


def volatility(closes: Closes, period: int = BAND_PERIOD) -> float | None:
    """Sample standard deviation of the last `period` log returns, per candle; None if the window is too short."""
    if len(closes) <= period:
        return None
    returns = np.diff(np.log(closes[-period - 1 :]))
    mean = float(returns.sum()) / period
    return math.sqrt(float(((returns - mean) ** 2).sum()) / (period - 1))


def is_oversold(position: float) -> bool:
    """Whether the last close lies below the lower Bollinger band."""
    return position < 0


def is_overbought(position: float) -> bool:
    """Whether the last close lies above the upper Bollinger band."""
    return position > 1


def logit(p: float) -> float:
    """Logarithm of the odds of `p`, in (0, 1)."""
    return math.log(p / (1 - p))


def sigmoid(x: float) -> float:
    """Inverse of `logit`; does not overflow."""
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    return math.exp(x) / (1 + math.exp(x))


def sign(x: float, noise: float = 0.0) -> int:
    """1, -1, or 0 where |x| is not above `noise`."""
    return (x > noise) - (x < -noise)


def vote(p_up: float) -> tuple[Side, float]:
    """Side and strength for `p_up`: a buyer's strength is p_up, a seller's 1 - p_up, a holder's p_up itself."""
    if p_up >= BUY_AT:
        return "buy", p_up
    if p_up <= SELL_AT:
        return "sell", 1 - p_up
    return "hold", p_up
