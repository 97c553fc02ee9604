"""Which quick test executes which line, and how long it takes: from one run of the quick tests under coverage."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import coverage
import pytest

from tests.mutation.contexts import CHILD, CONTEXT_VARIABLE, DIRECTORY_VARIABLE
from tests.mutation.mutants import MODULES

QUICK = "not slow and not docker and not matrix and not e2b"
TESTS = ("tests/unit/agents", "tests/unit/bus", "tests/unit/coordinator", "tests/integration", "tests/acceptance")
SOURCES = ("agents", "bus", "coordinator", "signalmesh.py")


class Record:
    """What each test executes.

    Attributes:
        seconds: test -> how long it took.
        own: file -> line -> tests that execute it in their own process.
        child: file -> line -> tests that execute it in processes that they start.
    """

    def __init__(self) -> None:
        self.hashes: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.own: dict[str, dict[int, set[str]]] = {}
        self.child: dict[str, dict[int, set[str]]] = {}

    def tests(self, path: str, lines: set[int]) -> tuple[list[str], list[str]]:
        """The tests of any of these lines: those that execute one in their own process, then those that start others.

        The tests of the module's own test file come first, then those of its folder; the quickest first in each.
        """
        own = {test for number in lines for test in self.own.get(path, {}).get(number, ())}
        child = {test for number in lines for test in self.child.get(path, {}).get(number, ())} - own
        if not own and not child:  # no functions; or its process could not write what it executed
            name = f"test_{Path(path).name}::" if lines else ""
            own = {test for test in self.seconds if test.startswith(f"tests/unit/{Path(path).parent}/{name}")}
        return sorted(own, key=self._order(path)), sorted(child, key=self._order(path))

    def _order(self, path: str):
        folder, name = Path(path).parent, f"test_{Path(path).name}"
        own, beside = f"tests/unit/{folder}/{name}::", f"tests/unit/{folder}/"
        return lambda test: (not test.startswith(own), not test.startswith(beside), self.seconds[test], test)


def record(tree: Path, file: Path) -> Record:
    """Read the record in `file`, and run again what changed since: all tests, or the changed files of tests."""
    known = _load(file)
    hashes = {"sources": _hash(path for name in SOURCES for path in _python(tree / name))}
    files = sorted({path for name in TESTS for path in _python(tree / name) if path.name.startswith("test_")})
    hashes |= {str(path.relative_to(tree)): _hash([path]) for path in files}
    if known.hashes == hashes:
        return known
    if known.hashes.get("sources") != hashes["sources"]:
        known = Record()
    changed = [name for name in hashes if name != "sources" and known.hashes.get(name) != hashes[name]]
    stale = {test for test in known.seconds if (name := test.partition("::")[0]) in changed or name not in hashes}
    print(f"running the quick tests of {len(changed)} files under coverage", flush=True)
    data = file.parent / "coverage"
    _run(tree, data, changed)
    _forget(known, stale)
    _merge(known, tree, data)
    known.hashes = hashes
    file.write_text(json.dumps(vars(known), default=sorted))
    return known


def _load(file: Path) -> Record:
    found = Record()
    if file.exists():
        fields = json.loads(file.read_text())
        found.hashes, found.seconds = fields["hashes"], fields["seconds"]
        for name in ("own", "child"):
            lines = {path: {int(line): set(tests) for line, tests in at.items()} for path, at in fields[name].items()}
            setattr(found, name, lines)
    return found


def _python(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def _hash(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _run(tree: Path, data: Path, files: list[str]) -> None:
    shutil.rmtree(data, ignore_errors=True)
    site = data / "site"
    site.mkdir(parents=True)
    (site / "sitecustomize.py").write_text("import coverage\n\ncoverage.process_startup()\n")
    sources = "".join(f"\n    {tree / name}" for name in MODULES)
    (data / "coverage.ini").write_text(
        f"[run]\ndata_file = {data}/data\nparallel = true\ncontext = ${{{CONTEXT_VARIABLE}-}}\npatch = _exit, fork\n"
        "disable_warnings = no-data-collected, module-not-imported, module-not-measured, already-imported\n"
        f"source = {sources}\n"
    )
    environment = {**os.environ, DIRECTORY_VARIABLE: str(data), "PYTHONPATH": f"{tree}:{site}"}
    plugin = ["-p", "tests.mutation.contexts", "-n", "2", "--dist", "worksteal", "-q", "-m", QUICK]
    command = [sys.executable, "-m", "pytest", *plugin, *files]
    code = subprocess.run(command, cwd=tree, env=environment, check=False).returncode
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):  # a test that fails judges no mutant
        raise SystemExit(f"the quick tests did not run to their end (pytest ended with {code}); try again")


def _forget(known: Record, stale: set[str]) -> None:
    known.seconds = {test: seconds for test, seconds in known.seconds.items() if test not in stale}
    for table in (known.own, known.child):
        for at in table.values():
            for line, tests in at.items():
                at[line] = tests - stale


def _merge(known: Record, tree: Path, data: Path) -> None:
    for part in data.glob("tests-*.json"):
        known.seconds |= json.loads(part.read_text())
    combined = coverage.Coverage(data_file=data / "data", config_file=data / "coverage.ini")
    combined.combine()
    measured = combined.get_data()
    for path in measured.measured_files():
        name = str(Path(path).relative_to(tree))
        for line, contexts in measured.contexts_by_lineno(path).items():
            for context in contexts:
                table, test = (known.child, context.removeprefix(CHILD)) if CHILD in context else (known.own, context)
                if test in known.seconds:
                    table.setdefault(name, {}).setdefault(line, set()).add(test)
