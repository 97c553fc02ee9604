"""Collects what callbacks receive, and waits for it without sleeping."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

Item = TypeVar("Item")

GUARD_S = 20.0
"""A wait that takes so long has failed."""


class Collector(Generic[Item]):
    """A callback, plain (`put`) or asynchronous (the object itself), that keeps what it is called with."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self._more = asyncio.Event()

    def put(self, item: Item) -> None:
        self.items.append(item)
        self._more.set()

    async def __call__(self, item: Item) -> None:
        self.put(item)

    async def reach(self, count: int) -> list[Item]:
        """Wait until `count` items are there; all there are, even if more."""
        async with asyncio.timeout(GUARD_S):
            while len(self.items) < count:
                self._more.clear()
                await self._more.wait()
        return self.items
