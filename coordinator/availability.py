"""How available a sandbox was: in how much of the time since its host was first heard it was known to be alive."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.silence import HOST_LOST_S

__all__ = ["Attendance", "Availability"]


@dataclass(frozen=True, slots=True)
class Availability:
    """Seconds since the first heartbeat, and those of them in which the host was known to be alive."""

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
    alive_s: float = 0.0


class Attendance:
    """Counts from heartbeats. Between two that are HOST_LOST_S apart at most a host was alive; a longer silence counts
    as absence from its beginning, as the watchdog takes it for a loss then. Times are of one monotonic clock.
    """

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}

    def heard(self, name: str, now: float) -> None:
        """A heartbeat of `name` came."""
        kept = self._kept.setdefault(name, _Kept(now, now))
        if now - kept.newest <= HOST_LOST_S:
            kept.alive_s += now - kept.newest
        kept.newest = now

    def of(self, name: str, now: float) -> Availability | None:
        """Up to `now`; None for one that was never heard."""
        kept = self._kept.get(name)
        if kept is None:
            return None
        since = now - kept.newest
        return Availability(now - kept.first, kept.alive_s + (since if since <= HOST_LOST_S else 0.0))

    @property
    def names(self) -> tuple[str, ...]:
        """All that were heard, in the order of their first heartbeats."""
        return tuple(self._kept)
