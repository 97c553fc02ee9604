"""Which messages are old."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from coordinator.supervisor.renewal import StreamSpan

NOW = datetime(2026, 1, 8, tzinfo=UTC)
DAY = 24 * 3600.0


@pytest.mark.parametrize(
    ("limits", "sequence", "days", "reason"),
    [
        ({}, 99, 1000, "is no longer stored"),
        ({}, 100, 1000, None),
        ({"max_age_s": 7 * DAY}, 299, 3.4, None),
        ({"max_age_s": 7 * DAY}, 299, 4, "is 4 days, 0:00:00 old, and the stream keeps messages for 7 days, 0:00:00"),
        ({"full": True}, 199, 0, "is in the older part of a stream that is full"),
        ({"full": True, "max_age_s": 7 * DAY}, 200, 3.4, None),
    ],
)
def test_what_is_not_in_the_newest_share_of_what_is_kept_is_old(limits, sequence, days, reason):
    span = StreamSpan(first=100, last=300, now=NOW, **limits)
    assert span.why_old(sequence, NOW - timedelta(days=days), 1 / 2) == reason
