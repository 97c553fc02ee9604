"""Volatility, CVaR, paper drawdown, risk score and position size (coordinator/decisions/risk.py)."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.messages import Side, VotingConfig
from coordinator.decisions.pooling import electorate, synthesise
from coordinator.decisions.risk import (
    CVAR_LEVEL,
    MIN_RETURNS,
    WINDOW,
    assess,
    cvar,
    measure,
    paper_drawdown,
    risk_factors,
    risk_score,
    simple_returns,
    size_position,
    volatility,
)

NOON = datetime(2019, 5, 13, 12, tzinfo=UTC)
CONFIG = VotingConfig(voters={"a": 1.0, "b": 1.0, "c": 1.0}, timestamp=NOON, source="watchdog")
VOTERS = electorate(CONFIG.voters)
RECORDED = {"a": 0.78, "b": 0.85, "c": 0.45}

fraction = st.floats(0.0, 1.0)
prices = st.lists(st.floats(1.0, 1e5), max_size=WINDOW)
limits = st.builds(
    replace,
    st.just(CONFIG),
    position_cap=st.floats(0.0, 1.0),
    vol_target=st.floats(1e-4, 0.1),
    drawdown_max=st.floats(0.01, 1.0),
    cvar_max=st.floats(1e-4, 0.5),
)


def walk(count: int, step: float = 0.02) -> list[float]:
    """`count` closes that wander, the same at every run."""
    return [100.0 * math.exp(step * sum(math.sin(7.3 * k * k) for k in range(n))) for n in range(count)]


def with_positions(closes: list[float], data: st.DataObject) -> list[float]:
    count = max(len(closes) - 1, 0)
    return data.draw(st.lists(st.floats(-1.0, 1.0), min_size=count, max_size=count))


def test_recorded_example() -> None:
    result = assess(synthesise(RECORDED, VOTERS, CONFIG), measure([7000.0], []), CONFIG)
    assert round(result.position_size, 4) == 0.2518
    assert round(result.risk_score, 4) == 0.3488
    assert (result.volatility, result.cvar, result.drawdown) == (None, None, 0.0)


def test_sell_is_the_mirror_of_buy() -> None:
    bearish = synthesise({name: 1 - p for name, p in RECORDED.items()}, VOTERS, CONFIG)
    result = assess(bearish, measure([7000.0], []), CONFIG)
    assert bearish.action == "sell"
    assert round(result.position_size, 4) == 0.2518


def test_hold_takes_no_position() -> None:
    assert size_position("hold", 0.9, 0.0, None, CONFIG).size == 0.0
    no_quorum = synthesise({"a": 0.99}, VOTERS, CONFIG)
    assert assess(no_quorum, measure([7000.0], []), CONFIG).position_size == 0.0


@pytest.mark.parametrize(("action", "mean"), [("buy", 0.49), ("buy", 0.5), ("sell", 0.51), ("sell", 0.5)])
def test_no_position_where_the_linear_pool_disagrees(action: Side, mean: float) -> None:
    assert size_position(action, mean, 0.0, None, CONFIG).size == 0.0


def test_pools_that_contradict_each_other_take_no_position() -> None:
    # One voter is nearly certain of a fall, two lean to a rise: the log pool says sell, the linear pool is above 0.5.
    synthesis = synthesise({"a": 0.0001, "b": 0.78, "c": 0.78}, VOTERS, CONFIG)
    assert synthesis.action == "sell"
    assert synthesis.mean > 0.5
    assert assess(synthesis, measure([7000.0], []), CONFIG).position_size == 0.0


def test_caps_bind() -> None:
    assert size_position("buy", 1.0, 0.0, None, CONFIG).size == 0.5
    assert size_position("buy", 1.0, 0.0, 0.08, CONFIG).size == pytest.approx(0.25)
    assert size_position("buy", 1.0, 0.0, -0.08, CONFIG).size == 0.5
    assert size_position("buy", 1.0, 0.0, math.inf, CONFIG).size == 0.0
    assert size_position("buy", 1.0, 0.0, None, replace(CONFIG, position_cap=-1.0)).size == 0.0


def test_a_size_names_what_bounds_it() -> None:
    bounds = [
        size_position("hold", 0.9, 0.0, 0.01, CONFIG).bound,
        size_position("buy", 0.4, 0.0, 0.01, CONFIG).bound,
        size_position("sell", 0.4, 0.5, 0.01, CONFIG).bound,
        size_position("buy", 0.9, 0.0, 0.08, CONFIG).bound,
        size_position("buy", 0.9, 0.0, None, CONFIG).bound,
    ]
    assert bounds == ["hold", "no edge", "edge", "cvar", "position_cap"]


def test_a_cap_that_is_beyond_every_number_is_none() -> None:
    assert size_position("buy", 0.6, 0.0, 5e-324, CONFIG).cvar_cap is None
    assert size_position("buy", 0.6, 0.0, -0.01, CONFIG).cvar_cap is None
    assert size_position("buy", 0.6, 0.0, math.inf, CONFIG).cvar_cap == 0.0


@pytest.mark.parametrize("count", [MIN_RETURNS + 1, 100, WINDOW])
def test_volatility_is_the_standard_deviation_of_log_returns(count: int) -> None:
    closes = walk(count)
    logs = [math.log(b / a) for a, b in itertools.pairwise(closes)]
    assert volatility(simple_returns(closes)) == pytest.approx(statistics.stdev(logs), rel=1e-9)


def test_too_few_returns_leave_volatility_and_cvar_unknown() -> None:
    few, enough = simple_returns(walk(MIN_RETURNS)), simple_returns(walk(MIN_RETURNS + 1))
    assert len(few) == MIN_RETURNS - 1
    assert (volatility(few), cvar(few, "buy")) == (None, None)
    assert volatility(enough) is not None
    assert cvar(enough, "buy") is not None
    synthesis = synthesise(RECORDED, VOTERS, CONFIG)
    wild = walk(MIN_RETURNS, step=0.5)
    assert assess(synthesis, measure(wild, [0.0] * (len(wild) - 1)), CONFIG).risk_score == pytest.approx(
        0.3488, abs=1e-4
    )


@pytest.mark.parametrize("count", [MIN_RETURNS + 1, 22, 41, 100, WINDOW])
@pytest.mark.parametrize("action", ["buy", "sell"])
def test_cvar_is_the_minimum_of_its_optimisation_formula(count: int, action: Side) -> None:
    # Rockafellar and Uryasev: CVaR = min over a of a + E[max(loss - a, 0)] / (1 - level); a minimum lies at some loss.
    returns = simple_returns(walk(count))
    losses = [-r if action == "buy" else r for r in returns.tolist()]
    expected = min(a + sum(max(x - a, 0.0) for x in losses) / (len(losses) * (1 - CVAR_LEVEL)) for a in losses)
    assert cvar(returns, action) == pytest.approx(expected, rel=1e-9)


def test_cvar_looks_at_the_side_that_is_taken() -> None:
    returns = np.array([0.0] * 90 + [-0.2] * 10)
    assert cvar(returns, "buy") == pytest.approx(0.2)
    assert cvar(returns, "sell") == pytest.approx(0.0)
    assert cvar(returns, "hold") is None


def test_paper_drawdown_by_hand() -> None:
    closes = [100.0, 110.0, 99.0, 99.0]
    returns = simple_returns(closes)
    assert paper_drawdown(returns, [0.0, 0.0, 0.0]) == 0.0
    assert paper_drawdown(returns, [1.0, 1.0, 1.0]) == pytest.approx(0.1)  # 1.1 at best, 0.99 now
    assert paper_drawdown(returns, [-1.0, 0.0, 0.5]) == pytest.approx(0.1)  # short into a rise, from 1 at the start
    assert paper_drawdown(returns, [0.0, -0.5, 0.0]) == 0.0  # short into a fall: at its best now
    assert paper_drawdown(simple_returns([]), []) == 0.0


def test_ruin_is_final() -> None:
    returns = simple_returns([1.0, 4.0, 16.0, 1.0])
    assert paper_drawdown(returns, [-1.0, -1.0, 1.0]) == 1.0


@given(prices, st.data())
def test_paper_drawdown_equals_a_plain_loop(closes: list[float], data: st.DataObject) -> None:
    held = with_positions(closes, data)
    equity = peak = 1.0
    for position, before, after in zip(held, closes, closes[1:], strict=False):
        equity *= max(0.0, 1.0 + position * (after / before - 1.0))
        peak = max(peak, equity)
    with np.errstate(all="ignore"):
        drawdown = paper_drawdown(simple_returns(closes), held)
    assert 0.0 <= drawdown <= 1.0
    if math.isfinite(peak):
        assert drawdown == pytest.approx(1.0 - equity / peak, abs=1e-9)


def test_drawdown_at_its_maximum_leaves_no_position() -> None:
    closes, held = [100.0, 50.0], [0.5]
    result = assess(synthesise(RECORDED, VOTERS, CONFIG), measure(closes, held), CONFIG)
    assert result.drawdown == pytest.approx(0.25)
    assert (result.risk_score, result.position_size) == (1.0, 0.0)


def test_volatility_above_target_shrinks_the_position() -> None:
    synthesis = synthesise(RECORDED, VOTERS, CONFIG)
    calm, wild = walk(100, 0.0001), walk(100, 0.03)
    flat = [0.0] * 99
    assert assess(synthesis, measure(calm, flat), CONFIG).risk_score == pytest.approx(0.3488, abs=1e-4)
    shaken = assess(synthesis, measure(wild, flat), CONFIG)
    assert shaken.volatility is not None
    assert shaken.risk_score == pytest.approx(1 - (1 - synthesis.disagreement) * 0.01 / shaken.volatility, abs=1e-9)
    assert shaken.position_size < 0.2518


def test_a_flat_series_is_no_risk() -> None:
    result = assess(synthesise(RECORDED, VOTERS, CONFIG), measure([5.0] * WINDOW, [0.5] * (WINDOW - 1)), CONFIG)
    assert (result.volatility, result.drawdown) == (0.0, 0.0)
    assert round(result.position_size, 4) == 0.2518


@pytest.mark.parametrize("held", [0.5, -0.5, 0.0])
def test_prices_that_overflow_are_full_risk(held: float) -> None:
    closes = [1e-308, 1e308] * 20
    for votes in (RECORDED, {name: 1 - p for name, p in RECORDED.items()}):
        result = assess(synthesise(votes, VOTERS, CONFIG), measure(closes, [held] * 39), CONFIG)
        assert result.risk_score == 1.0
        assert result.position_size == 0.0


def test_positions_must_match_the_closes() -> None:
    with pytest.raises(ValueError, match="expected 1 positions, not 2"):
        assess(synthesise(RECORDED, VOTERS, CONFIG), measure([1.0, 2.0], [0.0, 0.0]), CONFIG)


@given(prices, st.dictionaries(st.sampled_from("abc"), fraction), limits, st.data())
def test_risk_and_size_stay_in_range(
    closes: list[float], votes: dict[str, float], config: VotingConfig, data: st.DataObject
) -> None:
    synthesis = synthesise(votes, VOTERS, config)
    result = assess(synthesis, measure(closes, with_positions(closes, data)), config)
    assert 0.0 <= result.risk_score <= 1.0
    assert 0.0 <= result.position_size <= config.position_cap
    if synthesis.action == "hold":
        assert result.position_size == 0.0
    if result.cvar is not None:
        assert result.position_size * result.cvar <= config.cvar_max + 1e-9


@given(fraction, fraction, st.none() | st.floats(0.0, 1.0), fraction, limits)
def test_more_disagreement_never_lowers_risk(
    one: float, two: float, vol: float | None, drawdown: float, config: VotingConfig
) -> None:
    low, high = sorted((one, two))
    assert risk_score(risk_factors(low, vol, drawdown, config)) <= risk_score(risk_factors(high, vol, drawdown, config))


@given(fraction, st.floats(0.0, 1.0), st.floats(0.0, 1.0), fraction, fraction, limits)
def test_more_volatility_or_drawdown_never_lowers_risk(
    apart: float, vol_one: float, vol_two: float, fall_one: float, fall_two: float, config: VotingConfig
) -> None:
    (calm, wild), (little, much) = sorted((vol_one, vol_two)), sorted((fall_one, fall_two))
    assert risk_score(risk_factors(apart, calm, little, config)) <= risk_score(risk_factors(apart, wild, much, config))
    assert risk_score(risk_factors(apart, None, little, config)) <= risk_score(risk_factors(apart, wild, much, config))


@given(st.sampled_from(["buy", "sell"]), fraction, fraction, fraction, st.none() | st.floats(-0.1, 1.0), limits)
def test_more_risk_never_grows_the_position(
    action: Side, mean: float, one: float, two: float, tail: float | None, config: VotingConfig
) -> None:
    low, high = sorted((one, two))
    size = size_position(action, mean, low, tail, config).size
    assert size_position(action, mean, high, tail, config).size <= size
    assert size <= size_position(action, mean, low, None, config).size


anything_positive = st.floats(min_value=5e-324, max_value=1.7e308)


@pytest.mark.slow
@settings(max_examples=300)
@given(
    st.dictionaries(st.sampled_from("abcd"), st.floats(0, 1.7e308), min_size=1).filter(lambda v: any(v.values())),
    st.dictionaries(st.sampled_from("abcde"), st.floats(0, 1)),
    st.lists(st.tuples(anything_positive, st.floats(-1, 1)), min_size=1, max_size=40),
    st.tuples(anything_positive, anything_positive, anything_positive, st.floats(-1.7e308, 1.7e308)),
    st.lists(st.floats(0, 1), min_size=2, max_size=2).map(sorted),
)
def test_any_finite_settings_votes_and_prices_give_scores_from_0_to_1(voters, votes, candles, limits, thresholds):
    vol_target, drawdown_max, cvar_max, cap = limits
    config = replace(
        CONFIG,
        voters=voters,
        sell_at=thresholds[0],
        buy_at=thresholds[1],
        vol_target=vol_target,
        drawdown_max=drawdown_max,
        cvar_max=cvar_max,
        position_cap=cap,
    )
    synthesis = synthesise(votes, electorate(voters), config)
    created = assess(synthesis, measure([close for close, _ in candles], [held for _, held in candles[1:]]), config)
    scores = (created.risk_score, created.position_size, synthesis.consensus, synthesis.mean, synthesis.disagreement)
    assert all(0.0 <= score <= 1.0 for score in scores)  # false for NaN as well


@pytest.mark.parametrize(
    ("action", "mean", "edge", "bound"),
    [
        ("hold", 0.9, None, "hold"),
        ("buy", 0.4, -0.2, "no edge"),
        ("buy", 0.5, 0.0, "no edge"),
        ("sell", 0.7, -0.4, "no edge"),
    ],
)
def test_a_decision_without_an_edge_takes_nothing_and_says_why(action, mean, edge, bound):
    sizing = size_position(action, mean, 0.1, 0.05, CONFIG)
    assert sizing.edge == (None if edge is None else pytest.approx(edge))
    assert (sizing.uncapped, sizing.size, sizing.bound) == (0.0, 0.0, bound)
    assert sizing.cvar_cap == pytest.approx(CONFIG.cvar_max / 0.05, abs=1e-6)


@pytest.mark.parametrize(
    ("cvar", "cap", "bound"),
    [(None, 1.0, "edge"), (1e-9, 1.0, "edge"), (0.9, 1.0, "cvar"), (None, 0.01, "position_cap")],
)
def test_a_size_names_what_bound_it(cvar, cap, bound):
    config = replace(CONFIG, position_cap=cap)
    sizing = size_position("buy", 0.7, 0.25, cvar, config)
    assert sizing.edge == pytest.approx(0.4)
    assert sizing.uncapped == pytest.approx(0.3)
    assert sizing.bound == bound
    assert sizing.size == pytest.approx(
        {"edge": 0.3, "cvar": config.cvar_max / 0.9, "position_cap": 0.01}[bound], abs=1e-6
    )


@pytest.mark.parametrize("closes", [[], [5.0]])
def test_fewer_than_two_closes_have_no_return(closes):
    assert simple_returns(closes).size == 0
