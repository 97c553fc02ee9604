"""What both strategies have in common: a window, one vote a candle, determinism, a restart in the middle."""

from __future__ import annotations

import importlib
from collections import Counter

import msgspec
import orjson
import pytest

from agents.agent import check_class, published_kinds
from agents.builtin import KINDS
from agents.builtin.mean_reversion import MeanReversionAgent
from agents.builtin.momentum import MomentumAgent
from agents.feeds.candles import load_candles
from bus.errors import UsageError
from bus.messages import encode
from tests.support.strategy_runs import run, ticks

STRATEGIES = (MomentumAgent, MeanReversionAgent)


def recorded(count):
    return ticks([candle.close for candle in load_candles()[:count]])


@pytest.mark.parametrize("price", [1e-8, 0.1 + 0.2, 7.0, 64321.12345, 1e12])
def test_flat_series_give_no_signal(price):
    signal = run(MomentumAgent("s"), ticks([price] * 300))[-1]
    assert (signal.signal, signal.p_up, signal.indicators) == ("hold", 0.5, {"rsi": 50.0, "macd": 0.0, "trend": 0.0})
    signal = run(MeanReversionAgent("s"), ticks([price] * 300))[-1]
    assert (signal.signal, round(signal.p_up, 10)) == ("hold", 0.5)
    assert signal.indicators["bollinger_position"] == 0.5
    assert signal.indicators["volatility"] == 0.0


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
