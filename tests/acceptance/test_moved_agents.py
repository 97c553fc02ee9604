"""Whom hosts accuse after a move: for what another incarnation requests, nobody; for an attack, the agent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import orjson
import pytest

from agents.host import api_gateway
from agents.host.api_gateway import ApiGateway
from bus.durable.events import EventPublisher
from bus.durable.fencing import claim
from bus.errors import BusTimeout, Refused
from bus.nats.bus import NatsBus
from bus.nats.credentials import Credentials, public_key_of
from bus.nats.key_files import new_seed
from tests.support.attacking import AGENT, GUARD_S, REFUSED_S, connected, server
from tests.support.secured import Secured, default_swarm

__all__ = ["server"]


class TwoHosts:
    """Hosts `base` and `nodejs`, and the agent as it asks each of them."""

    def __init__(self, operator: NatsBus, hosts: dict[str, NatsBus], asking: dict[str, NatsBus]) -> None:
        self.operator, self.asking, self._hosts = operator, asking, hosts
        self._reports: dict[str, EventPublisher] = {}
        self._gateways: dict[str, ApiGateway] = {}
        self._first = 0

    async def open(self) -> None:
        self._first = (await self.operator.bounds()).last + 1
        for name, bus in self._hosts.items():
            self._reports[name] = await EventPublisher.open(bus, name)
            self._gateways[name] = ApiGateway(bus, self._reports[name], name)

    async def start(self, host: str, key: str) -> None:
        """Let this host serve a new incarnation of the agent, with this public key."""
        name = AGENT.removeprefix("agent-")
        epoch = await claim(self.operator, name, agent_id=new_seed(), claimed_by="operator", sandbox=host)
        await self._gateways[host].admit(default_swarm().agent(name).spec, key, epoch)
        await self._hosts[host].flush()

    async def accused(self) -> list[tuple[str, str]]:
        """Each host's alerts about the agent, and what about."""
        for name, bus in self._hosts.items():
            await bus.flush()  # it has received what was sent before
            await self._reports[name].flush()
        found = [
            orjson.loads(each.data) for each in await self.operator.read_back(("swarm.alert.warning.*",), self._first)
        ]
        return [(alert["source"], alert["detail"]["attempt"]) for alert in found if alert.get("agent")]


@asynccontextmanager
async def two_hosts(server: Secured) -> AsyncIterator[TwoHosts]:
    seed, names = server.keys.seed(AGENT), ("base", "nodejs")
    async with (
        connected(server, *(f"sandbox-{name}" for name in names)) as (operator, *hosts),
        AsyncExitStack() as stack,
    ):
        asking, agent = {}, AGENT.removeprefix("agent-")
        for name in names:
            credentials = Credentials(nkey_seed=seed, api=operator.subjects.api(agent), api_host=name)
            asking[name] = await NatsBus.connect(server.url, "swarm", agent, credentials=credentials)
            stack.push_async_callback(asking[name].close)
        two = TwoHosts(operator, dict(zip(names, hosts, strict=True)), asking)
        await two.open()
        yield two


async def is_answered(agent: NatsBus, command: str = "STREAM.INFO.swarm_events") -> bool:
    """Whether the host that the agent asks answers, be it by a refusal."""
    try:
        await agent.api(command, timeout_s=REFUSED_S)
    except Refused:
        return True
    except BusTimeout:
        return False
    return True


async def test_a_host_that_has_lost_an_agent_unnoticed_accuses_it_of_nothing(
    server: Secured, monkeypatch: pytest.MonkeyPatch
):
    key = public_key_of(server.keys.seed(AGENT))
    async with two_hosts(server) as two:
        await two.start("base", key)
        assert await is_answered(two.asking["base"])
        await two.start("nodejs", key)
        with monkeypatch.context() as later:
            later.setattr(api_gateway, "LATE_S", 0.0)
            await two.asking["nodejs"].read_back(("swarm.market.>",), 1)  # it deletes a consumer without an answer, too
            assert await two.accused() == []
        async with asyncio.timeout(GUARD_S):
            while await is_answered(two.asking["base"]):  # until it has read the newest claim
                await two.operator.flush()
        assert await two.accused() == []
        assert await is_answered(two.asking["nodejs"], "STREAM.DELETE.swarm_events")
        assert await two.accused() == [("nodejs", "STREAM.DELETE.swarm_events")]
        monkeypatch.setattr(api_gateway, "LATE_S", 0.0)
        assert not await is_answered(two.asking["base"], "STREAM.PURGE.swarm_events")
        while len(found := await two.accused()) < 2:
            assert not await is_answered(two.asking["base"])
        assert {host for host, _ in found} == {"nodejs"}
        assert found[1][1] == "STREAM.PURGE.swarm_events"


async def test_a_late_request_of_the_incarnation_before_is_judged_by_its_own_rights(server: Secured):
    async with two_hosts(server) as two:
        await two.start("base", public_key_of(server.keys.seed(AGENT)))
        await two.start("base", public_key_of(new_seed()))
        assert not await is_answered(two.asking["base"])
        assert await two.accused() == []
        assert not await is_answered(two.asking["base"], "STREAM.DELETE.swarm_events")
        assert await two.accused() == [("base", "STREAM.DELETE.swarm_events")]
