"""The results of a run: a table to print, the survivors as Markdown, everything as JSON."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from pathlib import Path

from tests.mutation.judge import Verdict

_writing = threading.Lock()


def table(verdicts: list[Verdict]) -> str:
    """One line a folder. A mutant that makes tests run into their limit of time counts as killed in the rate."""
    folders: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        folders[str(Path(verdict.mutant.path).parent)].append(verdict)
    lines = ["| module | mutants | killed | survived | timed out | rate |", "|---|---:|---:|---:|---:|---:|"]
    for name, rows in [*sorted(folders.items()), ("all", verdicts)]:
        killed, timed_out = (sum(row.outcome == outcome for row in rows) for outcome in ("killed", "timed out"))
        rate = (killed + timed_out) / len(rows) if rows else 0.0
        survived = len(rows) - killed - timed_out
        lines.append(f"| {name} | {len(rows)} | {killed} | {survived} | {timed_out} | {rate:.1%} |")
    return "\n".join(lines)


def write(file: Path, verdicts: list[Verdict], commit: str) -> None:
    with _writing:
        file.write_text(json.dumps([verdict.fields() for verdict in verdicts], indent=1))
        survivors = [verdict for verdict in verdicts if verdict.outcome in ("survived", "unchecked")]
        text = [f"# Mutants of {commit}", table(verdicts), "## Survivors", *map(_survivor, survivors)]
        file.with_suffix(".md").write_text("\n\n".join(text) + "\n")


def _survivor(verdict: Verdict) -> str:
    mutant = verdict.mutant
    tests = f"{verdict.tests} tests ran" if verdict.tests else "no quick test executes the line"
    left_out = f", {verdict.left_out} left out" if verdict.left_out else ""
    place = f"`{mutant.path}:{mutant.line}` {mutant.operator.partition('/')[2]}: {tests}{left_out}"
    pending = ", second stage to come" if verdict.outcome == "unchecked" else ""
    return f"{place}{pending}\n\n```diff\n- {mutant.before}\n+ {mutant.after}\n```"
