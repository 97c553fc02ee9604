"""The position of a tick in its feed's series: the next one, a repetition, or a restart of the numbering.

Owns the state of a feed, one source's series of one symbol. The position is a pure function of that state and of the
tick. Reasons for the rules: docs/adr/0007-ticks-out-of-number.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

FAR = 256
"""Numbers by which a tick must be away from the last one to be no repetition and no gap of the same series.

The maximum of undecided ticks of our sources: a source that resends after a break goes back no further.
"""
MAX_SEQUENCE = 2**53 - 1
"""Largest tick sequence: every JSON reader keeps it exactly."""

TickPosition = Literal["next", "leapt", "resumed", "renumbered", "repeated"]


@dataclass(frozen=True, slots=True)
class Mark:
    """A position in a series: number and time of its last tick, and its run. Each new numbering of a feed is a run."""

    last: int
    at: datetime
    run: int = 1


@dataclass(slots=True)
class Feed:
    """One source's series of one symbol: its last number, and the raw windows that risk is computed from.

    `at` is the time of the tick `last`; `runs` counts the runs so far; `left` is the position before the
    numbers last leapt or restarted; `outliers` counts the outlier ticks, `repeated` the repeated ones. `closes` are the
    prices of the closed rounds, oldest first; `held[i]` is the signed position (fraction of capital) decided at
    `closes[i]`.
    """

    last: int
    at: datetime = datetime(1970, 1, 1, tzinfo=UTC)
    run: int = 1
    runs: int = 1
    left: Mark | None = None
    outliers: int = 0
    repeated: int = 0
    closes: list[float] = field(default_factory=list)
    held: list[float] = field(default_factory=list)

    def next_sequence(self) -> int:
        """The number for a tick without one."""
        return self.last + 1 if self.last < MAX_SEQUENCE else 1

    def position(self, sequence: int, at: datetime) -> TickPosition:
        """What the tick `sequence` of time `at` is in this series.

        next: it follows, perhaps after a gap. leapt: it follows after a gap of more than FAR. resumed: it follows
        the series before the last leap or restart, which was therefore an outlier. renumbered: its number is
        lower, but its time later or its number FAR away, so the feed has restarted its numbers. repeated: any other.
        """
        ahead = sequence - self.last
        if self.left is not None:
            beyond = sequence - self.left.last
            if 0 < beyond <= FAR and at >= self.left.at and not 0 < ahead <= beyond:
                return "resumed"
        if ahead > 0:
            return "next" if ahead <= FAR else "leapt"
        if ahead < -FAR or (ahead < 0 and at > self.at):
            return "renumbered"
        return "repeated"

    def take(self, position: TickPosition, sequence: int, at: datetime) -> None:
        """Move on to the tick `sequence`, whose `position` is not repeated."""
        if position != "next":
            before = Mark(self.last, self.at, self.run)
            if position == "resumed" and self.left is not None:
                self.run = self.left.run
            elif position == "renumbered":
                self.runs += 1
                self.run = self.runs
            self.left = before
        self.last, self.at = sequence, at


def place_tick(feed: Feed | None, sequence: int | None, at: datetime) -> tuple[int, TickPosition]:
    """The number of a tick of time `at`, also of one without (`sequence` None), and its position in `feed`.

    The first tick of a source and symbol has no feed yet.
    """
    if sequence is None:
        sequence = 1 if feed is None else feed.next_sequence()
    return sequence, "next" if feed is None else feed.position(sequence, at)
