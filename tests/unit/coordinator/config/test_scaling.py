"""`--agents N`: further strategies, each different, all of a kind together as heavy as one; and a calmer watchdog."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path

import pytest

from agents.runtime.process import make_agent
from bus.errors import UsageError
from coordinator.config.loader import load_swarm, parse_swarm
from coordinator.config.overrides import Overrides, apply_overrides
from coordinator.config.scaling import MOST_AGENTS, with_agents
from coordinator.monitor.run_files import config_of
from coordinator.runner.run_record import write_run

DEFAULT = load_swarm(directory=Path("/nowhere"))


def test_the_configured_stay_and_the_others_are_strategies_with_a_vote():
    resolved = with_agents(DEFAULT, 200).resolve()
    assert len(resolved.agents) == resolved.max_agents == 200
    names = [item.spec.name for item in resolved.agents]
    assert names[:5] == [item.spec.name for item in DEFAULT.agents]
    assert len({name.lower() for name in names}) == 200
    added = resolved.agents[5:]
    assert all(item.votes for item in added)
    assert Counter(item.spec.kind for item in added) == {"momentum": 98, "mean-reversion": 97}
    for kind in ("momentum", "mean-reversion"):
        assert sum(item.weight for item in added if item.spec.kind == kind) == pytest.approx(1, abs=1e-3)
    assert resolved.deciders == ("coordinator",)
    assert {item.spec.nice for item in resolved.agents[:5]} == {0}, "all others wait for them"
    assert min(item.spec.nice for item in added) > 0


def test_no_two_look_at_the_market_in_the_same_way_and_all_can_be_made():
    added = with_agents(DEFAULT, MOST_AGENTS).agents[5:]
    assert len({(item.spec.kind, *sorted(item.spec.options.items())) for item in added}) == len(added)
    for item in (*added[:4], *added[-2:]):
        make_agent(item.spec)


def test_they_are_spread_over_the_sandboxes():
    load_of = Counter(item.spec.sandbox for item in with_agents(DEFAULT, 200).agents)
    assert max(load_of.values()) - min(load_of.values()) <= 1
    assert set(load_of) == {"base", "nodejs", "python"}


def test_as_many_as_there_are_changes_nothing_but_what_is_said():
    assert apply_overrides(DEFAULT, Overrides()) is DEFAULT
    assert [item.spec for item in with_agents(DEFAULT, 5).agents][1:] == [item.spec for item in DEFAULT.agents][1:]


def test_heartbeats_become_rarer_only_where_they_would_be_too_many():
    assert with_agents(DEFAULT, 50).watchdog == DEFAULT.watchdog
    calm = with_agents(DEFAULT, 200).watchdog
    assert (calm.heartbeat_ms, calm.suspect_ms, calm.dead_ms, calm.starved_ms) == (400, 1200, 2400, 20_000)
    most = with_agents(DEFAULT, MOST_AGENTS).watchdog
    assert most.heartbeat_ms < most.suspect_ms < most.dead_ms < most.starved_ms


def test_a_source_opens_fewer_rounds_unless_it_was_told_how_many():
    def bound(config):
        return config.agents[0].spec.options.get("max_open_rounds")

    assert bound(with_agents(DEFAULT, 200)) == 6
    assert bound(with_agents(DEFAULT, MOST_AGENTS)) == 1
    toml = '[agents.feed]\nkind = "market-data"\noptions = { max_open_rounds = 99 }'
    assert bound(with_agents(parse_swarm(tomllib.loads(toml), "x.toml", ""), 200)) == 99


@pytest.mark.parametrize("count", [-1, 0, 4, MOST_AGENTS + 1])
def test_a_wrong_number_is_refused_with_the_right_ones(count):
    with pytest.raises(UsageError, match=rf"--agents {count}: expected 5 .* to {MOST_AGENTS}"):
        with_agents(DEFAULT, count)


def test_a_name_that_is_taken_is_told():
    config = parse_swarm(tomllib.loads('[agents.Momentum-2]\nkind = "sentiment"'), "x.toml", "")
    assert len(with_agents(config, 3).agents) == 3
    with pytest.raises(UsageError, match=r"x\.toml: the name 'momentum-2' is needed for an added agent"):
        with_agents(config, 4)


def test_whoever_reads_the_record_of_a_run_knows_its_agents(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path, "swarm", "nats://127.0.0.1:1", DEFAULT.file, [], 12)
    assert len(config_of(None, tmp_path).agents) == 12
