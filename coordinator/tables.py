"""Tables that fit: on a narrow terminal the less important columns go, and a name is never cut off.

Owns widths and looks only; what stands in a table is coordinator/view.py's business.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["Column", "console", "fitted", "harmless", "state_text"]

PIPED_WIDTH = 140
"""Columns of a table that goes into a pipe or a file."""
GAP = 2
"""Blanks between two columns."""
_ACTIVE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""What a terminal does not show but obeys: controls, and marks that turn the direction of writing (Unicode's Bidi)."""
STATE_COLOURS = {
    "active": "green", "live": "green", "finished": "green", "starting": "yellow", "restoring": "yellow",
    "draining": "yellow", "waiting": "yellow", "restarting": "yellow", "backoff": "yellow", "silent": "red",
    "quarantined": "red",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Column:
    """A column's heading; of all columns, the one with the highest `rank` is the first to go. Rank 0 always stays."""

    title: str
    rank: int = 0
    right: bool = False


def harmless(text: str, keep: str = "") -> str:
    """`text`, received from anybody, with what a terminal would obey written out; characters of `keep` stay.

    A character is written as in JSON, by its number in hexadecimal: inside a JSON string the result says the same.
    """
    return _ACTIVE.sub(lambda found: found[0] if found[0] in keep else f"\\u{ord(found[0]):04x}", text)


def console() -> Console:
    """Standard output: the terminal as wide as it is, anything else PIPED_WIDTH wide."""
    return Console(width=None if sys.stdout.isatty() else PIPED_WIDTH, highlight=False)


def state_text(state: str) -> Text:
    """A state in its colour."""
    state = harmless(state)
    return Text(state, STATE_COLOURS.get(state.partition(" ")[0], ""))


def fitted(columns: Sequence[Column], rows: Sequence[Sequence[str | Text]], width: int) -> Table:
    """The table of as many of `columns` as `width` has room for; where not even rank 0 fits, cells are folded.

    Cells are shown as they are: markup in them has no effect, and what a terminal would obey is written out.
    """
    rows = [[cell if isinstance(cell, Text) else Text(harmless(cell)) for cell in row] for row in rows]
    widths = [
        max(len(column.title), *(len(row[at]) for row in rows), 0) if rows else len(column.title)
        for at, column in enumerate(columns)
    ]
    kept = list(range(len(columns)))
    while sum(widths[at] + GAP for at in kept) - GAP > width:
        last = max(kept, key=lambda at: columns[at].rank)
        if columns[last].rank == 0:
            break
        kept.remove(last)
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1), collapse_padding=True)
    for at in kept:
        column = columns[at]
        table.add_column(column.title, justify="right" if column.right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(row[at] for at in kept))
    return table
