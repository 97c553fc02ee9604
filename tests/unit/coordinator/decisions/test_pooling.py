"""Pooling, disagreement, quorum and thresholds (coordinator/decisions/pooling.py)."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.messages import Sentiment, SentimentLabel, Side, Signal, VotingConfig
from coordinator.decisions.pooling import (
    P_MIN,
    action_of,
    disagreement,
    electorate,
    has_quorum,
    linear_pool,
    log_pool,
    synthesise,
    vote_probability,
)

NOON = datetime(2019, 5, 13, 12, tzinfo=UTC)
CONFIG = VotingConfig(voters={"a": 1.0, "b": 1.0, "c": 1.0}, timestamp=NOON, source="watchdog")
RECORDED = {"a": 0.78, "b": 0.85, "c": 0.45}

probability = st.floats(0.0, 1.0)
voters_of = st.dictionaries(
    st.sampled_from("abcdefgh"), st.floats(0.0, 1e6) | st.sampled_from([0.0, 1.0]), min_size=1
).filter(lambda voters: sum(voters.values()) > 0)


@st.composite
def rounds(draw: st.DrawFn) -> tuple[VotingConfig, dict[str, float]]:
    """A VotingConfig and the votes of some of its voters (and of strangers)."""
    voters = draw(voters_of)
    low, high = sorted((draw(probability), draw(probability)))
    config = replace(CONFIG, voters=voters, quorum=draw(st.floats(0.0, 0.99)), sell_at=low, buy_at=high)
    return config, draw(st.dictionaries(st.sampled_from("abcdefghij"), probability))


def sentiment(mood: SentimentLabel, confidence: float, p_up: float | None = None) -> Sentiment:
    return Sentiment(sentiment=mood, confidence=confidence, sources=(), timestamp=NOON, source="r", p_up=p_up)


def signal(side: Side, strength: float, p_up: float | None = None) -> Signal:
    return Signal(signal=side, strength=strength, indicators={}, timestamp=NOON, source="s", p_up=p_up)


@pytest.mark.parametrize(
    ("vote", "expected"),
    [
        (sentiment("bullish", 0.78), 0.78),
        (sentiment("bearish", 0.78), 0.22),
        (sentiment("neutral", 0.5), 0.5),
        (signal("buy", 0.85), 0.85),
        (signal("sell", 0.85), 0.15),
        (signal("hold", 0.45), 0.45),
        (signal("sell", 0.85, p_up=0.4), 0.4),
        (sentiment("bullish", 0.9, p_up=0.0), 0.0),
    ],
)
def test_a_vote_is_a_probability_of_a_rise(vote: Sentiment | Signal, expected: float) -> None:
    assert vote_probability(vote) == pytest.approx(expected, abs=1e-15)


def test_recorded_example() -> None:
    result = synthesise(RECORDED, electorate(CONFIG.voters), CONFIG)
    assert result.action == "buy"
    assert round(result.consensus, 4) == 0.7177
    assert round(result.disagreement, 4) == 0.3488
    assert result.mean == pytest.approx(0.6933333333)
    assert (result.consulted, result.absent, result.quorate) == (("a", "b", "c"), (), True)


def test_log_pool_is_the_closest_in_summed_divergence() -> None:
    weights = electorate({"a": 1, "b": 2, "c": 3}).weights

    def divergence(q: float) -> float:
        return sum(
            w * (q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p)))
            for w, p in zip(weights, RECORDED.values(), strict=True)
        )

    best = log_pool(list(RECORDED.values()), weights)
    assert all(divergence(best) <= divergence(step / 1000) for step in range(1, 1000))


def test_one_certain_voter_is_no_dictator() -> None:
    assert log_pool([1.0, 0.0], [0.5, 0.5]) == pytest.approx(0.5)
    assert log_pool([1.0, 1e-3, 1e-3, 1e-3], [0.25] * 4) < 0.5
    assert log_pool([0.0], [1.0]) == pytest.approx(P_MIN)


def test_disagreement_reaches_its_bounds() -> None:
    assert disagreement([0.7, 0.7], [0.5, 0.5], 0.7) == 0.0
    assert disagreement([0.0, 1.0], [0.5, 0.5], 0.5) == 1.0


def test_weights_sum_to_one_and_sort_by_name() -> None:
    result = electorate({"b": 3.0, "a": 1.0})
    assert result.names == ("a", "b")
    assert result.weights == (0.25, 0.75)
    assert electorate({"a": 1.7e308, "b": 1.7e308}).weights == (0.5, 0.5)
    assert electorate({}).names == ()
    assert electorate({"a": 0.0}).weights == (0.0,)


@pytest.mark.parametrize("count", range(1, 40))
def test_exactly_half_is_no_quorum(count: int) -> None:
    voters = {f"v{n:02}": 0.1 for n in range(2 * count)}
    weights = electorate(voters).weights
    assert not has_quorum(sum(weights[:count]), 0.5)
    assert has_quorum(sum(weights[: count + 1]), 0.5)


def test_absent_voters_lower_the_consensus_and_are_named() -> None:
    voters = electorate(CONFIG.voters)
    whole = synthesise({"a": 0.8, "b": 0.8, "c": 0.8}, voters, CONFIG)
    partial = synthesise({"c": 0.8, "a": 0.8}, voters, CONFIG)
    assert partial.consensus < whole.consensus
    assert partial.consensus == pytest.approx(synthesise({"a": 0.8, "b": 0.5, "c": 0.8}, voters, CONFIG).consensus)
    assert (partial.consulted, partial.absent, partial.action) == (("a", "c"), ("b",), "buy")


def test_no_quorum_is_hold() -> None:
    voters = electorate(CONFIG.voters)
    lonely = synthesise({"a": 0.99}, voters, CONFIG)
    assert (lonely.action, lonely.quorate) == ("hold", False)
    assert lonely.pooled > CONFIG.buy_at
    no_process = synthesise({}, electorate({}), CONFIG)
    assert (no_process.action, no_process.consensus, no_process.mean, no_process.disagreement) == (
        "hold",
        0.5,
        0.5,
        0.0,
    )


def test_quorum_is_of_weight_not_of_heads() -> None:
    config = replace(CONFIG, voters={"a": 3.0, "b": 1.0, "c": 1.0})
    voters = electorate(config.voters)
    assert synthesise({"a": 0.9}, voters, config).quorate
    assert not synthesise({"b": 0.9, "c": 0.9}, voters, config).quorate


def test_a_voter_without_weight_is_named_and_has_no_influence() -> None:
    config = replace(CONFIG, voters={"a": 1.0, "b": 0.0})
    voters = electorate(config.voters)
    result = synthesise({"a": 0.8, "b": 0.01}, voters, config)
    assert result.consulted == ("a", "b")
    assert result.mean == 0.8
    assert not synthesise({"b": 0.9}, voters, config).quorate


def test_thresholds_are_inclusive_at_the_published_precision() -> None:
    voters = electorate(CONFIG.voters)
    assert synthesise(dict.fromkeys("abc", 0.55), voters, CONFIG).action == "buy"
    assert synthesise(dict.fromkeys("abc", 0.45), voters, CONFIG).action == "sell"
    assert synthesise(dict.fromkeys("abc", 0.5499), voters, CONFIG).action == "hold"
    assert synthesise(dict.fromkeys("abc", 0.4501), voters, CONFIG).action == "hold"
    assert action_of(0.5, replace(CONFIG, buy_at=0.5, sell_at=0.5)) == "buy"


@pytest.mark.parametrize("percent", range(50, 100))
def test_unanimity_at_a_threshold_reaches_it(percent: int) -> None:
    p = percent / 100
    voters = electorate(CONFIG.voters)
    assert synthesise(dict.fromkeys("abc", p), voters, replace(CONFIG, buy_at=p)).action == "buy"
    q = (100 - percent) / 100
    low = replace(CONFIG, sell_at=q, buy_at=0.9999)
    assert synthesise(dict.fromkeys("abc", q), voters, low).action == "sell"


@given(rounds())
def test_scores_stay_in_range(case: tuple[VotingConfig, dict[str, float]]) -> None:
    config, votes = case
    result = synthesise(votes, electorate(config.voters), config)
    assert 0.5 <= result.consensus <= 1.0
    assert 0.0 <= result.disagreement <= 1.0
    assert 0.0 <= result.mean <= 1.0
    assert sorted(result.consulted + result.absent) == sorted(config.voters)
    assert set(result.consulted) <= set(votes)
    if not result.quorate:
        assert result.action == "hold"


@given(rounds(), st.randoms())
def test_order_of_votes_and_voters_does_not_show(case: tuple[VotingConfig, dict[str, float]], random: object) -> None:
    config, votes = case
    shuffled_votes, shuffled_voters = list(votes.items()), list(config.voters.items())
    random.shuffle(shuffled_votes)  # type: ignore[attr-defined]
    random.shuffle(shuffled_voters)  # type: ignore[attr-defined]
    again = synthesise(dict(shuffled_votes), electorate(dict(shuffled_voters)), config)
    assert again == synthesise(votes, electorate(config.voters), config)


@given(rounds())
def test_mirrored_votes_mirror_the_judgement(case: tuple[VotingConfig, dict[str, float]]) -> None:
    config, votes = case
    voters = electorate(config.voters)
    result = synthesise(votes, voters, config)
    mirrored = synthesise({name: 1 - p for name, p in votes.items()}, voters, config)
    assert mirrored.pooled == pytest.approx(1 - result.pooled, abs=1e-9)
    assert mirrored.consensus == pytest.approx(result.consensus, abs=1e-9)
    assert mirrored.disagreement == pytest.approx(result.disagreement, abs=1e-9)


@given(rounds(), st.data())
def test_a_higher_vote_never_lowers_the_pools(case: tuple[VotingConfig, dict[str, float]], data: st.DataObject) -> None:
    config, votes = case
    names = sorted(set(votes) & set(config.voters))
    if not names:
        return
    name = data.draw(st.sampled_from(names))
    raised = {**votes, name: data.draw(st.floats(votes[name], 1.0))}
    voters = electorate(config.voters)
    before, after = synthesise(votes, voters, config), synthesise(raised, voters, config)
    assert after.pooled >= before.pooled - 1e-10
    assert after.mean >= before.mean - 1e-12


def test_linear_pool_of_nobody_is_no_opinion() -> None:
    assert linear_pool([], []) == 0.5
    assert linear_pool([0.9], [0.0]) == 0.5
