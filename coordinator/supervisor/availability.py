"""Availability of a sandbox: the share of the time since its host's first heartbeat in which a host was alive.

Time in which the watchdog could receive no heartbeats does not count: the bus was unhealthy, or it was paused itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.supervisor.failure_detector import HOST_LOST_S

__all__ = ["Availability", "AvailabilityTracker"]


@dataclass(frozen=True, slots=True)
class Availability:
    """Counted seconds since the first heartbeat, and those of them in which a host was alive."""

    seen_s: float
    alive_s: float

    @property
    def share(self) -> float:
        """`alive_s` of `seen_s`, 0 to 1; 1 where no time has passed yet."""
        return self.alive_s / self.seen_s if self.seen_s > 0 else 1.0


@dataclass(slots=True)
class _HostPresence:
    first: float
    newest: float
    host: str
    """The process that sent the newest heartbeat."""
    alive_s: float = 0.0

    def alive_until(self, time: float) -> float:
        """Seconds alive, if a heartbeat arrives at `time`."""
        silent_s = time - self.newest
        return self.alive_s + (silent_s if silent_s <= HOST_LOST_S else 0.0)


class AvailabilityTracker:
    """Counts availability from heartbeats. Times are of one monotonic clock.

    A host was alive between two heartbeats of one process that are at most HOST_LOST_S apart. A longer silence counts
    as absence from its beginning, as the watchdog then declares the host lost. If another process sends heartbeats,
    the earlier one was absent from its last heartbeat on, and the new one is present since its start.

    The bus is unhealthy from `disconnected_s` after the watchdog's last own heartbeat until the next one. This time is
    not counted. All silences start again after it, because the hosts have to connect first.
    """

    def __init__(self, disconnected_s: float) -> None:
        self._disconnected_s = disconnected_s
        self._presences: dict[str, _HostPresence] = {}
        self._own_heartbeat_at: float | None = None
        self._uncounted_s = 0.0
        """Seconds that were not counted so far."""

    def _time(self, now: float) -> float:
        return (
            now if self._own_heartbeat_at is None else min(now, self._own_heartbeat_at + self._disconnected_s)
        ) - self._uncounted_s

    def own_heartbeat(self, now: float) -> None:
        """The watchdog has received its own heartbeat."""
        if self._own_heartbeat_at is not None and now - self._own_heartbeat_at > self._disconnected_s:
            time = self._time(now)
            for presence in self._presences.values():
                if time - presence.newest <= HOST_LOST_S:  # one that was absent before stays absent
                    presence.alive_s, presence.newest = presence.alive_until(time), time
            self._uncounted_s += now - self._own_heartbeat_at - self._disconnected_s
        self._own_heartbeat_at = now

    def received(self, name: str, now: float, host: str, uptime_s: float = 0.0) -> None:
        """A heartbeat of `name` arrived from the process `host`, which has run for `uptime_s`."""
        time = self._time(now)
        presence = self._presences.setdefault(name, _HostPresence(time, time, host))
        if presence.host == host:
            presence.alive_s = presence.alive_until(time)
        else:
            presence.alive_s += min(uptime_s, time - presence.newest)
        presence.newest, presence.host = time, host

    def of(self, name: str, now: float) -> Availability | None:
        """The availability of `name` up to `now`; None without any heartbeat of it."""
        presence = self._presences.get(name)
        if presence is None:
            return None
        time = self._time(now)
        return Availability(time - presence.first, presence.alive_until(time))

    @property
    def names(self) -> tuple[str, ...]:
        """The names with heartbeats, in the order of their first ones."""
        return tuple(self._presences)
