"""The indicators of both strategies, and how a probability becomes a vote."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from agents.builtin import indicators
from agents.feeds.candles import load_candles


@pytest.mark.parametrize(
    ("p_up", "vote"),
    [(0.8, ("buy", 0.8)), (0.55, ("buy", 0.55)), (0.549, ("hold", 0.549)), (0.5, ("hold", 0.5)),
     (0.451, ("hold", 0.451)), (0.45, ("sell", 0.55)), (0.1, ("sell", 0.9))],
)  # fmt: skip
def test_side_and_strength_follow_the_voters_rule(p_up, vote):
    side, strength = indicators.vote(p_up)
    assert (side, pytest.approx(strength)) == vote


def wilder(closes):
    changes = np.diff(closes)
    up, down = np.maximum(changes, 0), np.maximum(-changes, 0)
    gain, loss = up[:14].mean(), down[:14].mean()
    for at in range(14, len(changes)):
        gain, loss = (13 * gain + up[at]) / 14, (13 * loss + down[at]) / 14
    return 100 * gain / (gain + loss)


def test_indicators_are_what_they_are_called():
    closes = np.array([candle.close for candle in load_candles()[:250]])
    assert indicators.rsi(closes) == pytest.approx(wilder(closes))
    slope = np.polyfit(np.arange(50), closes[-50:], 1)[0]
    assert indicators.trend(closes) == pytest.approx(slope / closes[-1])
    mean, deviation = closes[-20:].mean(), closes[-20:].std()
    band = indicators.bands(closes)
    assert band is not None
    position, distance = band
    assert position == pytest.approx((closes[-1] - (mean - 2 * deviation)) / (4 * deviation))
    assert distance == pytest.approx(closes[-1] / mean - 1)
    returns = [math.log(after / before) for before, after in zip(closes[-21:], closes[-20:], strict=False)]
    assert indicators.volatility(closes) == pytest.approx(statistics.stdev(returns))


def test_macd_rises_with_an_accelerating_series_only():
    steps = np.arange(250.0)
    rising, falling = (indicators.macd_histogram(closes) for closes in (100 + steps**2 / 100, 1000 - steps**2 / 100))
    assert rising is not None
    assert falling is not None
    assert falling < 0 < rising


def test_a_series_that_stopped_moving_is_undecided_though_it_once_fell():
    assert indicators.rsi(np.array([200.0 - at for at in range(100)] + [100.0] * 15)) == 50
    assert indicators.rsi(np.array([200.0 - at for at in range(100)])) == 0
