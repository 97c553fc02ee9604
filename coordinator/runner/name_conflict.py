"""Refuses a second swarm of the same name on one server: the two would fight over sandboxes and agents."""

from __future__ import annotations

import asyncio
import time

from bus.errors import UsageError
from bus.heartbeats import HeartbeatListener
from bus.messages import Heartbeat
from bus.nats.bus import NatsBus

SILENCE_S = 0.6
"""Three heartbeats of a sandbox host: a host that is silent for so long does not run."""
TIMEOUT_S = 3.0
"""The children of a killed `up` end within a second; a host that still sends heartbeats after this time stays."""


async def refuse_name_conflict(bus: NatsBus, sandboxes: tuple[str, ...]) -> str | None:
    """Listen until no other host of these `sandboxes` sends heartbeats.

    Returns a warning for the user if a watchdog already leads the swarm.

    Raises:
        UsageError: there are such hosts, and they do not end.
    """
    async with HeartbeatListener(bus) as listener:
        started_at = time.monotonic()
        while True:
            hosts = [host for name, host in sorted(listener.hosts.items()) if name in sandboxes]
            now = time.monotonic()
            quiet_s = now - max((host.at for host in hosts), default=started_at)
            if quiet_s >= SILENCE_S:
                break
            if now - started_at >= TIMEOUT_S:
                raise UsageError(_refusal(bus, [host.heartbeat for host in hosts]))
            await asyncio.sleep(SILENCE_S - quiet_s)
    leader = listener.leader.heartbeat if listener.leader is not None else None
    if leader is None or hosts:  # hosts that ended meanwhile: their watchdog ends as well
        return None
    return (
        f"a watchdog (pid {leader.pid}{_where(leader)}) already leads swarm {bus.subjects.ns!r} on {bus.url}: "
        "its settings apply while it runs, and the watchdog of this `up` is a standby"
    )


def _where(heartbeat: Heartbeat) -> str:
    return f" on {heartbeat.machine}" if heartbeat.machine else ""


def _refusal(bus: NatsBus, heartbeats: list[Heartbeat]) -> str:
    hosts = ", ".join(f"{heartbeat.agent} (pid {heartbeat.pid}{_where(heartbeat)})" for heartbeat in heartbeats)
    return (
        f"another swarm named {bus.subjects.ns!r} is already running on {bus.url} (hosts: {hosts}). End it with "
        '`signalmesh down` in its directory, or give this one another name: swarm = "…" at the top of swarm.toml'
    )
