"""Numbers, counts, progress bars and Markdown tables, as several commands print them."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import orjson
from rich.console import Console

from bus.utils.terminal import escape_control
from coordinator.reporting.percentiles import Percentiles

PROGRESS_VARIABLE = "SIGNALMESH_PROGRESS"
"""Number of the inherited descriptor that takes the progress of a command."""


@contextlib.contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on standard error while something is read; nothing if that is not a terminal.

    A process that was started with PROGRESS_VARIABLE writes lines `AT LAST` to that descriptor instead.
    """
    if (number := os.environ.pop(PROGRESS_VARIABLE, None)) is not None:
        with os.fdopen(int(number), "w", buffering=1) as lines:
            yield lambda at, last: print(at, last, file=lines)
        return
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), TaskProgressColumn(), TextColumn("{task.completed:,} of {task.total:,}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda at, last: bar.update(task, completed=at, total=last)


def counted(count: int, one: str, more: str = "") -> str:
    """`1 message`, `2,000 messages`."""
    return f"{count:,} {one if count == 1 else more or one + 's'}"


NONE = "not measured"
MIB = 1 << 20


def with_unit(value: float | None, unit: str = "", places: int = 1) -> str:
    """A number with its unit; NONE for None."""
    return NONE if value is None else f"{value:,.{places}f}{unit and ' ' + unit}"


def cell(value: Any) -> str:
    """`value` on one line, with what a Markdown table would interpret escaped."""
    return " ".join(str(value).split()).replace("|", "\\|")


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]], none: str = "") -> Iterator[str]:
    """The lines of a Markdown table; `none` if it has no rows."""
    if not rows:
        yield none
        return
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        yield "| " + " | ".join(map(cell, row)) + " |"


def percentile_cells(found: Percentiles, unit: str = "") -> list[str]:
    """The cells n, p50, p99 and max."""
    return [str(found.n), *(with_unit(value, unit, 2) for value in (found.p50, found.p99, found.max))]


LONGEST_CELL = 72


def format_value(value: Any, longest: int = LONGEST_CELL) -> str:
    """A value in one line of at most `longest` characters, with control characters escaped."""
    if value is None or value == []:
        return ""
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    text = escape_control(text)
    return text if len(text) <= longest else text[: longest - 1] + "…"
