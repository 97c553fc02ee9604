"""What was refused to clients, as the alerts of `up`, of the watchdog and of the sandbox hosts report it."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace

from bus.messages import Alert
from bus.messages.subjects import WATCHDOG
from bus.utils.attempt_counts import MAX_TOLD_APART
from coordinator.security.permissions import UNNAMED

__all__ = ["UNKNOWN_KEY", "RefusalCounts", "RefusedAttempts", "refusal_in"]

ATTEMPTS = ("connect", "publish", "subscribe")
HEARTBEATS = ("heartbeat_refused", "host_refused")
MAX_ATTEMPTS = 10**9
"""In one report: a larger number is a mistake."""
UP = "up"
LOG_READERS = (UP, "metrics")
"""Who reads the log of the server."""
UNKNOWN_KEY = "unknown keys"
OTHERS = "others"


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedAttempts:
    """`count` attempts of the same client that were refused. `who` is whose key it was, `reported_by` the writer."""

    who: str
    attempt: str
    reported_by: str
    count: int


def refusal_in(alert: Alert, writer: str) -> RefusedAttempts | None:
    """What this alert reports as refused; None: nothing. `writer` is neither an agent nor unknown: they may not."""
    count = alert.detail.get("count")
    if not isinstance(count, int) or not 0 < count < MAX_ATTEMPTS:
        return None
    if alert.code == "client_refused" and writer in LOG_READERS:
        who = str(alert.detail.get("who")).rpartition(" at ")[0]
        attempt = str(alert.detail.get("attempt")).partition(" ")[0]
        if attempt not in ATTEMPTS:
            return None
        if who != UNNAMED:  # a client can make unknown keys without end
            who = UNKNOWN_KEY if who.startswith("unknown key") else who
        return RefusedAttempts(who=who, attempt=attempt, reported_by=writer, count=count)
    if alert.code == "api_request_refused" and alert.agent is not None and writer != UP:
        return RefusedAttempts(who=f"agent-{alert.agent}", attempt="request", reported_by=writer, count=count)
    if alert.code in HEARTBEATS and writer == WATCHDOG:
        return RefusedAttempts(who=str(alert.detail.get("who")), attempt="heartbeat", reported_by=writer, count=count)
    return None


class RefusalCounts:
    """The sum of what alerts have reported, from the message `since` on."""

    def __init__(self, since: int) -> None:
        self.since = since
        self._counts: dict[tuple[str, str, str], RefusedAttempts] = {}

    def take(self, alert: Alert, writer: str) -> None:
        """Add what this alert reports."""
        if (found := refusal_in(alert, writer)) is None:
            return
        if (key := (found.who, found.attempt, writer)) not in self._counts and len(self._counts) >= MAX_TOLD_APART:
            found, key = replace(found, who=OTHERS), (OTHERS, found.attempt, OTHERS)
        known = self._counts.get(key)
        self._counts[key] = found if known is None else replace(known, count=known.count + found.count)

    def found(self, agents: Container[str]) -> list[RefusedAttempts]:
        """Most frequent first; without what `agents` have reported, who may not."""
        counted = (one for one in self._counts.values() if one.reported_by not in agents)
        return sorted(counted, key=lambda one: (-one.count, one.who, one.attempt, one.reported_by))
