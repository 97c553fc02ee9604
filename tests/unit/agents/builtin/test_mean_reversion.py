"""Mean reversion: what leaving the bands says."""

from __future__ import annotations

import pytest

from agents.builtin import indicators, mean_reversion
from agents.builtin.mean_reversion import MeanReversionAgent
from tests.support.strategy_runs import run, ticks


def test_mean_reversion_of_the_recorded_example():
    assert round(mean_reversion.probability(0.7, 0.02), 4) == 0.4502
    assert mean_reversion.probability(0.5, 0.0) == 0.5


def test_leaving_the_bands_shifts_the_odds():
    inside, oversold = mean_reversion.probability(0.0, -0.02), mean_reversion.probability(-0.01, -0.02)
    assert oversold / (1 - oversold) == pytest.approx(1.75 * inside / (1 - inside))
    assert mean_reversion.probability(1.01, 0.02) == pytest.approx(1 - oversold)
    assert indicators.is_oversold(-0.01)
    assert not indicators.is_oversold(0.0)
    assert indicators.is_overbought(1.01)
    assert not indicators.is_overbought(1.0)


def test_a_sudden_fall_is_oversold():
    closes = [100 + at % 2 for at in range(60)] + [96.0]
    signal = run(MeanReversionAgent("s"), ticks(closes))[-1]
    assert signal.indicators["bollinger_position"] < 0
    assert signal.signal == "buy"
    assert signal.p_up > mean_reversion.probability(0.5, signal.indicators["mean_distance"])
