"""`python -m tests.mutation [--sample N] [--seed N] [MODULE ...]`: do the quick tests notice faults in the code?

Makes mutants of the modules in a copy of the checkout, one at a time, and runs the quick tests that execute the changed
line: first those of one process, then, for what they let pass, those that start processes. Writes
build/mutation/results.json and results.md. `--again` judges the survivors of the last run, after tests were added.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Literal

from tests.mutation.judge import Copy, Verdict, judge
from tests.mutation.mutants import MODULES, Mutant, sample
from tests.mutation.record import Record, record
from tests.mutation.report import table, write
from tests.support.repository import ROOT

BUILD = ROOT / "build" / "mutation"
RESULTS = BUILD / "results.json"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"files or folders; default: {' '.join(MODULES)}")
    parser.add_argument("--sample", type=int, default=300, metavar="N", help="how many mutants (default: 300)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the random choice (default: 1)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="mutants at a time (default: 1)")
    parser.add_argument("--again", action="store_true", help="judge the survivors of the last run again")
    options = parser.parse_args()
    if options.sample < 1 or options.workers < 1:
        parser.error("--sample and --workers are 1 or more")
    modules = tuple(name.rstrip("/") for name in options.modules) or MODULES
    for name in modules:
        if not name.startswith(MODULES) or not (ROOT / name).exists():
            parser.error(f"{name}: expected a file or folder in {', '.join(MODULES)}")
    if options.again and not RESULTS.exists():
        parser.error("--again: no run is recorded in build/mutation/results.json; run without it first")
    os.nice(19)
    verdicts = _last() if options.again else []
    copies = [Copy(ROOT, BUILD / f"tree-{number}") for number in range(options.workers)]
    if not options.again:
        print(f"choosing {options.sample} mutants with seed {options.seed}", flush=True)
        verdicts = [Verdict(mutant) for mutant in sample(copies[0].tree, options.sample, options.seed, modules)]
    found = record(copies[0].tree, BUILD / "record.json")
    _judge(copies, [verdict for verdict in verdicts if verdict.outcome == "unchecked"], verdicts, found)
    print(table(verdicts))
    print(f"survivors and what each mutant changed: {RESULTS.with_suffix('.md').relative_to(ROOT)}")


def _last() -> list[Verdict]:
    """The last run, its survivors yet to be judged.

    Raises:
        SystemExit: a survivor's line is not what it was.
    """
    verdicts = []
    names = [field.name for field in fields(Mutant)]
    for row in json.loads(RESULTS.read_text()):
        mutant = Mutant(**{name: row.pop(name) for name in names})
        verdict = Verdict(mutant, **row)
        if verdict.outcome in ("survived", "unchecked"):
            lines = (ROOT / mutant.path).read_text().splitlines()
            if len(lines) < mutant.line or lines[mutant.line - 1].strip() != mutant.before:
                raise SystemExit(f"{mutant.path}:{mutant.line} has changed since the last run; run without --again")
            verdict = Verdict(mutant)
        verdicts.append(verdict)
    return verdicts


def _judge(copies: list[Copy], todo: list[Verdict], verdicts: list[Verdict], found: Record) -> None:
    """All mutants by the tests of the first stage, then those that it let pass by those of the second."""
    free: queue.Queue[Copy] = queue.Queue()
    for copy in copies:
        free.put(copy)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    started_at = time.monotonic()

    def judge_one(number: int, verdict: Verdict, stage: Literal[1, 2]) -> None:
        copy = free.get()
        try:
            judge(copy, verdict, found, stage)
        finally:
            free.put(copy)
        write(RESULTS, verdicts, commit.stdout.strip())
        seconds = time.monotonic() - started_at
        print(f"{seconds:6.0f} s  {stage}.{number:<4} {verdict.outcome:<9}  {verdict.mutant.title}", flush=True)

    stages: tuple[Literal[1, 2], ...] = (1, 2)
    for stage in stages:
        pending = [verdict for verdict in todo if verdict.outcome == "unchecked"]
        with ThreadPoolExecutor(len(copies)) as pool:
            list(pool.map(judge_one, range(1, len(pending) + 1), pending, [stage] * len(pending)))


if __name__ == "__main__":
    main()
