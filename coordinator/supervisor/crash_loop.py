"""An agent's deaths: how long to wait before it is started again, and when not to start it any more.

Two rules put it into quarantine. Too many deaths within a window is one that dies fast. Deaths in a row without
getting any further is one that dies slowly, over the same input each time: a handler that never returns takes seconds
to be found out, so that no window would ever fill.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.05, 5.0
MAX_STALLS = 3
"""So many times in a row hung at the same place: quarantine."""


@dataclass(slots=True)
class CrashHistory:
    """Those of one agent that count; `len` is how many fall into the window that ended with the newest."""

    times: deque[float] = field(default_factory=deque)
    backoff_s: float = 0.0
    cursor: int = 0
    """The furthest input that any incarnation was known to have handled when it died."""
    outputs: int = 0
    """The most outputs that any incarnation was known to have published when it died."""
    in_a_row: int = 0
    """Deaths since it last got further than ever before."""
    stalls: int = 0
    """Those of them that were hangs."""

    def __len__(self) -> int:
        return len(self.times)

    def further(self, cursor: int, outputs: int) -> bool:
        """Whether an incarnation that is here has left behind the place of all deaths so far."""
        return cursor > self.cursor or outputs > self.outputs

    def add(
        self, now: float, window_s: float, most: int, *, cursor: int, outputs: int, unresponsive: bool = False
    ) -> str | None:
        """Count a death at this place; returns why it is one too many, if it is.

        Quarantine: `most` deaths within `window_s` seconds, or `most` in a row at one place, or HANGS hangs there.
        """
        self.times.append(now)
        while self.times and now - self.times[0] > window_s:
            self.times.popleft()
        if self.further(cursor, outputs):
            self.in_a_row = self.stalls = 0
        self.cursor, self.outputs = max(self.cursor, cursor), max(self.outputs, outputs)
        self.in_a_row += 1
        self.stalls += unresponsive
        if len(self) >= most:
            return f"{len(self)} deaths within {window_s:.0f} s"
        place = f"without getting beyond message {self.cursor}"
        if self.stalls >= min(MAX_STALLS, most):
            return (
                f"it hung {self.stalls} times in a row {place}: look at its handler of the next message that it reads"
            )
        if self.in_a_row >= most:
            return f"{self.in_a_row} deaths in a row {place}"
        return None

    def next_pause_s(self, rng: random.Random) -> float:
        """How long to wait before the next start: none after a single death, then doubling, with jitter."""
        if len(self) <= 1 and self.in_a_row <= 1:
            return 0.0
        return self.back_off(rng)

    def back_off(self, rng: random.Random) -> float:
        """The next longer pause, seconds."""
        self.backoff_s = min(max(self.backoff_s * 2, FIRST_BACKOFF_S), LAST_BACKOFF_S)
        return self.backoff_s * rng.uniform(0.8, 1.2)

    def reset(self) -> None:
        """Forget them, but for how far it got."""
        self.times.clear()
        self.backoff_s = 0.0
        self.in_a_row = self.stalls = 0
