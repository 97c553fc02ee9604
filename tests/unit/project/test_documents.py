"""README.md tells the truth: its tables are the code's settings, its programs run, its configurations load."""

from __future__ import annotations

import dataclasses
import importlib
import re
import sys
import tomllib
import typing
from typing import Any

import orjson
import pytest
import typer

from agents.builtin.command import CommandAgent
from agents.spec import load_class
from benchmarks import readme
from bus.messages import KINDS
from coordinator.cli.app import app
from coordinator.config import e2b, loader, settings, tables
from tests.support.repository import ROOT

README = (ROOT / "README.md").read_text()
COMMANDS: dict[str, Any] = typing.cast(Any, typer.main.get_command(app)).commands
FENCES = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def blocks(language: str) -> list[str]:
    return [text for name, text in FENCES if name == language]


def table(heading: str) -> list[list[str]]:
    """The cells of the first table below `heading`, without its head."""
    section = README[README.index(f"\n{heading}\n") :]
    rows = re.search(r"((?:^\|.*\n)+)", section, re.MULTILINE)
    assert rows is not None
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in rows[1].splitlines()[2:]]


def options_of(kind: str) -> type:
    if kind == "command":
        return CommandAgent.Options
    module, _, name = tables.ALL_KINDS[kind].partition(":")
    return typing.cast(type, getattr(importlib.import_module(module), name).Options)


def test_the_figures_are_those_of_the_committed_run():
    run = orjson.loads((ROOT / "benchmarks/results/latest.json").read_bytes())
    assert readme.with_figures(README, run) == README
    assert README.count("<!-- figures: ") == README.count("<!-- end of figures -->") == 2
    assert all(f"| {result['title']} |" in README for result in run["results"] if result["goal"])


def shown(value: Any) -> str:
    """A default as the README writes it: TOML, and `none` for what has none."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return f"`{value}`"


def defaults_of(cls: Any, leave_out: tuple[str, ...] = ()) -> list[list[str]]:
    rows = []
    for field in dataclasses.fields(cls):
        made = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        if field.name not in leave_out:
            rows.append([f"`{field.name.rstrip('_')}`", shown(made)])
    return rows


TABLES = [
    (
        "### Top level",
        loader._TopLevel,
        ("sandboxes", "agents", "coordinator", "stream", "watchdog", "mirror", "metrics", "alerts"),
    ),
    ("### `[sandboxes.NAME]`", tables._SandboxTable, ()),
    ('### `[sandboxes.NAME]` with `provider = "e2b"`', e2b.E2bSettings, ()),
    ("### `[agents.NAME]`", tables.AgentTable, ()),
    ("### `[coordinator]`", settings.CoordinatorSettings, ()),
    ("### `[stream]`", settings.StreamSettings, ()),
    ("### `[watchdog]`", settings.WatchdogSettings, ()),
    ("### `[mirror]`", settings.MirrorSettings, ()),
    ("### `[metrics]`", settings.MetricsSettings, ()),
    ("### `[alerts]`", settings.AlertSettings, ()),
    *((f"### Options of `{kind}`", options_of(kind), ()) for kind in (*tables.ALL_KINDS, "command")),
]


@pytest.mark.parametrize(
    ("heading", "cls", "leave_out"),
    [item for item in TABLES if dataclasses.fields(item[1])],
    ids=lambda value: value.strip("#` ") if isinstance(value, str) else "",
)
def test_a_table_of_settings_is_the_dataclass(heading, cls, leave_out):
    assert [row[:2] for row in table(heading)] == defaults_of(cls, leave_out)


def test_every_option_is_in_the_table_with_its_commands_default_and_variable():
    listed = {row[0].strip("`"): row for row in table("### Command line and environment")}
    found: dict[str, list[str]] = {}
    for command_name, command in COMMANDS.items():
        for parameter in command.params:
            if parameter.param_type_name != "option":
                continue
            name = parameter.opts[0]
            found.setdefault(name, []).append(command_name)
            assert name in listed, f"{command_name} {name} is not in the README"
            default, variable = listed[name][2], listed[name][3]
            assert default == ("none" if parameter.default is None else f"`{parameter.default}`"), (
                f"{command_name} {name}"
            )
            assert variable == (f"`{parameter.envvar}`" if parameter.envvar else ""), f"{command_name} {name}"
    assert {name: row[1].split(", ") for name, row in listed.items()} == found


def test_every_command_is_in_the_table_of_commands():
    listed = [row[0].strip("`") for row in table("## Verbs")]
    usages = []
    for command_name, command in COMMANDS.items():
        arguments = [item for item in command.params if item.param_type_name == "argument"]
        shown_as = [name if item.required else f"[{name}]" for item in arguments if (name := item.name.upper())]
        usages.append(" ".join(["signalmesh", command_name, *shown_as]))
    assert listed == usages


def test_every_kind_of_message_is_in_the_table_of_subjects():
    rows = table("## Subjects, payloads, headers, buckets")
    listed = {}
    for subject, required, optional, _ in rows:
        listed[subject.strip("`").split(".")[1]] = (required.split(", "), optional.split(", ") if optional else [])
    expected: dict[str, tuple[list[str], list[str]]] = {}
    for kind, cls in KINDS.items():
        fields = dataclasses.fields(cls)
        with_default = [
            field.name
            for field in fields
            if field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        ]
        expected[kind] = ([field.name for field in fields if field.name not in with_default], with_default)
    assert listed == expected


@pytest.mark.parametrize("text", blocks("toml"), ids=lambda text: text.split("\n")[0])
def test_a_configuration_loads(text):
    loader.parse(tomllib.loads(text), "README.md", "")


@pytest.mark.parametrize("text", blocks("python"), ids=lambda text: text.split("\n")[0])
def test_a_program_compiles(text):
    compile(text, "README.md", "exec")


def test_the_agents_are_proper_ones(tmp_path, monkeypatch):
    """They are written to the files that they name, and loaded as `up` would."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    named = {match[1]: text for text in blocks("python") if (match := re.match(r"# (\w+\.py)\n", text))}
    assert set(named) == {"my_agents.py", "my_sources.py"}
    for name, text in named.items():
        (tmp_path / name).write_text(text)
    [whole] = [text for text in blocks("toml") if "max_agents" in text]
    (tmp_path / "swarm.toml").write_text(whole)
    resolved, classes = loader.resolve(loader.load(None, tmp_path))
    own = {item.spec.name for item in resolved.agents if item.spec.class_path.startswith("my_")}
    assert own == {"breakout", "silence", "news"}
    for item in resolved.agents:
        if item.spec.name in own:
            assert load_class(item.spec) is classes[item.spec.name]
            classes[item.spec.name](item.spec.name, item.spec.options)
    for module in ("my_agents", "my_sources"):
        del sys.modules[module]  # not by monkeypatch, which would put them back


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", README):
        if not target.startswith("https://"):
            assert (ROOT / target).exists(), target
    titles = [line.strip("# ").lower() for line in README.splitlines() if line.startswith("##")]
    headings = {re.sub(r"[^\w -]", "", title).replace(" ", "-") for title in titles}
    for anchor in re.findall(r"\]\(#([^)]+)\)", README):
        assert anchor in headings
