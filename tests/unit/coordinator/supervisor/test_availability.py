"""How available a sandbox was, from the heartbeats that a leading watchdog receives."""

from __future__ import annotations

import pytest

from coordinator.supervisor.availability import AvailabilityTracker
from coordinator.supervisor.failure_detector import HOST_LOST_S

DISCONNECTED_S = 0.4
OUTAGE_S = 30.0


def test_availability_is_the_time_known_alive_of_the_time_since_the_first_heartbeat():
    tracker = AvailabilityTracker(DISCONNECTED_S)
    assert tracker.of("base", 5.0) is None
    for at in (10.0, 10.2, 10.4, 14.4, 14.6):
        tracker.received("base", at, "host_a")
    found = tracker.of("base", 14.6)
    assert found is not None
    assert (found.seen_s, found.alive_s, found.share) == pytest.approx((4.6, 0.6, 0.6 / 4.6))
    later = tracker.of("base", 14.6 + HOST_LOST_S + 0.1)
    assert later is not None
    assert later.alive_s == pytest.approx(0.6), "a silence counts from its beginning"


def receive(tracker: AvailabilityTracker, since: float, seconds: float, *names: str) -> float:
    """Our own heartbeats and those of hosts, ten a second; when that ends."""
    for step in range(round(seconds * 10)):
        tracker.own_heartbeat(since + step / 10)
        for name in names:
            tracker.received(name, since + step / 10, "host_a")
    return since + seconds


def counted(tracker: AvailabilityTracker, name: str, now: float) -> tuple[float, float]:
    found = tracker.of(name, now)
    assert found is not None
    return found.seen_s, found.alive_s


def test_a_host_that_died_was_absent_however_soon_another_started():
    tracker = AvailabilityTracker(DISCONNECTED_S)
    for at in (10.0, 10.2, 10.4):
        tracker.received("base", at, "host_a", 60.0 + at)
    tracker.received("base", 11.2, "host_b", 0.3)
    tracker.received("base", 11.4, "host_b", 0.5)
    assert counted(tracker, "base", 11.4) == pytest.approx((1.4, 0.4 + 0.3 + 0.2))
    tracker.received("base", 11.5, "host_c", 7.0)  # it ran already, but counts only since the last one
    assert counted(tracker, "base", 11.5) == pytest.approx((1.5, 1.0))


def test_while_the_bus_is_unhealthy_no_host_is_absent():
    tracker = AvailabilityTracker(DISCONNECTED_S)
    now = receive(tracker, 10.0, 5.0, "base")
    during = counted(tracker, "base", now + OUTAGE_S / 2)
    assert during == counted(tracker, "base", now + OUTAGE_S)
    assert during[0] == during[1] == pytest.approx(5.0 - 0.1 + DISCONNECTED_S)
    now += OUTAGE_S
    tracker.received("base", now, "host_a")  # it may arrive before the own heartbeat
    assert counted(tracker, "base", now) == during
    now = receive(tracker, now, 5.0, "base")
    seen_s, alive_s = counted(tracker, "base", now)
    assert seen_s == alive_s == pytest.approx(10.0 - 0.1 + DISCONNECTED_S)


def test_after_an_outage_a_host_may_take_as_long_to_connect_as_before_it_is_lost():
    tracker = AvailabilityTracker(DISCONNECTED_S)
    now = receive(tracker, 10.0, 5.0, "base", "slow", "gone") + OUTAGE_S
    now = receive(tracker, now, HOST_LOST_S - 0.1, "base")
    now = receive(tracker, now, 5.0, "base", "slow")
    assert counted(tracker, "slow", now) == counted(tracker, "base", now)
    seen_s, alive_s = counted(tracker, "gone", now)
    assert seen_s == counted(tracker, "base", now)[0]
    assert alive_s == pytest.approx(5.0 - 0.1 + DISCONNECTED_S), "it did not come back"


def test_an_outage_makes_no_host_present_that_was_lost_before():
    tracker = AvailabilityTracker(DISCONNECTED_S)
    now = receive(tracker, 10.0, 5.0, "base", "lost")
    now = receive(tracker, now, 2 * HOST_LOST_S, "base") + OUTAGE_S
    now = receive(tracker, now, 5.0, "base")
    assert counted(tracker, "lost", now)[1] == pytest.approx(5.0 - 0.1)
    assert counted(tracker, "base", now)[0] == pytest.approx(counted(tracker, "base", now)[1])
