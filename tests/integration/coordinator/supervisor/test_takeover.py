"""What a new leader concludes about agents that no host runs, from the stream, the registry and what hosts report."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from bus.durable.fencing import claim, new_agent_id
from bus.durable.registry import Record, read_records, write_record
from bus.messages import Child, Heartbeat, Lifecycle, LifecycleEvent, encode, now
from bus.messages.subjects import WATCHDOG
from bus.nats.bus import NatsBus
from bus.nats.streams import ensure_streams
from bus.server.supervisor import NatsServer
from coordinator.supervisor.model import AgentState, Dead, Timeouts
from coordinator.supervisor.policy import Policy
from coordinator.supervisor.takeover import resolve_unreported_exits

NOW = 100.0


@dataclass
class SwarmHistory:
    """What has happened to the agents a (in question) and b (which runs, unless stated otherwise)."""

    bus: NatsBus

    async def claim(self, name: str = "a", by: str = WATCHDOG) -> int:
        return await claim(self.bus, name, agent_id=new_agent_id(), claimed_by=by, sandbox="base")

    async def record(self, epoch: int, status: str = "active") -> None:
        await write_record(
            self.bus,
            Record(
                agent_id="x", name="a", kind="k", capabilities=(), status=status, epoch=epoch, sandbox="base", pid=7,
                spawned_at=now(),
            ),
        )  # fmt: skip

    async def report(self, event: LifecycleEvent, epoch: int | None, writer: str = WATCHDOG, **detail: int) -> None:
        message = Lifecycle(event=event, agent="a", timestamp=now(), source=writer, epoch=epoch, detail=detail)
        await self.bus.publish("in." + self.bus.subjects.lifecycle("a", writer), encode(message))

    async def finished(self, *inventory: Child, others: bool = True) -> list[tuple[int, str]]:
        """Epochs and reasons of the deaths that a new leader with this inventory declares."""
        policy = await self.leads(*inventory, others=others)
        return [(action.epoch, action.reason) for action in policy.decide(NOW) if isinstance(action, Dead)]

    async def leads(self, *inventory: Child, others: bool = True) -> Policy:
        """The policy of a new leader with this inventory, before its first decision."""
        agents = [AgentState("a", "base"), AgentState("b", "base")]
        policy = Policy(agents, ["base"], Timeouts(), random.Random(1), NOW)
        runs = [child("b", await self.claim("b"), None)] if others else []
        policy.host_heartbeat(
            NOW,
            Heartbeat(
                agent="base", agent_id="h", epoch=0, sequence=1, progress=1, status="live", interval_ms=200,
                sandbox="base", pid=1, role="sandbox", inventory=(*runs, *inventory),
            ),
        )  # fmt: skip
        await resolve_unreported_exits(self.bus, policy, await read_records(self.bus))
        return policy


def child(name: str, epoch: int, exit_code: int | None = -9) -> Child:
    return Child(agent=name, agent_id="x", epoch=epoch, pid=7, spawned_at=now(), exit_code=exit_code)


@pytest.fixture
async def history(tmp_path) -> AsyncIterator[SwarmHistory]:
    async with NatsServer(tmp_path / "state", port=0) as server:
        bus = await NatsBus.connect(server.url, "swarm", "test")
        await ensure_streams(bus)
        yield SwarmHistory(bus)
        await bus.close()


async def test_an_undeclared_death_is_declared(history):
    old = await history.claim()
    await history.report("declared_dead", old)
    epoch = await history.claim()
    await history.record(old)  # it died before it was ready
    await history.report("suspected", epoch)
    await history.report("exited", epoch, "base", exit_code=-9)
    assert await history.finished(child("a", old), child("a", epoch)) == [(epoch, "signal 9")]
    assert await history.finished(child("a", epoch), others=False) == [(epoch, "signal 9")]
    await history.report("declared_dead", epoch)
    assert await history.finished(child("a", epoch)) == []


async def test_a_report_without_an_epoch_declares_no_incarnation_dead(history):
    epoch = await history.claim()
    assert epoch == 1  # the lowest one
    await history.report("declared_dead", None)
    assert await history.finished(child("a", epoch)) == [(epoch, "signal 9")]


@pytest.mark.parametrize("event", ["declared_dead", "quarantined", "revived"])
async def test_what_the_leader_before_has_declared_is_not_reported_again(history, event):
    epoch = await history.claim()
    await history.record(epoch)
    await history.report(event, None if event == "revived" else epoch)
    assert await history.finished(child("a", epoch)) == []
    assert await history.finished() == []


async def test_a_quarantine_that_the_registry_does_not_know_yet_stays(history):
    epoch = await history.claim()
    await history.record(epoch)
    await history.report("declared_dead", epoch)
    await history.report("quarantined", epoch)
    agent = (await history.leads(child("a", epoch))).agents["a"]
    assert (agent.phase, agent.epoch) == ("quarantined", epoch)
    await history.report("revived", None)
    assert (await history.leads(child("a", epoch))).agents["a"].phase == "waiting"


async def test_one_that_was_claimed_since_was_being_replaced(history):
    epoch = await history.claim()
    await history.record(epoch)
    await history.claim()
    assert await history.finished(child("a", epoch)) == []


async def test_an_end_with_exit_code_0_is_no_death(history):
    epoch = await history.claim()
    await history.record(epoch)
    await history.report("exited", epoch, "base", exit_code=0)
    assert await history.finished(child("a", epoch, 0)) == []
    assert await history.finished() == []


async def test_an_agent_that_no_host_reports_while_others_run_has_gone_with_its_host(history):
    epoch = await history.claim()
    await history.record(epoch)
    [(dead, reason)] = await history.finished()
    assert dead == epoch
    assert "sandbox host is gone" in reason
    await history.report("exited", epoch, "base", exit_code=1)  # before its host went as well
    assert await history.finished() == [(epoch, "exit code 1")]


async def test_a_swarm_in_which_no_agent_runs_is_one_that_starts(history):
    epoch = await history.claim()
    await history.record(epoch)
    assert await history.finished(others=False) == []


@pytest.mark.parametrize("status", ["stopped", "drained", "quarantined", "a status of another version"])
async def test_one_that_had_ended_is_not_missed(history, status):
    await history.record(await history.claim(), status)
    assert await history.finished() == []


async def test_one_that_ran_manually_is_not_missed(history):
    await history.record(await history.claim(by="a"))
    assert await history.finished() == []


async def test_one_that_was_never_ready_is_not_missed(history):
    await history.record(await history.claim())
    await history.claim()
    assert await history.finished() == []


async def test_garbage_in_the_place_of_a_report_is_ignored(history):
    epoch = await history.claim()
    await history.bus.publish("in." + history.bus.subjects.lifecycle("a", WATCHDOG), b"{")
    await history.bus.publish("in." + history.bus.subjects.lifecycle("a", "base"), b"{")
    assert await history.finished(child("a", epoch)) == [(epoch, "signal 9")]
