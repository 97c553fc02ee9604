"""What the watchdog concludes of silence: of agents, of hosts, of those that work on and those that do not."""

from __future__ import annotations

import re

import pytest

from coordinator.supervisor.crash_loop import MAX_STALLS
from coordinator.supervisor.failure_detector import HOST_LOST_S, THROTTLED_S
from coordinator.supervisor.model import (
    Action,
    CpuTimes,
    Dead,
    HostState,
    ProbeProcess,
    Quarantine,
    SandboxLost,
    Spawn,
    Suspect,
    Timeouts,
)
from coordinator.supervisor.policy import NEVER_READY_S, RESET_AFTER_S, STALLED_S
from tests.support.policy_world import World, a, kinds, ready


def test_silence_is_suspected_then_probed():
    world = ready()
    world.sending.clear()
    actions = world.run(0.5)
    assert kinds(actions) == ["Suspect"]
    assert isinstance(actions[0], Suspect)
    assert 300 <= actions[0].silent_ms <= 400
    assert set(kinds(world.run(0.5))) == {"ProbeProcess"}


def probe(world: World, state: str, cpu_s: float = 0.0, waited_s: float = 0.0) -> list[Action]:
    world.policy.probed(world.now, "a", world.policy.agents["a"].epoch, state, CpuTimes(cpu_s, waited_s))
    return world.policy.decide(world.now)


def silent(seconds: float) -> World:
    world = ready()
    world.sending.clear()
    world.run(seconds)
    return world


def test_a_stopped_or_vanished_process_is_dead():
    for state in ("T", "gone", "Z"):
        assert kinds(probe(silent(0.8), state))[:2] == ["Dead", "Spawn"]


def test_a_working_or_starved_process_is_waited_for_but_not_for_ever():
    for grows in ((1.0, 0.0), (0.0, 1.0)):
        world = silent(0.8)
        for n in range(20):
            assert "Dead" not in kinds(probe(world, "R", grows[0] * n, grows[1] * n))
            world.run(0.2)
        world.run(0.5)
        assert "Dead" in kinds(probe(world, "R", grows[0] * 99, grows[1] * 99))


def test_a_process_that_neither_works_nor_waits_is_dead():
    world = silent(0.8)
    assert "Dead" not in kinds(probe(world, "S", 1.0, 1.0))
    world.run(0.2)
    assert "Dead" in kinds(probe(world, "S", 1.0, 1.0))


@pytest.mark.parametrize(
    ("state", "cpu", "expected"),
    [("S", 0.0, "it blocks at own.py:3 in on_market; await there"), ("R", 1.0, "now at own.py:3 in on_market;")],
)
def test_the_reason_names_the_line_at_which_it_is(state: str, cpu: float, expected: str):
    world = silent(0.8)
    dead = None
    for number in range(100):
        world.policy.probed(
            world.now, "a", world.policy.agents["a"].epoch, state, CpuTimes(cpu * number, 0.0), "own.py:3 in on_market"
        )
        dead = next((action for action in world.policy.decide(world.now) if isinstance(action, Dead)), None)
        if dead is not None:
            break
        world.run(0.2, spawn=False)
    assert dead is not None
    assert expected in dead.reason


def test_a_heartbeat_clears_the_suspicion():
    world = silent(0.5)
    world.sending.add("a")
    assert kinds(world.run(2)) == []


def test_an_answer_that_comes_after_a_heartbeat_is_ignored():
    world = silent(0.8)
    world.heartbeat("a")
    assert probe(world, "T") == []


def test_no_process_is_declared_dead_while_the_bus_is_unhealthy():
    world = ready(a("a"), a("b", "python"))
    world.policy.bus_checked(world.now, True)
    assert world.run(10, bus=False) == []
    world.policy.bus_checked(world.now, False)
    assert world.run(3) == []


def test_the_watchdogs_own_sleep_is_not_held_against_any_process():
    world = ready(a("a"), a("b", "python"))
    world.now += 20.0
    assert world.policy.decide(world.now) == []
    assert world.run(2) == []


def hang(world: World) -> list[Action]:
    """Silence in which it computes, until it is declared dead; what follows from that."""
    world.sending.clear()
    for used in range(100):
        world.run(0.2, spawn=False)
        actions = probe(world, "R", float(used))
        if "Dead" in kinds(actions):
            return actions
    raise AssertionError("it was never declared dead")


def come_back(world: World, cursor: int) -> None:
    """Started again, and live with all inputs up to `cursor` handled."""
    agents = world.policy.agents
    while agents["a"].phase == "backoff":
        world.run(0.05, spawn=False)
    world.start(Spawn("a", "base"))
    world.cursor = cursor
    world.run(0.3)
    assert agents["a"].phase == "running"


def test_stalling_at_one_input_again_and_again_is_quarantined_and_reported():
    world = ready()
    world.lag = 5
    for turn in range(MAX_STALLS):
        actions = hang(world)
        dead = actions[0]
        assert isinstance(dead, Dead)
        assert dead.unresponsive
        assert "starved_ms = 5000" in dead.reason
        if turn < MAX_STALLS - 1:
            come_back(world, 41)
    # The first time it was not known to have come so far.
    come_back(world, 41)
    *_, quarantine = hang(world)
    assert isinstance(quarantine, Quarantine)
    assert f"{MAX_STALLS} times" in quarantine.reason
    assert "message 41" in quarantine.reason
    assert world.run(20) == []


def test_stalling_at_ever_later_inputs_is_not_quarantined():
    world = ready()
    world.lag = 5
    for turn in range(3 * MAX_STALLS):
        assert "Quarantine" not in kinds(hang(world))
        come_back(world, 41 + turn)


def test_slow_deaths_in_a_row_at_one_place_quarantine_though_no_window_holds_them():
    world = ready()
    world.lag = 5  # so that being live is no progress
    state = world.policy.agents["a"]
    for death in range(1, Timeouts().deaths + 1):
        assert state.phase == "running"
        world.run(2 * RESET_AFTER_S)
        world.policy.exited(world.now, "a", state.epoch, 1)
        if death < Timeouts().deaths:
            come_back(world, 0)
    actions = world.policy.decide(world.now)
    assert kinds(actions)[:2] == ["Dead", "Quarantine"]
    assert len(state.deaths) < Timeouts().deaths


def test_want_of_a_cpu_is_no_stall():
    world = silent(0.8)
    for waited in range(100):
        world.run(0.2, spawn=False)
        actions = probe(world, "R", waited / 1000, waited_s=float(waited))
        if actions:
            break
    else:
        raise AssertionError("it was never declared dead")
    dead = actions[0]
    assert isinstance(dead, Dead)
    assert not dead.unresponsive
    assert "overloaded" in dead.reason


def test_a_process_that_its_quota_holds_back_is_given_the_time_of_a_starved_one():
    world = silent(0.8)
    for held_back in range(100):
        world.run(0.2, spawn=False)
        epoch = world.policy.agents["a"].epoch
        cpu = CpuTimes(1.0, 1.0, held_back / 10, held_back)
        world.policy.probed(world.now, "a", epoch, "S", cpu, "own.py:3 in on_market")
        if dead := [action for action in world.policy.decide(world.now) if isinstance(action, Dead)]:
            break
    else:
        raise AssertionError("it was never declared dead")
    assert world.now - world.policy.agents["a"].heartbeat_at >= Timeouts().starved_s
    assert not dead[0].unresponsive
    text = "at own.py:3 in on_market, while its CPU quota held its container back in 2. periods, 2.. s over all CPUs"
    assert re.search(text, dead[0].reason)


def test_a_blocked_process_is_a_stall_with_its_limit_named():
    world = silent(0.8)
    probe(world, "S", 1.0, 1.0)
    world.run(0.2)
    dead = probe(world, "S", 1.0, 1.0)[0]
    assert isinstance(dead, Dead)
    assert dead.unresponsive
    assert "dead_ms = 600" in dead.reason


def test_never_ready_and_stalled_are_dead():
    world = World(a())
    world.host("base")
    world.host("python")
    world.status = "restoring"
    world.stuck.add("a")
    assert "Dead" in kinds(world.run(NEVER_READY_S + 2))
    world = ready()
    world.stuck.add("a")
    world.lag = 5
    assert "Dead" in kinds(world.run(STALLED_S + 2))
    world = ready()
    world.stuck.add("a")  # nothing waits: idle, not stalled
    assert "Dead" not in kinds(world.run(STALLED_S + 2))


def test_a_process_that_waits_for_a_cpu_all_the_time_is_not_taken_for_one_that_sleeps():
    """Linux adds such a wait to its figures when it is over: until then nothing of them moves."""
    world = ready()
    world.sending.clear()
    epoch = world.policy.agents["a"].epoch
    actions = []
    for _ in range(20):
        actions += world.run(0.2)
        world.policy.probed(world.now, "a", epoch, "R", CpuTimes(1.0, 1.0))
    assert kinds(actions) == ["Suspect", *["ProbeProcess"] * (len(actions) - 1)]
    world.policy.probed(world.now, "a", epoch, "S", CpuTimes(1.0, 1.0))
    [dead, *_] = world.policy.decide(world.now)
    assert isinstance(dead, Dead)
    assert dead.unresponsive


def test_a_silent_host_with_live_agents_is_given_the_time_of_a_starved_one():
    world = ready(sandboxes=("base",))
    assert kinds(world.run(Timeouts().starved_s - 0.5, hosts=False)) == []
    assert kinds(world.run(1.0, hosts=False)) == ["SandboxLost", "Dead"]


def test_a_silent_host_whose_agents_are_silent_is_lost_at_once():
    world = ready()
    world.sending.clear()
    actions = world.run(HOST_LOST_S + 0.1, hosts=False)
    assert [action.sandbox for action in actions if isinstance(action, SandboxLost)] == ["base", "python"]


def test_a_host_that_its_quota_held_back_is_given_the_time_of_a_starved_one():
    """Its agents are in the same container, and silent as well."""
    world = ready(sandboxes=("base",))
    world.throttled_periods = 7
    world.run(0.3)
    world.sending.clear()
    actions = world.run(Timeouts().starved_s - 0.5, hosts=False)
    assert "SandboxLost" not in kinds(actions)
    [lost] = [action for action in world.run(1.0, hosts=False) if isinstance(action, Dead)]
    assert "silent for 5.0 s; its CPU quota held it back before: raise the quota" in lost.reason


def test_a_host_that_its_quota_held_back_long_ago_is_judged_as_any_other():
    world = ready(sandboxes=("base",))
    world.throttled_periods = 7
    world.run(THROTTLED_S + 0.5)
    world.sending.clear()
    assert "SandboxLost" in kinds(world.run(HOST_LOST_S + 0.1, hosts=False))


@pytest.mark.parametrize("known", [True, False], ids=["a lost host", "an unknown host"])
def test_an_agent_that_no_host_can_probe_is_dead_only_when_its_host_would_be_lost(known):
    world = ready()
    agent = world.policy.agents["a"]
    agent.sandbox = "elsewhere"
    if known:
        world.policy.hosts["elsewhere"] = HostState("elsewhere", "elsewhere", alive=False)
    silent_since = agent.heartbeat_at
    world.sending.discard("a")
    actions = world.run(HOST_LOST_S - 0.2, spawn=False)
    assert not [action for action in actions if isinstance(action, Dead | ProbeProcess)]
    [dead] = [action for action in world.run(0.5, spawn=False) if isinstance(action, Dead)]
    assert "no live host to probe it" in dead.reason
    silent_ms = int(dead.reason.split()[2])
    assert HOST_LOST_S * 1000 <= silent_ms <= (world.now - silent_since) * 1000
