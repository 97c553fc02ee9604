"""Whether a swarm of this name runs on the server already: two of one name would fight over sandboxes and agents."""

from __future__ import annotations

import asyncio
import time

from bus.errors import UsageError
from bus.heartbeats import HeartbeatListener
from bus.messages import Heartbeat
from bus.nats.bus import NatsBus

SILENCE_S = 0.6
"""Three heartbeats of a sandbox host: who is not heard for so long is not there."""
TIMEOUT_S = 3.0
"""What a killed `up` leaves behind is gone within a second; whoever is still heard after so long stays."""


async def refuse_name_conflict(bus: NatsBus, sandboxes: tuple[str, ...]) -> str | None:
    """Listen until no other host of these `sandboxes` is heard.

    Returns a remark for the person if a watchdog leads the swarm already.

    Raises:
        UsageError: there are others, and they do not end.
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
    if leader is None or hosts:  # with hosts gone its watchdog was going, too
        return None
    return (
        f"a watchdog (pid {leader.pid}{_where(leader)}) leads swarm {bus.subjects.ns!r} on {bus.url} already: "
        "it decides by its own settings as long as it lives, and ours stands by"
    )


def _where(heartbeat: Heartbeat) -> str:
    return f" on {heartbeat.machine}" if heartbeat.machine else ""


def _refusal(bus: NatsBus, heartbeats: list[Heartbeat]) -> str:
    received = ", ".join(f"{heartbeat.agent} (pid {heartbeat.pid}{_where(heartbeat)})" for heartbeat in heartbeats)
    return (
        f"a swarm named {bus.subjects.ns!r} runs on {bus.url} already, for its sandbox hosts are heard: "
        f"{received}. End it "
        'with `signalmesh down` in its directory, or give this one another name: swarm = "…" at the top of swarm.toml'
    )
