"""What the swarm's own server tells of its connections: how many each key has, and which TLS handshakes have failed.

A process has one connection, a captured one may open thousands.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path

import structlog

from bus.durable.events import EventPublisher
from bus.server.config import HANDSHAKE_S
from bus.server.monitoring import listed, read_monitoring
from bus.server.supervisor import NatsServer
from bus.utils.attempt_counts import AttemptCounts

__all__ = ["MAX_CONNECTIONS", "ConnectionWatch", "HandshakeWatch", "count_connections"]

MAX_CONNECTIONS = 64
"""Of one key. The operator's is used by commands, a subscriber's by a program with some processes."""
LISTED = 4096
LISTED_CLOSED = 1024
CLOSED_MEANWHILE = 64
"""Connections that may have ended between two requests."""
FAILED = "TLS Handshake Failure"

log = structlog.get_logger("signalmesh.up")


async def count_connections(directory: Path, pid: int) -> Mapping[str, int]:
    """Public key -> its connections at the server `pid` of this directory; empty key: none was named."""
    url = await asyncio.to_thread(listed, directory, pid, "monitoring")
    found = None if url is None else await read_monitoring(url, "connz?limit=1")
    if url is None or found is None or found.get("total", 0) <= MAX_CONNECTIONS:
        return {}
    found = await read_monitoring(url, f"connz?auth=1&limit={LISTED}") or {}
    return Counter(
        str(each.get("authorized_user") or "") for each in found.get("connections") or () if isinstance(each, dict)
    )


class ConnectionWatch:
    """Alerts about keys with more than MAX_CONNECTIONS; `who` names the owner of a public key."""

    def __init__(self, who: Callable[[str], str | None]) -> None:
        self._who = who
        self._counts: AttemptCounts[str] = AttemptCounts()

    async def look(self, server: NatsServer, events: EventPublisher) -> None:
        """Count the connections of the server, and report."""
        if server.pid is not None:
            self.report(await count_connections(server.directory, server.pid), events)

    def report(self, counts: Mapping[str, int], events: EventPublisher) -> None:
        """Alert at once about each owner, and then once a minute while it has too many."""
        crowds = {self._who(key) or "unknown key": count for key, count in counts.items() if count > MAX_CONNECTIONS}
        for owner in crowds:
            self._counts.add(owner, "others")
        for owner, _ in self._counts.due():
            if owner not in crowds:
                continue
            count = crowds[owner]
            remedy = f"`signalmesh keys rotate {owner}` cuts them off"
            if " " in owner:  # no identity of ours
                remedy = "let fewer clients reach its port"
            log.warning("too_many_connections", who=owner, count=count)
            events.alert(
                "critical",
                "too_many_connections",
                f"{owner} has {count} connections, expected at most {MAX_CONNECTIONS}; the server has room for a few "
                f"thousands in all: {remedy}",
                who=owner,
                count=count,
            )


class HandshakeWatch:
    """Finds the connections of a server that ended in their TLS handshake, before its time was over."""

    def __init__(self) -> None:
        self._pid: int | None = None
        self._closed = 0

    async def look(self, directory: Path, pid: int | None) -> dict[tuple[int, int], str]:
        """The server's process and the number of the connection -> its address, of those that are new."""
        url = None if pid is None else await asyncio.to_thread(listed, directory, pid, "monitoring")
        if url is None or pid is None:
            return {}
        if pid != self._pid:
            self._pid, self._closed = pid, 0
        found = await read_monitoring(url, "connz?state=closed&limit=1") or {}
        if (new := found.get("total", 0) - self._closed) <= 0:
            return {}
        wanted = min(new + CLOSED_MEANWHILE, LISTED_CLOSED)
        found = await read_monitoring(url, f"connz?state=closed&sort=stop&limit={wanted}") or {}
        new, self._closed = found.get("total", 0) - self._closed, found.get("total", self._closed)
        newest = (found.get("connections") or [])[:new]
        return {
            (pid, each["cid"]): f"{each['ip']}:{each['port']}"
            for each in newest
            if each["reason"] == FAILED
            and datetime.fromisoformat(each["stop"]) - datetime.fromisoformat(each["start"])
            < timedelta(seconds=HANDSHAKE_S)
        }
