"""`status`, made of facts: what is shown of agents, sandboxes and decisions."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from bus.durable.registry import Record
from bus.heartbeats import HeartbeatTable, ReceivedHeartbeat
from bus.messages import CREATING, FAILED, Decision, Heartbeat, VotingConfig
from coordinator.config.changes import Changes, Move, RemovedAgent, encode_changes, write_changes_file
from coordinator.config.kept_changes import save
from coordinator.config.loader import BUILT_IN, load_swarm
from coordinator.monitor.models import NOT_RUNNING, AgentStatus
from coordinator.monitor.run_files import RunFiles
from coordinator.monitor.status import (
    Facts,
    agent_status,
    decision_count,
    sandbox_status,
    sandboxes_without_host,
    status_of,
)
from tests.support.run_records import living_run

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def heartbeat(agent: str, *, status: str = "live", pid: int = 7, epoch: int = 5, **fields: Any) -> Heartbeat:
    values = {"sequence": 1, "progress": 1, "interval_ms": 100, "sandbox": "base", "agent_id": f"{agent}_1", **fields}
    return Heartbeat(agent=agent, status=status, pid=pid, epoch=epoch, **values)


def table(*heartbeats: tuple[float, Heartbeat]) -> HeartbeatTable:
    found = HeartbeatTable()
    for at, one in heartbeats:
        found.take(ReceivedHeartbeat(at, one))
    return found


def leader(**phases: str) -> Heartbeat:
    return heartbeat("watchdog", role="watchdog", epoch=3, phases=phases)


def record(name: str, status: str = "active", epoch: int = 2) -> Record:
    return Record(
        agent_id=f"{name}_0", name=name, kind="momentum", capabilities=("signal",), status=status, epoch=epoch,
        sandbox="python", pid=1, spawned_at=NOON,
    )  # fmt: skip


def facts(heartbeats: HeartbeatTable, **fields: Any) -> Facts:
    return Facts(swarm="swarm", nats="nats://x", at=10.0, heartbeats=heartbeats, **fields)


def agent(heartbeats: HeartbeatTable, **fields: Any) -> AgentStatus:
    return agent_status("one", facts(heartbeats, **fields))


def test_an_agent_with_a_heartbeat_is_shown_as_that_reports_it():
    result = agent(table((9.9, heartbeat("one", outputs=4, lag=2))), records={"one": record("one")}, claims={"one": 3})
    assert (result.status, result.epoch, result.pid, result.sandbox, result.agent_id) == (
        "active",
        5,
        7,
        "base",
        "one_1",
    )
    assert (result.outputs, result.lag, result.restarts, result.heartbeat_age_ms) == (4, 2, 2, 100)
    assert (result.kind, result.capabilities) == ("momentum", ["signal"])


def test_without_a_heartbeat_the_phase_counts_before_the_record():
    records = {"one": record("one", "stopped")}
    assert agent(table((9.9, leader(one="backoff"))), records=records).status == "backoff"
    assert agent(table(), records=records).status == "stopped"
    assert agent(table(), records={"one": record("one")}).status == "silent"
    assert agent(table()).status == "unknown"


def test_the_last_heartbeat_of_an_ended_process_does_not_count():
    gone = agent(table((9.0, heartbeat("one")), (9.1, leader(one="restarting"))))
    assert (gone.status, gone.pid, gone.heartbeat_age_ms) == ("restarting", None, None)
    manually_started = agent(table((9.0, heartbeat("one")), (9.1, leader(one="drained"))))
    assert (manually_started.status, manually_started.pid) == ("active", 7)


def test_the_epoch_of_a_silent_agent_is_its_newest_claim():
    records = {"one": record("one", epoch=2)}
    assert agent(table(), records=records, newest_claims={"one": 9}).epoch == 9
    assert agent(table(), records=records).epoch == 2


def test_the_outputs_of_an_external_agent_are_its_messages_in_the_stream():
    result = agent(table((9.9, leader(one="external"))), external_outputs={"one": (12, NOON)})
    assert (result.status, result.outputs, result.last_output_at) == ("external", 12, NOON)


def test_a_sandbox_lists_the_processes_that_run_in_it():
    heartbeats = table(
        (9.9, heartbeat("base", role="sandbox", provider="local", uptime_s=2.0)),
        (9.9, heartbeat("one")),
        (9.9, heartbeat("two", sandbox="other")),
    )
    found = facts(heartbeats)
    agents = [agent_status(name, found) for name in found.agent_names()]
    result = sandbox_status("base", found, agents)
    assert (result.status, result.provider, result.agents, result.uptime_s) == ("active", "local", ["one"], 2.0)


def test_a_sandbox_without_a_host_is_shown_as_its_provider_reports_it():
    provider = heartbeat("provider", role="provider", provider="e2b", phases={"far": FAILED, "near": CREATING})
    host = heartbeat("near-i1", role="sandbox", group="near")
    heartbeats = table((9.0, provider), (9.0, host))
    [result] = sandboxes_without_host(heartbeats, {"far": "no such template"}, ("far", "near"))
    assert (result.name, result.status, result.reason, result.pid) == ("far", FAILED, "no such template", None)
    assert sandboxes_without_host(table((9.0, host)), {}, ()) == []


def test_a_configured_remote_sandbox_is_shown_without_a_provider_and_without_a_host():
    host = heartbeat("near-i1", role="sandbox", group="near")
    [result] = status_of(facts(table((9.0, host)), remote_sandboxes=("near", "far"))).sandboxes[1:]
    assert (result.name, result.status, result.provider, result.pid) == ("far", NOT_RUNNING, "e2b", None)
    assert result.reason == "no provider is running"
    provider = heartbeat("provider", role="provider", provider="e2b", endpoint="E2B", phases={})
    [silent] = sandboxes_without_host(table((9.0, host), (9.0, provider)), {}, ("near", "far"))
    assert (silent.name, silent.status, silent.reason) == ("far", NOT_RUNNING, "its host sends no heartbeat")
    assert silent.endpoint == "E2B"


def test_the_remote_sandboxes_and_differences_are_those_of_the_recorded_configuration(tmp_path):
    file = tmp_path / "swarm.toml"
    file.write_text('[sandboxes.far]\nprovider = "e2b"\n[sandboxes.here]\n')
    run = living_run()
    recorded, gone = replace(run, config=str(file)), replace(run, config=str(tmp_path / "gone.toml"))
    assert RunFiles(recorded).remote_sandboxes() == ("far",)
    for other in (gone, replace(run, config=BUILT_IN), None):
        assert RunFiles(other).remote_sandboxes() == ()
    changes = Changes(revision=2, moved={"coordinator": Move(sandbox="here", after=3)})
    [moved] = RunFiles(recorded, tmp_path).differences(changes)
    assert RunFiles(gone, tmp_path).differences(changes) == RunFiles().differences(changes) == [moved]
    write_changes_file(tmp_path, changes)
    save(load_swarm(file), tmp_path, None)
    assert RunFiles(recorded, tmp_path).differences(changes) == []
    file.write_text(file.read_text().replace('"here"', '"far"'))
    assert RunFiles(recorded, tmp_path).differences(changes) == []


def test_decisions_of_other_writers_are_counted_apart():
    config = VotingConfig(voters={"one": 1.0}, timestamp=NOON, source="w", deciders=("coordinator",))
    decisions = {"swarm.decision.A.coordinator": 5, "swarm.decision.B.coordinator": 2, "swarm.decision.A.other": 3}
    newest = Decision(
        final_decision="hold", position_size=0.0, risk_score=0.0, consensus_level=0.0, agents_consulted=(),
        timestamp=NOON, source="coordinator",
    )  # fmt: skip
    result = decision_count(facts(table(), config=config, decisions=decisions, newest_decision=newest))
    assert (result.count, result.from_other_writers, result.last_at) == (7, 3, NOON)
    unnamed = decision_count(facts(table(), decisions=decisions))
    assert (unnamed.count, unnamed.from_other_writers, unnamed.last_at) == (10, 0, None)


def test_the_leader_is_listed_before_the_watchdogs_that_stand_by():
    standby = heartbeat("standby", role="watchdog", status="standby", pid=8)
    status = status_of(facts(table((9.5, standby), (9.9, leader()), (9.9, heartbeat("one")))))
    assert status.watchdog_term == 3
    assert [(watchdog.pid, watchdog.term) for watchdog in status.watchdogs] == [(7, 3), (8, None)]
    assert (status.active_agents, status.processes, status.mirror, status.provider) == (1, 1, None, None)


def test_a_removed_agent_is_shown_until_nothing_of_it_is_left():
    changes = Changes(revision=1, removed={"one": RemovedAgent(after=3, was={"kind": "momentum"})})
    config = VotingConfig(voters={}, timestamp=NOON, source="watchdog", changes=encode_changes(changes))
    heard = table((9.0, heartbeat("one")), (9.0, heartbeat("two")))
    drains = facts(heard, config=config, records={"one": record("one")})
    assert drains.agent_names() == ["one", "two"]
    assert replace(drains, records={}).agent_names() == ["two"]
