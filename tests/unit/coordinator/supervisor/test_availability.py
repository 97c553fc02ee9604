"""How available a sandbox was, from the heartbeats that a leading watchdog hears."""

from __future__ import annotations

import pytest

from coordinator.supervisor.availability import AvailabilityTracker
from coordinator.supervisor.failure_detector import HOST_LOST_S

DEAF_S = 0.4
OUTAGE_S = 30.0


def test_availability_is_the_time_known_alive_of_the_time_since_the_first_heartbeat():
    kept = AvailabilityTracker(DEAF_S)
    assert kept.of("base", 5.0) is None
    for at in (10.0, 10.2, 10.4, 14.4, 14.6):
        kept.received("base", at, "host_a")
    found = kept.of("base", 14.6)
    assert found is not None
    assert (found.seen_s, found.alive_s, found.share) == pytest.approx((4.6, 0.6, 0.6 / 4.6))
    later = kept.of("base", 14.6 + HOST_LOST_S + 0.1)
    assert later is not None
    assert later.alive_s == pytest.approx(0.6), "a silence counts from its beginning"


def receive(kept: AvailabilityTracker, since: float, seconds: float, *names: str) -> float:
    """Our own heartbeats and those of hosts, ten a second; when that ends."""
    for step in range(round(seconds * 10)):
        kept.echo(since + step / 10)
        for name in names:
            kept.received(name, since + step / 10, "host_a")
    return since + seconds


def told(kept: AvailabilityTracker, name: str, now: float) -> tuple[float, float]:
    found = kept.of(name, now)
    assert found is not None
    return found.seen_s, found.alive_s


def test_a_host_that_died_was_absent_however_soon_another_started():
    kept = AvailabilityTracker(DEAF_S)
    for at in (10.0, 10.2, 10.4):
        kept.received("base", at, "host_a", 60.0 + at)
    kept.received("base", 11.2, "host_b", 0.3)
    kept.received("base", 11.4, "host_b", 0.5)
    assert told(kept, "base", 11.4) == pytest.approx((1.4, 0.4 + 0.3 + 0.2))
    kept.received("base", 11.5, "host_c", 7.0)  # it ran already, unheard: but not for longer than since the other
    assert told(kept, "base", 11.5) == pytest.approx((1.5, 1.0))


def test_while_the_bus_is_unhealthy_no_host_is_absent():
    kept = AvailabilityTracker(DEAF_S)
    now = receive(kept, 10.0, 5.0, "base")
    during = told(kept, "base", now + OUTAGE_S / 2)
    assert during == told(kept, "base", now + OUTAGE_S)
    assert during[0] == during[1] == pytest.approx(5.0 - 0.1 + DEAF_S)
    now += OUTAGE_S
    kept.received("base", now, "host_a")  # it may be heard before we hear ourselves
    assert told(kept, "base", now) == during
    now = receive(kept, now, 5.0, "base")
    seen_s, alive_s = told(kept, "base", now)
    assert seen_s == alive_s == pytest.approx(10.0 - 0.1 + DEAF_S)


def test_after_an_outage_a_host_may_take_as_long_to_connect_as_before_it_is_lost():
    kept = AvailabilityTracker(DEAF_S)
    now = receive(kept, 10.0, 5.0, "base", "slow", "gone") + OUTAGE_S
    now = receive(kept, now, HOST_LOST_S - 0.1, "base")
    now = receive(kept, now, 5.0, "base", "slow")
    assert told(kept, "slow", now) == told(kept, "base", now)
    seen_s, alive_s = told(kept, "gone", now)
    assert seen_s == told(kept, "base", now)[0]
    assert alive_s == pytest.approx(5.0 - 0.1 + DEAF_S), "it did not come back"


def test_an_outage_makes_no_host_present_that_was_lost_before():
    kept = AvailabilityTracker(DEAF_S)
    now = receive(kept, 10.0, 5.0, "base", "lost")
    now = receive(kept, now, 2 * HOST_LOST_S, "base") + OUTAGE_S
    now = receive(kept, now, 5.0, "base")
    assert told(kept, "lost", now)[1] == pytest.approx(5.0 - 0.1)
    assert told(kept, "base", now)[0] == pytest.approx(told(kept, "base", now)[1])
