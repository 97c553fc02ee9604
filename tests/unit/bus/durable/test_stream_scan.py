"""A scan of the stream: it reads its range, and nothing after it has ended."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from bus.durable.stream_scan import scan
from bus.interface import StoredMessage
from bus.testing.memory_bus import MemoryBus, MemoryServer

FILTERS = ("swarm.>",)


class Watched(MemoryBus):
    """Records what the server delivers to readers."""

    def __init__(self, server: MemoryServer) -> None:
        super().__init__(server)
        self.delivered: list[int] = []

    async def follow(self, filters: tuple[str, ...], first: int, on_stored: Any) -> Any:
        def take(stored: StoredMessage) -> Any:
            self.delivered.append(stored.sequence)
            return on_stored(stored)

        return await super().follow(filters, first, take)


@pytest.mark.parametrize("taken", [1, 4], ids=["left early", "read to its end"])
async def test_a_scan_reads_its_range_and_nothing_after_its_end(taken):
    server = MemoryServer()
    for number in range(1, 6):
        server.store("in.swarm.signal.A.one", b"%d" % number, {})
    bus, found = Watched(server), []
    async with aclosing(scan(bus, FILTERS, 2, 5)) as messages:
        async for stored in messages:
            found.append(stored.sequence)
            if len(found) == taken:
                break
    assert found == [2, 3, 4, 5][:taken]
    before = list(bus.delivered)
    server.store("in.swarm.signal.A.one", b"6", {})
    for _ in range(20):
        await asyncio.sleep(0)
    assert bus.delivered == before
    await bus.close()
