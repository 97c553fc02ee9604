"""configuration.md: every table and key of swarm.toml, and the options of every agent kind."""

from __future__ import annotations

import dataclasses
from typing import Any

from agents.builtin import KINDS
from agents.builtin.command import CommandAgent
from agents.spec import AgentSpec, load_class
from coordinator.config.e2b import E2bSettings
from coordinator.config.loader import DEFAULT_AGENTS, DEFAULT_SANDBOXES, TopLevel
from coordinator.config.secrets import SecretSettings, SecretSource
from coordinator.config.settings import (
    AlertSettings,
    CoordinatorSettings,
    DashboardSettings,
    MetricsSettings,
    MirrorSettings,
    NatsSettings,
    StreamSettings,
    WatchdogSettings,
)
from coordinator.config.tables import ALL_KINDS, PROVIDERS, AgentTable, SandboxTable
from docs.generate.markdown import code, page, table
from docs.generate.source import docs_of
from docs.generate.types import default_of, hints_of, limits_text, type_text

SETTINGS: dict[str, type] = {
    "coordinator": CoordinatorSettings,
    "stream": StreamSettings,
    "watchdog": WatchdogSettings,
    "mirror": MirrorSettings,
    "metrics": MetricsSettings,
    "alerts": AlertSettings,
    "dashboard": DashboardSettings,
    "nats": NatsSettings,
}
SENTENCES = {
    "coordinator": "How votes become decisions. [Rounds and decisions](../concepts/decisions.md) has the formulas.",
    "stream": "What the stream keeps. [Delivery guarantees](../concepts/guarantees.md) has the costs of `durability`.",
    "watchdog": "[Failure detection and recovery](../concepts/recovery.md) explains the sequence.",
    "mirror": "See [SQLite mirror and restore](../deploy/mirror.md).",
    "metrics": "See [Metrics](../ops/metrics.md).",
    "alerts": "See [Logs and alerts](../ops/alerts.md).",
    "dashboard": "See [Dashboard](../ops/dashboard.md).",
    "nats": "See [Security](../security.md).",
}
CHOICES: dict[tuple[type, str], tuple[str, ...]] = {
    (SandboxTable, "provider"): PROVIDERS,
    (AgentTable, "kind"): tuple(ALL_KINDS),
}
TOML_WORDS = {
    "object of string": "table of strings",
    "object of any": "table",
    "object of list of string": "table of lists",
}


def text() -> str:
    """The page."""
    parts = [
        "`swarm.toml` in the working directory, or the file of `--config`. Without a file the default swarm runs. "
        "A mistake is reported by file and key.",
        "## Top level",
        _keys(TopLevel, skip=frozenset(SETTINGS) | {"agents", "sandboxes", "secrets"}),
        "## `[sandboxes.NAME]`",
        f"By default {_list(DEFAULT_SANDBOXES)}. A table `[sandboxes]` replaces them.",
        _keys(SandboxTable),
        '## `[sandboxes.NAME]` with `provider = "e2b"`',
        "See [E2B sandboxes](../deploy/e2b.md).",
        _keys(E2bSettings),
        "## `[agents.NAME]`",
        f"By default {_list(DEFAULT_AGENTS)}. A table `[agents]` replaces them. Each agent has exactly one of `kind`, "
        "`class`, `command` and `external = true`.",
        _keys(AgentTable),
    ]
    for kind, options in sorted(options_of_kinds().items()):
        parts += [f"### Options of `{kind}`", _keys(options) or "It has none."]
    parts += [
        "## `[secrets.NAME]`",
        "Where a secret comes from. [Secrets](../deploy/secrets.md) has an example of each way.",
        _names(SecretSettings),
        "Each table has exactly one of `file`, `env`, `stdin` and `command`.",
        _keys(SecretSource),
    ]
    for name, cls in SETTINGS.items():
        parts += [f"## `[{name}]`", SENTENCES[name], _keys(cls)]
    return page("swarm.toml", *parts)


def options_of_kinds() -> dict[str, type]:
    """Agent kind -> its Options; `command` is that of agents with a command."""
    classes: dict[str, Any] = {
        kind: load_class(AgentSpec(name=kind, kind=kind, class_path=path)) for kind, path in KINDS.items()
    }
    return {kind: cls.Options for kind, cls in classes.items()} | {"command": CommandAgent.Options}


def _names(cls: Any) -> str:
    docs = docs_of(cls)
    return table(("name", "meaning"), [(code(field.name), docs[field.name]) for field in dataclasses.fields(cls)])


def _list(names: Any) -> str:
    *most, last = (code(name) for name in names)
    return f"{', '.join(most)} and {last}"


def _keys(cls: Any, skip: frozenset[str] = frozenset()) -> str:
    hints, docs = hints_of(cls), docs_of(cls)
    rows = []
    for field in dataclasses.fields(cls):
        if field.name in skip:
            continue
        meaning = docs.get(field.name)
        if meaning is None:
            raise LookupError(f"{cls.__qualname__}.{field.name} has no docstring below it")
        choices = CHOICES.get((cls, field.name))
        kind = (
            ", ".join(code(f'"{name}"') for name in choices)
            if choices
            else type_text(hints[field.name], nullable=False)
        )
        hint = hints[field.name]
        type_name = TOML_WORDS.get(kind, kind)
        rows.append((code(field.name.rstrip("_")), type_name, _toml(default_of(field)), limits_text(hint), meaning))
    return table(("key", "type", "default", "limits", "meaning"), rows) if rows else ""


def _toml(value: Any) -> str:
    """A default as TOML writes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return code(str(value).lower())
    if isinstance(value, str):
        return code(f'"{value}"')
    if isinstance(value, dict):
        return code("{}")
    return code("[]") if isinstance(value, tuple) else code(str(value))
