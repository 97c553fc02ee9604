"""Combines votes into one judgement: pooling, disagreement, quorum, and the action from the thresholds.

Every function is pure. The log pool sums in the order of the voters' names, and the other sums are exact (fsum), so
that the order of arrival of the votes does not change the last bit of a result. Rounds are in agent.py, prices and
sizes in risk.py.

A vote is a probability that the price rises over the horizon. For example (bullish 0.78, buy 0.85, hold
0.45, equal weights) the log pool is 0.7177 and the disagreement 0.3488.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bus.messages import FLOAT_PLACES, Sentiment, Side, Signal, VotingConfig

P_MIN = 1e-6
"""Probabilities enter the log pool no closer than this to 0 or 1: there the logit is infinite, so that no number
of voters could outvote one that is certain."""
P_ABSENT = 0.5
"""The probability that an absent voter counts with: no opinion. It draws the consensus towards 0.5."""
QUORUM_SLACK = 1e-9
"""Share of the weight by which a quorum must be exceeded, so that rounding does not make a majority of a half."""


@dataclass(frozen=True, slots=True)
class Electorate:
    """The voters, sorted by name, and their weights, which sum to 1 (or there are no voters).

    A voter of weight 0 is on probation: a round waits for it and lists it, but its vote has no influence.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Synthesis:
    """The judgement on one round. Probabilities of a rise and the two scores are in [0, 1].

    `pooled` (log pool) decides the action, `mean` (linear pool) the size; `consensus` is in [0.5, 1]. `probabilities`
    are what the voters counted with, in their order; `present` is the share of the voting weight that voted.
    """

    action: Side
    pooled: float
    mean: float
    disagreement: float
    consensus: float
    quorate: bool
    consulted: tuple[str, ...]
    absent: tuple[str, ...]
    probabilities: tuple[float, ...]
    present: float


def vote_probability(vote: Sentiment | Signal) -> float:
    """The voter's probability of a rise, in [0, 1]: its `p_up`, else from side and strength s.

    buy or bullish: s; sell or bearish: 1 - s; hold or neutral: s.
    """
    if vote.p_up is not None:
        return vote.p_up
    if isinstance(vote, Sentiment):
        return 1.0 - vote.confidence if vote.sentiment == "bearish" else vote.confidence
    return 1.0 - vote.strength if vote.signal == "sell" else vote.strength


def electorate(voters: Mapping[str, float]) -> Electorate:
    """Normalise `voters` (name -> weight of 0 or more, not all 0; see VotingConfig) to weights that sum to 1."""
    names = tuple(sorted(voters))
    largest = max(voters.values(), default=0.0)
    if not largest > 0:
        return Electorate(names, tuple(0.0 for _ in names))
    scaled = [voters[name] / largest for name in names]  # first to at most 1: the sum of huge weights is infinite
    total = math.fsum(scaled)
    return Electorate(names, tuple(weight / total for weight in scaled))


def log_odds(p: float) -> float:
    """logit p, with p clipped to [P_MIN, 1 - P_MIN]."""
    clipped = min(max(p, P_MIN), 1.0 - P_MIN)
    return math.log(clipped / (1.0 - clipped))


def pooled_log_odds(probabilities: Sequence[float], weights: Sequence[float]) -> float:
    """sum w_i logit p_i, in the order given."""
    total = 0.0
    for p, weight in zip(probabilities, weights, strict=True):
        total += weight * log_odds(p)
    return total


def log_pool(probabilities: Sequence[float], weights: Sequence[float]) -> float:
    """sigmoid(sum w_i logit p_i), with every p_i clipped to [P_MIN, 1 - P_MIN]. 0.5 without any voter.

    It is the q that minimises sum w_i KL(q || p_i): setting the derivative to 0 gives logit q = sum w_i logit p_i.
    """
    return 1.0 / (1.0 + math.exp(-pooled_log_odds(probabilities, weights)))


def linear_pool(probabilities: Sequence[float], weights: Sequence[float]) -> float:
    """sum w_i p_i, in [0, 1]; 0.5 without any weight.

    Bettors who stake by Kelly's rule agree on this price, weighted by their wealth (Beygelzimer, Langford and Pennock
    2012, arXiv 1201.6655), so it sizes the position, not the log pool.
    """
    if not any(weights):
        return P_ABSENT
    return min(math.fsum(w * p for p, w in zip(probabilities, weights, strict=True)), 1.0)


def disagreement(probabilities: Sequence[float], weights: Sequence[float], mean: float) -> float:
    """2 sqrt(sum w_i (p_i - mean)^2): 0 when all agree, 1 when half the weight is at 0 and half at 1.

    The factor makes it at most 1: a variance on [0, 1] is at most 1/4 (Popoviciu 1935).
    """
    variance = math.fsum(w * (p - mean) ** 2 for p, w in zip(probabilities, weights, strict=True))
    return min(2.0 * math.sqrt(variance), 1.0)


def has_quorum(present: float, quorum: float) -> bool:
    """Whether `present`, a share of the voting weight, is MORE than `quorum`: exactly half is no majority."""
    return present - quorum > QUORUM_SLACK


def action_of(pooled: float, config: VotingConfig) -> Side:
    """buy at or above `buy_at`, sell at or below `sell_at`, hold between; buy where the two thresholds coincide."""
    if pooled >= config.buy_at:
        return "buy"
    return "sell" if pooled <= config.sell_at else "hold"


def synthesise(votes: Mapping[str, float], voters: Electorate, config: VotingConfig) -> Synthesis:
    """Judge the received `votes` (voter -> probability of a rise); absent voters count with P_ABSENT.

    Votes of other writers than `voters` are ignored. Without a quorum the action is hold; the scores are computed as
    with one.
    """
    probabilities: list[float] = []
    consulted: list[str] = []
    absent: list[str] = []
    present = 0.0
    for name, weight in zip(voters.names, voters.weights, strict=True):
        vote = votes.get(name)
        if vote is None:
            absent.append(name)
            probabilities.append(P_ABSENT)
        else:
            consulted.append(name)
            probabilities.append(vote)
            present += weight
    # Rounded before the comparison, so that a decision agrees with its published values.
    pooled = round(log_pool(probabilities, voters.weights), FLOAT_PLACES)
    mean = linear_pool(probabilities, voters.weights)
    quorate = has_quorum(present, config.quorum)
    return Synthesis(
        action=action_of(pooled, config) if quorate else "hold",
        pooled=pooled,
        mean=mean,
        disagreement=disagreement(probabilities, voters.weights, mean),
        consensus=round(max(pooled, 1.0 - pooled), FLOAT_PLACES),
        quorate=quorate,
        consulted=tuple(consulted),
        absent=tuple(absent),
        probabilities=tuple(probabilities),
        present=present,
    )
