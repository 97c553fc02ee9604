"""The bus in memory with the stream's counts of messages by subject, as an observer of all kinds asks for them."""

from __future__ import annotations

from collections import Counter

from bus.testing.memory_bus import MemoryBus, matches


class CountingBus(MemoryBus):
    async def subject_counts(self, pattern: str) -> dict[str, int]:
        return dict(Counter(stored.subject for stored in self.server.messages if matches(pattern, stored.subject)))
