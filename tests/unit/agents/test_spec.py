"""The specification of an agent, as it travels to its host."""

from __future__ import annotations

import dataclasses

import pytest

from agents.spec import AgentSpec, check_class_path
from bus.errors import UsageError
from coordinator.config.loader import load_swarm


def test_a_spec_travels_as_json(tmp_path):
    full = AgentSpec(
        name="x",
        kind="command",
        search_path="somewhere",
        command=("node", "a.mjs"),
        listens=("market",),
        publishes=("signal",),
        options={"a": [1, 2.5, {"b": "c"}]},
        memory_key="k",
        sandbox="base",
        swarm="alpha",
    )
    for spec in (full, *(settings.spec for settings in load_swarm(directory=tmp_path).agents)):
        assert AgentSpec.from_json(spec.to_json()) == spec
    with pytest.raises(UsageError, match="agent spec"):
        AgentSpec.from_json(b'{"kind": "momentum"}')
    with pytest.raises(dataclasses.FrozenInstanceError):
        full.name = "y"  # type: ignore[misc]


@pytest.mark.parametrize("path", ["", ":", "a:", ":B", "a.b", "a..b:C", "a:b.C", "a/b:C"])
def test_the_form_of_a_class_path(path):
    with pytest.raises(UsageError, match="expected 'module:Class'"):
        check_class_path(path)
