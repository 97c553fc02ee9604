"""Finds watchdogs, providers and dashboards that run but send no heartbeats. Only `up`, their parent, can end them.

A paused or stuck process does not exit, and no other process supervises these. Killing a healthy one does no harm:
its successor adopts what runs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from bus.heartbeats import HeartbeatListener, ReceivedHeartbeat
from bus.interface import Bus
from bus.messages.subjects import DASHBOARD, PROVIDER, STANDBY, WATCHDOG
from bus.utils.processes import MACHINE

SILENT_S = 10.0
"""Much longer than a short lack of CPU."""
START_S = 30.0
"""The same until the first heartbeat: on a busy machine the imports of a new process alone can take over 10 s, and a
process killed then would never get further."""
POLL_INTERVAL_S = 0.5
WATCHED_KINDS = ("watchdog", "provider", "dashboard")
"""Kinds of children that send heartbeats."""


class WatchedProcess(Protocol):
    """A child process: its pid (None while there is none), and when it was started on the monotonic clock."""

    started_at: float

    @property
    def pid(self) -> int | None: ...


Child = TypeVar("Child", bound=WatchedProcess)


async def find_unresponsive(
    bus: Bus, children: Sequence[Child], on_unresponsive: Callable[[Child, float], None]
) -> None:
    """Call `on_unresponsive` with each of `children` without a heartbeat for SILENT_S (START_S before its first one)
    and with the silence, seconds.
    """
    received_at: dict[int, float] = {}

    def on_heartbeat(received: ReceivedHeartbeat) -> None:
        if received.heartbeat.machine == MACHINE:
            received_at[received.heartbeat.pid] = received.at

    await HeartbeatListener(bus, (WATCHDOG, STANDBY, PROVIDER, DASHBOARD), on_heartbeat=on_heartbeat).start()
    since = checked_at = time.monotonic()
    while True:
        await asyncio.sleep(POLL_INTERVAL_S)
        now = time.monotonic()
        if not bus.is_ready or now - checked_at > 2 * POLL_INTERVAL_S:
            since = now  # heartbeats could not arrive in between
        checked_at = now
        for child in children:
            if child.pid is None:
                continue
            last = received_at.get(child.pid, 0.0)
            silent_s = now - max(since, child.started_at, last)
            if silent_s > (SILENT_S if last > child.started_at else START_S):
                on_unresponsive(child, silent_s)
