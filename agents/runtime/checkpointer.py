"""Takes and saves snapshots: between inputs, and only after everything published before is stored.

A newer state with an older cursor would duplicate effects. A newer cursor with outputs or reports not yet stored would
lose them, because no later incarnation reads their inputs again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

import structlog

from bus.durable.snapshots import MAX_SNAPSHOT_BYTES, Snapshot, SnapshotStore
from bus.errors import BusError, Fenced, MeshError

SNAPSHOT_INPUTS = 64
"""A snapshot is taken after this many inputs, or SNAPSHOT_S, whichever comes first."""
SNAPSHOT_S = 1.0

log = structlog.get_logger("signalmesh.agent")


class Checkpointer:
    """Schedules and saves the snapshots of one incarnation.

    Args:
        capture: takes a snapshot; None while there is nothing new, or an input is being handled.
        flush: waits until everything published before the call is stored, outputs and reports.
        store: where snapshots are saved.
        on_too_large: called with the size in bytes of a snapshot that is not saved because of it.
        on_fenced: called when a successor has taken over.
        every_inputs: after so many inputs a snapshot is taken before SNAPSHOT_S has passed.
    """

    def __init__(
        self,
        capture: Callable[[], Snapshot | None],
        flush: Callable[[], Awaitable[None]],
        store: SnapshotStore,
        on_too_large: Callable[[int], None],
        on_fenced: Callable[[MeshError], None],
        every_inputs: int = SNAPSHOT_INPUTS,
    ) -> None:
        self._capture, self._flush, self._store = capture, flush, store
        self._on_too_large, self._on_fenced, self._every_inputs = on_too_large, on_fenced, every_inputs
        self._requested = asyncio.Event()
        self._inputs = -1
        """Inputs that the newest snapshot counts."""
        self.duration_ms: float | None = None
        """Time from the capture of the newest snapshot to its storage."""

    def request(self) -> None:
        """Have a snapshot taken at the next opportunity."""
        self._requested.set()

    def input_handled(self, inputs: int) -> None:
        """To be called after every input, with the number of all inputs so far."""
        if inputs - self._inputs >= self._every_inputs:
            self._requested.set()

    async def run(self) -> None:
        """Save snapshots whenever something has changed, until a successor takes over."""
        while True:
            self._requested.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SNAPSHOT_S):
                    await self._requested.wait()
            started = time.monotonic()
            snapshot = self._capture()
            if snapshot is None:
                continue
            self._inputs = snapshot.inputs
            try:
                await self._flush()
                await self.save(snapshot)
                self.duration_ms = round((time.monotonic() - started) * 1000, 2)
            except Fenced as error:
                self._on_fenced(error)
                return
            except BusError as error:
                log.debug("snapshot_retried", error=str(error))

    async def save(self, snapshot: Snapshot) -> None:
        """Write a snapshot that `flush` was waited for; one that is too large is reported and not saved.

        Raises:
            Fenced: a successor has taken over; BusError: the bus does not answer.
        """
        size = len(snapshot.encode())
        if size <= MAX_SNAPSHOT_BYTES:
            await self._store.save(snapshot)
        else:
            self._on_too_large(size)
