"""What a leader makes of heartbeats, reports and claims, over a bus in memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from bus.durable.fencing import claim
from bus.durable.registry import Record, write_record
from bus.errors import Fenced, MeshError
from bus.heartbeats import ReceivedHeartbeat
from bus.interface import ReceivedMessage
from bus.messages import FAILED, Heartbeat, Lifecycle, encode, now
from bus.messages import headers as h
from bus.testing.memory_bus import MemoryServer
from coordinator.config.loader import load_swarm
from coordinator.supervisor import watchdog as module
from coordinator.supervisor.model import Timeouts
from coordinator.supervisor.watchdog import (
    OWN_HEARTBEAT_LOST_S,
    Leadership,
    TermSignals,
    build_leadership,
    current_voters,
    make_policy,
)
from tests.support.collector import collecting
from tests.support.counting_bus import CountingBus

GUARD_S = 10.0


class Leading:
    """A leader of the default swarm that has not decided anything yet."""

    def __init__(self, leader: Leadership, signals: TermSignals, bus: CountingBus) -> None:
        self.leader, self.signals, self.bus, self.policy = leader, signals, bus, leader._policy
        self.name = next(iter(self.policy.agents))

    def heartbeat(self, role: Any, name: str, *, at: float | None = None, **fields: Any) -> None:
        heartbeat = Heartbeat(
            agent=name, agent_id="id", sequence=1, progress=1, interval_ms=100, sandbox=name, pid=9, role=role,
            **{"epoch": 0, "status": "live", **fields},
        )  # fmt: skip
        self.leader._on_heartbeat(ReceivedHeartbeat(time.monotonic() if at is None else at, heartbeat))

    def running(self, name: str, sandbox: str = "base", epoch: int = 5) -> None:
        self.policy.spawned(time.monotonic(), name, sandbox, 9, epoch, "id")

    async def report(self, event: str, agent: str, **fields: Any) -> None:
        """A lifecycle event of somebody, received."""
        self.signals.woken.clear()
        by = fields.pop("by", "base")
        message = Lifecycle(event=event, agent=agent, timestamp=now(), source=by, **fields)  # type: ignore[arg-type]
        self.bus.server.store(f"in.swarm.lifecycle.{agent}.{by}", encode(message), {})
        async with asyncio.timeout(GUARD_S):
            await self.signals.woken.wait()


@asynccontextmanager
async def leading(tmp_path: Path, **more: Any) -> AsyncIterator[Leading]:
    bus: Any = CountingBus(MemoryServer())
    signals = TermSignals()
    config = load_swarm(directory=tmp_path).resolve()
    term = await claim(bus, "watchdog", agent_id="w", claimed_by="watchdog", sandbox="")
    async with build_leadership(bus, config, term, signals=signals, **more) as leader:
        yield Leading(leader, signals, bus)
    await bus.close()


async def test_exits_that_a_host_reports_are_deaths(tmp_path):
    async with leading(tmp_path) as world:
        world.heartbeat("sandbox", "base")
        world.running(world.name)
        await world.report("exited", world.name, epoch=4, detail={"exit_code": 1})
        await world.report("exited", "nobody", epoch=5, detail={"exit_code": 1})
        await world.report("exited", world.name, epoch=5, detail={"exit_code": 2}, by="nodejs")
        await world.report("exited", "base", reason="no", by="nodejs")
        assert world.policy.hosts["base"].alive
        assert world.policy.agents[world.name].phase == "starting"
        await world.report("exited", world.name, epoch=5, detail={"exit_code": 1, "error": "ValueError: no"})
        state = world.policy.agents[world.name]
        assert (state.phase, state.reason) == ("restarting", "exit code 1: ValueError: no")


async def test_a_drain_that_an_agent_reports_keeps_it_stopped(tmp_path):
    async with leading(tmp_path) as world:
        world.heartbeat("sandbox", "base")
        world.running(world.name)
        await world.report("exited", world.name, epoch=5, detail={"exit_code": 0})
        await world.report("drained", world.name, epoch=5, by=world.name)
        assert world.policy.agents[world.name].phase == "drained"


async def test_a_host_that_ended_has_lost_its_agents(tmp_path):
    async with leading(tmp_path) as world:
        world.heartbeat("sandbox", "base")
        world.running(world.name)
        await world.report("exited", "base", reason="SIGKILL", by="up")
        assert not world.policy.hosts["base"].alive
        assert world.policy.agents[world.name].reason == "its sandbox host ended (SIGKILL)"


async def test_other_events_and_garbage_change_nothing(tmp_path):
    async with leading(tmp_path) as world:
        world.running(world.name)
        world.bus.server.store(f"in.swarm.lifecycle.{world.name}.x", b"{", {})
        for event in ("ready", "spawned", "declared_dead"):
            message = Lifecycle(event=event, agent=world.name, timestamp=now(), source="x", epoch=5)
            world.bus.server.store(f"in.swarm.lifecycle.{world.name}.x", encode(message), {})
        await world.report("exited", "nobody", epoch=5, detail={"exit_code": 1})  # what came before it is handled
        assert world.policy.agents[world.name].phase == "starting"


async def test_a_newer_claim_ends_the_term_and_an_older_one_does_not(tmp_path):
    async with leading(tmp_path) as world:
        own = {h.SEQUENCE: str(world.leader.term)}
        await world.leader._on_epoch(ReceivedMessage("swarm.epoch.watchdog", b"", own))
        assert not world.signals.stopped.is_set()
        await claim(world.bus, "watchdog", agent_id="other", claimed_by="watchdog", sandbox="")
        async with asyncio.timeout(GUARD_S):
            await world.signals.stopped.wait()
        assert isinstance(world.signals.error, Fenced)
        with pytest.raises(Fenced):
            await world.leader.lead()


async def test_after_a_break_nothing_is_ordered_before_the_claim_is_confirmed(tmp_path):
    async with leading(tmp_path) as world:
        assert await world.leader._still_leads()
        world.bus.disconnect()
        assert not await world.leader._still_leads()
        await world.bus.reconnect()
        assert await world.leader._still_leads()
        world.bus.disconnect()
        await claim(CountingBus(world.bus.server), "watchdog", agent_id="other", claimed_by="watchdog", sandbox="")
        await world.bus.reconnect()
        assert not await world.leader._still_leads()
        assert isinstance(world.signals.error, Fenced)


@pytest.mark.parametrize(
    ("ready", "own_s_ago", "unhealthy"),
    [(True, 0.0, False), (True, OWN_HEARTBEAT_LOST_S + 1, True), (False, 0.0, True)],
    ids=["healthy", "its own heartbeats are lost", "disconnected"],
)
async def test_no_agent_is_blamed_for_a_bus_that_is_not_healthy(tmp_path, ready, own_s_ago, unhealthy):
    async with leading(tmp_path) as world:
        world.heartbeat("watchdog", "watchdog", at=time.monotonic() - own_s_ago, epoch=world.leader.term)
        if not ready:
            world.bus.disconnect()
        world.leader._decide()
        assert world.policy._bus_unhealthy == unhealthy


async def test_heartbeats_of_another_watchdog_are_not_its_own(tmp_path):
    async with leading(tmp_path) as world:
        own = world.leader._own_heartbeat_at
        world.heartbeat("watchdog", "watchdog", epoch=world.leader.term - 1)
        world.heartbeat("watchdog", "watchdog", epoch=world.leader.term + 1)
        assert world.leader._own_heartbeat_at == own


async def test_heartbeats_of_hosts_and_of_agents_that_become_live_wake_the_leader(tmp_path):
    async with leading(tmp_path) as world:
        world.running(world.name)
        world.signals.woken.clear()
        world.heartbeat("agent", world.name, epoch=5, cursor=7)
        assert world.signals.woken.is_set()
        world.signals.woken.clear()
        world.heartbeat("agent", world.name, epoch=5, cursor=8)
        assert world.policy.agents[world.name].cursor == 8
        assert not world.signals.woken.is_set()
        world.heartbeat("sandbox", "base", uptime_s=3.0)
        assert world.signals.woken.is_set()
        assert world.policy.hosts["base"].alive
        assert list(world.leader._availability.names) == ["base"]


async def test_its_heartbeats_list_the_agents_that_do_not_run(tmp_path):
    async with leading(tmp_path) as world:
        world.running(world.name)
        fields = world.leader._status_fields()
        others = [name for name in world.policy.agents if name != world.name]
        assert fields["phases"] == dict.fromkeys(others, "waiting")
        assert fields["accounts"] == {}


async def test_a_sandbox_that_its_provider_reports_as_failed_is_not_waited_for(tmp_path):
    async with leading(tmp_path) as world:
        missing = sorted(world.leader._missing_sandboxes())
        world.heartbeat("provider", "provider", phases={missing[0]: FAILED})
        assert world.leader._missing_sandboxes() == set(missing[1:])
        world.heartbeat("sandbox", missing[-1])
        assert world.leader._missing_sandboxes() == set(missing[1:-1])


async def test_a_new_leader_keeps_stopped_agents_stopped_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FIRST_DISCOVERY_S", 0.0)
    monkeypatch.setattr(module, "AGENT_HEARTBEATS", 0.0)

    async def adopted(**more: Any) -> list[str]:
        async with leading(tmp_path, **more) as world:
            names = list(world.policy.agents)[:2]
            for name, status in zip(names, ("quarantined", "drained"), strict=True):
                record = Record(
                    agent_id="id", name=name, kind="k", capabilities=(), status=status, epoch=3, sandbox="base", pid=9,
                    spawned_at=now(),
                )  # fmt: skip
                await write_record(world.bus, record)
            await world.leader.adopt()
            config = [message for message in world.bus.server.messages if message.subject.startswith("swarm.config.")]
            assert len(config) == 1
            voters = orjson.loads(config[0].data)["voters"]
            assert set(voters) == set(current_voters(world.leader._swarm.config, world.policy))
            return [world.policy.agents[name].phase for name in names]

    assert await adopted() == ["quarantined", "drained"]
    assert await adopted(clear_quarantine=True) == ["waiting", "waiting"]


async def test_a_leader_decides_and_orders_until_it_is_stopped(tmp_path):
    async with leading(tmp_path) as world:
        orders: list[str] = []

        async def on_request(received: Any) -> bytes:
            orders.append(orjson.loads(received.data)["spec"]["name"])
            if len(orders) == 2:
                world.signals.stop()
            return orjson.dumps({"pid": len(orders)})

        await world.bus.answer(world.bus.subjects.control("base", "spawn"), on_request)
        world.heartbeat("watchdog", "watchdog", epoch=world.leader.term)
        world.heartbeat("sandbox", "base")
        async with asyncio.timeout(GUARD_S):
            await world.leader.lead()
        assert len(set(orders)) == len(orders) >= 2


async def test_a_leader_answers_a_restart_when_the_successor_runs(tmp_path):
    async with leading(tmp_path) as world:
        ours = [name for name, state in world.policy.agents.items() if state.phase != "external"]
        for name in ours:
            world.running(name)
        state = world.policy.agents[ours[0]]
        state.phase = "running"
        signalled = asyncio.Event()

        async def on_request(_: Any) -> bytes:
            signalled.set()
            return b"{}"

        await world.bus.answer(world.bus.subjects.control("base", "signal"), on_request)
        leading_task = asyncio.create_task(world.leader.lead())
        subject, body = world.bus.subjects.control("watchdog", "restart"), orjson.dumps({"agent": ours[0]})
        state.sandbox = "base"
        answering = asyncio.create_task(world.bus.request(subject, body, GUARD_S))
        async with asyncio.timeout(GUARD_S):
            await signalled.wait()
            state.epoch += 3
            assert orjson.loads(await answering)["epoch_after"] == 8
            world.signals.stop()
            await leading_task


async def test_the_traces_of_recoveries_are_exported_before_a_term_has_ended(tmp_path, monkeypatch):
    async with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")  # only the end exports them
        async with leading(tmp_path) as world:
            died = Lifecycle(event="declared_dead", agent="a", timestamp=now(), source="watchdog", epoch=5)
            parent = {h.TRACEPARENT: f"00-{7:032x}-{8:016x}-01"}
            world.bus.server.store("in.swarm.lifecycle.a.watchdog", encode(died), parent)
            await world.leader._recoveries.resume(world.bus, world.leader.term + 2)
            assert collector.spans == []
        assert [(span.name, span.service) for span in collector.spans] == [("respawn a", "watchdog")]


async def test_the_error_that_ends_a_term_is_raised():
    signals = TermSignals()
    signals.fail(MeshError("the reason"))
    assert signals.stopped.is_set()
    async with asyncio.timeout(GUARD_S):
        await asyncio.gather(signals.wait(60.0), asyncio.to_thread(lambda: None), _wake(signals))
    assert str(signals.error) == "the reason"


async def _wake(signals: TermSignals) -> None:
    await asyncio.sleep(0)
    signals.wake()


def test_the_policy_has_the_settings_in_seconds(tmp_path):
    (tmp_path / "swarm.toml").write_text(
        "[watchdog]\nsuspect_ms = 400\ndead_ms = 900\nstart_grace_ms = 4000\nstart_timeout_s = 70.0\n"
        "starved_ms = 6000\nquarantine_deaths = 7\nquarantine_window_s = 40.0\n"
    )
    config = load_swarm(Path("swarm.toml"), directory=tmp_path).resolve()
    policy = make_policy(config)
    assert policy._timeouts == Timeouts(
        suspect_s=0.4, dead_s=0.9, grace_s=4.0, start_s=70.0, starved_s=6.0, deaths=7, window_s=40.0
    )
    assert {name for name, state in policy.agents.items() if state.is_source} == set(config.sources)
    assert set(policy.hosts) == {sandbox.name for sandbox in config.sandboxes}


@pytest.mark.parametrize("phase", ["quarantined", "drained"])
def test_a_stopped_agent_does_not_vote(tmp_path, phase):
    config = load_swarm(directory=tmp_path).resolve()
    policy = make_policy(config)
    assert current_voters(config, policy) == config.voters
    stopped = next(iter(config.voters))
    policy.agents[stopped].phase = phase
    assert current_voters(config, policy) == {n: w for n, w in config.voters.items() if n != stopped}
