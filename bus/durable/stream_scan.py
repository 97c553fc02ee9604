"""Reads a range of the stream message by message, so memory use does not depend on its length."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from bus.errors import BusTimeout
from bus.interface import EVERYTHING, Bus, StoredMessage
from bus.messages import headers as h

SILENCE_S = 10.0
"""After this long without a message the stream's bounds are checked again: the rest may have expired."""
ROOM = 2000
"""Messages read ahead of the consumer."""


async def scan(bus: Bus, filters: tuple[str, ...], first: int, last: int) -> AsyncGenerator[StoredMessage, None]:
    """Every message of `filters` with a sequence from `first` to `last`, in order. Use it with `aclosing`.

    `filters` must match the stream's last message, or a kind that is still published: else the end is detected late.

    Raises:
        BusTimeout: no more messages arrived before the end.
    """
    if first > last:
        return
    ahead = _Ahead(last)
    reader = await bus.follow(filters, first, ahead)
    try:
        while True:
            if not await ahead.wait():
                if (await bus.bounds()).first <= last:
                    raise BusTimeout(
                        f"{bus.subjects.stream}: reading stopped before message {last}; is the NATS server overloaded?"
                    )
                return
            batch = ahead.take()
            for stored in batch:
                yield stored
            if ahead.ended and not ahead.batch:
                return
    finally:
        await reader.close()


async def kept_from(bus: Bus) -> int:
    """Sequence of the first message that is no claim and no VotingConfig: retention has removed all others before it.

    Both have a lifetime without end. Without any other message it is the sequence that comes next.

    Raises:
        BusError: the bus does not answer.
    """
    bounds = await bus.bounds()
    async with aclosing(scan(bus, EVERYTHING, bounds.first, bounds.last)) as messages:
        async for stored in messages:
            if not is_kept(stored.headers):
                return stored.sequence
    return bounds.last + 1


def is_kept(headers: Mapping[str, str]) -> bool:
    """Whether retention by age never removes the message with these headers."""
    return headers.get(h.TTL) == "never"


class _Ahead:
    """Messages read and not yet taken."""

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
        """Wait for more, or for the end; False after a timeout."""
        try:
            async with asyncio.timeout(SILENCE_S):
                await self._more.wait()
        except TimeoutError:
            return False
        return True

    def take(self) -> list[StoredMessage]:
        """All messages read so far."""
        batch, self.batch = self.batch, []
        self._room.set()
        if not self.ended:
            self._more.clear()
        return batch
