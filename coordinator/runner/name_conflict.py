"""Whether a swarm of this name runs on the server already: two of one name would fight over sandboxes and agents."""

from __future__ import annotations

import asyncio
import contextlib

from bus.errors import MessageError, UsageError
from bus.interface import Heard
from bus.messages import Heartbeat, decode
from bus.nats.bus import NatsBus

SILENCE_S = 0.6
"""Three heartbeats of a sandbox host: who is not heard for so long is not there."""
PATIENCE_S = 3.0
"""What a killed `up` leaves behind is gone within a second; whoever is still heard after so long stays."""


async def refuse_neighbours(bus: NatsBus, sandboxes: tuple[str, ...]) -> str | None:
    """Listen until no other host of these `sandboxes` is heard.

    Returns a remark for the person if a watchdog leads the swarm already.

    Raises:
        UsageError: there are others, and they do not end.
    """
    loop = asyncio.get_running_loop()
    hosts: dict[str, tuple[float, Heartbeat]] = {}
    leader: Heartbeat | None = None

    async def on_beat(heard: Heard) -> None:
        nonlocal leader
        with contextlib.suppress(MessageError):
            beat = decode(bus.subjects.parse(heard.subject), heard.subject, heard.data)
            assert isinstance(beat, Heartbeat)
            if beat.role == "sandbox" and beat.agent in sandboxes:
                hosts[beat.agent] = (loop.time(), beat)
            elif beat.role == "watchdog" and beat.status == "live":
                leader = beat

    listening = await bus.listen(f"{bus.subjects.ns}.heartbeat.*", on_beat)
    began = loop.time()
    try:
        while True:
            heard_at = max((at for at, _ in hosts.values()), default=began)
            quiet_s = loop.time() - heard_at
            if quiet_s >= SILENCE_S:
                break
            if loop.time() - began >= PATIENCE_S:
                raise UsageError(_refusal(bus, [beat for _, beat in hosts.values()]))
            await asyncio.sleep(SILENCE_S - quiet_s)
    finally:
        await listening.close()
    if leader is None or hosts:  # with hosts gone its watchdog was going, too
        return None
    return (
        f"a watchdog (pid {leader.pid}{_where(leader)}) leads swarm {bus.subjects.ns!r} on {bus.url} already: "
        "it decides by its own settings as long as it lives, and ours stands by"
    )


def _where(beat: Heartbeat) -> str:
    return f" on {beat.machine}" if beat.machine else ""


def _refusal(bus: NatsBus, beats: list[Heartbeat]) -> str:
    heard = ", ".join(f"{beat.agent} (pid {beat.pid}{_where(beat)})" for beat in sorted(beats, key=lambda b: b.agent))
    return (
        f"a swarm named {bus.subjects.ns!r} runs on {bus.url} already, for its sandbox hosts are heard: "
        f"{heard}. End it "
        'with `signalmesh down` in its directory, or give this one another name: swarm = "…" at the top of swarm.toml'
    )
