"""Who leads: one process of a role claims the term, the others stand by until its heartbeats end.

A term is the sequence of a claim, like an agent's epoch: whoever claims later leads, and the one before is fenced.
Who stands by judges by its own monotonic clock, and by what it was awake and connected to hear. It says on the bus
that it is there, under a subject of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

import structlog

from bus.durable.fencing import claim, last_claim, new_agent_id
from bus.errors import BusError, Fenced, WrongSequence
from bus.heartbeats import HeartbeatListener, ReceivedHeartbeat, send_heartbeats
from bus.interface import Bus
from bus.messages.subjects import STANDBY

HEARTBEAT_S = 0.1
LEADER_LOST_S = 1.0
"""A leader silent for so long is succeeded."""
NO_LEADER_S = 0.25
"""A newcomer that has heard no leader for so long concludes that there is none."""
NO_LEADER_PATIENT_S = 2.0
"""The same for one that is only to stand by: longer than a leader takes to start, and to be missed."""
POLL_INTERVAL_S = 0.05
PAUSE_S = 0.3
"""Who slept for longer between two looks does not know what was said meanwhile."""

log = structlog.get_logger("signalmesh.watchdog")


async def send_heartbeats_as(bus: Bus, role: str, term: int | None, says: Callable[[], dict[str, Any]] = dict) -> None:
    """Beat for ever as a process of `role` that leads in `term` or stands by (None), with what it `says` besides."""
    told = {
        "agent_id": f"{role}_{os.getpid()}",
        "epoch": term or 0,
        "status": "live" if term is not None else "standby",
    }
    name = STANDBY if term is None else role
    await send_heartbeats(bus, name, "watchdog", HEARTBEAT_S, lambda: {**told, **says()})


async def check_claim(bus: Bus, role: str, term: int) -> None:
    """See in the stream that nobody has claimed since.

    Raises:
        Fenced: somebody has; BusError: the bus does not answer.
    """
    last = await last_claim(bus, role)
    if last is not None and last.sequence > term:
        raise Fenced(role, f"another {role} leads with term {last.sequence}, ours was {term}")


async def stand_by(bus: Bus, role: str, stop: asyncio.Event, *, patient: bool = False) -> int | None:
    """Wait until nobody leads as `role`, and claim its term; None when asked to stop before.

    A `patient` one gives others the chance to lead first, where it has heard nobody yet.
    """
    received_at: float | None = None

    def on_heartbeat(received: ReceivedHeartbeat) -> None:
        nonlocal received_at
        received_at = received.at

    listener = HeartbeatListener(bus, (role,), on_heartbeat=on_heartbeat)
    await listener.start()
    heartbeat_task = asyncio.create_task(send_heartbeats_as(bus, role, None), name="standby-beat")
    since = checked_at = time.monotonic()
    told = False
    try:
        while not stop.is_set():
            now = time.monotonic()
            if not bus.live or now - checked_at > PAUSE_S:
                since = now  # what we did not hear may have been said
            checked_at = now
            no_leader_s = NO_LEADER_PATIENT_S if patient else NO_LEADER_S
            if now - max(since, received_at or since) > (no_leader_s if received_at is None else LEADER_LOST_S):
                try:
                    last = await last_claim(bus, role)
                    expect = last.sequence if last else 0
                    return await claim(bus, role, agent_id=new_agent_id(), claimed_by=role, sandbox="", expect=expect)
                except WrongSequence:
                    received_at = time.monotonic()  # another one was quicker: it leads
                except BusError as error:
                    log.debug("claim_retried", error=str(error))
            elif received_at is not None and not told:
                told = True
                log.info("became_standby", role=role)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_INTERVAL_S):
                    await stop.wait()
    finally:
        heartbeat_task.cancel()
        await asyncio.wait({heartbeat_task})
        await listener.close()
    return None
