"""Pending timers of an agent, on the loop's clock: when one is due, a Timer event is published.

The agent's state has the set of pending timers; this module stores their due times. After a restart every pending
timer starts again when the agent is live, so that a recovery does not shorten the other agents' time to answer.
"""

from __future__ import annotations

import asyncio
import heapq

from agents.agent import TimerSet
from agents.runtime.output_log import OutputLog
from bus.errors import Fenced
from bus.messages import Timer, encode, now
from bus.messages.subjects import Subjects


class Timers:
    """Publishes `agent`'s timers through `output_log` when they are due."""

    def __init__(self, subjects: Subjects, agent: str, output_log: OutputLog) -> None:
        self._subjects, self._agent, self._output_log = subjects, agent, output_log
        self._pending: dict[str, TimerSet] = {}
        self._due: list[tuple[float, int, str]] = []
        self._armed = 0
        self._handle: asyncio.TimerHandle | None = None

    def start_pending(self, pending: dict[str, TimerSet]) -> None:
        """Start all of `pending`, each with its whole time."""
        self._due.clear()
        self._armed = 0
        self.arm(pending, max((timer.number for timer in pending.values()), default=0))

    def arm(self, pending: dict[str, TimerSet], timers_set: int) -> None:
        """Start those of `pending` (in the order in which they were set) that are not running yet."""
        self._pending = pending
        if timers_set == self._armed:
            return
        loop = asyncio.get_running_loop()
        for name in reversed(pending):
            timer = pending[name]
            if timer.number <= self._armed:
                break
            heapq.heappush(self._due, (loop.time() + timer.after_ms / 1000, timer.number, name))
        self._armed = timers_set
        self._schedule()

    def _schedule(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        while self._due:
            due, number, name = self._due[0]
            timer = self._pending.get(name)
            if timer is not None and timer.number == number:
                self._handle = asyncio.get_running_loop().call_at(due, self._fire)
                return
            heapq.heappop(self._due)

    def _fire(self) -> None:
        self._handle = None
        time = asyncio.get_running_loop().time()
        fired = False
        while self._due and self._due[0][0] <= time:
            _, number, name = heapq.heappop(self._due)
            timer = self._pending.get(name)
            if timer is None or timer.number != number:
                continue
            event = Timer(name=name, number=number, timestamp=now(), source=self._agent)
            try:
                self._output_log.timer(self._subjects.event("timer", timer.topic, self._agent), encode(event), number)
            except Fenced:
                return
            fired = True
        if fired:
            self._output_log.push()
        self._schedule()

    def close(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
