"""The heartbeats of a process that is no agent and no host: a watchdog, the mirror, the metrics, the provider."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from typing import Any, Literal

from bus.errors import BusError
from bus.interface import Bus
from bus.messages import Heartbeat, encode
from bus.utils.processes import MACHINE

__all__ = ["LISTEN_S", "send_heartbeats"]

LISTEN_S = 0.5
"""Long enough for two heartbeats of every host and five of every agent."""

Role = Literal["watchdog", "mirror", "metrics", "provider"]


async def send_heartbeats(
    bus: Bus, name: str, role: Role, interval_s: float, told: Callable[[], dict[str, Any]]
) -> None:
    """Publish a heartbeat of `name` every `interval_s` seconds, for ever; one that cannot be published is left out.

    `told` returns what the process says of itself just then: `status`, and whatever other fields of a Heartbeat it has
    something for.
    """
    subject, sequence = bus.subjects.heartbeat(name), 0
    while True:
        sequence += 1
        fields = {"agent_id": f"{name}_{os.getpid()}", "epoch": 0, "progress": sequence, **told()}
        heartbeat = Heartbeat(
            agent=name,
            sequence=sequence,
            interval_ms=int(interval_s * 1000),
            sandbox="",
            pid=os.getpid(),
            role=role,
            machine=MACHINE,
            **fields,
        )
        with contextlib.suppress(BusError):
            await bus.tell(subject, encode(heartbeat))
        await asyncio.sleep(interval_s)
