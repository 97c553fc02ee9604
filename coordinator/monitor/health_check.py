"""Whether a process of the swarm on this machine is heard on the bus: what a container's health check asks.

A process that runs but that nobody hears is of no use to the swarm, so its own word is not asked for: the answer is a
heartbeat that went over the bus.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bus.heartbeats import HeartbeatListener, ReceivedHeartbeat
from bus.messages import Heartbeat, HeartbeatRole, failed_sandboxes_of
from bus.nats.bus import NatsBus
from bus.utils.processes import MACHINE

HEALTHY = frozenset({"live", "finished", "standby"})
"""States of a heartbeat in which its process does what it is for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """`health --json`. `status` is that of the heartbeat, None when none was heard; `failed` are the sandboxes that
    the provider, if it is what was heard, cannot make until a person has mended something.
    """

    ok: bool
    machine: str
    role: HeartbeatRole
    name: str | None
    status: str | None
    text: str
    failed: list[str] = field(default_factory=list)


async def check_health(bus: NatsBus, role: HeartbeatRole, within_s: float) -> Health:
    """Listen until a healthy `role` of this machine was heard, at most `within_s` seconds.

    Who asks for the provider asks for its sandboxes: one that has given up any is not healthy. For "any" it is, as a
    container would be ended for what no other process there could do better.
    """
    found: Heartbeat | None = None
    healthy = False

    def on_heartbeat(received: ReceivedHeartbeat) -> None:
        nonlocal found, healthy
        heartbeat = received.heartbeat
        if heartbeat.machine == MACHINE and role in ("any", heartbeat.role):
            found = heartbeat
            healthy = healthy or (
                heartbeat.status in HEALTHY and not (role == "provider" and failed_sandboxes_of(heartbeat))
            )

    async with HeartbeatListener(bus, on_heartbeat=on_heartbeat) as listener:
        await listener.wait(lambda _: healthy, within_s)
    what = "no role" if role == "any" else f"no {role}"
    if found is None:
        text = f"{what} of this machine ({MACHINE}) was heard within {within_s:g} s"
    else:
        text = f"{found.role} {found.agent} of this machine ({MACHINE}): {found.status}"
    if failed := [] if found is None else failed_sandboxes_of(found):
        text += f", but it has given up {', '.join(failed)}: `signalmesh status` says why"
    return Health(
        ok=healthy,
        machine=MACHINE,
        role=found.role if found else role,
        name=found.agent if found else None,
        status=found.status if found else None,
        text=text,
        failed=failed,
    )
