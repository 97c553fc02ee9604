"""swarm.toml as text: it is read back as it was, and gives the swarm with its changes."""

from __future__ import annotations

import datetime as dt
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.config.changes import AddedAgent, Changes, Move, RemovedAgent, apply_changes
from coordinator.config.loader import parse_swarm
from coordinator.config.settings import SwarmConfig
from coordinator.config.toml_text import changed_toml, to_toml, toml_value
from coordinator.control.added_table import parse_option

TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)
VALUES = st.recursive(
    TEXTS | st.integers(-(1 << 63), (1 << 63) - 1) | st.booleans() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(TEXTS, VALUES, max_size=5))
def test_what_is_written_is_read_back(raw: dict[str, Any]):
    assert tomllib.loads(to_toml(raw)) == raw


def test_times_and_nested_tables_are_written_as_tables():
    raw = {"swarm": "x", "agents": {"a": {"kind": "k", "options": {"at": dt.date(2020, 1, 2)}}}, "watchdog": {"n": 1}}
    text = to_toml(raw)
    assert text == ('swarm = "x"\n\n[agents.a]\nkind = "k"\noptions = { at = 2020-01-02 }\n\n[watchdog]\nn = 1\n')
    assert tomllib.loads(text) == raw


FILES: tuple[dict[str, Any], ...] = (
    {},
    {
        "max_agents": 3,
        "sandboxes": {"base": {}, "python": {}},
        "agents": {
            "one": {"kind": "momentum", "weight": 2.0, "options": {"rsi_period": 9}},
            "two": {"command": ["run", "it"], "listens": ["market"], "publishes": ["signal"]},
            "theirs": {"external": True, "weight": 0.5},
        },
        "coordinator": {"quorum": 0.4},
    },
)


def swarm_of(raw: dict[str, Any]) -> SwarmConfig:
    return parse_swarm(raw, "swarm.toml", "/nowhere")


def plain(config: SwarmConfig) -> dict[str, Any]:
    """Its agents, without where those that were added began."""
    return {item.spec.name: (item.spec.sandbox, item.spec.options, item.weight) for item in config.agents}


@pytest.mark.parametrize("raw", FILES)
def test_the_text_gives_the_swarm_with_its_changes(raw: dict[str, Any]):
    config = swarm_of(raw)
    removed, moved = config.agents[0].spec.name, config.agents[1].spec.name
    table = {"kind": "momentum", "sandbox": "base", "weight": 0.25, "nice": 10, "options": {"window": 260}}
    changes = Changes(
        revision=3,
        agents={"new": AddedAgent(table=table, after=7), "newer": AddedAgent(table=table, after=8)},
        removed={removed: RemovedAgent(after=9, was={"kind": "x"})},
        moved={moved: Move(sandbox="python", after=5)},
    )
    text = changed_toml(raw, config, changes)
    again = swarm_of(tomllib.loads(text))
    assert plain(again) == plain(apply_changes(config, changes))
    assert again.coordinator == config.coordinator
    assert again.sandboxes == config.sandboxes
    assert again.max_agents >= len(again.agents)


@given(VALUES)
def test_an_option_of_any_value_arrives_as_it_is(value: Any):
    assert parse_option(f"key={toml_value(value)}") == ("key", value)


@pytest.mark.parametrize("value", [None, [None], {"a": {"b": None}}])
def test_there_is_no_null(value: Any):
    with pytest.raises(ValueError, match="null"):
        toml_value(value)
