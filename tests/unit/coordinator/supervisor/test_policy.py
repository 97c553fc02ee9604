"""The watchdog's policy: every conclusion from made-up observations, with a clock of our own."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.messages import Child, Heartbeat, now
from coordinator.supervisor.failure_detector import HOST_LOST_S
from coordinator.supervisor.model import (
    AgentState,
    CpuTimes,
    Dead,
    Drained,
    HostState,
    Phase,
    ProbeProcess,
    Quarantine,
    SandboxLost,
    Spawn,
    Timeouts,
    UnreportedExit,
    VerifyDrain,
)
from coordinator.supervisor.policy import (
    NEVER_READY_S,
    REPORT_S,
    RESET_AFTER_S,
    STALLED_S,
    STARTS_AT_ONCE,
    choose_sandbox,
    starting_count,
)
from coordinator.telemetry.recovery_metrics import reason_class
from tests.support.policy_world import World, a, kinds, ready


def test_starts_everything_where_it_belongs_and_sources_last():
    world = World(a("feed", "base", is_source=True), a("one", "base"), a("two", "python"))
    assert world.policy.decide(world.now) == []  # no host has sent a heartbeat yet
    world.host("base")
    world.host("python")
    assert world.policy.decide(world.now) == [Spawn("one", "base"), Spawn("two", "python")]
    world.start(Spawn("one", "base"))
    world.start(Spawn("two", "python"))
    assert [x for x in world.run(0.5) if isinstance(x, Spawn)] == [Spawn("feed", "base")]


def test_a_source_does_not_wait_for_ever():
    world = World(a("feed", is_source=True), a("one", "nowhere"))
    world.host("base")
    world.policy.hosts.pop("python")
    actions = world.run(6, spawn=False)
    assert Spawn("feed", "base") in actions


def test_a_source_waits_as_long_as_others_keep_coming_up():
    names = [f"a{number}" for number in range(4)]
    world = World(a("feed", is_source=True), *(a(name) for name in names), a("late", "base"), sandboxes=("base",))
    world.host("base")
    world.run(0.1, spawn=False)
    for name in names:
        assert Spawn("feed", "base") not in world.run(4, spawn=False)
        world.start(Spawn(name, "base"))
    assert Spawn("feed", "base") in world.run(6, spawn=False)


def test_an_exit_is_acted_on_at_once():
    world = ready()
    epoch = world.policy.agents["a"].epoch
    world.policy.exited(world.now, "a", epoch, -9)
    dead, spawn = world.policy.decide(world.now)
    assert dead == Dead("a", epoch, "base", 1000 + epoch, "signal 9")
    assert spawn == Spawn("a", "base", "signal 9")


def test_an_exit_of_an_older_incarnation_means_nothing():
    world = ready()
    world.policy.exited(world.now, "a", world.policy.agents["a"].epoch - 1, -9)
    assert world.policy.decide(world.now) == []


def test_later_deaths_back_off_and_ten_quarantine():
    world = ready()
    pauses = []
    for death in range(10):
        state = world.policy.agents["a"]
        died = world.now
        world.policy.exited(world.now, "a", state.epoch, -9)
        actions = world.policy.decide(world.now)
        if death == 9:
            assert kinds(actions) == ["Dead", "Quarantine"]
            break
        while not any(isinstance(action, Spawn) for action in actions):
            world.now += 0.01
            world.host("base")
            actions = world.policy.decide(world.now)
        pauses.append(world.now - died)
        world.start(Spawn("a", "base"))
        world.heartbeat("a")
    assert pauses[0] == 0
    expected = [0.05 * 2**n for n in range(7)] + [5.0]
    assert all(0.79 * wanted <= got <= 1.21 * wanted + 0.02 for got, wanted in zip(pauses[1:], expected, strict=False))
    assert world.policy.agents["a"].phase == "quarantined"
    assert world.run(20) == []
    assert world.policy.revive(world.now, "a")
    assert Spawn("a", "base") in world.policy.decide(world.now)
    assert not world.policy.agents["a"].deaths


def test_progress_makes_deaths_forgotten():
    world = ready()
    for _ in range(12):
        world.policy.exited(world.now, "a", world.policy.agents["a"].epoch, 1)
        assert "Spawn" in kinds(world.run(RESET_AFTER_S + 6))
    assert world.policy.agents["a"].phase == "running"


def test_a_lost_host_moves_its_agents_to_the_least_loaded():
    world = ready(a("a"), a("b", "python"), a("c", "third"), a("d", "third"), sandboxes=("base", "python", "third"))
    del world.sandboxes["base"]
    world.sending.discard("a")
    actions = world.run(HOST_LOST_S + 0.5)
    assert SandboxLost("base", ("a",)) in actions
    [spawn] = [x for x in actions if isinstance(x, Spawn)]
    assert (spawn.sandbox, spawn.moved_from) == ("python", "base")
    assert world.policy.agents["a"].deaths == world.policy.agents["a"].deaths.__class__()  # not the agent's fault


def test_a_replaced_host_has_lost_its_agents():
    world = ready()
    world.host("base", pid=2)
    assert kinds(world.policy.decide(world.now)) == ["SandboxLost", "Dead", "Spawn"]


def test_the_agents_of_a_sandbox_are_spread_over_the_hosts_that_serve_it():
    world = World(*(a(name) for name in "bcde"), a("f", "python"))
    assert world.policy.unserved == {"base", "python"}
    for name in ("base-1", "base-2"):
        world.host(name, group="base")
    world.host("python")
    assert world.policy.unserved == set()
    placed = [action.sandbox for action in world.policy.decide(world.now) if isinstance(action, Spawn)]
    assert sorted(placed) == ["base-1", "base-1", "base-2", "base-2", "python"]


def test_a_host_that_drains_sends_its_agents_to_others():
    world = ready()
    world.host("base", status="draining")
    world.policy.exited(world.now, "a", world.policy.agents["a"].epoch, 0)
    actions = world.policy.decide(world.now)
    assert kinds(actions) == ["SandboxLost", "Dead", "Spawn"]
    assert isinstance(actions[2], Spawn)
    assert actions[2].sandbox == "python"


def test_an_agent_that_drained_stays_away_until_revived():
    world = ready()
    epoch = world.policy.agents["a"].epoch
    world.policy.drained(world.now, "a", epoch)
    assert world.policy.decide(world.now) == []  # it reports that before it ends
    world.policy.exited(world.now, "a", epoch, 0)
    assert world.policy.decide(world.now) == [Drained("a")]
    assert world.run(5) == []
    assert world.policy.revive(world.now, "a")
    assert "Spawn" in kinds(world.policy.decide(world.now))


def test_the_report_of_a_drain_may_come_after_that_of_the_end():
    world = ready()
    epoch = world.policy.agents["a"].epoch
    world.sending.clear()
    world.policy.exited(world.now, "a", epoch, 0)
    assert world.run(REPORT_S - 0.1) == []
    world.policy.drained(world.now, "a", epoch)
    assert world.policy.decide(world.now) == [Drained("a")]


def test_an_end_with_exit_code_0_alone_is_a_death():
    world = ready()
    epoch = world.policy.agents["a"].epoch
    world.sending.clear()
    world.policy.drained(world.now, "a", epoch - 1)  # an older one's report proves nothing
    world.policy.exited(world.now, "a", epoch, 0)
    assert set(world.run(1)) == {VerifyDrain("a", epoch)}  # and asked again, should the answer get lost
    world.policy.not_drained(world.now, "a", epoch)
    dead, spawn = world.policy.decide(world.now)
    assert isinstance(dead, Dead)
    assert "exit code 0" in dead.reason
    assert isinstance(spawn, Spawn)
    assert len(world.policy.agents["a"].deaths) == 1
    world.policy.not_drained(world.now, "a", epoch)  # an answer that comes twice
    assert world.policy.decide(world.now) == []


def test_what_the_stream_recalls_is_a_drain():
    world = ready()
    epoch = world.policy.agents["a"].epoch
    world.sending.clear()
    world.policy.exited(world.now, "a", epoch, 0)
    world.run(1)
    world.policy.drained(world.now, "a", epoch)
    assert world.policy.decide(world.now) == [Drained("a")]


def test_an_agent_that_was_requested_to_drain_need_not_report_it_and_is_started_again():
    world = ready()
    world.policy.restart("a")
    world.policy.exited(world.now, "a", world.policy.agents["a"].epoch, 0)
    assert world.policy.decide(world.now) == [Spawn("a", "base", "restart")]
    world.start(Spawn("a", "base"))
    world.policy.drained(world.now, "a", world.epoch)  # the next incarnation was not asked
    world.policy.exited(world.now, "a", world.epoch, 0)
    assert world.policy.decide(world.now) == [Drained("a")]


def test_a_persons_mistake_is_not_restarted():
    world = ready()
    world.policy.exited(world.now, "a", world.policy.agents["a"].epoch, 2)
    assert kinds(world.policy.decide(world.now)) == ["Dead", "Quarantine"]


def test_a_new_watchdog_adopts_and_starts_nothing():
    world = World(a())
    world.host("base", Child(agent="a", agent_id="x", epoch=70, pid=7, spawned_at=now()))
    world.host("python")
    assert world.policy.decide(world.now) == []
    state = world.policy.agents["a"]
    assert (state.epoch, state.pid, state.sandbox) == (70, 7, "base")


def test_an_exit_report_that_got_lost_is_in_the_inventory():
    world = ready()
    epoch = world.policy.agents["a"].epoch
    world.host("base", Child(agent="a", agent_id="x", epoch=epoch, pid=7, spawned_at=now(), exit_code=-9))
    assert kinds(world.policy.decide(world.now)) == ["Dead", "Spawn"]


def ended(epoch: int, exit_code: int | None = -9) -> Child:
    return Child(agent="a", agent_id="x", epoch=epoch, pid=7, spawned_at=now(), exit_code=exit_code)


def succeeding(*hosts: tuple[str, Child], phase: Phase = "waiting") -> tuple[World, AgentState]:
    """A new leader that has received these inventories, before it decides anything."""
    world = World(a(phase=phase))
    for sandbox in world.policy.hosts:
        world.host(sandbox, *(child for name, child in hosts if name == sandbox))
    return world, world.policy.agents["a"]


def test_an_agent_that_died_without_a_leader_is_declared_dead_by_the_next_one():
    world, state = succeeding(("base", ended(60, 1)), ("base", ended(70)), ("python", ended(65, 1)))
    assert state.unreported_exit == UnreportedExit(70, "base", 7, "x", -9, world.now)
    world.policy.unreported_exit_found(world.now, "a", state.unreported_exit)
    dead, spawn = world.policy.decide(world.now)
    assert dead == Dead("a", 70, "base", 7, "signal 9")
    assert spawn == Spawn("a", "base", "signal 9")
    assert len(state.deaths) == 1
    assert state.known_epoch == 70, "a newer claim is not ignored"
    world.host("base", ended(70))
    world.policy.exited(world.now, "a", 70, -9)
    assert world.policy.decide(world.now) == [], "once"


def test_the_end_of_an_older_incarnation_is_nothing_where_another_host_runs_the_newer():
    world, state = succeeding(("base", ended(70)), ("python", ended(80, None)))
    assert state.unreported_exit is not None
    world.policy.unreported_exit_found(world.now, "a", state.unreported_exit)
    assert world.policy.decide(world.now) == []
    assert (state.epoch, state.sandbox) == (80, "python")


def test_what_a_new_leader_finds_ended_is_no_death_by_itself():
    world, _ = succeeding(("base", ended(70)))
    assert world.policy.decide(world.now) == [Spawn("a", "base")]


def test_an_end_that_a_host_reports_later_is_nothing_to_inherit():
    world = World(a())
    world.policy.decide(world.now)
    world.host("base", ended(70))
    assert world.policy.agents["a"].unreported_exit is None


@pytest.mark.parametrize("phase", ["quarantined", "drained", "external"])
def test_an_agent_that_was_to_stay_stopped_stays_so_under_the_next_leader(phase):
    world, state = succeeding(("base", ended(70)), phase=phase)
    assert state.unreported_exit is not None
    world.policy.unreported_exit_found(world.now, "a", state.unreported_exit)
    assert world.policy.decide(world.now) == []
    assert state.phase == phase


def test_a_mistake_that_no_restart_fixes_is_quarantined_by_the_next_leader():
    world, state = succeeding(("base", ended(70, 2)))
    assert state.unreported_exit is not None
    world.policy.unreported_exit_found(world.now, "a", state.unreported_exit)
    assert kinds(world.policy.decide(world.now)) == ["Dead", "Quarantine"]


def test_an_agent_lost_with_its_host_without_a_leader_is_moved_and_not_blamed():
    world = World(a())
    world.host("python")
    world.policy.unreported_exit_found(world.now, "a", UnreportedExit(70, "base", 7, "x", None, world.now))
    dead, spawn = world.policy.decide(world.now)
    assert isinstance(dead, Dead)
    assert (dead.epoch, reason_class(dead.reason)) == (70, "sandbox lost")
    assert spawn == Spawn("a", "python", dead.reason, "base")
    assert not world.policy.agents["a"].deaths


def test_an_incarnation_started_manually_takes_over():
    world = ready()
    state = world.policy.agents["a"]
    old = state.epoch
    world.policy.heartbeat(
        world.now,
        Heartbeat(agent="a", agent_id="y", epoch=old + 5, sequence=1, progress=0, status="live", interval_ms=100,
                  sandbox="unsupervised", pid=77),
    )  # fmt: skip
    world.policy.exited(world.now, "a", old, 1)  # the old one was fenced and ended
    assert world.policy.decide(world.now) == []
    assert (state.epoch, state.sandbox) == (old + 5, "unsupervised")
    world.policy.drained(world.now, "a", old + 5)
    assert kinds(world.policy.decide(world.now)) == ["Dead", "Spawn"]
    assert not state.deaths


def test_a_claim_by_another_is_given_time_to_heartbeat():
    world = ready()
    world.policy.exited(world.now, "a", world.policy.agents["a"].epoch, 1)
    world.policy.decide(world.now)
    world.policy.superseded(world.now, "a")
    assert world.run(1.0) == []
    assert kinds(world.run(1.0)) == ["Spawn"]


def test_an_agent_of_a_host_that_drains_by_itself_is_left_to_the_hosts_report():
    world = ready()
    world.policy.drained(world.now, "a", world.policy.agents["a"].epoch)
    assert world.policy.decide(world.now) == []


def test_a_start_that_fails_is_tried_again_without_being_a_death():
    world = ready()
    world.policy.exited(world.now, "a", world.policy.agents["a"].epoch, -9)
    world.policy.decide(world.now)
    world.policy.spawn_failed(world.now, "a", "no answer")
    actions = world.run(1)
    assert kinds(actions) == ["Spawn"]
    assert len(world.policy.agents["a"].deaths) == 1


@given(
    st.lists(
        st.sampled_from(
            ["die", "silent", "probe", "wait", "host", "bus down", "bus up", "drain", "end", "not drained"]
        ),
        max_size=60,
    )
)
def test_one_incarnation_at_a_time_and_only_the_named_ways_out(events: list[str]) -> None:
    """Whatever happens: a Spawn only when the one before is dead or drained, and quarantine only by its rule."""
    world = ready()
    alive = True
    for event in events:
        state = world.policy.agents["a"]
        if event == "die":
            world.policy.exited(world.now, "a", state.epoch, -9)
        elif event == "drain":
            world.policy.drained(world.now, "a", state.epoch)
            world.policy.exited(world.now, "a", state.epoch, 0)
        elif event == "end":
            world.policy.exited(world.now, "a", state.epoch, 0)
        elif event == "not drained":
            world.policy.not_drained(world.now, "a", state.epoch)
        elif event == "silent":
            world.sending.discard("a")
        elif event == "probe":
            world.policy.probed(world.now, "a", state.epoch, "T", CpuTimes(0, 0))
        elif event == "host":
            world.host("base", pid=world.sandboxes["base"] + 1)
        elif event in ("bus down", "bus up"):
            world.policy.bus_checked(world.now, event == "bus down")
        for action in world.run(0.3):
            if isinstance(action, (Dead, Drained)):
                assert alive
                alive = False
            elif isinstance(action, Spawn):
                assert not alive
                alive = True
            elif isinstance(action, Quarantine):
                assert len(state.deaths) >= 10 or state.deaths.in_a_row >= 10
            elif isinstance(action, (ProbeProcess, VerifyDrain)):
                assert alive


def test_a_swarm_starts_a_few_at_a_time_in_each_sandbox():
    names = [f"a{number}" for number in range(20)]
    world = World(*(a(name, "base") for name in names), a("other", "python"))
    world.host("base")
    world.host("python")
    first = world.policy.decide(world.now)
    assert first == [*(Spawn(name, "base") for name in names[:STARTS_AT_ONCE]), Spawn("other", "python")]
    for spawn in first:
        assert isinstance(spawn, Spawn)
        world.start(spawn)
    assert world.policy.decide(world.now) == [], "they have sent no heartbeat yet"
    world.heartbeat("a1")
    assert world.policy.decide(world.now) == [Spawn(names[STARTS_AT_ONCE], "base")]
    world.start(Spawn(names[STARTS_AT_ONCE], "base"))
    world.run(5)
    assert all(state.phase == "running" for state in world.policy.agents.values())


def test_an_agent_without_heartbeats_holds_up_no_other():
    names = [f"a{number}" for number in range(STARTS_AT_ONCE + 1)]
    world = World(*(a(name) for name in names), sandboxes=("base",))
    world.host("base")
    for spawn in world.policy.decide(world.now):
        assert isinstance(spawn, Spawn)
        world.start(spawn)
    world.sending.clear()
    actions = world.run(Timeouts().grace_s + 0.1)
    assert Spawn(names[-1], "base") in actions


@pytest.mark.parametrize("silent", [False, True])
def test_a_start_may_take_its_own_time_and_no_longer(silent):
    """Code of users is imported: also without heartbeats, as an import can keep a process from sending any."""
    world = World(a(), sandboxes=("base",))
    world.host("base")
    [spawn] = world.policy.decide(world.now)
    assert isinstance(spawn, Spawn)
    world.start(spawn)
    world.status = "starting"
    world.stuck.add("a")
    world.run(0.5)
    if silent:
        world.sending.clear()
    start_s = Timeouts().start_s
    assert kinds(world.run(start_s - 1)) == []
    [dead] = [action for action in world.run(1, spawn=False) if isinstance(action, Dead)]
    assert "longer than [watchdog] start_timeout_s = 60" in dead.reason
    assert dead.unresponsive


def host(name: str, group: str = "", *, alive: bool = True) -> HostState:
    return HostState(name, group or name, alive=alive)


def there(name: str, sandbox: str, **more: Any) -> AgentState:
    return AgentState(name, "base", sandbox=sandbox, **more)


def test_an_agent_goes_back_to_the_host_that_it_had_however_full_it_is():
    agent = there("a", "python")
    others = [there(name, "python") for name in "bcd"]
    assert choose_sandbox(agent, [agent, *others], [host("base"), host("python")]) == "python"
    assert choose_sandbox(agent, [agent, *others], [host("base"), host("python", alive=False)]) == "base"


def test_an_agent_goes_to_the_hosts_of_its_sandbox_before_emptier_ones():
    agent = a("a", "base")
    others = [there("b", "base-1"), there("c", "base-2"), there("d", "base-2")]
    hosts = [host("python"), host("base-2", "base"), host("base-1", "base")]
    assert choose_sandbox(agent, [agent, *others], hosts) == "base-1"
    assert choose_sandbox(agent, [agent, *others], [host("python"), host("base-1", "base", alive=False)]) == "python"
    assert choose_sandbox(agent, [agent], [host("base", alive=False)]) is None


def test_agents_anywhere_else_are_no_load_and_the_first_of_equal_hosts_is_taken():
    agent = a("a", "nowhere")
    others = [there("b", "one"), there("c", "gone"), there("d", "two"), there("e", "three")]
    hosts = [host("one"), host("two"), host("three")]
    assert choose_sandbox(agent, [agent, *others], hosts) == "one"
    assert choose_sandbox(agent, [agent, *others, there("f", "one")], hosts) == "two"


@pytest.mark.parametrize(
    ("states", "starting"),
    [
        pytest.param([{"phase": "restarting"}, {"phase": "restarting"}], 2, id="ordered"),
        pytest.param([{"phase": "starting", "started_at": 99.0}], 1, id="started"),
        pytest.param(
            [{"phase": "starting", "started_at": 97.0}, {"phase": "starting", "started_at": 97.1}], 1, id="late"
        ),
        pytest.param([{"phase": "starting", "started_at": 99.0, "has_heartbeat": True}], 0, id="heartbeat"),
        pytest.param([{"phase": phase} for phase in ("running", "waiting", "backoff", "drained")], 0, id="others"),
        pytest.param([{"phase": "restarting", "sandbox": "python"}], 0, id="elsewhere"),
        pytest.param([{"phase": "restarting"}, {"phase": "starting", "started_at": 99.0}], 2, id="both"),
    ],
)
def test_a_start_counts_from_its_order_to_its_first_heartbeat_unless_it_is_late(states, starting):
    agents = [there(f"a{number}", **{"sandbox": "base", **state}) for number, state in enumerate(states)]
    assert starting_count(100.0, "base", agents, 3.0) == starting


@pytest.mark.parametrize(("phase", "lag", "limit_s"), [("running", 3, STALLED_S), ("starting", 0, NEVER_READY_S)])
def test_heartbeats_without_progress_are_a_death_after_a_while(phase, lag, limit_s):
    world = ready() if phase == "running" else World(a())
    if phase == "starting":
        world.host("base")
        world.run(0.1)
        world.status = "replaying"
    world.stuck.add("a")
    world.lag = lag
    world.run(0.2)
    progressed_at = world.policy.agents["a"].progress_at
    actions = world.run(progressed_at + limit_s - world.now - 0.2)
    assert not [action for action in actions if isinstance(action, Dead)]
    [dead] = [action for action in world.run(0.6, spawn=False) if isinstance(action, Dead)]
    assert f"no progress for {limit_s:.0f} s" in dead.reason


def test_a_start_may_have_begun_long_ago():
    world = World(a())
    world.host("base")
    world.status = "starting"
    world.run(0.3)
    world.policy.agents["a"].started_at -= 97.0
    [dead] = [action for action in world.policy.decide(world.now) if isinstance(action, Dead)]
    assert dead.unresponsive
    assert "longer than [watchdog] start_timeout_s" in dead.reason


def test_an_agent_without_pending_inputs_need_not_progress():
    world = ready()
    world.stuck.add("a")
    world.lag = 0
    assert not [action for action in world.run(STALLED_S + 5) if isinstance(action, Dead)]


def test_a_start_that_was_given_up_and_revived_begins_with_the_shortest_pause():
    world = World(a())
    world.host("base")
    for _ in range(4):
        world.policy.spawn_failed(world.now, "a", "no memory")
    late = world.policy.agents["a"].retry_at - world.now
    world.policy.agents["a"].phase = "quarantined"
    assert world.policy.revive(world.now, "a")
    world.policy.spawn_failed(world.now, "a", "no memory")
    assert 0.04 <= world.policy.agents["a"].retry_at - world.now <= 0.06 < late


def test_a_start_that_failed_is_tried_again_when_its_pause_is_over_and_not_before():
    world = World(a())
    world.host("base")
    world.policy.spawn_failed(world.now, "a", "no memory")
    agent = world.policy.agents["a"]
    agent.retry_at = world.now + 0.5
    assert world.policy.decide(world.now + 0.49) == []
    assert world.policy.decide(world.now + 0.5) == [Spawn("a", "base", "no memory")]


def test_what_an_earlier_incarnation_had_reached_is_not_taken_for_the_next_ones():
    world = ready()
    world.lag, world.cursor = 4, 9
    world.heartbeat("a")
    world.policy.spawned(world.now, "a", "base", 5, 900, "next")
    agent = world.policy.agents["a"]
    assert (agent.lag, agent.cursor, agent.outputs, agent.progress, agent.has_heartbeat) == (0, 0, 0, 0, False)
    assert (agent.started_at, agent.heartbeat_at, agent.progress_at) == (world.now, world.now, world.now)


def test_an_agent_that_ends_with_its_host_is_not_blamed():
    world = ready()
    world.host("base", status="draining")
    agent = world.policy.agents["a"]
    world.policy.exited(world.now, "a", agent.epoch, 0)
    assert "its sandbox host is ending" in [
        action.reason for action in world.policy.decide(world.now) if isinstance(action, Dead)
    ]
    assert (len(agent.deaths), agent.deaths.in_a_row) == (0, 0)


def test_when_the_bus_recovers_all_silences_start_again_and_not_before():
    world = ready()
    agent = world.policy.agents["a"]
    heartbeat_at = agent.heartbeat_at
    world.now += 2.0
    world.policy.bus_checked(world.now, unhealthy=False)
    world.policy.bus_checked(world.now, unhealthy=True)
    world.policy.bus_checked(world.now, unhealthy=True)
    assert agent.heartbeat_at == heartbeat_at
    world.policy.bus_checked(world.now, unhealthy=False)
    assert agent.heartbeat_at == world.now
