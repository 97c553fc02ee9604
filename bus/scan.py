"""One pass over a stretch of the stream: message by message, so that a stream of any length needs no more memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bus.bus import Bus, Stored
from bus.errors import BusTimeout

SILENCE_S = 10.0
"""After so long without a message the stream's bounds are looked at again: the rest may have expired."""
Take = Callable[[Stored], bool | None]


async def scan(bus: Bus, filters: tuple[str, ...], first: int, last: int, take: Take) -> int:
    """Call `take` for every message of `filters` with a sequence from `first` to `last`, in order; how many there were.

    `take` ends it by returning True; what it raises is raised here. `filters` must cover the stream's last message, or
    a kind that still comes: else its end is noticed late.

    Raises:
        BusTimeout: the bus fell silent before the end.
    """
    if first > last:
        return 0
    taker = _Taker(last, take)
    reader = await bus.follow(filters, first, taker)
    try:
        while not taker.ended.done():
            before = taker.heard
            await asyncio.wait({taker.ended}, timeout=SILENCE_S)
            if not taker.ended.done() and taker.heard == before:
                if (await bus.bounds()).first <= last:
                    raise BusTimeout(f"{bus.subjects.stream}: reading stopped after {before} messages; is the bus ill?")
                return taker.taken
        taker.ended.result()
    finally:
        await reader.close()
    return taker.taken


class _Taker:
    def __init__(self, last: int, take: Take) -> None:
        self._last, self._take = last, take
        self.taken = self.heard = 0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def __call__(self, stored: Stored) -> None:
        if self.ended.done():
            return
        self.heard += 1
        try:
            if self._is_last(stored):
                self.ended.set_result(None)
        except Exception as error:  # noqa: BLE001 - a reader would only log it; `scan` raises it
            self.ended.set_exception(error)

    def _is_last(self, stored: Stored) -> bool:
        if stored.sequence > self._last:
            return True
        self.taken += 1
        return bool(self._take(stored)) or stored.sequence == self._last or stored.pending == 0
