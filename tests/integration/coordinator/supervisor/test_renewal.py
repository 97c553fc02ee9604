"""What a leader renews, on a real stream that is made to look full; hosts are played."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bus.durable.fencing import claim
from bus.nats.bus import NatsBus
from bus.nats.streams import ensure_streams
from coordinator.supervisor import renewal as module
from coordinator.supervisor.model import AgentState
from coordinator.supervisor.renewal import Renewal, read_span
from tests.support.nats import Connections, supervised_server
from tests.support.policy_world import World


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
    half: int | None = None

    async def read_full(bus: NatsBus) -> module.StreamSpan:
        """A full stream with message `half` in its middle; 0: far beyond what is stored."""
        span = await read_span(bus)
        assert not span.full
        if half is None:
            return span
        return replace(span, full=True, first=2 * half - span.last) if half else replace(span, full=True, last=10_000)

    monkeypatch.setattr(module, "read_span", read_full)
    async with supervised_server(tmp_path) as server, Connections() as connections:
        bus = await connections.bus(server.url)
        await ensure_streams(bus)
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
        half = 0
        world.policy.restart("a")  # a leader that ends now would leave it stopped
        assert await asked(leads(term)) == ["config"]
        world.policy.agents["a"].requested_epoch = 0
        assert await asked(leads(term)) == ["config", "term"]

        half = await claimed(bus, "watchdog")
        renewal = leads(half)

        async def ended(renewal: Renewal) -> list[Any]:
            return [one for one in await asked(renewal) if one != "config"]

        assert await ended(renewal) == [("base", "b", 2)]  # the older claim first
        assert await ended(renewal) == []  # asked already, and one at a time
        epochs["b"] = await claimed(bus, "b")
        world.policy.spawned(world.now, "b", "base", 3, epochs["b"], "b")
        assert await ended(renewal) == []  # its successor is not ready
        world.policy.agents["b"].phase = "running"
        assert await ended(renewal) == [("base", "a", 1)]
