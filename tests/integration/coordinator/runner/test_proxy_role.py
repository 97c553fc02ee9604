"""The proxy's faults, asked for over the bus, on real connections through it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bus.errors import UsageError
from bus.nats.bus import NatsBus
from bus.server.supervisor import NatsServer
from bus.testing.tcp_proxy import Proxy
from coordinator.runner.proxy_role import FaultService, open_proxy_port
from tests.support.collecting import GUARD_S
from tests.support.nats import Connections


class Network:
    """Two agents behind a proxy, and a connection past it that asks."""

    def __init__(self, proxy: Proxy, one: NatsBus, other: NatsBus, direct: NatsBus) -> None:
        self.proxy, self.one, self.other, self._direct = proxy, one, other, direct

    async def ask(self, command: str, **requested: Any) -> dict[str, Any]:
        reply = await self._direct.request(f"swarm.control.proxy.{command}", json.dumps(requested).encode())
        found: dict[str, Any] = json.loads(reply)
        return found


@asynccontextmanager
async def network(tmp_path) -> AsyncIterator[Network]:
    async with NatsServer(tmp_path, port=0) as server, Connections() as connections:
        listener, environment = open_proxy_port(server.url, embedded=True)
        async with Proxy(server.url, listener) as proxy:
            assert environment == {"SIGNALMESH_AGENTS_NATS": proxy.url}
            direct = await connections.bus(server.url)
            service = FaultService(direct, proxy)
            await service.start()
            named = [await NatsBus.connect(proxy.url, "swarm", name) for name in ("one", "other")]
            try:
                yield Network(proxy, named[0], named[1], direct)
            finally:
                for bus in named:
                    await bus.close()
                await service.stop()


async def reconnected(bus: NatsBus, generation: int) -> None:
    async with asyncio.timeout(GUARD_S):
        while bus.connection.generation == generation or not bus.is_ready:
            await asyncio.sleep(0.005)


async def test_the_named_connection_is_reset_and_no_other(tmp_path):
    async with network(tmp_path) as net:
        answer = await net.ask("reset", agents=["one"])
        assert answer == {"connections": 1, "names": ["one", "other"]}
        await reconnected(net.one, 1)
        assert (net.one.connection.generation, net.other.connection.generation) == (2, 1)
        assert (await net.ask("reset"))["connections"] == 2
        await reconnected(net.one, 2)
        await reconnected(net.other, 1)


async def test_a_black_hole_is_noticed_by_the_connection_in_it(tmp_path):
    async with network(tmp_path) as net:
        assert (await net.ask("blackhole", agents=["other"]))["connections"] == 1
        await reconnected(net.other, 1)
        assert net.one.connection.generation == 1
        await net.other.connection.client.flush()


async def test_a_delay_is_of_the_named_and_ends_by_itself(tmp_path):
    async with network(tmp_path) as net:
        assert (await net.ask("delay", agents=["one"], delay_s=0.1, for_s=0.5))["connections"] == 1
        started_at = time.monotonic()
        await net.one.connection.client.flush()
        assert time.monotonic() - started_at >= 0.2
        async with asyncio.timeout(GUARD_S):
            while net.proxy._delays["one"]:
                await asyncio.sleep(0.01)


async def test_what_it_does_not_understand_it_reports(tmp_path):
    async with network(tmp_path) as net:
        for requested in ({"delay_s": "long"}, {"delay_s": -1}, {"for_s": 1e9}):
            assert "error" in await net.ask("delay", **requested)
        assert (await net.ask("reset", agents=["nobody"]))["connections"] == 0


def test_an_encrypted_server_is_refused():
    with pytest.raises(UsageError, match="--fault-proxy"):
        open_proxy_port("tls://example.org:4222", embedded=False)
    listener, environment = open_proxy_port("nats://user:secret@127.0.0.1:4222", embedded=False)
    with listener:
        port = listener.getsockname()[1]
        assert environment == {"SIGNALMESH_AGENTS_NATS": f"nats://user:secret@127.0.0.1:{port}"}
