"""Agents that are to be added and removed: what is refused, and what the next changes are."""

from __future__ import annotations

from typing import Any

import pytest

from bus.errors import ConfigError, MeshError, UsageError
from coordinator.changes.membership import (
    Start,
    after_adding,
    after_adding_sandbox,
    after_removing,
    after_removing_sandbox,
    after_scaling,
    check_changed,
    missing_parts,
    place_added,
    scaled_tables,
)
from coordinator.config.changes import NO_CHANGES, AddedAgent, Changes, RemovedSandbox, encode_changes, to_changes
from coordinator.config.live_swarm import LiveSwarm
from coordinator.config.loader import parse_swarm
from coordinator.config.scaling import with_agents
from coordinator.supervisor.model import AgentState, Joined, Spawn
from coordinator.supervisor.policy import JOINED_LAG
from tests.support.policy_world import a, ready

LIVE = {"base", "nodejs", "python"}
MOMENTUM = {"kind": "momentum"}
TRAITS = parse_swarm({}, "swarm.toml", "").resolve().traits["strategy-momentum"]


def swarm(changes: Changes = NO_CHANGES, **raw: Any) -> LiveSwarm:
    return LiveSwarm(parse_swarm({"max_agents": 6, **raw}, "swarm.toml", "/nowhere").resolve(), changes)


def added(name: str, table: dict[str, Any], before: Changes = NO_CHANGES, after: int = 7) -> Changes:
    return after_adding(before, name, AddedAgent(table=table, after=after, outputs=3), "id")


def test_an_added_agent_keeps_its_place_and_where_it_began():
    table, settings = place_added(swarm(), "new", MOMENTUM, LIVE)
    assert (table, settings.spec.sandbox) == ({"kind": "momentum", "sandbox": "base"}, "base")
    changes = to_changes(encode_changes(added("new", table)))
    config = swarm(changes).config
    spec = config.agent("new").spec
    assert (spec.sandbox, spec.start_after, spec.start_outputs) == ("base", 7, 3)
    assert config.voters["new"] == 1.0


def test_only_live_sandboxes_get_agents():
    assert place_added(swarm(), "new", MOMENTUM, {"python"})[0]["sandbox"] == "python"
    with pytest.raises(MeshError, match="no sandbox has a live host"):
        place_added(swarm(), "new", MOMENTUM, ())
    with pytest.raises(MeshError, match="--sandbox: base has no live host"):
        place_added(swarm(), "new", {**MOMENTUM, "sandbox": "base"}, {"python"})


def test_a_secret_is_not_put_into_the_stream():
    with pytest.raises(UsageError, match=r"add new: --option api_key: .*at run time is stored in the stream"):
        place_added(swarm(), "new", {"class": "a:B", "options": {"api_key": "x"}}, LIVE)
    place_added(swarm(), "new", {"class": "a:B", "options": {"seed": 7}}, LIVE)


def test_a_state_is_continued_only_by_what_has_left_it():
    changes = after_removing(swarm(), "strategy-momentum", "id", after=9, forget=False)
    place_added(swarm(changes), "strategy-momentum", MOMENTUM, LIVE)
    with pytest.raises(UsageError, match=r"has left a state as .*momentum.* does not continue"):
        place_added(swarm(changes), "strategy-momentum", {**MOMENTUM, "options": {"rsi_period": 9}}, LIVE)
    forgotten = after_removing(swarm(changes), "strategy-momentum", "id2", after=11, forget=True)
    gone = forgotten.removed["strategy-momentum"]
    assert (gone.after, gone.was) == (11, {})
    assert after_removing(swarm(), "research-2", "id", after=9, forget=True).removed["research-2"].was == {}
    place_added(swarm(forgotten), "strategy-momentum", {"kind": "mean-reversion"}, LIVE)


def test_a_removed_agent_is_in_the_swarm_again_once_it_is_added():
    removed = after_removing(swarm(), "research-2", "id", after=9, forget=False)
    assert "research-2" not in swarm(removed).config.voters
    again = added("research-2", {"kind": "sentiment", "sandbox": "base"}, removed)
    assert again.removed == {}
    assert swarm(again).config.agent("research-2").spec.sandbox == "base"


def test_the_last_agent_and_too_many_are_refused():
    alone = swarm(agents={"one": {"kind": "momentum"}})
    with pytest.raises(UsageError, match="'one' is the only agent"):
        after_removing(alone, "one", "id", after=1, forget=False)
    with pytest.raises(UsageError, match="no agent 'on' in this swarm"):
        after_removing(alone, "on", "id", after=1, forget=True)
    six = added("six", {"kind": "momentum", "sandbox": "base"})
    check_changed(swarm(six).config, six)
    seven = added("seven", {"kind": "momentum", "sandbox": "base"}, six)
    with pytest.raises(ConfigError, match="7 agents would run, at most 6 are allowed"):
        check_changed(swarm(seven).config, seven)
    with pytest.raises(ConfigError, match="7 agents would run, at most 6 are allowed"):
        place_added(swarm(six), "seven", MOMENTUM, LIVE)


def test_a_number_that_does_not_fit_is_refused_before_anything_is_looked_up():
    for count, expected in ((1000, "1005 agents would run, at most 6"), (3, "8 agents .* leaves room for 1 of kind")):
        with pytest.raises(ConfigError, match=expected):
            scaled_tables(swarm(), "momentum", count, LIVE)
    for count in (-1, 1001, 10**30):
        with pytest.raises(UsageError, match=f"scale momentum {count}: expected 0 to 1000"):
            scaled_tables(swarm(), "momentum", count, LIVE)
    assert scaled_tables(swarm(), "momentum", 0, LIVE) == {}


def test_what_a_swarm_has_nobody_for_is_named():
    assert missing_parts(swarm().config) == []
    expected = ["market data", "votes", "decides"]
    for name, word in (("research-1", "market data"), ("coordinator", "decides")):
        [found] = missing_parts(swarm(after_removing(swarm(), name, "id", after=9, forget=False)).config)
        assert word in found
    only = swarm(agents={"one": {"kind": "market-data"}}, sandboxes={"base": {}})
    assert ["votes" in missing_parts(only.config)[0], "decides" in missing_parts(only.config)[1]] == [True, True]
    none = swarm(agents={"one": {"kind": "momentum", "votes": False}}, sandboxes={"base": {}})
    assert all(word in text for word, text in zip(expected, missing_parts(none.config), strict=True))


def test_changes_that_no_message_would_hold_are_refused():
    options = {"source": "x" * 200_000}
    changes = added("six", {"kind": "market-data", "sandbox": "base", "options": options})
    with pytest.raises(ConfigError, match="at most 131072 are possible"):
        check_changed(swarm().config, changes)


def test_an_added_agent_votes_once_it_is_live_and_has_read_almost_everything():
    world = ready(a("a"))
    world.policy.add(AgentState("new", "python", joining=True))
    world.lag = JOINED_LAG + 1
    actions = world.run(1.0)
    assert [action.agent for action in actions if isinstance(action, Spawn)] == ["new"]
    assert world.policy.agents["new"].phase == "running"
    assert not any(isinstance(action, Joined) for action in actions)
    world.lag = JOINED_LAG
    joined = [action for action in world.run(1.0) if isinstance(action, Joined)]
    assert joined == [Joined("new")]
    assert not world.policy.agents["new"].joining


def scaled(before: LiveSwarm, count: int, kind: str = "momentum") -> Changes:
    tables = scaled_tables(before, kind, count, LIVE)
    present = {item.spec.name for item in before.config.agents}
    starts = {name: Start(after=20, outputs=0, continues=False) for name in tables if name not in present}
    return after_scaling(before, kind, tables, "id", starts=starts, traits=TRAITS, after=30)


def test_generated_agents_weigh_as_much_as_one_whatever_their_number():
    two = scaled(swarm(max_agents=20), 2)
    assert [two.agents[name].table["weight"] for name in ("momentum-1", "momentum-2")] == [0.5, 0.5]
    four = scaled(swarm(two, max_agents=20), 4)
    voters = swarm(four, max_agents=20).config.voters
    assert {voters[f"momentum-{number}"] for number in range(1, 5)} == {0.25}
    one = scaled(swarm(four, max_agents=20), 1)
    assert (set(one.agents), set(one.removed)) == ({"momentum-1"}, {f"momentum-{number}" for number in (2, 3, 4)})
    assert all(gone.forget and not gone.configured for gone in one.removed.values())
    assert one.agents["momentum-1"].after == two.agents["momentum-1"].after == 20
    again = scaled(swarm(one, max_agents=20), 2)
    assert set(again.removed) == {"momentum-3", "momentum-4"}


def test_those_that_up_has_made_are_weighed_anew_and_go_on():
    base = LiveSwarm(with_agents(parse_swarm({"max_agents": 11}, "swarm.toml", ""), 9).resolve())
    assert base.config.voters["momentum-1"] == 0.5
    changes = scaled(base, 4)
    live = LiveSwarm(base.base, changes)
    assert live.config.voters["momentum-1"] == 0.25
    assert (changes.agents["momentum-1"].after, changes.agents["momentum-1"].continues) == (0, True)
    assert live.config.agent("momentum-1").spec == base.config.agent("momentum-1").spec
    fewer = scaled(live, 1)
    assert fewer.removed["momentum-2"].configured
    assert not fewer.removed["momentum-3"].configured


@pytest.mark.parametrize(
    ("kind", "count", "words"),
    [
        ("sentiment", 2, "expected one of momentum, mean-reversion"),
        ("momentum", -1, "expected 0 to 1000"),
        ("momentum", 2, "the name 'momentum-2' is needed for a generated agent; rename yours"),
        ("mean-reversion", 1, "collides with sandbox 'Mean-Reversion-1'"),
    ],
)
def test_a_wrong_scale_is_refused(kind: str, count: int, words: str):
    agents = {"one": MOMENTUM, "momentum-2": MOMENTUM}
    sandboxes: dict[str, Any] = {"base": {}, "Mean-Reversion-1": {}}
    with pytest.raises(UsageError, match=words):
        scaled_tables(swarm(agents=agents, sandboxes=sandboxes), kind, count, {"base"})


def with_extra(before: Changes = NO_CHANGES) -> Changes:
    return after_adding_sandbox(swarm(before), "extra", {"provider": "local"}, "id", ("base", "nodejs", "python"))


@pytest.mark.parametrize(
    ("name", "provider", "problem"),
    [
        ("base", "local", "sandbox 'base' is in the swarm already; `signalmesh sandbox remove base` removes it"),
        ("Base", "local", "collides with sandbox 'base'"),
        ("Research-1", "local", "collides with agent 'research-1'"),
        ("joined", "local", "collides with host 'joined'"),
        ("watchdog", "local", "this name is reserved"),
        ("remove", "local", "`signalmesh sandbox remove NAME` is a command"),
        ("a.b", "local", "sandbox 'a.b'"),
        ("extra", "docker", "'docker' is not available; available: local, e2b"),
    ],
)
def test_a_sandbox_that_cannot_be_added_is_refused(name: str, provider: str, problem: str):
    with pytest.raises(UsageError) as refused:
        after_adding_sandbox(swarm(), name, {"provider": provider}, "id", ("base", "joined"))
    assert problem in str(refused.value)


def test_an_added_sandbox_takes_agents_until_it_is_removed():
    changes = to_changes(encode_changes(with_extra()))
    changed = swarm(changes)
    assert [spec.name for spec in changed.config.sandboxes] == ["base", "nodejs", "python", "extra"]
    assert place_added(changed, "new", {**MOMENTUM, "sandbox": "extra"}, {"extra"})[1].spec.sandbox == "extra"
    changes = added("new", {**MOMENTUM, "sandbox": "extra"}, changes)
    removed = after_removing_sandbox(swarm(changes), "extra", "id", after=9, live=LIVE)
    assert (removed.sandboxes, removed.removed_sandboxes) == ({}, {"extra": RemovedSandbox(after=9, configured=False)})
    assert {name: (move.sandbox, move.after) for name, move in removed.moved.items()} == {"new": ("base", 9)}
    assert swarm(removed).config.agent("new").spec.sandbox == "base"
    assert with_extra(removed).removed_sandboxes == {}


def test_the_agents_of_a_removed_sandbox_get_homes_in_live_ones():
    removed = after_removing_sandbox(swarm(), "python", "id", after=9, live={"base", "python", "nodejs"})
    homes = {name: move.sandbox for name, move in removed.moved.items()}
    assert homes == {"strategy-mean-reversion": "base", "coordinator": "base"}
    assert [spec.name for spec in swarm(removed).config.sandboxes] == ["base", "nodejs"]
    assert removed.removed_sandboxes["python"].configured
    back = after_adding_sandbox(swarm(removed), "python", {"provider": "local"}, "id", ())
    assert (back.sandboxes, back.removed_sandboxes) == ({}, {})
    assert swarm(back).config.sandboxes == swarm().config.sandboxes
    # What swarm.toml has for that sandbox later is placed too.
    late = swarm(removed, agents={"late": {"kind": "momentum", "sandbox": "python"}})
    assert late.config.agent("late").spec.sandbox == "base"


def test_a_sandbox_that_cannot_be_removed_is_refused():
    for name, live, problem in (
        ("pyton", LIVE, "no sandbox 'pyton' (did you mean 'python'?); there are: base, nodejs, python"),
        ("python", {"python"}, "no other sandbox has a live host"),
    ):
        with pytest.raises(MeshError) as refused:
            after_removing_sandbox(swarm(), name, "id", after=9, live=live)
        assert problem in str(refused.value)
    only = swarm(sandboxes={"base": {}}, agents={"a": {"kind": "momentum"}})
    with pytest.raises(UsageError, match="'base' is the only sandbox; `signalmesh down` ends the swarm"):
        after_removing_sandbox(only, "base", "id", after=9, live={"base"})
    gone = Changes(revision=1, removed_sandboxes={"base": RemovedSandbox(after=9)})
    with pytest.raises(ConfigError, match="every sandbox here was removed at run time"):
        swarm(gone, sandboxes={"base": {}}, agents={"a": {"kind": "momentum"}})
