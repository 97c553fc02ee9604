"""Indicators and the two strategies: golden values, odd series, determinism, and a restart in the middle."""

from __future__ import annotations

import importlib
import math
import statistics
from collections import Counter
from datetime import UTC, datetime

import msgspec
import numpy as np
import orjson
import pytest

from agents.agent import check_class, published_kinds
from agents.builtin import KINDS, indicators, mean_reversion, momentum
from agents.builtin.mean_reversion import MeanReversionAgent
from agents.builtin.momentum import MomentumAgent
from agents.feeds.candles import load_candles
from bus.errors import UsageError
from bus.messages import MarketData, encode

STRATEGIES = (MomentumAgent, MeanReversionAgent)
START = datetime(2020, 1, 1, tzinfo=UTC)


def ticks(closes, symbol="BTC/USD"):
    return [
        MarketData(symbol=symbol, price=close, volume=1.0, timestamp=START, source="research-1", sequence=number)
        for number, close in enumerate(closes, 1)
    ]


def recorded(count):
    return ticks([candle.close for candle in load_candles()[:count]])


def run(agent, events):
    return [agent.on_market(event) for event in events]


# -- formulas, with the values of docs/concepts/decisions.md


def test_momentum_of_the_recorded_example():
    assert round(momentum.probability(65, 3.2, 0.001), 4) == 0.8505
    assert momentum.probability(65, 1, -1) == pytest.approx(0.65)
    assert momentum.probability(65, 0, 0) == pytest.approx(0.65)
    assert momentum.probability(35, -1, -1) == pytest.approx(1 - momentum.probability(65, 1, 1))


@pytest.mark.parametrize("rsi", [0.0, 100.0])
def test_momentum_is_never_certain(rsi):
    assert 0 < momentum.probability(rsi, 1, 1) < 1


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


@pytest.mark.parametrize(
    ("p_up", "vote"),
    [(0.8, ("buy", 0.8)), (0.55, ("buy", 0.55)), (0.549, ("hold", 0.549)), (0.5, ("hold", 0.5)),
     (0.451, ("hold", 0.451)), (0.45, ("sell", 0.55)), (0.1, ("sell", 0.9))],
)  # fmt: skip
def test_side_and_strength_follow_the_voters_rule(p_up, vote):
    side, strength = indicators.vote(p_up)
    assert (side, pytest.approx(strength)) == vote


# -- indicators against definitions written out here


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


@pytest.mark.parametrize("price", [1e-8, 0.1 + 0.2, 7.0, 64321.12345, 1e12])
def test_flat_series_say_nothing(price):
    signal = run(MomentumAgent("s"), ticks([price] * 300))[-1]
    assert (signal.signal, signal.p_up, signal.indicators) == ("hold", 0.5, {"rsi": 50.0, "macd": 0.0, "trend": 0.0})
    signal = run(MeanReversionAgent("s"), ticks([price] * 300))[-1]
    assert (signal.signal, round(signal.p_up, 10)) == ("hold", 0.5)
    assert signal.indicators["bollinger_position"] == 0.5
    assert signal.indicators["volatility"] == 0.0


def test_a_series_that_stopped_moving_is_undecided_though_it_once_fell():
    assert indicators.rsi(np.array([200.0 - at for at in range(100)] + [100.0] * 15)) == 50
    assert indicators.rsi(np.array([200.0 - at for at in range(100)])) == 0


# -- the agents


@pytest.mark.parametrize("cls", STRATEGIES)
def test_class_is_a_valid_agent(cls):
    check_class(cls, "here")
    assert published_kinds(cls) == ("signal",)


def test_kinds_name_classes_of_that_kind():
    assert set(KINDS) == {"market-data", "sentiment", "momentum", "mean-reversion"}
    for kind, where in KINDS.items():
        module, _, name = where.partition(":")
        assert getattr(importlib.import_module(module), name).kind == kind


def test_a_rise_is_followed_and_opposed():
    rising = ticks([1000 * 1.001**step + step**2 / 50 for step in range(300)])
    follow, oppose = run(MomentumAgent("s"), rising)[-1], run(MeanReversionAgent("s"), rising)[-1]
    assert (follow.signal, follow.strength > 0.9) == ("buy", True)
    assert oppose.p_up < 0.5


def test_a_sudden_fall_is_oversold():
    closes = [100 + at % 2 for at in range(60)] + [96.0]
    signal = run(MeanReversionAgent("s"), ticks(closes))[-1]
    assert signal.indicators["bollinger_position"] < 0
    assert signal.signal == "buy"
    assert signal.p_up > mean_reversion.probability(0.5, signal.indicators["mean_distance"])


@pytest.mark.parametrize(("cls", "shortest", "names"), [
    (MomentumAgent, 50, {"rsi", "macd", "trend"}),
    (MeanReversionAgent, 21, {"bollinger_position", "volatility", "mean_distance"}),
])  # fmt: skip
def test_nothing_is_invented_while_the_window_is_short(cls, shortest, names):
    signals = run(cls("s"), recorded(shortest))
    assert [signal.round for signal in signals] == list(range(1, shortest + 1))
    for signal in signals[:-1]:
        assert (signal.signal, signal.strength, signal.p_up, signal.indicators) == ("hold", 0.5, 0.5, {})
    assert set(signals[-1].indicators) == names


@pytest.mark.parametrize("cls", STRATEGIES)
def test_one_vote_a_candle_neither_constant_nor_absurd(cls):
    events = recorded(2000)
    signals = run(cls("s"), events)
    assert [signal.round for signal in signals] == [event.sequence for event in events]
    sides = Counter(signal.signal for signal in signals[50:])
    assert min(sides[side] for side in ("buy", "sell", "hold")) > 100
    for signal in signals:
        expected = 1 - signal.p_up if signal.signal == "sell" else signal.p_up
        assert signal.strength == pytest.approx(expected)
        assert 0.005 < signal.p_up < 0.995


@pytest.mark.parametrize("cls", STRATEGIES)
def test_same_events_same_bytes_and_a_restart_changes_nothing(cls):
    events = recorded(700)
    whole = [encode(signal) for signal in run(cls("s"), events)]
    for cut in (0, 30, 249, 400):
        before, after = cls("s"), cls("s")
        head = run(before, events[:cut])
        after.state = msgspec.convert(orjson.loads(orjson.dumps(before.state)), cls.State)
        assert [encode(signal) for signal in head + run(after, events[cut:])] == whole


@pytest.mark.parametrize("cls", STRATEGIES)
def test_a_vote_depends_on_the_window_alone(cls):
    events = recorded(900)
    agent = cls("s")
    run(agent, events[:-250])
    assert run(agent, events[-250:])[-1] == run(cls("s"), events[-250:])[-1]
    [window] = agent.state.closes.values()
    assert len(window) == 250


@pytest.mark.parametrize("cls", STRATEGIES)
def test_symbols_do_not_mix(cls):
    one, other = recorded(120), ticks([50 + at % 7 for at in range(120)], "ETH/USD")
    agent = cls("s")
    mixed = [agent.on_market(event) for pair in zip(one, other, strict=True) for event in pair]
    assert mixed[::2] == run(cls("s"), one)
    assert mixed[1::2] == run(cls("s"), other)


@pytest.mark.parametrize(("cls", "least"), [(MomentumAgent, 50), (MeanReversionAgent, 21)])
def test_a_window_that_measures_nothing_is_refused(cls, least):
    assert run(cls("s", {"window": least}), recorded(least + 5))[-1].indicators
    with pytest.raises(UsageError, match=f"agent 's': window: expected {least} to 8000 closes"):
        cls("s", {"window": least - 1})


def test_periods_are_options_and_make_another_strategy():
    candles = recorded(300)
    for cls, options in ((MomentumAgent, {"rsi_period": 7}), (MeanReversionAgent, {"band_period": 40})):
        usual, other = run(cls("s"), candles)[-1], run(cls("s", options), candles)[-1]
        assert usual.indicators != other.indicators
    assert not run(MomentumAgent("s", {"trend_period": 100}), recorded(99))[-1].indicators
    assert run(MomentumAgent("s", {"trend_period": 100}), recorded(100))[-1].indicators


@pytest.mark.parametrize(("options", "message"), [
    ({"trend_period": 300}, "window: expected 300 to 8000 closes, not 250"),
    ({"rsi_period": 1}, "rsi_period: expected 2 to 8000 candles, not 1"),
])  # fmt: skip
def test_a_period_that_nothing_can_be_measured_with_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        MomentumAgent("s", options).setup()
