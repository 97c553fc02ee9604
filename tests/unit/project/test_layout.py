"""The shape of the repository: which package may import which, whose packages they are, what no file may hold."""

from __future__ import annotations

import ast
import importlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.repository import ROOT

PACKAGES = ("bus", "agents", "coordinator")
"""Each may import those to its left, and itself."""
TRADING_LIBRARIES = frozenset({"talib", "vaderSentiment", "numpy", "ccxt"})
LONGEST_MODULE_LINES = 600

# The names are put together here, so that this file does not hold what it looks for.
REGISTRY_HOSTS = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("crates", "io"),
        ("proxy", "golang", "org"),
        ("registry", "npmjs", "org"),
        ("maven", "org"),
        ("maven", "apache", "org"),
        ("deb", "debian", "org"),
    )
)
FORBIDDEN = {
    "a package registry's host": re.compile("|".join(map(re.escape, REGISTRY_HOSTS))),
    "a package registry's address": re.compile(r"https?://[^/ ]+/(simple|packages/[0-9a-f]{2})/"),
    "a path of one machine": re.compile(r"(^|[^A-Za-z0-9_.])/(work|farm|root|tmp)/"),
    "a directory that users do not have": re.compile(r"\.\./shar[e]d|shar[e]d/(notes|DESIGN|docker|data)"),
    "a credential": re.compile(r"(e2b|sk_e2b|sk)_[0-9a-f]{24,}"),
}


def modules() -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every module that a file imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import; write it in full"
            yield node.lineno, node.module or ""


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_imports_go_one_way():
    wrong = []
    for path in modules():
        package = path.relative_to(ROOT).parts[0]
        allowed = PACKAGES[: PACKAGES.index(package) + 1]
        wrong += [
            f"{named(path)}:{line}: {package} may not import {name}"
            for line, name in imported(path)
            if (top := name.partition(".")[0]) in PACKAGES and top not in allowed
        ]
    assert wrong == []


def test_packages_import_no_tests_benchmarks_or_examples():
    wrong = [
        f"{named(path)}:{line}: {name}"
        for path in modules()
        for line, name in imported(path)
        if name.partition(".")[0] in ("tests", "benchmarks", "examples")
    ]
    assert wrong == []


def test_the_bus_knows_no_trading_library():
    wrong = [
        f"{named(path)}:{line}: {name}"
        for path in sorted((ROOT / "bus").rglob("*.py"))
        for line, name in imported(path)
        if name.partition(".")[0] in TRADING_LIBRARIES
    ]
    assert wrong == []


@pytest.mark.parametrize("package", PACKAGES)
def test_the_packages_imported_are_ours(package):
    """Another distribution may install one of these names as well (docs/adr/0001-top-level-packages.md)."""
    file = importlib.import_module(package).__file__
    assert file is not None
    assert Path(file).resolve() == ROOT / package / "__init__.py"


def test_no_module_is_longer_than_a_person_reads():
    lengths = {named(path): len(path.read_text().splitlines()) for path in modules()}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_MODULE_LINES} == {}


def test_only_what_needs_a_websocket_installs_aiohttp():
    """nats-py imports it wherever it is installed: 0.2 s of a processor and 8 MB in every process."""
    locked = {
        name: "\naiohttp==" in "\n" + (ROOT / f"requirements{name}.lock").read_text()
        for name in ("", "-dev", "-install", "-wss")
    }
    assert locked == {"": False, "-dev": True, "-install": False, "-wss": True}


def tracked_files() -> list[Path]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name]


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_tracked_file_holds(what):
    found = []
    for path in tracked_files():
        if not path.is_file():  # removed, but not yet from the index
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [
            f"{named(path)}:{number}: {line.strip()[:100]}"
            for number, line in enumerate(text.splitlines(), 1)
            if FORBIDDEN[what].search(line)
        ]
    assert found == []


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("a package registry's host", "see https://" + REGISTRY_HOSTS[0]),
        ("a path of one machine", "cd /wo" + "rk/main"),
        ("a directory that users do not have", "see .." + "/shared"),
        ("a credential", "e2b_" + "0" * 30),
    ],
)
def test_the_patterns_find_what_they_are_for(what, line):
    assert FORBIDDEN[what].search(line)
