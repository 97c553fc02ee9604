"""Gaps and repetitions in the numbers of an agent's outputs."""

from __future__ import annotations

import pytest

from bus.interface import StoredMessage
from bus.messages.headers import EPOCH, OUTPUT
from coordinator.control.outputs import OutputCount, count_outputs, epoch_of, is_successor


def stored(number: str | None) -> StoredMessage:
    return StoredMessage("swarm.signal.X.a", 1, b"", {} if number is None else {OUTPUT: number})


@pytest.mark.parametrize(
    ("numbers", "checked", "lost", "duplicated"),
    [
        ([], 0, 0, 0),
        (["7"], 1, 0, 0),
        (["1", "2", "3"], 3, 0, 0),
        (["1", "3", "2"], 3, 0, 0),
        (["1", "2", "2", "5"], 4, 2, 1),
        (["4", None, "x", "0", "5"], 2, 0, 0),  # messages without a number are no numbered outputs
    ],
)
def test_what_is_missing_and_what_is_there_twice(numbers, checked, lost, duplicated):
    assert count_outputs(map(stored, numbers)) == OutputCount(checked, lost, duplicated)


def test_the_successor_is_the_process_of_the_next_claim_or_a_later_one():
    assert [is_successor(epoch, 5, 9) for epoch in (5, 8, 9, 12)] == [False, False, True, True]
    assert [is_successor(epoch, 5, None) for epoch in (0, 5, 6)] == [False, False, True]
    assert (epoch_of({EPOCH: "4"}), epoch_of({})) == (4, 0)
