"""Crash loops: the pause before an agent is started again, and when it is quarantined.

Two rules quarantine an agent: too many deaths within a window, and too many deaths in a row at the same input. The
second rule is for handlers that never return: detecting one takes seconds, so the window would never fill.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.05, 5.0
MAX_STALLS = 3
"""An agent that is unresponsive so many times in a row at the same input is quarantined."""


@dataclass(slots=True)
class CrashHistory:
    """The counted deaths of one agent; `len` is their number within the window that ended with the newest."""

    times: deque[float] = field(default_factory=deque)
    backoff_s: float = 0.0
    cursor: int = 0
    """The furthest input that any dead incarnation is known to have handled."""
    outputs: int = 0
    """The largest number of outputs that any dead incarnation is known to have published."""
    in_a_row: int = 0
    """Deaths since the agent last progressed beyond all earlier incarnations."""
    stalls: int = 0
    """Those of `in_a_row` in which the process was unresponsive."""

    def __len__(self) -> int:
        return len(self.times)

    def is_beyond(self, cursor: int, outputs: int) -> bool:
        """Whether an incarnation with this cursor or number of outputs has progressed beyond all deaths so far."""
        return cursor > self.cursor or outputs > self.outputs

    def add(
        self, now: float, window_s: float, max_deaths: int, *, cursor: int, outputs: int, unresponsive: bool = False
    ) -> str | None:
        """Count a death at this input; returns the reason for a quarantine, or None.

        Quarantine: `max_deaths` deaths within `window_s` seconds, or `max_deaths` in a row at one input, or MAX_STALLS
        unresponsive processes in a row there.
        """
        self.times.append(now)
        while self.times and now - self.times[0] > window_s:
            self.times.popleft()
        if self.is_beyond(cursor, outputs):
            self.in_a_row = self.stalls = 0
        self.cursor, self.outputs = max(self.cursor, cursor), max(self.outputs, outputs)
        self.in_a_row += 1
        self.stalls += unresponsive
        if len(self) >= max_deaths:
            return f"{len(self)} deaths within {window_s:.0f} s"
        last_handled = f"the last handled input is message {self.cursor}"
        if self.stalls >= min(MAX_STALLS, max_deaths):
            return (
                f"unresponsive {self.stalls} times in a row; {last_handled}: check the handler of the message after it"
            )
        if self.in_a_row >= max_deaths:
            return f"{self.in_a_row} deaths in a row without progress; {last_handled}"
        return None

    def next_pause_s(self, rng: random.Random) -> float:
        """Seconds to wait before the next start: 0 after a single death, then doubling, with jitter."""
        if len(self) <= 1 and self.in_a_row <= 1:
            return 0.0
        return self.back_off(rng)

    def back_off(self, rng: random.Random) -> float:
        """The next longer pause, seconds."""
        self.backoff_s = min(max(self.backoff_s * 2, FIRST_BACKOFF_S), LAST_BACKOFF_S)
        return self.backoff_s * rng.uniform(0.8, 1.2)

    def reset(self) -> None:
        """Reset the counters and the pause; the progress that was reached is kept."""
        self.times.clear()
        self.backoff_s = 0.0
        self.in_a_row = self.stalls = 0
