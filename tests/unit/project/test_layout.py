"""The shape of the repository: sizes, names, what a package's `__init__` and a tracked file may hold.

Which module may import which is checked by `make lint` ([tool.importlinter] in pyproject.toml).
"""

from __future__ import annotations

import ast
import importlib
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.repository import ROOT

PACKAGES = ("bus", "agents", "coordinator")
LONGEST_MODULE_LINES = 600
TESTS_OF_SEVERAL_MODULES = {
    "tests/integration/bus/nats/test_tls.py": "connection, credentials and addresses, against servers with TLS",
    "tests/unit/agents/runtime/test_divergence.py": "the runtime and its output log, where a replay differs",
    "tests/unit/coordinator/decisions/test_agent_order.py": "properties of the coordinator over any order of messages",
}
"""File -> what it tests. Every other test file has the name of a module."""
LONGER_MODULES: dict[str, int] = {}
"""Module -> its own limit. A concept that would be torn apart is better in one file; name it here."""
MOST_MODULES_IN_A_FOLDER = 15
INITS_WITH_IMPORTS = {
    "agents/__init__.py": "the public import path of Agent",
    "bus/messages/__init__.py": "the public import path of the payload types",
    "bus/nats/__init__.py": "defers an import of nats-py, before any module of the package imports nats-py",
}

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


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("package", PACKAGES)
def test_the_packages_imported_are_ours(package):
    """Another distribution may install one of these names as well (docs/adr/0001-top-level-packages.md)."""
    file = importlib.import_module(package).__file__
    assert file is not None
    assert Path(file).resolve() == ROOT / package / "__init__.py"


def test_no_module_is_longer_than_a_person_reads():
    paths = [*modules(), *sorted((ROOT / "tests").rglob("*.py"))]
    lengths = {named(path): len(path.read_text().splitlines()) for path in paths}
    limits = dict.fromkeys(lengths, LONGEST_MODULE_LINES) | LONGER_MODULES
    assert {name: lines for name, lines in lengths.items() if lines > limits[name]} == {}
    assert all(lengths.get(name, 0) > LONGEST_MODULE_LINES for name in LONGER_MODULES), (
        "an exception that is not needed"
    )


def test_no_folder_has_more_modules_than_a_person_looks_over():
    counts = Counter(named(path.parent) for path in modules() if path.name != "__init__.py")
    assert {folder: count for folder, count in counts.items() if count > MOST_MODULES_IN_A_FOLDER} == {}


def test_every_folder_says_in_one_line_what_is_in_it_and_each_package_has_the_map():
    wrong = []
    maps = dict.fromkeys(PACKAGES, "")
    for folder in sorted({path.parent for path in modules()}):
        init = folder / "__init__.py"
        docstring = ast.get_docstring(ast.parse(init.read_text())) if init.exists() else None
        if named(folder) in maps:
            maps[named(folder)] = docstring or ""
        elif not docstring or "\n" in docstring:
            wrong.append(named(init))
        elif not re.search(rf"^{folder.name}/ +{re.escape(docstring)}$", maps[folder.parent.name], re.MULTILINE):
            wrong.append(f"{named(folder.parent)}/__init__.py: no line {folder.name}/  {docstring}")
    assert wrong == []


def test_the_map_for_contributors_has_every_folder():
    listed = set(re.findall(r"^\| `([a-z_/]+)/` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE))
    folders = {named(path.parent) for path in modules()} - {"coordinator"}  # it holds folders only
    assert listed == folders


@pytest.mark.parametrize("document", ["AGENTS.md", "CONTRIBUTING.md", "NOTICE", "SECURITY.md"])
def test_every_path_that_a_document_names_is_there(document):
    paths = re.findall(
        r"(?:^|[`(])((?:agents|bus|coordinator|docs|tests)/[\w./-]+)", (ROOT / document).read_text(), re.MULTILINE
    )
    assert [path for path in paths if "COMMAND" not in path and not (ROOT / path).exists()] == []


def test_an_init_imports_nothing():
    """A command loads only what it uses, and no import order depends on a package's `__init__`."""
    importing = set()
    for path in modules():
        nodes = list(ast.walk(ast.parse(path.read_text()))) if path.name == "__init__.py" else []
        if any(
            isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and node.module != "__future__")
            for node in nodes
        ):
            importing.add(named(path))
    assert importing == set(INITS_WITH_IMPORTS)


def test_a_public_class_has_a_name_of_its_own():
    """Two of one name mislead a search."""
    defined: dict[str, set[str]] = {}
    for path in modules():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                defined.setdefault(node.name, set()).add(named(path))
    assert {name: found for name, found in defined.items() if len(found) > 1} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_type_checker_believes_the_annotations(package):
    assert (ROOT / package / "py.typed").exists()


def test_only_what_needs_a_websocket_installs_aiohttp():
    locked = {
        name: "\naiohttp==" in "\n" + (ROOT / f"requirements{name}.lock").read_text()
        for name in ("", "-dev", "-install", "-wss")
    }
    assert locked == {"": False, "-dev": True, "-install": False, "-wss": True}


def test_the_test_of_a_module_is_found_by_its_name():
    """tests/unit and tests/integration mirror the packages: test_X.py tests the module or folder X of the same path."""
    wrong = []
    for path in sorted(
        file for level in ("unit", "integration") for file in (ROOT / "tests" / level).rglob("test_*.py")
    ):
        inside = path.relative_to(ROOT / "tests").parts[1:]
        tested = ROOT.joinpath(*inside[:-1], path.stem.removeprefix("test_"))
        if inside[0] == "project" or named(path) in TESTS_OF_SEVERAL_MODULES:
            continue
        if not (tested.is_dir() or tested.with_suffix(".py").exists()):
            wrong.append(named(path))
    assert wrong == []
    assert all((ROOT / name).exists() for name in TESTS_OF_SEVERAL_MODULES), "an exception that is not needed"


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
