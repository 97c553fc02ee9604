"""A fault under way: when it began, was noticed and was over, on one clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from coordinator.chaos_plan import Fault

__all__ = ["LOOK_S", "Happening", "eventually"]

LOOK_S = 0.01
T = TypeVar("T")


@dataclass(slots=True)
class Happening:
    """A fault as it happens; times are of time.monotonic()."""

    fault: Fault
    began: float = 0.0
    detected: float | None = None
    recovered: float | None = None
    injected: asyncio.Event = field(default_factory=asyncio.Event)

    def begin(self) -> None:
        """Now it is done: call this just before the first signal or request."""
        self.began = time.monotonic()

    def noticed(self, *times: float | None) -> None:
        """Take the earliest time that was observed at all."""
        known = [at for at in (self.detected, *times) if at is not None]
        self.detected = min(known, default=None)


async def eventually(found: Callable[[], T | None], timeout_s: float) -> T:
    """Look again and again, for what nobody tells us.

    Raises:
        TimeoutError: it did not come.
    """
    async with asyncio.timeout(timeout_s):
        while not (result := found()):  # noqa: ASYNC110 - it has no event of its own
            await asyncio.sleep(LOOK_S)
        return result
