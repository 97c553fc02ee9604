"""Who asks finds the agents that run: by NATS service discovery, and by the SDK of the Synadia Agent Protocol."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from synadia_ai.agents import Agent, Agents, ProtocolError
from synadia_ai.agents.heartbeat import HeartbeatPayload

from bus.nats.credentials import SERVICES, credentials_from
from tests.acceptance.faults import kill_agents
from tests.acceptance.swarm import AGENTS, GUARD_S, Swarm, agents_toml
from tests.support.plain_client import PlainClient, connect_plainly
from tests.support.secured import UNNAMED, secured_server

KILLED = "strategy-momentum"
LATE = "Late_1"
"""Added at run time, by a name that the protocol would not recommend."""
PROTOCOL = "agents"
"""The name of the service that all agents share in that protocol."""


async def ask(client: PlainClient, subject: str, expected: int) -> list[Any]:
    """The answers to a request, as `nats micro` makes it."""
    inbox = client.new_inbox()
    answers = await client.subscribe(inbox)
    await client.publish(subject, b"", reply=inbox)
    async with asyncio.timeout(GUARD_S):
        found = [json.loads((await answers.next_msg(GUARD_S)).data) for _ in range(expected)]
    await answers.unsubscribe()
    return found


async def discovered(agents: Agents, count: int, *instances: str) -> dict[str, Agent]:
    """The agents as the SDK finds them, by session, once there are so many and these instances are among them."""
    async with asyncio.timeout(GUARD_S):
        while True:
            found = await agents.discover()
            if len(found) == count and {*instances} <= {agent.instance_id for agent in found}:
                return {agent.session_name: agent for agent in found}


@pytest.mark.slow
async def test_whoever_asks_finds_the_agents_that_run(tmp_path: Path):
    everyone = (*AGENTS, LATE)
    async with Swarm(tmp_path, f"max_agents = {len(everyone)}\n{agents_toml(speed=20)}") as swarm:
        subscriber = await swarm.up()
        assert (await swarm.command("add", LATE, "--kind", "momentum")).code == 0
        heartbeats = await subscriber.live(*everyone)
        options = credentials_from().options(swarm.url)
        options["inbox_prefix"] += f".{SERVICES}"
        client = await connect_plainly(swarm.url, **options)
        agents = Agents(nc=client)
        try:
            found = await discovered(agents, len(everyone))
            assert {*found} == {*everyone}
            for name, agent in found.items():
                assert (agent.agent, agent.owner, agent.protocol_version) == ("signalmesh", "swarm", "0.3")
                assert agent.metadata["epoch"] == str(heartbeats[name]["epoch"])
                status = await agent.status()
                assert (status.session, status.instance_id, status.interval_s) == (name, agent.instance_id, 30)
                assert await agents.ping(agent.instance_id)
            with pytest.raises(ProtocolError, match=f"403: {KILLED} takes no prompts"):
                async for _ in found[KILLED].prompt("sell"):
                    pass

            everything = await ask(client, "$SRV.INFO", 2 * len(everyone))
            services = {one["name"]: one for one in everything if one["name"] != PROTOCOL}
            assert {*services} == {*everyone}
            for name, one in services.items():
                for verb in ("PING", "INFO", "STATS"):
                    [direct] = await ask(client, f"$SRV.{verb}.{name}.{one['id']}", 1)
                    assert (direct["name"], direct["metadata"]["epoch"]) == (name, str(heartbeats[name]["epoch"]))
                [state] = await ask(client, one["endpoints"][0]["subject"], 1)
                assert (state["epoch"], state["pid"]) == (heartbeats[name]["epoch"], heartbeats[name]["pid"])

            listening = await client.subscribe(f"agents.hb.signalmesh.swarm.{KILLED}")
            await client.flush()
            await kill_agents(swarm, subscriber, KILLED)
            beat = HeartbeatPayload.model_validate_json((await listening.next_msg(GUARD_S)).data)
            assert beat.instance_id != found[KILLED].instance_id
            assert not await agents.ping(found[KILLED].instance_id)
            assert (await discovered(agents, len(everyone), beat.instance_id))[KILLED].instance_id == beat.instance_id
            liveness = agents.liveness(beat.instance_id)
            assert liveness is not None
            assert liveness.is_online
        finally:
            await agents.close()
            await client.close()
        logs = "".join(path.read_text() for path in (tmp_path / ".signalmesh" / "logs").iterdir())
        assert "permission_denied" not in logs


@pytest.mark.parametrize("is_open", [False, True], ids=["keys", "open"])
async def test_an_agent_is_asked_by_the_operator_alone_and_beats_in_its_own_name(tmp_path: Path, *, is_open: bool):
    subjects = (
        "$SRV.PING",
        "$SRV.INFO.agents",
        "$SRV.STATS.coordinator",
        "agents.status.signalmesh.swarm.coordinator",
        "agents.prompt.signalmesh.swarm.coordinator",
    )
    attackers = ("agent-strategy-momentum", "sandbox-base", "watchdog", "mirror", "metrics", "dashboard", UNNAMED)
    heartbeat = "agents.hb.signalmesh.swarm.coordinator"
    received: list[tuple[str, bytes]] = []
    beats: list[bytes] = []
    spied: list[str] = []
    with secured_server(tmp_path, is_open=is_open) as server:
        async with AsyncExitStack() as stack:
            buses = {}
            for identity in ("operator", "agent-coordinator", *attackers):
                buses[identity] = await server.connect(identity)
                stack.push_async_callback(buses[identity].close)
            agent = buses["agent-coordinator"]
            for subject in subjects:
                await agent.connection.subscribe_directly(subject, lambda to, _r, data, _h: received.append((to, data)))
            await agent.flush()
            operator = buses["operator"].connection
            await operator.subscribe_directly("agents.hb.*.*.*", lambda _s, _r, data, _h: beats.append(data))
            await operator.flush()
            for identity in attackers:
                for subject in ("agents.>", "agents.hb.*.*.*", "agents.status.signalmesh.*.*", "_INBOX.agents.>"):
                    await buses[identity].connection.subscribe_directly(subject, lambda to, *_: spied.append(to))
                await buses[identity].flush()
            for identity in (*attackers, "operator"):
                for subject in subjects:
                    buses[identity].connection.write(subject, identity.encode())
                buses[identity].connection.write(heartbeat, identity.encode())
                await buses[identity].flush()
            agent.connection.write(heartbeat, b"agent-coordinator")
            agent.connection.write("_INBOX.agents.x", b"an answer")
            for bus in (agent, *buses.values()):
                await bus.flush()
    admitted = (*attackers, "operator") if is_open else ("operator",)
    assert received == [(subject, identity.encode()) for identity in admitted for subject in subjects]
    assert beats == [*(identity.encode() for identity in admitted if is_open), b"agent-coordinator"]
    assert bool(spied) is is_open
