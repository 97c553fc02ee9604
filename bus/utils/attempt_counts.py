"""Counts what is refused to clients, to be reported at once and then once a minute with its number."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

__all__ = ["MAX_TOLD_APART", "REPORT_S", "AttemptCounts"]

REPORT_S = 60.0
"""Between two reports about the same attempt."""
MAX_TOLD_APART = 200
"""Attempts that are told apart: a client can invent them without end."""
K = TypeVar("K")


class AttemptCounts(Generic[K]):
    """How often each attempt was made since it was last reported."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts: dict[K, int] = {}
        self._reported_at: dict[K, float] = {}

    def add(self, attempt: K, otherwise: K) -> K:
        """Count an attempt; as `otherwise`, once MAX_TOLD_APART are told apart. Returns as which it was counted."""
        if attempt not in self._counts and len(self._counts) >= MAX_TOLD_APART:
            attempt = otherwise
        self._counts[attempt] = self._counts.get(attempt, 0) + 1
        return attempt

    def due(self) -> Iterator[tuple[K, int]]:
        """The attempts that are to be reported now, and how often each was made since its last report."""
        now = self._clock()
        for attempt, count in list(self._counts.items()):
            if count and now - self._reported_at.get(attempt, -REPORT_S) >= REPORT_S:
                self._reported_at[attempt], self._counts[attempt] = now, 0
                yield attempt, count
