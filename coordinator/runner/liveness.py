"""A watchdog or provider that runs but says nothing: nobody but `up`, whose children they are, can end it.

A stopped or hung process has no exit that could be noticed, and who watches over everybody, or keeps the sandboxes
elsewhere alive, is watched by nobody else. To end one too many does no harm: its successor adopts what runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from bus.errors import MessageError
from bus.interface import Heard
from bus.messages import Heartbeat, decode
from bus.messages.subjects import PROVIDER, STANDBY, WATCHDOG
from bus.nats.bus import NatsBus
from bus.utils.processes import MACHINE

SILENT_S = 10.0
"""Far longer than it takes to start, or to be starved for a moment."""
LOOK_S = 0.5
WATCHED_KINDS = ("watchdog", "provider")
"""Kinds of children that are to be heard."""


class Watched(Protocol):
    """A child process: its pid (None while there is none), and when it was started on the monotonic clock."""

    started_at: float

    @property
    def pid(self) -> int | None: ...


Child = TypeVar("Child", bound=Watched)


async def find_hung(bus: NatsBus, children: Sequence[Child], on_hung: Callable[[Child, float], None]) -> None:
    """Call `on_hung` with each of `children` that was not heard for SILENT_S, and for how many seconds; for ever."""
    heard_at: dict[int, float] = {}

    async def on_beat(heard: Heard) -> None:
        with contextlib.suppress(MessageError):
            beat = decode(bus.subjects.parse(heard.subject), heard.subject, heard.data)
            if isinstance(beat, Heartbeat) and beat.machine == MACHINE:
                heard_at[beat.pid] = time.monotonic()

    for name in (WATCHDOG, STANDBY, PROVIDER):
        await bus.listen(bus.subjects.heartbeat(name), on_beat)
    since = looked_at = time.monotonic()
    while True:
        await asyncio.sleep(LOOK_S)
        now = time.monotonic()
        if not bus.live or now - looked_at > 2 * LOOK_S:
            since = now  # we could not hear them
        looked_at = now
        for child in children:
            if child.pid is None:
                continue
            silent_s = now - max(since, child.started_at, heard_at.get(child.pid, 0.0))
            if silent_s > SILENT_S:
                on_hung(child, silent_s)
