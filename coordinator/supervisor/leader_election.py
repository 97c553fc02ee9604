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
from bus.errors import BusError, Fenced, MessageError, WrongSequence
from bus.heartbeats import beat
from bus.interface import Bus, Heard
from bus.messages import decode
from bus.messages.subjects import STANDBY

HEARTBEAT_S = 0.1
LEADER_LOST_S = 1.0
"""A leader silent for so long is succeeded."""
NOBODY_S = 0.25
"""A newcomer that has heard no leader for so long concludes that there is none."""
NOBODY_PATIENTLY_S = 2.0
"""The same for one that is only to stand by: longer than a leader takes to start, and to be missed."""
LOOK_S = 0.05
PAUSE_S = 0.3
"""Who slept for longer between two looks does not know what was said meanwhile."""

log = structlog.get_logger("signalmesh.watchdog")


async def beat_as(bus: Bus, role: str, term: int | None, says: Callable[[], dict[str, Any]] = dict) -> None:
    """Beat for ever as a process of `role` that leads in `term` or stands by (None), with what it `says` besides."""
    told = {
        "agent_id": f"{role}_{os.getpid()}",
        "epoch": term or 0,
        "status": "live" if term is not None else "standby",
    }
    name = STANDBY if term is None else role
    await beat(bus, name, "watchdog", HEARTBEAT_S, lambda: {**told, **says()})


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
    heard_at: float | None = None

    async def on_beat(heard: Heard) -> None:
        nonlocal heard_at
        with contextlib.suppress(MessageError):  # garbage is no sign of life
            decode(bus.subjects.parse(heard.subject), heard.subject, heard.data)
            heard_at = time.monotonic()

    listening = await bus.listen(bus.subjects.heartbeat(role), on_beat)
    beating = asyncio.create_task(beat_as(bus, role, None), name="standby-beat")
    since = looked_at = time.monotonic()
    told = False
    try:
        while not stop.is_set():
            now = time.monotonic()
            if not bus.live or now - looked_at > PAUSE_S:
                since = now  # what we did not hear may have been said
            looked_at = now
            nobody_s = NOBODY_PATIENTLY_S if patient else NOBODY_S
            if now - max(since, heard_at or since) > (nobody_s if heard_at is None else LEADER_LOST_S):
                try:
                    last = await last_claim(bus, role)
                    expect = last.sequence if last else 0
                    return await claim(bus, role, agent_id=new_agent_id(), claimed_by=role, sandbox="", expect=expect)
                except WrongSequence:
                    heard_at = time.monotonic()  # another one was quicker: it leads
                except BusError as error:
                    log.debug("claim_retried", error=str(error))
            elif heard_at is not None and not told:
                told = True
                log.info("standing_by", role=role)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await stop.wait()
    finally:
        beating.cancel()
        await asyncio.wait({beating})
        await listening.close()
    return None
