"""Whether a test fails with a mutant: pytest in a copy of the checkout that holds the mutant."""

from __future__ import annotations

import ast
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Literal

import psutil
import pytest

from tests.mutation.mutants import Mutant, mutate
from tests.mutation.record import QUICK, Record

FIRST_S = 4.0
"""How long the tests of the first stage take without a mutant, at most."""
SECOND_S = 30.0
"""And those of the second."""
TEST_LIMIT_S = {1: 60, 2: 120}
"""One test that takes longer has found the mutant, also on a busy machine."""
CPU_LIMIT_S = 20
"""Plus five times what the tests take: more processor time is an endless loop."""
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+::.+?)(?: - .*)?$", re.MULTILINE)

Outcome = Literal["killed", "timed out", "survived", "unchecked"]


@dataclass
class Verdict:
    """`left_out`: tests that execute the line and that no stage had time for; `unchecked`: the second is to come."""

    mutant: Mutant
    outcome: Outcome = "unchecked"
    killer: str = ""
    tests: int = 0
    left_out: int = 0

    def fields(self) -> dict[str, object]:
        return {**asdict(self.mutant), **{name: value for name, value in vars(self).items() if name != "mutant"}}


class Copy:
    """A copy of the files that git knows or would add, in which a mutant harms nobody."""

    _times = count(1_000_000_000)

    def __init__(self, checkout: Path, tree: Path) -> None:
        self.tree = tree
        shutil.rmtree(tree, ignore_errors=True)
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.run(listed, cwd=checkout, check=True, capture_output=True, text=True).stdout.split("\0"):
            if name and (checkout / name).is_file():
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(checkout / name, tree / name)

    def write(self, path: str, source: str) -> None:
        (self.tree / path).write_text(source)
        stamp = next(self._times)  # byte code is taken for that of a source of the same size and second
        os.utime(self.tree / path, (stamp, stamp))


def judge(copy: Copy, verdict: Verdict, record: Record, stage: Literal[1, 2]) -> None:
    """Run the tests of `stage` on the mutant.

    Stage 1 has the quickest tests that run the line in their own process, stage 2 all the others.
    """
    mutant = verdict.mutant
    source = (copy.tree / mutant.path).read_text()
    own, child = record.tests(mutant.path, _lines_that_show(mutant, source))
    first = list(_within(own, record, FIRST_S))
    rest = sorted(set(own + child) - set(first), key=lambda test: record.seconds[test])
    second = list(_within(rest, record, SECOND_S))
    tests, other = (first, rest) if stage == 1 else (second, [])
    verdict.left_out = len(rest) - len(second)
    verdict.tests += len(tests)
    while tests:
        copy.write(mutant.path, mutate(source, mutant.operator, mutant.occurrence))
        try:
            outcome, killer = _run(copy.tree, tests, record, stage)
        finally:
            copy.write(mutant.path, source)
        if outcome == "survived":
            break
        if stage == 1 or killer not in tests or _run(copy.tree, [killer], record, stage)[0] == "survived":
            verdict.outcome, verdict.killer = outcome, killer
            return
        tests.remove(killer)  # it fails without the mutant as well, as a test of processes may on a busy machine
    verdict.outcome = "unchecked" if other else "survived"


def _within(tests: list[str], record: Record, budget_s: float) -> Iterator[str]:
    for test in tests:
        if record.seconds[test] <= budget_s:
            budget_s -= record.seconds[test]
            yield test


def _lines_that_show(mutant: Mutant, source: str) -> set[int]:
    """The lines of the mutant's statement; of all functions if it runs at import only, or is a decorator."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {line for node in functions for line in range(node.body[0].lineno, (node.end_lineno or 0) + 1)}
    if mutant.line not in inside or mutant.operator == "core/RemoveDecorator":
        return inside
    own = [range(node.lineno, _end_of_head(node) + 1) for node in nodes]
    return set(max((lines for lines in own if mutant.line in lines), key=min, default=())) | {mutant.line}


def _end_of_head(node: ast.stmt) -> int:
    body: list[ast.stmt] = getattr(node, "body", [])
    return body[0].lineno - 1 if body else node.end_lineno or node.lineno


def _run(tree: Path, tests: list[str], record: Record, stage: Literal[1, 2]) -> tuple[Outcome, str]:
    expected_s = sum(record.seconds[test] for test in tests)
    limit_s = TEST_LIMIT_S[stage]
    options = [
        "-p",
        "tests.mutation.ending",
        "-q",
        "-x",
        "--tb=no",
        "-rfE",
        "--no-header",
        "-m",
        QUICK,
        f"--timeout={limit_s}",
    ]
    command = [sys.executable, "-m", "pytest", *options, *tests]
    environment = {**os.environ, "PYTHONPATH": str(tree), "COLUMNS": "1000"}
    process = subprocess.Popen(
        command, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    resource.prlimit(process.pid, resource.RLIMIT_CPU, (int(CPU_LIMIT_S + 5 * expected_s),) * 2)
    try:
        output = process.communicate(timeout=2 * limit_s + 5 * expected_s)[0].decode(errors="replace")
    except subprocess.TimeoutExpired:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.communicate()
        return "timed out", ""
    if process.returncode == 0:
        return "survived", ""
    if process.returncode < 0:
        return "timed out", ""
    if process.returncode == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise RuntimeError(f"no test was run; remove the record. Tests: {tests[:3]}; output:\n{output}")
    found = FAILED.search(output)
    return "killed", found[1] if found else output.strip().splitlines()[-1][:200]
