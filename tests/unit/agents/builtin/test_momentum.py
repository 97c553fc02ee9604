"""Momentum: what the indicators of a series that rises say."""

from __future__ import annotations

import pytest

from agents.builtin import momentum
from agents.builtin.momentum import MomentumAgent
from bus.errors import UsageError

# Golden values are those of docs/concepts/decisions.md


def test_momentum_of_the_recorded_example():
    assert round(momentum.probability(65, 3.2, 0.001), 4) == 0.8505
    assert momentum.probability(65, 1, -1) == pytest.approx(0.65)
    assert momentum.probability(65, 0, 0) == pytest.approx(0.65)
    assert momentum.probability(35, -1, -1) == pytest.approx(1 - momentum.probability(65, 1, 1))


@pytest.mark.parametrize("rsi", [0.0, 100.0])
def test_momentum_is_never_certain(rsi):
    assert 0 < momentum.probability(rsi, 1, 1) < 1


@pytest.mark.parametrize(("options", "message"), [
    ({"trend_period": 300}, "window: expected 300 to 8000 closes, not 250"),
    ({"rsi_period": 1}, "rsi_period: expected 2 to 8000 candles, not 1"),
])  # fmt: skip
def test_a_period_that_nothing_can_be_measured_with_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        MomentumAgent("s", options).setup()
