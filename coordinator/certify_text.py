"""Figures and tables of certify's report, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from coordinator.figures import Spread

__all__ = ["MIB", "NONE", "cell", "figure", "spread", "table"]

NONE = "not measured"
MIB = 1 << 20


def figure(value: float | None, unit: str = "", places: int = 1) -> str:
    """A number with its unit; NONE where there is none."""
    return NONE if value is None else f"{value:,.{places}f}{unit and ' ' + unit}"


def cell(value: Any) -> str:
    """`value` on one line, and harmless inside a table."""
    return " ".join(str(value).split()).replace("|", "\\|")


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]], none: str = "") -> Iterator[str]:
    """The lines of a table; `none` where it has no rows."""
    if not rows:
        yield none
        return
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        yield "| " + " | ".join(map(cell, row)) + " |"


def spread(found: Spread, unit: str = "") -> list[str]:
    """The cells n, p50, p99 and max."""
    return [str(found.n), *(figure(value, unit, 2) for value in (found.p50, found.p99, found.max))]
