"""The rate at which an agent may publish: a faster one waits, and one that never slows down ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from bus.errors import MeshError, UsageError

MAX_OUTPUTS_PER_S = 20_000
"""More than one process gets acknowledged where it was measured."""
UNIT_BYTES = 1024
"""A larger output counts as one for each of these."""
FLOOD_S = 10.0
"""Whoever publishes faster than it may for so long floods the stream: a burst is over by then."""

log = structlog.get_logger("signalmesh.agent")


class Flooding(UsageError):
    """An agent has published faster than it may for FLOOD_S: a restart would not change that."""

    def __init__(self, agent: str, per_s: int, last: str) -> None:
        super().__init__(
            f"agent {agent}: it has published more than {per_s} outputs of up to {UNIT_BYTES} bytes a second for "
            f"{FLOOD_S:g} s, the last one to {last}, so it has ended; see what its handlers publish, or raise "
            f"[watchdog] max_outputs_per_s; then `signalmesh revive {agent}`"
        )


class OutputRate:
    """Counts what `agent` publishes: `per_s` outputs a second, and as many at once. `on_flood` ends the agent."""

    def __init__(self, agent: str, per_s: int, on_flood: Callable[[MeshError], None]) -> None:
        self._agent, self._per_s, self._on_flood = agent, per_s, on_flood
        self._left = float(per_s)
        self._at = asyncio.get_running_loop().time()
        """When `_left` was true, seconds of the event loop's clock."""
        self._behind_since: float | None = None
        """Since when it publishes faster than it may, without having caught up."""
        self._last = ""

    def count(self, subject: str, size: int) -> None:
        """Count an output of `size` bytes."""
        self._left -= max(1.0, size / UNIT_BYTES)
        self._last = subject

    def pause_s(self) -> float:
        """Seconds to wait before more may be published; 0 for none, and after a flood."""
        if self._left >= self._per_s / 2 and self._behind_since is None:
            return 0.0  # no clock is read for an agent of an ordinary rate
        now = asyncio.get_running_loop().time()
        self._left = min(float(self._per_s), self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left >= 0.0:
            if self._left >= self._per_s / 2:
                self._behind_since = None
            return 0.0
        if self._behind_since is None:
            self._behind_since = now
            log.warning("outputs_throttled", max_per_s=self._per_s, subject=self._last)
        if now - self._behind_since >= FLOOD_S:
            self._on_flood(Flooding(self._agent, self._per_s, self._last))
            return 0.0
        return -self._left / self._per_s

    async def wait(self, pause_s: float) -> None:
        """Wait until more may be published."""
        while pause_s > 0.0:  # in steps, so that a flood ends in time however much was published at once
            await asyncio.sleep(min(pause_s, 1.0))
            pause_s = self.pause_s()
