"""Writes the tables of the last whole run into docs/benchmarks.md, for `make bench`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from benchmarks.report import format_number

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
TABLES = re.compile(r"(<!-- results: (?P<name>\w+) -->\n).*?(<!-- end of results -->)", re.DOTALL)
SCALE = (
    "all live, s",
    "start p50, s",
    "start p99, s",
    "memory, MiB",
    "CPU, %",
    "heartbeat p50",
    "heartbeat p99",
    "heartbeat max",
    "heartbeats missed",
    "false deaths, start",
    "false deaths, later",
    "kills",
    "recovered",
    "lost or duplicated",
    "detected p50, ms",
    "ready p50, ms",
    "ready p90, ms",
    "ready max, ms",
)
"""Columns of the benchmark that are rows of the page."""


def write(results: Path) -> Path:
    """Write the values of `results`, latest.json, into the page; returns its path.

    Raises:
        KeyError: the run was not a whole one.
    """
    PAGE.write_text(with_results(PAGE.read_text("utf-8"), orjson.loads(results.read_bytes())), "utf-8")
    return PAGE


def with_results(text: str, run: dict[str, Any]) -> str:
    """The page with the tables of `run`, the content of latest.json."""
    tables = {"goals": goals(run), "scale": scale(run)}
    return TABLES.sub(lambda match: f"{match[1]}{tables[match['name']]}{match[3]}", text)


def goals(run: dict[str, Any]) -> str:
    """The goals and their outcomes, including missed goals."""
    rows = [(result["title"], result["goal"], result["verdict"]) for result in run["results"] if result["goal"]]
    return _table(("measured", "goal", "outcome"), rows)


def scale(run: dict[str, Any]) -> str:
    """The benchmark `scale`, with a column for each number of agents."""
    (result,) = (result for result in run["results"] if result["name"] == "scale")
    counts = [row["agents"] for row in result["rows"]]
    return _table(
        ("", *(f"{count} agents" for count in counts)),
        [(name, *(format_number(row[name]) for row in result["rows"])) for name in SCALE],
    )


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
