"""What a leader renews by age, on a real stream whose messages are made to look older; hosts are played."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from bus.durable.fencing import claim, last_claim
from bus.nats.bus import NatsBus
from bus.nats.streams import StreamLimits, ensure_streams
from coordinator.supervisor import renewal as module
from coordinator.supervisor.model import AgentState
from coordinator.supervisor.renewal import Renewal, read_span
from tests.support.nats import Connections, supervised_server
from tests.support.policy_world import World

MAX_AGE_S = 600.0
OLD_S = MAX_AGE_S / 2 + 1


class Played:
    """The hosts, the publisher of VotingConfigs and the leader: what each was asked for, in order."""

    def __init__(self, bus: NatsBus) -> None:
        self.bus = bus
        self.asked: list[Any] = []

    async def terminate(self, sandbox: str, name: str, pid: int) -> None:
        self.asked.append((sandbox, name, pid))

    async def publish(self, *, again: bool) -> None:
        await self.bus.publish("in." + self.bus.subjects.config("watchdog"), b"{}")
        self.asked.append("config")

    def end_term(self) -> None:
        self.asked.append("term")


async def claimed(bus: NatsBus, name: str) -> int:
    return await claim(bus, name, agent_id=name, claimed_by="watchdog", sandbox="base")


async def test_the_config_then_the_term_then_one_agent_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    later = timedelta()

    async def read_later(bus: NatsBus) -> module.StreamSpan:
        span = await read_span(bus)
        return replace(span, now=span.now + later)

    monkeypatch.setattr(module, "read_span", read_later)
    async with supervised_server(tmp_path) as server, Connections() as connections:
        bus = await connections.bus(server.url)
        await ensure_streams(bus, StreamLimits(max_age_s=MAX_AGE_S))
        world = World(AgentState("a", "base"), AgentState("b", "base"), AgentState("external", "", phase="external"))
        world.host("base")
        term = await claimed(bus, "watchdog")
        epochs = {name: await claimed(bus, name) for name in ("b", "a")}

        def runs(name: str, pid: int) -> None:
            world.policy.spawned(world.now, name, "base", pid, epochs[name], name)
            world.policy.agents[name].phase = "running"

        runs("a", 1)
        runs("b", 2)
        played: Any = Played(bus)

        def leads(term: int) -> Renewal:
            return Renewal(bus, term, world.policy, played, played, played.end_term)

        async def asked(renewal: Renewal) -> list[Any]:
            played.asked.clear()
            await renewal.check()
            return list(played.asked)

        assert await asked(leads(term)) == ["config"]  # there is none
        assert await asked(leads(term)) == []
        later = timedelta(seconds=OLD_S)
        world.policy.restart("a")  # a leader that ends now would leave it stopped
        assert await asked(leads(term)) == ["config"]
        world.policy.agents["a"].requested_epoch = 0
        assert await asked(leads(term)) == ["config", "term"]

        renewal = leads(await claimed(bus, "watchdog"))
        later = timedelta()
        assert await asked(renewal) == []
        later = timedelta(seconds=OLD_S)
        stored_later = await last_claim(bus, "watchdog")
        assert stored_later is not None
        renewal._claimed_at["watchdog", stored_later.sequence] += later  # the new claim is as young as it will be then
        assert await asked(renewal) == ["config", ("base", "b", 2)]  # the older claim first
        assert await asked(renewal) == ["config"]  # asked already, and one at a time
        epochs["b"] = await claimed(bus, "b")
        world.policy.spawned(world.now, "b", "base", 3, epochs["b"], "b")
        assert await asked(renewal) == ["config"]  # its successor is not ready
        world.policy.agents["b"].phase = "running"
        assert await asked(renewal) == ["config", ("base", "a", 1)]
