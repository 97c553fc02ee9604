"""Valid messages without end: whose key sends them is named and cut off, and the swarm decides as before."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from bus.durable.events import EventPublisher
from bus.errors import BusError
from bus.interface import ReceivedMessage
from bus.nats.bus import NatsBus
from bus.nats.credentials import Credentials, credentials_of
from coordinator.security.connections import FloodWatch
from coordinator.security.keys import KeyStore
from tests.acceptance.swarm import AGENTS, Swarm, agents_toml
from tests.support.attacking import AGENT, alerts_of, connected
from tests.support.secured import secured_server

VOTER = "acme"
WHO = f"voter-{VOTER}"
PER_S = 500
BATCH = 10
OPEN_BATCHES = 15
"""Without keys: 30 MB, a minute of what a key of a voter may send here."""
VOTE = orjson.dumps(
    {
        "signal": "buy",
        "strength": 0.5,
        "indicators": {},
        "timestamp": "2026-01-01T00:00:00Z",
        "source": VOTER,
        "symbol": "BTC/USD",
        "round": 10**9,
        "padding": "x" * 200_000,
    }
)
"""A valid vote, in a round that never comes; unknown fields are ignored."""
AGENTS_SUBJECT = "in.swarm.signal.A.strategy-momentum"
SUBJECT = f"in.swarm.signal.BTC-USD.{VOTER}"


async def publishes(operator: NatsBus, voter: NatsBus) -> bool:
    """Whether the stream stores what the voter publishes."""
    before = (await operator.bounds()).last
    voter.connection.write(SUBJECT, VOTE)
    await voter.flush()
    return bool(await operator.read_back((SUBJECT.removeprefix("in."),), before + 1))


async def flood(voter: NatsBus, batches: Iterable[int]) -> None:
    """Publish a batch for each; the server may end the connection of who is refused so much."""
    with contextlib.suppress(BusError):
        for _ in batches:
            for _ in range(BATCH):
                voter.connection.write(SUBJECT, VOTE)
            await voter.flush()
            await asyncio.sleep(0.01)  # the others share this loop


@pytest.mark.slow
@pytest.mark.parametrize("authentication", ["keys", "open"])
async def test_a_flooding_voter_is_cut_off_and_decisions_go_on(tmp_path: Path, authentication: str):
    toml = f"[nats]\nmax_messages_per_s = {PER_S}\n{agents_toml(speed=20)}"
    is_open = authentication == "open"
    async with Swarm(tmp_path, toml) as swarm, contextlib.AsyncExitStack() as stack:
        subscriber = await swarm.up(*(["--open"] if is_open else []))
        decisions = await swarm.listen("swarm.decision.>")
        await subscriber.live(*AGENTS)
        store = KeyStore(tmp_path / ".signalmesh")
        seed, operators = "", Credentials()
        if not is_open:
            assert (await swarm.command("keys", "add", VOTER, "--role", "voter")).code == 0
            seed, operators = store.seed(WHO), credentials_of(store.seed("operator"))
        operator = await NatsBus.connect(swarm.url, swarm.name, "operator", 1.0, operators)
        stack.push_async_callback(operator.close)
        voter = await NatsBus.connect(
            swarm.url, swarm.name, VOTER, 5.0, Credentials() if is_open else credentials_of(seed)
        )
        stack.push_async_callback(voter.close)
        assert await publishes(operator, voter)
        if is_open:
            before = (await operator.bounds()).last
            await flood(voter, range(OPEN_BATCHES))
            await decisions.more_decisions(20)
            stored = await operator.read_back((SUBJECT.removeprefix("in."),), before + 1)
            assert len(stored) == OPEN_BATCHES * BATCH, "nobody stops it"
            assert not {"client_floods", "quarantined"} & {one["code"] for one in subscriber.alerts}
            return
        flooding = asyncio.create_task(flood(voter, itertools.count()))
        [alert] = await subscriber.alerted("client_floods", 1)
        assert (alert["severity"], alert["detail"]["who"]) == ("critical", WHO)
        assert alert["detail"]["size"] > PER_S * 1024
        flooding.cancel()  # it would keep this process from receiving
        await asyncio.gather(flooding, return_exceptions=True)
        await decisions.more_decisions(60)
        again = await NatsBus.connect(swarm.url, swarm.name, VOTER, 5.0, credentials_of(seed))
        stack.push_async_callback(again.close)
        assert not await publishes(operator, again), "it is admitted, and may publish nothing"
        assert [one["detail"]["who"] for one in subscriber.alerts if one["code"] == "client_floods"] == [WHO]

        listed = await swarm.command("keys", "list", WHO, "--json")
        assert listed.code == 1
        assert f"signalmesh keys resume {WHO}" in listed.json["keys"][0]["problem"]
        findings = (await swarm.command("doctor", "--json")).json["findings"]
        assert [WHO in one["text"] for one in findings if one["level"] == "warning" and "resume" in one["remedy"]] == [
            True
        ]
        assert (await swarm.command("keys", "resume", "research-1")).code == 2
        assert (await swarm.command("keys", "resume", VOTER)).code == 0
        async with asyncio.timeout(30):
            while not await publishes(operator, again):
                await asyncio.sleep(0.1)
        assert {one["event"] for one in subscriber.lifecycle} <= {"spawned", "restored", "ready", "suspected"}
        assert not {"message_id_squatted", "quarantined"} & {one["code"] for one in subscriber.alerts}
        audit = await swarm.command("audit", "--json")
        assert (audit.code, audit.json["problems"]) == (0, [])


async def test_a_flooding_agent_is_quarantined_and_a_role_is_named(tmp_path: Path):
    """The keys of processes that the swarm needs are not cut off; the watchdog ends an agent."""
    with secured_server(tmp_path) as server:
        async with connected(server, AGENT, "mirror", "up") as (operator, agent, mirror, up):
            asked: list[bytes] = []

            async def quarantine(received: ReceivedMessage) -> None:
                asked.append(received.data)
                await operator.notify(received.reply, b"{}")

            await operator.listen("swarm.control.watchdog.quarantine", quarantine)
            nobody = pytest.fail
            watch = FloodWatch(server.owner, lambda who, _: nobody(who), outsiders=1, inside=PER_S)
            served: Any = SimpleNamespace(directory=server.log.parent, pid=server.pid)
            async with await EventPublisher.open(up, "up") as events:
                watching = asyncio.create_task(watch.run(served, up, events))
                async with asyncio.timeout(60):
                    alerts: list[dict[str, Any]] = []
                    while len(alerts) < 2:
                        for bus, subject in ((agent, AGENTS_SUBJECT), (mirror, "in.swarm.alert.info.mirror")):
                            for _ in range(PER_S):
                                bus.connection.write(subject, b"{}")
                            await bus.flush()
                        alerts = await alerts_of(operator, "client_floods")
                watching.cancel()
            assert {alert["detail"]["who"] for alert in alerts} == {AGENT, "mirror"}
            assert {*asked} == {b'{"agent":"strategy-momentum"}'}
