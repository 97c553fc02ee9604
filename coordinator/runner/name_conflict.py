"""Whether a swarm of this name runs on the server already: two of one name would fight over sandboxes and agents."""

from __future__ import annotations

import asyncio
import contextlib

from bus.errors import MessageError, UsageError
from bus.interface import ReceivedMessage
from bus.messages import Heartbeat, decode
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
    loop = asyncio.get_running_loop()
    hosts: dict[str, tuple[float, Heartbeat]] = {}
    leader: Heartbeat | None = None

    async def on_heartbeat(received: ReceivedMessage) -> None:
        nonlocal leader
        with contextlib.suppress(MessageError):
            heartbeat = decode(bus.subjects.parse(received.subject), received.subject, received.data)
            assert isinstance(heartbeat, Heartbeat)
            if heartbeat.role == "sandbox" and heartbeat.agent in sandboxes:
                hosts[heartbeat.agent] = (loop.time(), heartbeat)
            elif heartbeat.role == "watchdog" and heartbeat.status == "live":
                leader = heartbeat

    listening = await bus.listen(f"{bus.subjects.ns}.heartbeat.*", on_heartbeat)
    started_at = loop.time()
    try:
        while True:
            received_at = max((at for at, _ in hosts.values()), default=started_at)
            quiet_s = loop.time() - received_at
            if quiet_s >= SILENCE_S:
                break
            if loop.time() - started_at >= TIMEOUT_S:
                raise UsageError(_refusal(bus, [heartbeat for _, heartbeat in hosts.values()]))
            await asyncio.sleep(SILENCE_S - quiet_s)
    finally:
        await listening.close()
    if leader is None or hosts:  # with hosts gone its watchdog was going, too
        return None
    return (
        f"a watchdog (pid {leader.pid}{_where(leader)}) leads swarm {bus.subjects.ns!r} on {bus.url} already: "
        "it decides by its own settings as long as it lives, and ours stands by"
    )


def _where(heartbeat: Heartbeat) -> str:
    return f" on {heartbeat.machine}" if heartbeat.machine else ""


def _refusal(bus: NatsBus, heartbeats: list[Heartbeat]) -> str:
    received = ", ".join(
        f"{heartbeat.agent} (pid {heartbeat.pid}{_where(heartbeat)})"
        for heartbeat in sorted(heartbeats, key=lambda b: b.agent)
    )
    return (
        f"a swarm named {bus.subjects.ns!r} runs on {bus.url} already, for its sandbox hosts are heard: "
        f"{received}. End it "
        'with `signalmesh down` in its directory, or give this one another name: swarm = "…" at the top of swarm.toml'
    )
