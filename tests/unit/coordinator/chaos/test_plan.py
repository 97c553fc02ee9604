"""The plan of faults: seeded, complete, and only of what the swarm has."""

from __future__ import annotations

import itertools

from coordinator.chaos.plan import EVERY_AGENT, KINDS, FaultTargets, PlannedFault, kinds_of, plan

ALL = FaultTargets(
    agents=("research-1", "research-2", "coordinator"),
    sandboxes=("base", "python"),
    has=frozenset({"standby", "mirror", "nats-server", "proxy"}),
)


def first(seed: int, count: int = 200, candidates: FaultTargets = ALL) -> list[PlannedFault]:
    return list(itertools.islice(plan(seed, candidates), count))


def test_the_same_seed_gives_the_same_faults_and_another_one_others():
    assert first(7) == first(7)
    assert first(7) != first(8)
    again = FaultTargets(agents=tuple(reversed(ALL.agents)), sandboxes=("python", "base"), has=ALL.has)
    assert first(7, candidates=again) == first(7)  # whatever order a configuration lists them in


def test_every_kind_comes_before_any_comes_again_and_hits_what_there_is():
    faults = first(3, len(KINDS) * 3)
    for at in range(0, len(faults), len(KINDS)):
        assert {fault.kind for fault in faults[at : at + len(KINDS)]} == set(KINDS)
    known = {*ALL.agents, *ALL.sandboxes, *ALL.has, "watchdog", EVERY_AGENT}
    assert {target for fault in faults for target in fault.targets} <= known
    assert [fault.number for fault in faults] == list(range(1, len(faults) + 1))
    assert any(fault.overlaps for fault in faults)


def test_only_what_the_swarm_has_is_hit():
    bare = FaultTargets(agents=("a",), sandboxes=("base",), has=frozenset())
    assert kinds_of(bare) == [
        "kill-agent", "kill-agents", "stop-agent", "pause-agent", "kill-host", "kill-watchdog", "stop-watchdog",
    ]  # fmt: skip
    assert {target for fault in first(1, candidates=bare) for target in fault.targets} == {"a", "base", "watchdog"}
