"""What one voter alone could have changed in a decision, by the function that decided it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bus.messages import Side, VotingConfig
from coordinator.decisions.pooling import P_ABSENT, Electorate, synthesise
from coordinator.explain.models import Flip

STEPS = 60
"""Halvings of a distance of at most 1: the last bit of a probability that is not tiny."""


def flip_of(
    voter: str, votes: Mapping[str, float], voters: Electorate, config: VotingConfig, late: float | None = None
) -> Flip:
    """The nearest p_up of `voter` that gives another action than the votes as they were; `late` is its late vote.

    The pool rises with each p_up, so on either side the action changes once on the way to 0 or 1.
    """

    def action_at(p_up: float) -> Side:
        return synthesise({**votes, voter: p_up}, voters, config).action

    action = synthesise(votes, voters, config).action
    others = {name: p_up for name, p_up in votes.items() if name != voter}
    without = synthesise(others, voters, config).action
    with_late = None if late is None else action_at(late)
    start = votes.get(voter, P_ABSENT)
    if action_at(start) != action:  # it was absent, and its vote alone would have made the quorum
        return Flip(p_up=start, move=0.0, action=action_at(start), without=without, with_late_vote=with_late)
    found = [
        _boundary(start, end, lambda p_up: action_at(p_up) != action) for end in (0.0, 1.0) if action_at(end) != action
    ]
    if not found:
        return Flip(p_up=None, move=None, action=None, without=without, with_late_vote=with_late)
    nearest = min(found, key=lambda p_up: abs(p_up - start))
    return Flip(
        p_up=nearest, move=nearest - start, action=action_at(nearest), without=without, with_late_vote=with_late
    )


def _boundary(start: float, end: float, differs: Callable[[float], bool]) -> float:
    """The value nearest to `start`, which does not differ, on the way to `end`, which does."""
    for _ in range(STEPS):
        middle = (start + end) / 2
        if middle in (start, end):
            break
        if differs(middle):
            end = middle
        else:
            start = middle
    return end
