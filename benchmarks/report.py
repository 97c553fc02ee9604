"""What a benchmark returns, percentiles, and the two forms of a run's results: Markdown and JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from coordinator.reporting.percentiles import Percentiles, percentiles_of

MISSING = "-"
WRITTEN_BY = {"latest": "make bench", "peers": "make bench-peers"}
"""Name of the results -> the command that writes them."""


def percentiles(values: Iterable[float]) -> dict[str, float]:
    """n, p50, p90, p99 and max of `values`; only n if there are none."""
    found = percentiles_of(values)
    return {name: value for name in Percentiles.__slots__ if (value := getattr(found, name)) is not None}


def format_number(value: Any) -> str:
    """A number with three significant digits, or all integer digits if there are more."""
    if value is None:
        return MISSING
    if isinstance(value, float):
        places = 0 if abs(value) >= 100 or value == 0 else 2 - math.floor(math.log10(abs(value)))
        return f"{value:,.{max(0, min(places, 4))}f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


@dataclass(slots=True, kw_only=True)
class Result:
    """One benchmark's outcome. `rows` are the lines of its table; `goal` and `verdict` compare them with the target."""

    name: str
    title: str
    conditions: str
    rows: list[dict[str, Any]]
    goal: str = ""
    verdict: str = ""
    notes: list[str] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)
    duration_s: float = 0.0

    def table(self) -> str:
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        lines += ["| " + " | ".join(format_number(row.get(name)) for name in columns) + " |" for row in self.rows]
        return "\n".join(lines)

    def markdown(self) -> str:
        parts = [f"## {self.title}", self.conditions, self.table()]
        if self.goal:
            parts.append(f"Goal: {self.goal}. {self.verdict}")
        parts += [f"- {note}" for note in self.notes]
        return "\n\n".join(parts)


def write(
    directory: Path, machine: dict[str, Any], versions: dict[str, str], results: list[Result], name: str = "latest"
) -> list[Path]:
    """Write the run to `directory` as `name`; always under the same names, as git keeps their history."""
    directory.mkdir(parents=True, exist_ok=True)
    facts = [{"": name, "value": value} for name, value in {**machine, **versions}.items()]
    about = Result(name="", title="Machine and versions", conditions="", rows=facts)
    head = (
        f"# Benchmarks\n\nWritten by `{WRITTEN_BY[name]}`. Every value is from one run on one machine; "
        "compare the values of a table with each other rather than with another machine's."
    )
    markdown, json = directory / f"{name}.md", directory / f"{name}.json"
    sections = [head, f"## {about.title}\n\n{about.table()}", *(result.markdown() for result in results)]
    markdown.write_text("\n\n".join(sections) + "\n")
    body = {
        "machine": machine,
        "versions": versions,
        "results": [{name: getattr(result, name) for name in Result.__slots__} for result in results],
    }
    json.write_bytes(orjson.dumps(body, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY) + b"\n")
    return [markdown, json]
