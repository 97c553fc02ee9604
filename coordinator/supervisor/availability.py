"""How available a sandbox was: in how much of the time since its host was first heard it was known to be alive.

Time in which nobody could be heard, as the bus was ill or we were stopped, is nobody's absence: it does not count.
"""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.supervisor.failure_detector import HOST_LOST_S

__all__ = ["Availability", "AvailabilityTracker"]


@dataclass(frozen=True, slots=True)
class Availability:
    """Seconds since the first heartbeat in which it could be heard, and those in which it was known to be alive."""

    seen_s: float
    alive_s: float

    @property
    def share(self) -> float:
        """`alive_s` of `seen_s`, 0 to 1; 1 where no time has passed yet."""
        return self.alive_s / self.seen_s if self.seen_s > 0 else 1.0


@dataclass(slots=True)
class _Kept:
    first: float
    newest: float
    host: str
    """Which process was heard last."""
    alive_s: float = 0.0

    def alive_until(self, time: float) -> float:
        """Seconds known alive, if it is heard at `time`."""
        silent_s = time - self.newest
        return self.alive_s + (silent_s if silent_s <= HOST_LOST_S else 0.0)


class AvailabilityTracker:
    """Counts from heartbeats. Between two of one process that are HOST_LOST_S apart at most a host was alive; a longer
    silence counts as absence from its beginning, as the watchdog takes it for a loss then. Where another process is
    heard, the first was gone from its last heartbeat on, and the other is there since its start. Times are of one
    monotonic clock.

    Our own heartbeats come back over the bus (`echo`): it is ill, and time stands still here, from `deaf_s` after the
    last one of them until the next one. Everybody's silence counts anew then, for who is there must connect first.
    """

    def __init__(self, deaf_s: float) -> None:
        self._deaf_s = deaf_s
        self._kept: dict[str, _Kept] = {}
        self._echo_at: float | None = None
        self._lost_s = 0.0
        """How long time has stood still so far."""

    def _time(self, now: float) -> float:
        return (now if self._echo_at is None else min(now, self._echo_at + self._deaf_s)) - self._lost_s

    def echo(self, now: float) -> None:
        """Our own heartbeat was heard."""
        if self._echo_at is not None and now - self._echo_at > self._deaf_s:
            time = self._time(now)
            for kept in self._kept.values():
                if time - kept.newest <= HOST_LOST_S:  # who was absent before stays so
                    kept.alive_s, kept.newest = kept.alive_until(time), time
            self._lost_s += now - self._echo_at - self._deaf_s
        self._echo_at = now

    def received(self, name: str, now: float, host: str, uptime_s: float = 0.0) -> None:
        """A heartbeat of `name` came, from the process `host` that has run for `uptime_s`."""
        time = self._time(now)
        kept = self._kept.setdefault(name, _Kept(time, time, host))
        if kept.host == host:
            kept.alive_s = kept.alive_until(time)
        else:
            kept.alive_s += min(uptime_s, time - kept.newest)
        kept.newest, kept.host = time, host

    def of(self, name: str, now: float) -> Availability | None:
        """Up to `now`; None for one that was never heard."""
        kept = self._kept.get(name)
        if kept is None:
            return None
        time = self._time(now)
        return Availability(time - kept.first, kept.alive_until(time))

    @property
    def names(self) -> tuple[str, ...]:
        """All that were heard, in the order of their first heartbeats."""
        return tuple(self._kept)
