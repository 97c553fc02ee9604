"""A swarm.toml as text: of the file that is there, and the changes that were made at run time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from coordinator.config.changes import Changes, apply_changes
from coordinator.config.loader import DEFAULT_AGENTS, DEFAULT_SANDBOXES
from coordinator.config.settings import SwarmConfig

__all__ = ["changed_toml", "to_toml", "toml_value"]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def changed_toml(raw: Mapping[str, Any], config: SwarmConfig, changes: Changes) -> str:
    """A swarm.toml that gives the swarm of `config` with `changes`; `raw` is the file that gives `config`.

    Every agent has its sandbox in it: where those without one are placed depends on how many there are.

    Raises:
        ConfigError: the changes do not fit.
    """
    swarm = apply_changes(config, changes)
    tables = {**(raw.get("agents") or DEFAULT_AGENTS), **{name: item.table for name, item in changes.agents.items()}}
    agents = {}
    for item in swarm.agents:
        name = item.spec.name
        if name in tables:  # not those that `up --agents` adds
            agents[name] = tables[name] if item.external else {**tables[name], "sandbox": item.spec.sandbox}
    top = {**raw, "agents": agents}
    if changes.sandboxes or changes.removed_sandboxes:
        sandboxes = {**(raw.get("sandboxes") or DEFAULT_SANDBOXES), **changes.sandboxes}
        top["sandboxes"] = {spec.name: sandboxes[spec.name] for spec in swarm.sandboxes}
    if len(agents) > config.max_agents:
        top["max_agents"] = len(agents)
    return to_toml(top)


def to_toml(raw: Mapping[str, Any]) -> str:
    """The text of a TOML document of tables, lists, texts, numbers, booleans, dates and times."""
    blocks = [_lines(raw)]
    for key, table in raw.items():
        if isinstance(table, dict):
            nested = {name: value for name, value in table.items() if isinstance(value, dict)}
            if len(nested) < len(table) or not table:
                blocks.append([f"[{_key(key)}]", *_lines(table)])
            blocks += [[f"[{_key(key)}.{_key(name)}]", *_values(value)] for name, value in nested.items()]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _lines(table: Mapping[str, Any]) -> list[str]:
    return _values({name: value for name, value in table.items() if not isinstance(value, dict)})


def _values(table: Mapping[str, Any]) -> list[str]:
    return [f"{_key(name)} = {toml_value(value)}" for name, value in table.items()]


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else toml_value(name)


def toml_value(value: Any) -> str:
    """A value as TOML writes it.

    Raises:
        ValueError: it is, or has in it, a null.
    """
    if value is None:
        raise ValueError("TOML has no null")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return orjson.dumps(value).decode().replace("\x7f", "\\u007f")  # a JSON text is a TOML text, but for this
    if isinstance(value, dict):
        return "{ " + ", ".join(_values(value)) + " }" if value else "{}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    return repr(value) if isinstance(value, (int, float)) else value.isoformat()
