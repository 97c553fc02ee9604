"""One pass over a stretch of the stream: message by message, so that a stream of any length needs no more memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from bus.errors import BusTimeout
from bus.interface import Bus, StoredMessage

SILENCE_S = 10.0
"""After so long without a message the stream's bounds are looked at again: the rest may have expired."""
ROOM = 2000
"""Messages that are read ahead of the consumer."""


async def scan(bus: Bus, filters: tuple[str, ...], first: int, last: int) -> AsyncGenerator[StoredMessage, None]:
    """Every message of `filters` with a sequence from `first` to `last`, in order. To be used within `aclosing`.

    `filters` must cover the stream's last message, or a kind that still comes: else its end is noticed late.

    Raises:
        BusTimeout: the bus fell silent before the end.
    """
    if first > last:
        return
    ahead = _Ahead(last)
    reader = await bus.follow(filters, first, ahead)
    try:
        while True:
            if not await ahead.wait():
                if (await bus.bounds()).first <= last:
                    raise BusTimeout(f"{bus.subjects.stream}: reading stopped before message {last}; is the bus ill?")
                return
            batch = ahead.take()
            for stored in batch:
                yield stored
            if ahead.ended and not ahead.batch:
                return
    finally:
        await reader.close()


class _Ahead:
    """What has been read and not yet been taken."""

    def __init__(self, last: int) -> None:
        self._last = last
        self.batch: list[StoredMessage] = []
        self.ended = False
        self._more, self._room = asyncio.Event(), asyncio.Event()

    async def __call__(self, stored: StoredMessage) -> None:
        if self.ended:
            return
        if stored.sequence <= self._last:
            self.batch.append(stored)
        self.ended = stored.sequence >= self._last or stored.pending == 0
        self._more.set()
        while len(self.batch) >= ROOM and not self.ended:
            self._room.clear()
            await self._room.wait()

    async def wait(self) -> bool:
        """Wait for more, or for the end; False if there was silence."""
        try:
            async with asyncio.timeout(SILENCE_S):
                await self._more.wait()
        except TimeoutError:
            return False
        return True

    def take(self) -> list[StoredMessage]:
        """All that is there."""
        batch, self.batch = self.batch, []
        self._room.set()
        if not self.ended:
            self._more.clear()
        return batch
