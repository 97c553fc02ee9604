"""What certify expects of a configuration."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from bus.errors import UsageError
from coordinator.certify.expected import configuration, expected_swarm
from coordinator.config.loader import DEFAULT_AGENTS, DEFAULT_SANDBOXES, parse_swarm
from tests.support.certified import EXPECTED


def test_the_configuration_is_the_default_swarm_with_the_given_provider():
    config = parse_swarm(tomllib.loads(configuration("local")), "x.toml", "")
    assert [item.name for item in config.sandboxes] == list(DEFAULT_SANDBOXES)
    assert {item.spec.name: item.spec.sandbox for item in config.agents} == {
        name: table["sandbox"] for name, table in DEFAULT_AGENTS.items()
    }
    assert {table["provider"] for table in tomllib.loads(configuration("x"))["sandboxes"].values()} == {"x"}


def test_what_to_expect_of_another_swarm_is_its_configurations(tmp_path: Path):
    file = tmp_path / "swarm.toml"
    file.write_text("""
[sandboxes.one]
[agents.feed]
kind = "market-data"
options = { history = 60 }
[agents.vote]
kind = "momentum"
memory_key = "mine"
[agents.decider]
kind = "coordinator"
[agents.other]
external = true
""")
    found, _ = expected_swarm(file, None)
    assert (found.sandboxes, found.target, found.history) == ({"one": "local"}, "feed", 60)
    assert found.agents == {"feed": "market-data", "vote": "momentum", "decider": "coordinator"}
    assert found.keys == {"feed": "market_data", "vote": "mine", "decider": "decision"}
    assert (EXPECTED.target, EXPECTED.history, EXPECTED.providers) == ("research-1", 250, "local")


@pytest.mark.parametrize(
    ("kind", "lacking"), [("market-data", "no agent that decides"), ("coordinator", "no agent of kind")]
)
def test_a_swarm_without_rounds_cannot_be_certified(tmp_path: Path, kind, lacking):
    (tmp_path / "swarm.toml").write_text(f'[agents.a]\nkind = "{kind}"\n[agents.b]\nkind = "momentum"')
    with pytest.raises(UsageError, match=lacking):
        expected_swarm(tmp_path / "swarm.toml", None)
