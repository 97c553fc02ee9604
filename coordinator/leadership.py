"""Who leads: one process of a role claims the term, the others stand by until its heartbeats end.

A term is the sequence of a claim, like an agent's epoch: whoever claims later leads, and the one before is fenced.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

import structlog

from bus.bus import Bus, Heard
from bus.claims import claim, last_claim, new_agent_id
from bus.errors import BusError, WrongSequence

LEADER_LOST_S = 1.0
"""A leader silent for so long is succeeded."""
NOBODY_BEATS = 2.5
"""Heartbeat intervals after which a newcomer that has heard none concludes that nobody leads."""
LOOK_S = 0.05

log = structlog.get_logger("signalmesh.watchdog")


async def stand_by(bus: Bus, role: str, heartbeat_s: float, stop: asyncio.Event) -> int | None:
    """Wait until nobody leads as `role`, and claim its term; None when asked to stop before."""
    heard_at: float | None = None
    told = False

    async def on_beat(_: Heard) -> None:
        nonlocal heard_at
        heard_at = time.monotonic()

    listening = await bus.listen(bus.subjects.heartbeat(role), on_beat)
    since = time.monotonic()
    try:
        while not stop.is_set():
            if not bus.live:
                await bus.until_live()
                since = time.monotonic()  # what we did not hear may have been said
            silent_s = time.monotonic() - max(since, heard_at or since)
            if silent_s > (NOBODY_BEATS * heartbeat_s if heard_at is None else LEADER_LOST_S):
                try:
                    last = await last_claim(bus, role)
                    expect = last.sequence if last else 0
                    return await claim(bus, role, agent_id=new_agent_id(), claimed_by=role, sandbox="", expect=expect)
                except WrongSequence:
                    since = time.monotonic()  # another one was quicker: it leads
                except BusError as error:
                    log.debug("claim_retried", error=str(error))
            elif heard_at is not None and not told:
                told = True
                log.info("standing_by", role=role)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await stop.wait()
    finally:
        await listening.close()
    return None
