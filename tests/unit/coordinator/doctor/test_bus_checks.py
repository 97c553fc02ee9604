"""Checks of clocks and cursors."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bus.interface import Bounds
from coordinator.doctor.bus_checks import _rate, _server_clock, judge_cursor


class ClockBus:
    """A server whose clock is `ahead` of ours."""

    def __init__(self, ahead: timedelta) -> None:
        self._ahead = ahead
        self.subjects = type("Names", (), {"stream": "swarm_events"})

    async def api(self, command: str) -> dict[str, str]:
        stamp = (datetime.now(UTC) + self._ahead).isoformat(timespec="microseconds")
        return {"ts": stamp.replace("+00:00", "123Z")}  # nine places of the second, as the server writes them


@pytest.mark.parametrize(("ahead_s", "level"), [(0, "ok"), (0.5, "warning"), (-0.5, "warning"), (60, "error")])
async def test_a_server_whose_clock_is_off(ahead_s, level):
    bus: Any = ClockBus(timedelta(seconds=ahead_s))
    assert (await _server_clock(bus)).level == level


def test_a_clock_that_was_set_between_two_heartbeats():
    assert _rate("wall clock", "ours", 1.2001, 1.2).level == "ok"
    assert _rate("wall clock", "ours", 3601.2, 1.2).level == "warning"
    assert _rate("wall clock", "ours", 1.1, 1.2).level == "warning"


@pytest.mark.parametrize(
    ("cursor", "first", "last", "level"),
    [
        (0, 500, 900, "warning"),  # it starts with what is there, but that goes soon
        (498, 500, 900, "error"),
        (499, 500, 900, "warning"),
        (880, 500, 900, "ok"),
        (5, 1, 900, "ok"),  # nothing was dropped yet
        (900, 900, 900, "ok"),
    ],
)
def test_a_cursor_against_what_the_stream_holds(cursor, first, last, level):
    assert judge_cursor("cursor", cursor, Bounds(first, last)).level == level
