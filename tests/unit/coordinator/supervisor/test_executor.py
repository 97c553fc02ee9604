"""What each action of the policy asks of hosts, and what of it is reported and recorded."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from bus.durable.fencing import claim
from bus.durable.registry import read_records, write_record
from bus.messages import Lifecycle, encode, now
from bus.nats.key_files import agent_key_file, new_seed, write_seed
from coordinator.supervisor.model import (
    AgentState,
    Dead,
    Drained,
    ProbeProcess,
    Quarantine,
    SandboxLost,
    Spawn,
    Suspect,
    VerifyDrain,
)
from tests.support.supervising import TERM, Supervising


def running(**more: Any) -> AgentState:
    at = time.monotonic()
    state = AgentState(
        "a", "base", phase="running", sandbox="base", pid=9, epoch=3, known_epoch=3, agent_id="old", started_at=at - 60,
    )  # fmt: skip
    state.heartbeat_at, state.has_heartbeat = at, True
    for name, value in more.items():
        setattr(state, name, value)
    return state


def waiting(**more: Any) -> AgentState:
    return AgentState("a", "base", phase="restarting", sandbox="base", **more)


async def test_a_spawn_is_a_claim_and_an_order_with_its_epoch_and_the_term():
    async with Supervising(waiting()) as leader:
        await leader.execute(Spawn("a", "base"))
        [(command, order)] = leader.requests
        [stored] = leader.server.of(("swarm.epoch.a",), 0)
        assert (command, order["term"], order["epoch"], order["spec"]["name"]) == ("spawn", TERM, stored.sequence, "a")
        agent = leader.policy.agents["a"]
        assert (agent.phase, agent.sandbox, agent.pid, agent.epoch, agent.known_epoch, agent.agent_id) == (
            "starting", "base", 1234, stored.sequence, stored.sequence, order["agent_id"],
        )  # fmt: skip
        assert leader.changes == 1
        assert leader.events() == []  # its host reports the start


async def test_an_order_has_the_agents_key(tmp_path):
    seed = new_seed()
    write_seed(agent_key_file(tmp_path, "a"), seed)
    async with Supervising(waiting(), keys=tmp_path) as leader:
        await leader.execute(Spawn("a", "base"))
        [(_, order)] = leader.requests
        assert order["seed"] == seed
    async with Supervising(waiting()) as leader:
        await leader.execute(Spawn("a", "base"))
        [(_, order)] = leader.requests
        assert order["seed"] == ""


async def test_an_agent_is_not_started_without_its_key_and_one_alert_names_the_file(tmp_path):
    async with Supervising(waiting(), keys=tmp_path) as leader:
        for _ in range(2):
            await leader.execute(Spawn("a", "base"))
        assert leader.requests == []
        agent = leader.policy.agents["a"]
        problem = f"key {agent_key_file(tmp_path, 'a')}: there is no such file; `signalmesh up` makes it"
        assert (agent.phase, agent.reason, leader.failures) == ("backoff", problem, [])
        [alert] = leader.events("alert")
        assert (alert["code"], alert["severity"], alert["agent"]) == ("key_unusable", "critical", "a")
        assert problem in alert["message"]
        write_seed(agent_key_file(tmp_path, "a"), new_seed())
        await leader.execute(Spawn("a", "base"))
        assert agent.phase == "starting"


async def test_a_move_is_reported_with_where_it_came_from():
    async with Supervising(waiting()) as leader:
        await leader.execute(Spawn("a", "base", "its host was lost", "python"))
        [event] = leader.events()
        assert (event["event"], event["agent"], event["sandbox"], event["pid"], event["reason"], event["detail"]) == (
            "moved", "a", "base", 1234, "its host was lost", {"moved_from": "python"},
        )  # fmt: skip


async def test_an_order_that_a_host_refuses_is_tried_again_later():
    async with Supervising(waiting()) as leader:
        leader.replies["spawn"] = {"error": "no memory"}
        await leader.execute(Spawn("a", "base"))
        agent = leader.policy.agents["a"]
        assert (agent.phase, agent.reason) == ("backoff", "no memory")
        assert (leader.changes, leader.failures, agent.deaths.in_a_row) == (1, [], 0)


async def test_an_agent_that_another_process_has_claimed_is_not_started():
    async with Supervising(waiting(known_epoch=0)) as leader:
        await claim(leader.bus, "a", agent_id="theirs", claimed_by="a", sandbox="")
        await leader.execute(Spawn("a", "base"))
        assert leader.requests == []
        agent = leader.policy.agents["a"]
        assert (agent.phase, agent.known_epoch) == ("backoff", None)
        assert leader.changes == 1


async def test_a_probe_is_answered_to_the_policy():
    silent = running(heartbeat_at=time.monotonic() - 5)
    async with Supervising(silent) as leader:
        leader.replies["check"] = {"state": "gone", "cpu_s": 0.0, "waited_s": 0.0}
        await leader.execute(ProbeProcess("a", "base", 3))
        assert leader.requests == [("check", {"term": TERM, "agent": "a", "epoch": 3})]
        assert silent.phase in ("backoff", "restarting")
        assert leader.changes == 1


async def test_an_unanswered_request_ends_no_term():
    async with Supervising(running()) as leader:
        leader.replies["check"] = {"error": "another term"}
        await leader.execute(ProbeProcess("a", "base", 3))
        assert (leader.failures, leader.changes, leader.policy.agents["a"].phase) == ([], 0, "running")


async def test_an_error_of_our_own_ends_the_term():
    async with Supervising(running()) as leader:
        leader.replies["check"] = {"state": "R"}  # without its processor times
        await leader.execute(ProbeProcess("a", "base", 3))
        assert [str(error) for error in leader.failures] == ["the watchdog failed: KeyError('cpu_s')"]


def drained(epoch: int) -> bytes:
    return encode(Lifecycle(event="drained", agent="a", timestamp=now(), source="a", epoch=epoch))


@pytest.mark.parametrize(
    ("reports", "phase"),
    [
        ([drained(3)], "drained"),
        ([drained(2)], "restarting"),
        ([drained(3), b"{"], "restarting"),
        ([], "restarting"),
    ],
    ids=["drained", "an older incarnation", "garbage", "no report"],
)
async def test_the_stream_decides_whether_an_ended_agent_has_drained(reports, phase):
    ended = running(ended_at=time.monotonic())
    async with Supervising(ended) as leader:
        for data in reports:
            leader.server.store("in.swarm.lifecycle.a.a", data, {})
        await leader.execute(VerifyDrain("a", 3))
        assert ended.phase == phase
        assert leader.changes == 1


async def test_suspicions_deaths_and_lost_sandboxes_are_reported():
    async with Supervising(running()) as leader:
        await leader.execute(Suspect("a", 320))
        await leader.execute(Dead("a", 3, "base", 9, "signal 9"))
        await leader.execute(SandboxLost("base", ("a", "b")))
        await leader.execute(SandboxLost("python", ()))
        suspected, dead = leader.events()
        assert (suspected["event"], suspected["epoch"], suspected["pid"], suspected["detail"]) == (
            "suspected", 3, 9, {"silent_ms": 320},
        )  # fmt: skip
        assert (dead["event"], dead["epoch"], dead["sandbox"], dead["pid"], dead["reason"]) == (
            "declared_dead", 3, "base", 9, "signal 9",
        )  # fmt: skip
        first, second = leader.events("alert")
        assert (first["code"], first["detail"]) == ("sandbox_lost", {"sandbox": "base", "agents": ["a", "b"]})
        assert first["message"].endswith("move to other sandboxes: a, b")
        assert second["message"].endswith("move to other sandboxes: none")


async def test_a_process_that_did_not_respond_is_an_alert_as_well():
    async with Supervising(running()) as leader:
        await leader.execute(Dead("a", 3, "base", 9, "it hung", unresponsive=True))
        [alert] = leader.events("alert")
        assert (alert["code"], alert["agent"]) == ("agent_unresponsive", "a")


async def test_a_quarantine_is_reported_recorded_and_published_and_its_process_killed():
    async with Supervising(running()) as leader:
        await leader.execute(Quarantine("a", 3, "base", "too many deaths"))
        [event], [alert] = leader.events(), leader.events("alert")
        assert (event["event"], event["epoch"], event["reason"]) == ("quarantined", 3, "too many deaths")
        assert (alert["code"], alert["severity"]) == ("quarantined", "critical")
        assert "signalmesh revive a" in alert["message"]
        record = leader.records()["a"]
        assert (record["status"], record["kind"], record["capabilities"], record["epoch"], record["agent_id"]) == (
            "quarantined", "momentum", [], 3, "old",
        )  # fmt: skip
        age_s = (now() - datetime.fromisoformat(record["spawned_at"])).total_seconds()
        assert age_s == pytest.approx(60, abs=5)
        assert leader.requests == [("kill", {"term": TERM, "agent": "a", "epoch": 3})]
        assert leader.configs.count == 1


async def test_a_quarantined_agents_record_keeps_what_the_agent_wrote_of_itself():
    async with Supervising(running()) as leader:
        await leader.execute(Quarantine("a", 3, "base", "too many deaths"))
        known = (await read_records(leader.bus))["a"]
        await write_record(leader.bus, replace(known, kind="custom", capabilities=("voting",), status="active"))
        await leader.execute(Quarantine("a", 3, "base", "again"))
        record = leader.records()["a"]
        assert (record["kind"], record["capabilities"], record["status"]) == ("custom", ["voting"], "quarantined")


async def test_no_host_that_is_lost_is_asked_to_kill():
    async with Supervising(running()) as leader:
        leader.policy.hosts["base"].alive = False
        await leader.execute(Quarantine("a", 3, "base", "too many deaths"))
        await leader.execute(Quarantine("a", 3, "gone", "too many deaths"))
        assert leader.requests == []


async def test_a_drained_agent_is_recorded_as_such_and_votes_no_more():
    async with Supervising(running()) as leader:
        await leader.execute(Drained("a"))
        assert leader.records() == {}  # it never wrote a record
        await leader.execute(Quarantine("a", 3, "base", "for a record"))
        await leader.execute(Drained("a"))
        assert leader.records()["a"]["status"] == "drained"
        assert leader.configs.count == 3


async def test_the_start_of_an_agent_that_is_removed_meanwhile_is_undone(monkeypatch: pytest.MonkeyPatch):
    async with Supervising(waiting()) as leader:
        await leader.execute(Spawn("a", "base"))
        leader.requests.clear()
        monkeypatch.setattr(leader.policy, "claimed", lambda name, _: leader.policy.agents.pop(name))
        await leader.execute(Spawn("a", "base"))
        assert [command for command, _ in leader.requests] == ["spawn", "kill"]
        leader.requests.clear()
        await leader.execute(Spawn("a", "base"))
        assert leader.requests == []
