"""Which messages are old."""

from __future__ import annotations

import pytest

from coordinator.supervisor.renewal import StreamSpan


@pytest.mark.parametrize(
    ("full", "sequence", "reason"),
    [
        (False, 99, "is no longer stored"),
        (False, 100, None),
        (True, 199, "is in the older part of a stream that is full"),
        (True, 200, None),
    ],
)
def test_what_is_not_in_the_newest_share_of_a_full_stream_is_old(full, sequence, reason):
    assert StreamSpan(first=100, last=300, full=full).why_old(sequence, 1 / 2) == reason
