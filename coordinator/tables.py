"""Tables that fit: on a narrow terminal the less important columns go, and a name is never cut off.

Owns widths and looks only; what stands in a table is coordinator/view.py's business.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bus.plain import harmless

__all__ = ["Column", "console", "fitted", "state_text"]

PIPED_WIDTH = 140
"""Columns of a table that goes into a pipe or a file."""
GAP = 2
"""Blanks between two columns."""
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


def console() -> Console:
    """Standard output: the terminal as wide as it is, anything else PIPED_WIDTH wide. Texts are no markup."""
    width = None if sys.stdout.isatty() else PIPED_WIDTH
    return Console(width=width, highlight=False, markup=False, emoji=False)


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
        max(cell_len(column.title), *(cell_len(str(row[at])) for row in rows), 0) for at, column in enumerate(columns)
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
