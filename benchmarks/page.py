"""The tables of docs/benchmarks.md: those of the last whole run, which `make bench` writes into it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from benchmarks.report import format_number

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
TABLE = re.compile(r"(<!-- figures: (?P<name>\w+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)
SCALE = (
    *("all live, s", "start p50, s", "start p99, s", "memory, MiB", "CPU, %", "beat p50", "beat p99", "beat max"),
    *("beats missed", "false deaths, start", "false deaths, later", "kills", "recovered", "lost or doubled"),
    *("detected p50, ms", "ready p50, ms", "ready p90, ms", "ready max, ms"),
)
"""Which of its columns are lines there."""


def write(results: Path) -> Path:
    """Put the values of `results`, latest.json, into the page; its path.

    Raises:
        KeyError: the run was not a whole one.
    """
    PAGE.write_text(with_figures(PAGE.read_text("utf-8"), orjson.loads(results.read_bytes())), "utf-8")
    return PAGE


def with_figures(text: str, run: dict[str, Any]) -> str:
    """The page with the tables of `run`, the content of latest.json."""
    tables = {"goals": goals(run), "scale": scale(run)}
    return TABLE.sub(lambda match: f"{match[1]}{tables[match['name']]}{match[3]}", text)


def goals(run: dict[str, Any]) -> str:
    """What was aimed at, and what came of it, missed goals included."""
    rows = [(result["title"], result["goal"], result["verdict"]) for result in run["results"] if result["goal"]]
    return _table(("measured", "goal", "outcome"), rows)


def scale(run: dict[str, Any]) -> str:
    """The benchmark `scale`, a column for each number of agents."""
    (result,) = (result for result in run["results"] if result["name"] == "scale")
    counts = [row["agents"] for row in result["rows"]]
    return _table(
        ("", *(f"{count} agents" for count in counts)),
        [(name, *(format_number(row[name]) for row in result["rows"])) for name in SCALE],
    )


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
