"""Tables that fit: where a terminal is too narrow, lists of names are shortened, then the less important columns go.

A name is never cut off, what is left out is said, and nothing is left out of a pipe. Owns widths and looks only;
what stands in a table is coordinator/monitor/status_table.py's business.
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

from bus.utils.terminal import escape_control

__all__ = ["Cell", "Column", "console", "fitted", "print_table", "state_text"]

PIPED_WIDTH, PIPED_HEIGHT = 1_000_000, 25
"""Of what goes into a pipe or a file, which is as wide as it needs to be. Both are given, or rich asks a terminal."""
GAP = 2
"""Blanks between two columns."""
STATE_COLOURS = {
    "active": "green", "live": "green", "finished": "green", "starting": "yellow", "restoring": "yellow",
    "draining": "yellow", "waiting": "yellow", "restarting": "yellow", "backoff": "yellow", "silent": "red",
    "quarantined": "red",
}  # fmt: skip


Cell = str | Text | tuple[str, ...]
"""What stands in a table; a tuple is a list of names, of which as many are shown as there is room for."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column's heading; of all columns, the one with the highest `rank` is the first to go. Rank 0 always stays."""

    title: str
    rank: int = 0
    right: bool = False


def console() -> Console:
    """Standard output: the terminal as wide as it is, anything else as wide as needed. Texts are no markup."""
    width, height = (None, None) if sys.stdout.isatty() else (PIPED_WIDTH, PIPED_HEIGHT)
    return Console(width=width, height=height, highlight=False, markup=False, emoji=False)


def state_text(state: str) -> Text:
    """A state in its colour."""
    state = escape_control(state)
    return Text(state, STATE_COLOURS.get(state.partition(" ")[0], ""))


def print_table(out: Console, columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> None:
    """The table as `out` has room for it, and below it which columns are left out, if any is."""
    kept, _ = _layout(columns, rows, out.width)
    out.print(fitted(columns, rows, out.width))
    if left := [column.title for at, column in enumerate(columns) if at not in kept]:
        out.print(f"too narrow ({out.width} columns) for: {'; '.join(left)}", soft_wrap=True, style="dim")


def fitted(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], width: int) -> Table:
    """The table of as many of `columns` as `width` has room for; where not even rank 0 fits, cells are folded.

    Cells are shown as they are: markup in them has no effect, and what a terminal would obey is written out.
    """
    kept, room = _layout(columns, rows, width)
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1), collapse_padding=True)
    for at in kept:
        column = columns[at]
        table.add_column(column.title, justify="right" if column.right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_text(row[at], room[at]) for at in kept))
    return table


def _layout(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], width: int) -> tuple[list[int], dict[int, int]]:
    """Which columns are kept, and how wide each of these may be."""
    titles = [cell_len(column.title) for column in columns]
    least = [max(titles[at], *(cell_len(str(_text(row[at], 0))) for row in rows), 0) for at in range(len(columns))]
    most = [max(titles[at], *(cell_len(str(_text(row[at]))) for row in rows), 0) for at in range(len(columns))]
    kept = list(range(len(columns)))
    while sum(least[at] + GAP for at in kept) - GAP > width:
        last = max(kept, key=lambda at: columns[at].rank)
        if columns[last].rank == 0:
            break
        kept.remove(last)
    room = {at: least[at] for at in kept}
    spare = max(0, width - sum(least[at] + GAP for at in kept) + GAP)
    for at in kept:
        more = min(spare, most[at] - least[at])
        room[at] += more
        spare -= more
    return kept, room


def _text(cell: Cell, room: int | None = None) -> Text:
    """A cell as it is shown; of names as many as there is `room` for, or their number."""
    if isinstance(cell, Text):
        return cell
    if isinstance(cell, str):
        return Text(escape_control(cell))
    names = [escape_control(name) for name in cell]
    whole = ", ".join(names)
    if room is None or cell_len(whole) <= room:
        return Text(whole)
    for count in range(len(names) - 1, 0, -1):
        some = f"{', '.join(names[:count])} and {len(names) - count} more"
        if cell_len(some) <= room:
            return Text(some)
    return Text(min(whole, f"{len(names)} in all", key=cell_len))
