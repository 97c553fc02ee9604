"""Tables that fit the terminal: lists of names are shortened first, then the less important columns are hidden.

A name is never cut off, a line below the table names the hidden columns, and a pipe gets every column.
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
"""The size for a pipe or a file: as wide as needed. Both are given, as rich would otherwise query a terminal."""
GAP = 2
"""Blanks between two columns."""
STATE_COLOURS = {
    "active": "green", "live": "green", "finished": "green", "starting": "yellow", "restoring": "yellow",
    "draining": "yellow", "waiting": "yellow", "restarting": "yellow", "backoff": "yellow", "silent": "red",
    "quarantined": "red",
}  # fmt: skip


Cell = str | Text | tuple[str, ...]
"""The contents of a cell; a tuple is a list of names, shortened to the room there is."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column's heading; of all columns, the one with the highest `rank` is hidden first. Rank 0 always stays."""

    title: str
    rank: int = 0
    right: bool = False


def console() -> Console:
    """Standard output: the terminal as wide as it is, anything else as wide as needed. Markup is not interpreted."""
    width, height = (None, None) if sys.stdout.isatty() else (PIPED_WIDTH, PIPED_HEIGHT)
    return Console(width=width, height=height, highlight=False, markup=False, emoji=False)


def state_text(state: str) -> Text:
    """A state in its colour."""
    state = escape_control(state)
    return Text(state, STATE_COLOURS.get(state.partition(" ")[0], ""))


def print_table(out: Console, columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> None:
    """Print the table in the width of `out`, and below it the names of the hidden columns, if any."""
    kept, _ = _layout(columns, rows, out.width)
    out.print(fitted(columns, rows, out.width))
    if hidden := [column.title for at, column in enumerate(columns) if at not in kept]:
        why = f"(terminal is {out.width} columns wide; use --json for all)"
        out.print(f"hidden columns: {', '.join(hidden)} {why}", soft_wrap=True, style="dim")


def fitted(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], width: int) -> Table:
    """The table with as many of `columns` as fit into `width`; if not even rank 0 fits, cells are folded.

    Markup in cells has no effect, and control characters are escaped.
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
    """The columns that are shown, and the width of each."""
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
    """The text of a cell; of names as many as there is `room` for, or their number."""
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
