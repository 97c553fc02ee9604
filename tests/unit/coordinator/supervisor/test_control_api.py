"""The watchdog's answers to `restart`, `revive` and `quarantine`."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from coordinator.supervisor import control_api
from coordinator.supervisor.model import AgentState, Quarantine
from tests.support.supervising import GUARD_S, Supervising


def agent(phase: Any, name: str = "a", **more: Any) -> AgentState:
    return AgentState(name, "base", phase=phase, sandbox="base", pid=9, epoch=3, **more)


async def ask(leader: Supervising, command: str, body: bytes = b'{"agent": "a"}') -> dict[str, Any]:
    subject = leader.bus.subjects.control("watchdog", command)
    answer: dict[str, Any] = orjson.loads(await leader.bus.request(subject, body, GUARD_S))
    return answer


async def asked(leader: Supervising, command: str) -> asyncio.Task[dict[str, Any]]:
    """A request that is being handled."""
    task = asyncio.create_task(ask(leader, command))
    async with asyncio.timeout(GUARD_S):
        while not leader.control._restarts:
            await asyncio.sleep(0)
    return task


@pytest.mark.parametrize("phase", ["quarantined", "drained"])
async def test_a_stopped_agent_is_revived_reported_and_votes_again(phase):
    stopped = agent(phase, reason="too many deaths")
    async with Supervising(stopped) as leader:
        await leader.control.serve("watchdog")
        assert await ask(leader, "revive") == {"agent": "a", "was": phase}
        assert (stopped.phase, leader.configs.count, leader.changes) == ("waiting", 1, 1)
        await leader.reports.flush()
        [event] = leader.events()
        assert (event["event"], event["agent"], event["reason"]) == ("revived", "a", f"was {phase}")


async def test_an_agent_that_runs_is_not_revived():
    async with Supervising(agent("running")) as leader:
        await leader.control.serve("watchdog")
        answer = await ask(leader, "revive")
        assert answer == {
            "error": "agent a is running; only a quarantined or drained agent can be revived", "usage": False,
        }  # fmt: skip
        assert (leader.configs.count, leader.changes) == (0, 0)


@pytest.mark.parametrize(("phase", "then"), [("running", "quarantined"), ("drained", "drained")])
async def test_an_agent_that_floods_is_ended_and_not_started_again(phase, then):
    flooding = agent(phase)
    async with Supervising(flooding) as leader:
        await leader.control.serve("watchdog")
        for _ in range(2):
            assert await ask(leader, "quarantine") == {"agent": "a", "phase": then}
        quarantined = [each for each in leader.policy.decide(0.0) if isinstance(each, Quarantine)]
        assert [each.agent for each in quarantined] == (["a"] if phase == "running" else [])


@pytest.mark.parametrize(
    ("body", "problem", "usage"),
    [
        (b'{"agent": "nobody"}', "no agent 'nobody' in this swarm; it has: a, theirs", True),
        (b"{}", "no agent '' in this swarm; it has: a, theirs", True),
        (b'{"agent": "theirs"}', "agent 'theirs' is external", True),
        (b"garbage", "malformed", False),
        (b'{"agent\x88": "a"}', "can't decode byte 0x88", False),
    ],
)
@pytest.mark.parametrize("command", ["restart", "revive"])
async def test_a_request_that_cannot_be_met_is_answered_with_why(command, body, problem, usage):
    async with Supervising(agent("running"), agent("external", "theirs"), external=("theirs",)) as leader:
        await leader.control.serve("watchdog")
        answer = await ask(leader, command, body)
        assert problem in answer["error"]
        assert answer["usage"] == usage


async def test_a_restart_ends_when_the_successor_runs():
    restarted = agent("running")
    async with Supervising(restarted) as leader:
        await leader.control.serve("watchdog")
        leader.control.check_restarts()
        answering = await asked(leader, "restart")
        leader.control.check_restarts()
        assert restarted.requested_epoch == 3
        for phase, epoch in (("starting", 8), ("running", 3)):
            restarted.phase, restarted.epoch = phase, epoch  # type: ignore[assignment]
            leader.control.check_restarts()
            await asyncio.sleep(0)
            assert not answering.done()
        restarted.phase, restarted.epoch = "running", 8
        leader.control.check_restarts()
        answer = await answering
        assert leader.requests == [("signal", {"agent": "a", "signal": 15, "pid": 9})]
        assert (answer["agent"], answer["epoch_before"], answer["epoch_after"]) == ("a", 3, 8)
        assert 0 <= answer["ready_ms"] < GUARD_S * 1000
        assert leader.control._restarts == {}


async def test_a_restart_of_a_stopped_agent_revives_it():
    stopped = agent("drained")
    async with Supervising(stopped) as leader:
        await leader.control.serve("watchdog")
        answering = await asked(leader, "restart")
        while stopped.phase != "waiting":
            await asyncio.sleep(0)
        stopped.phase, stopped.epoch = "running", 8
        leader.control.check_restarts()
        answer = await answering
        assert (answer["was"], answer["epoch_after"]) == ("drained", 8)
        assert leader.requests == []


async def test_a_restart_whose_agent_is_quarantined_fails_with_the_reason():
    restarted = agent("running")
    async with Supervising(restarted) as leader:
        await leader.control.serve("watchdog")
        answering = await asked(leader, "restart")
        restarted.phase, restarted.reason = "quarantined", "exit code 2"
        leader.control.check_restarts()
        assert (await answering)["error"] == "agent a is quarantined: exit code 2"


@pytest.mark.parametrize("phase", ["waiting", "restarting", "backoff"])
async def test_an_agent_that_is_about_to_start_is_not_restarted(phase):
    async with Supervising(agent(phase)) as leader:
        await leader.control.serve("watchdog")
        assert (await ask(leader, "restart"))["error"] == "agent a is already being restarted"


async def test_a_second_restart_of_an_agent_is_refused_while_the_first_runs():
    restarted = agent("running")
    async with Supervising(restarted) as leader:
        await leader.control.serve("watchdog")
        first = await asked(leader, "restart")
        assert (await ask(leader, "restart"))["error"] == "agent a is already being restarted"
        assert not first.done()
        restarted.epoch = 8
        leader.control.check_restarts()
        assert (await first)["epoch_after"] == 8


async def test_a_host_that_refuses_to_signal_ends_the_restart():
    async with Supervising(agent("running")) as leader:
        leader.replies["signal"] = {"error": "no such process"}
        await leader.control.serve("watchdog")
        assert (await ask(leader, "restart"))["error"] == "agent a could not be requested to drain: no such process"
        assert leader.control._restarts == {}


@pytest.mark.parametrize(
    ("phase", "epoch", "problem"),
    [
        ("running", 3, "has not ended within 0 s"),
        ("starting", 3, "has not ended within 0 s"),
        ("starting", 8, "has drained, but is starting and not ready"),
        ("waiting", 3, "has drained, but is waiting and not ready"),
    ],
)
async def test_a_restart_that_takes_too_long_says_how_far_it_came(monkeypatch, phase, epoch, problem):
    monkeypatch.setattr(control_api, "DRAIN_S", 0.05)
    monkeypatch.setattr(control_api, "READY_S", 0.05)
    restarted = agent("running")
    async with Supervising(restarted) as leader:
        await leader.control.serve("watchdog")
        answering = await asked(leader, "restart")
        restarted.phase, restarted.epoch = phase, epoch
        assert problem in (await answering)["error"]


async def test_requests_that_run_end_with_the_leader():
    async with Supervising(agent("running")) as leader:
        await leader.control.serve("watchdog")
        answering = await asked(leader, "restart")
        await leader.control.end()
        assert leader.control._restarts == {}
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)
