"""README.md and the pages of docs/: their programs run, their configurations load, their commands and links exist."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
import typing
from typing import Any

import orjson
import pytest
import typer

from agents.spec import load_class
from benchmarks import page, plot
from coordinator.cli.app import app
from coordinator.config import loader
from tests.support.repository import ROOT

PAGES = {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for path in sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
}
COMMANDS: dict[str, Any] = typing.cast(Any, typer.main.get_command(app)).commands
GLOBAL_OPTIONS = {option for item in typer.main.get_command(app).params for option in item.opts}
LONGEST_README_LINES = 200
NO_FILES = ("http://", "https://", "mailto:")


def blocks(language: str) -> list[Any]:
    """Each fenced block of `language`, as a parameter named after its page and first line."""
    return [
        pytest.param(name, block, id=f"{name}: {block.partition(chr(10))[0]}")
        for name, text in PAGES.items()
        for block in re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    ]


def headings(text: str) -> set[str]:
    """The anchors of a page: its headings as GitHub and the site write them."""
    without_code = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", without_code, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def commands() -> list[Any]:
    """Each `signalmesh ...` line of a shell block."""
    return [
        pytest.param(shlex.split(match[1], comments=True), id=f"{name}: {match[1]}")
        for name, text in PAGES.items()
        for block in re.findall(r"^ *```shell\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
        if (match := re.match(r"(?:[\w ./:=-]*\s)?signalmesh (.+)", line.strip()))
    ]


def test_the_benchmarks_are_those_of_the_committed_run():
    runs = page.runs_in(ROOT / "benchmarks/results")
    text = PAGES["docs/benchmarks.md"]
    assert page.with_results(text, runs) == text
    assert text.count("<!-- results: ") == text.count("<!-- end of results -->") == 5
    assert all(f"| {result['title']} |" in text for result in runs["latest"]["results"] if result["goal"])


def test_the_plot_of_the_peers_is_that_of_the_committed_run():
    runs = page.runs_in(ROOT / "benchmarks/results")
    assert ("peers" in runs) == page.PLOT.exists()
    if "peers" in runs:
        assert page.PLOT.read_text() == plot.svg(page.compared(runs["peers"])["rows"])


def test_every_command_is_in_a_table_of_commands():
    listed = re.findall(r"^\| `(signalmesh [^`]+)` \|", PAGES["docs/ops/commands.md"], re.MULTILINE)
    usages = []
    for verb, command in COMMANDS.items():
        arguments = [item for item in command.params if item.param_type_name == "argument"]
        displayed_as = [name if item.required else f"[{name}]" for item in arguments if (name := item.name.upper())]
        usages.append(" ".join(["signalmesh", verb, *displayed_as]))
    assert sorted(listed) == sorted(usages)


@pytest.mark.parametrize("words", commands())
def test_a_command_and_its_options_exist(words):
    while words[0] in GLOBAL_OPTIONS:
        words = words[2:]
    verb = words[0]
    assert verb in COMMANDS
    options = {option for item in COMMANDS[verb].params for option in item.opts} | GLOBAL_OPTIONS
    assert {word for word in words[1:] if word.startswith("--")} <= options


def test_the_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= LONGEST_README_LINES


@pytest.mark.parametrize(("name", "text"), blocks("toml"))
def test_a_configuration_loads(name, text):
    loader.parse_swarm(tomllib.loads(text), name, "")


@pytest.mark.parametrize(("name", "text"), blocks("json"))
def test_json_is_valid(name, text):
    orjson.loads(text)


@pytest.mark.parametrize(("name", "text"), blocks("python"))
def test_a_program_compiles(name, text):
    compile(text, name, "exec")


@pytest.mark.parametrize(
    ("name", "modules", "agents"),
    [
        ("README.md", {"my_agents.py"}, {"breakout"}),
        ("docs/guides/agents.md", {"my_agents.py", "my_sources.py"}, {"breakout", "silence", "news"}),
    ],
)
def test_the_agents_are_proper_ones(name, modules, agents, tmp_path, monkeypatch):
    """They are written to the files that they name, and loaded as `up` would."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    programs = [item.values[1] for item in blocks("python") if item.values[0] == name]
    named = {match[1]: text for text in programs if (match := re.match(r"# (\w+\.py)\n", text))}
    assert set(named) == modules
    for module, text in named.items():
        (tmp_path / module).write_text(text)
    [whole] = [text for page_name, text in (item.values for item in blocks("toml")) if page_name == name]
    (tmp_path / "swarm.toml").write_text(whole)
    resolved = loader.load_swarm(directory=tmp_path).resolve()
    own = {item.spec.name for item in resolved.agents if item.spec.class_path.startswith("my_")}
    assert own == agents
    for item in resolved.agents:
        if item.spec.name in own:
            load_class(item.spec)(item.spec.name, item.spec.options)
    for module in modules:
        del sys.modules[module.removesuffix(".py")]  # not by monkeypatch, which would put them back


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    directory = (ROOT / name).parent
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", PAGES[name]):
        if target.startswith(NO_FILES):
            continue
        path = (directory / target).resolve() if target else ROOT / name
        assert path.exists(), target
        if anchor and path.suffix == ".md":
            assert anchor in headings(path.read_text("utf-8")), f"{target}#{anchor}"
