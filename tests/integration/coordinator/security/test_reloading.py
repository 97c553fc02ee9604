"""The server of `up` while it reads its users again, as it does whenever an agent has started or ended."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import orjson

from bus.interface import ReceivedMessage
from bus.nats.bus import NatsBus, ServiceEndpoint
from bus.nats.credentials import SERVICES, Credentials, inbox_of, public_key_of
from bus.nats.key_files import read_seed
from bus.server.supervisor import NatsServer
from coordinator.config.loader import BUILT_IN, parse_swarm
from coordinator.security.keys import KeyStore, ServedKeys
from tests.support.plain_client import connect_plainly

GUARD_S = 10.0
CONFIG = parse_swarm({}, BUILT_IN, "").resolve()
ASKED = [("watchdog", "sandbox-base", "base", "spawn"), ("dashboard", "watchdog", "watchdog", "restart")]
ASKED += [("operator", "proxy", "proxy", "reset"), ("operator", "sandbox-nodejs", "nodejs", "probe")]


async def test_answers_that_take_longer_than_a_reload_arrive(tmp_path: Path):
    keys = ServedKeys(KeyStore(tmp_path), CONFIG, "up", incarnations=True)
    assert keys.incarnations is not None
    seed = read_seed(keys.store.incarnations / "coordinator.next.nk")
    server = NatsServer(tmp_path, port=0, authorization=keys.authorization)
    reloaded, received = asyncio.Event(), asyncio.Queue[str]()
    async with server, AsyncExitStack() as stack:

        async def connect(seed: str) -> NatsBus:
            bus = await NatsBus.connect(server.url, "swarm", "test", 1.0, Credentials(nkey_seed=seed))
            stack.push_async_callback(bus.close)
            return bus

        async def answer(request: ReceivedMessage) -> bytes:
            await received.put(request.subject)
            await reloaded.wait()
            return orjson.dumps(request.subject)

        waiting: dict[str, asyncio.Future[bytes]] = {}
        for asker, answerer, target, command in ASKED:
            bus = await connect(keys.store.seed(answerer))
            subject = bus.subjects.control(target, command)
            await bus.answer(subject, answer)
            await bus.flush()
            asking = await connect(keys.store.seed(asker))
            waiting[subject] = asyncio.ensure_future(asking.request(subject, b"{}", GUARD_S))

        agent = await connect(seed)
        subject = agent.subjects.control("coordinator", "status")
        endpoint = ServiceEndpoint(name="status", subject=subject, on_request=answer)
        await agent.serve(name="coordinator", version="1.0.0", description="", metadata={}, endpoints=[endpoint])
        await agent.flush()
        operator = keys.store.seed("operator")
        inboxes = f"{inbox_of(public_key_of(operator))}.{SERVICES}"
        client = await connect_plainly(server.url, nkeys_seed_str=operator, inbox_prefix=inboxes)
        stack.push_async_callback(client.close)

        async def ask() -> bytes:
            return (await client.request(subject, b"", GUARD_S)).data

        waiting[subject] = asyncio.ensure_future(ask())

        async with asyncio.timeout(GUARD_S):
            assert {await received.get() for _ in waiting} == waiting.keys()
            await server.reload(keys.authorization + "# changed\n")
            while "Reloaded server configuration" not in server.log_file.read_text():
                await asyncio.sleep(0.01)
            reloaded.set()
            for asked, answered in waiting.items():
                assert orjson.loads(await answered) == asked
            discovered = orjson.loads((await client.request("$SRV.PING", b"", GUARD_S)).data)
        assert discovered["name"] == "coordinator"
