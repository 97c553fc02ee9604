"""Leader election: one process of a role claims the term, the others stand by until its heartbeats end.

A term is the sequence of a claim: the newest claim leads, and the earlier leader is fenced. A standby measures the
leader's silence with its own monotonic clock, without the time in which it was paused or disconnected.
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
"""A leader without heartbeats for so long is replaced."""
NO_LEADER_S = 0.25
"""A new process that has received no leader's heartbeat for so long finds that there is no leader."""
NO_LEADER_STANDBY_S = 2.0
"""The same for a process started as a standby: longer than a leader takes to start, and to be replaced."""
POLL_INTERVAL_S = 0.05
PAUSE_S = 0.3
"""After a longer pause between two polls the process may have missed messages."""

log = structlog.get_logger("signalmesh.watchdog")


async def send_heartbeats_as(
    bus: Bus, role: str, term: int | None, status_fields: Callable[[], dict[str, Any]] = dict
) -> None:
    """Send heartbeats until cancelled, as the leader in `term` or a standby (None) of `role`, with `status_fields`."""
    identity = {
        "agent_id": f"{role}_{os.getpid()}",
        "epoch": term or 0,
        "status": "live" if term is not None else "standby",
    }
    name = STANDBY if term is None else role
    await send_heartbeats(bus, name, "watchdog", HEARTBEAT_S, lambda: {**identity, **status_fields()})


async def check_claim(bus: Bus, role: str, term: int) -> None:
    """Check in the stream that `term` is still the newest claim of `role`.

    Raises:
        Fenced: there is a newer claim; BusError: the bus does not answer.
    """
    last = await last_claim(bus, role)
    if last is not None and last.sequence > term:
        raise Fenced(role, f"another {role} leads with term {last.sequence}, this process had {term}")


async def stand_by(
    bus: Bus, role: str, stop: asyncio.Event, *, standby: bool = False, alone: bool = False
) -> int | None:
    """Wait until there is no leader of `role`, then claim its term; None if `stop` is set before.

    With `standby` it waits longer for a first leader, so that another process can claim before it. Otherwise it claims
    the first term of a swarm without a wait, and every term if it is `alone`: no other process takes over this role.
    """
    received_at: float | None = None
    # Without an earlier claim there is no leader to wait for. Of several first claims the stream takes one.
    at_once = alone or (not standby and await _is_unclaimed(bus, role))

    def on_heartbeat(received: ReceivedHeartbeat) -> None:
        nonlocal received_at
        received_at = received.at

    listener = HeartbeatListener(bus, (role,), on_heartbeat=on_heartbeat)
    await listener.start()
    heartbeat_task = asyncio.create_task(send_heartbeats_as(bus, role, None), name="standby-heartbeats")
    since = checked_at = time.monotonic()
    is_logged = False
    try:
        while not stop.is_set():
            now = time.monotonic()
            if not bus.is_ready or now - checked_at > PAUSE_S:
                since = now  # heartbeats may have been missed
            checked_at = now
            no_leader_s = NO_LEADER_STANDBY_S if standby else NO_LEADER_S
            silent_s = now - max(since, received_at or since)
            if (at_once and received_at is None) or silent_s > (no_leader_s if received_at is None else LEADER_LOST_S):
                try:
                    last = await last_claim(bus, role)
                    expect = last.sequence if last else 0
                    return await claim(bus, role, agent_id=new_agent_id(), claimed_by=role, sandbox="", expect=expect)
                except WrongSequence:
                    received_at = time.monotonic()  # another process claimed first: it leads
                except BusError as error:
                    log.debug("claim_retried", error=str(error))
            elif received_at is not None and not is_logged:
                is_logged = True
                log.info("became_standby", role=role)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_INTERVAL_S):
                    await stop.wait()
    finally:
        heartbeat_task.cancel()
        await asyncio.wait({heartbeat_task})
        await listener.close()
    return None


async def _is_unclaimed(bus: Bus, role: str) -> bool:
    """Whether the stream is known to hold no claim of `role`."""
    try:
        return await last_claim(bus, role) is None
    except BusError:
        return False
