"""Writes the results of `make bench` and `make bench-peers` into docs/benchmarks.md, and the plot of the peers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson

from benchmarks import plot
from benchmarks.report import format_number

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "benchmarks.md"
PLOT = DOCS / "assets" / "peers.svg"
TABLES = re.compile(r"(<!-- results: (?P<name>\w+) -->\n)(?P<old>.*?)(<!-- end of results -->)", re.DOTALL)
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
PEERS = (
    "system",
    "p50, ms",
    "p99, ms",
    "p50 / ours",
    "decisions/s",
    "decisions/s / ours",
    "deep pipeline, decisions/s",
    "start, s",
    "start / ours",
)
KILLED = (
    "system",
    "voted again",
    "SIGKILL to vote p50, ms",
    "SIGKILL to vote p99, ms",
    "rounds lost",
    "state",
)


def write(results: Path) -> list[Path]:
    """Write the values of the runs in `results` into the page, and the plot; returns the paths.

    Raises:
        KeyError: latest.json is not of a whole run.
    """
    runs = runs_in(results)
    PAGE.write_text(with_results(PAGE.read_text("utf-8"), runs), "utf-8")
    if "peers" not in runs:
        return [PAGE]
    PLOT.write_text(plot.svg(compared(runs["peers"])["rows"]), "utf-8")
    return [PAGE, PLOT]


def runs_in(results: Path) -> dict[str, dict[str, Any]]:
    """The runs that `results` has, by name: latest and peers."""
    return {name: orjson.loads(path.read_bytes()) for name in RUNS if (path := results / f"{name}.json").exists()}


def with_results(text: str, runs: dict[str, dict[str, Any]]) -> str:
    """The page with the tables of `runs`, the content of latest.json and of peers.json by these names.

    The tables of a run that is not there stay as they are.
    """
    tables = {name: make(run) for stem, run in runs.items() for name, make in RUNS[stem].items()}
    return TABLES.sub(lambda match: f"{match[1]}{tables.get(match['name'], match['old'])}{match[4]}", text)


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


def compared(run: dict[str, Any]) -> dict[str, Any]:
    """The result of the benchmark `peers`."""
    result: dict[str, Any] = run["results"][0]
    return result


def peers(run: dict[str, Any]) -> str:
    """The run's machine, load and conditions, and its speeds."""
    result, machine = compared(run), run["machine"]
    about = (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['kernel']}, "
        f"Python {run['versions']['python']}, nats-server {run['versions']['nats-server']}, "
        f"signalmesh {run['versions']['signalmesh']}. {' '.join(result['notes'][-2:])}"
    )
    picture = f"![Bars of these values, one for each system](assets/{PLOT.name})"
    return f"{about}\n\n{result['conditions']}\n\n{_columns(result['rows'], PEERS)}\n{picture}\n"


def peers_killed(run: dict[str, Any]) -> str:
    """What happened after the SIGKILL of a voter."""
    return _columns(compared(run)["rows"], KILLED)


def peers_lack(run: dict[str, Any]) -> str:
    """Versions, and what each does not do."""
    result = compared(run)
    rows = []
    for row in result["rows"]:
        raw = result["raw"].get(row["system"])
        if raw is None:
            rows.append((row["system"], "-", f"Not measured: {row['failed']}"))
        else:
            versions = ", ".join(f"{name} {version}" for name, version in raw["versions"].items())
            rows.append((row["system"], versions or f"signalmesh {run['versions']['signalmesh']}", raw["lacks"]))
    return _table(("system", "versions", "limits"), rows)


def _columns(rows: list[dict[str, Any]], names: tuple[str, ...]) -> str:
    measured = [row for row in rows if "p50, ms" in row]
    return _table(names, [tuple(format_number(row.get(name)) for name in names) for row in measured])


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


RUNS: dict[str, dict[str, Callable[[dict[str, Any]], str]]] = {
    "latest": {"goals": goals, "scale": scale},
    "peers": {"peers": peers, "peers_killed": peers_killed, "peers_lack": peers_lack},
}
"""Name of a run's results -> its tables on the page."""
