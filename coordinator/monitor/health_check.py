"""`signalmesh health`: whether a process of this machine sends heartbeats, for the health check of a container.

The check goes over the bus: a process that runs but is disconnected is of no use to the swarm.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bus.heartbeats import HeartbeatListener, ReceivedHeartbeat
from bus.messages import Heartbeat, HeartbeatRole, failed_sandboxes_of
from bus.nats.bus import NatsBus
from bus.utils.processes import MACHINE

HEALTHY = frozenset({"live", "finished", "standby"})
"""The statuses of a working process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """`health --json`. `status` is that of the heartbeat, None if none was received; `failed` are the sandboxes that
    the provider, if the heartbeat is its own, cannot create until a person has fixed something.
    """

    ok: bool
    machine: str
    role: HeartbeatRole
    name: str | None
    status: str | None
    text: str
    failed: list[str] = field(default_factory=list)


async def check_health(bus: NatsBus, role: HeartbeatRole, within_s: float) -> Health:
    """Listen until a healthy `role` of this machine sends a heartbeat, at most `within_s` seconds.

    For the role "provider", one with failed sandboxes is unhealthy. For "any" it is healthy: restarting the container
    would not create them.
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
        text = f"{what} of this machine ({MACHINE}) sent a heartbeat within {within_s:g} s"
    else:
        text = f"{found.role} {found.agent} of this machine ({MACHINE}): {found.status}"
    if failed := [] if found is None else failed_sandboxes_of(found):
        text += f", but these sandboxes have failed: {', '.join(failed)}; see `signalmesh status`"
    return Health(
        ok=healthy,
        machine=MACHINE,
        role=found.role if found else role,
        name=found.agent if found else None,
        status=found.status if found else None,
        text=text,
        failed=failed,
    )
