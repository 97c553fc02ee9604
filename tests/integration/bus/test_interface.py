"""The bus contract over the memory bus and over NATS, and what only a server can do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from bus.errors import Refused, UsageError
from bus.interface import Bus, ReceivedMessage
from bus.nats.bus import NatsBus
from bus.nats.streams import StreamLimits, ensure_streams, streams_exist
from bus.server.supervisor import NatsServer
from bus.testing.memory_bus import MemoryBus, MemoryServer
from tests.contracts.bus_contract import MARKET, BusContract, received_by
from tests.support.collecting import Collector


class MemoryMesh:
    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack, self.server = stack, MemoryServer()

    async def connect(self) -> Bus:
        bus = MemoryBus(self.server)
        self._stack.push_async_callback(bus.close)
        return bus


class NatsMesh:
    def __init__(self, stack: AsyncExitStack, url: str) -> None:
        self._stack, self.url = stack, url

    async def connect(self, swarm: str = "swarm") -> NatsBus:
        bus = await NatsBus.connect(self.url, swarm, "test")
        self._stack.push_async_callback(bus.close)
        return bus


class TestMemoryBus(BusContract):
    @pytest.fixture
    async def mesh(self) -> AsyncIterator[MemoryMesh]:
        async with AsyncExitStack() as stack:
            yield MemoryMesh(stack)


@pytest.fixture
async def nats_mesh(tmp_path: Path) -> AsyncIterator[NatsMesh]:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(NatsServer(tmp_path, port=0))
        mesh = NatsMesh(stack, server.url)
        await ensure_streams(await mesh.connect())
        yield mesh


class TestNatsBus(BusContract):
    @pytest.fixture
    async def mesh(self, nats_mesh: NatsMesh) -> NatsMesh:
        return nats_mesh


async def test_two_swarms_on_one_server_do_not_receive_each_other(nats_mesh):
    one, other = await nats_mesh.connect("swarm"), await nats_mesh.connect("swarm2")
    await ensure_streams(other)
    found = await received_by(one, "swarm.>")
    found_other = await received_by(other, "swarm2.>")
    await one.publish("in.swarm.market.A.feed", b"one", {"Nats-Msg-Id": "feed:1"})
    ack = await other.publish("in.swarm2.market.A.feed", b"other", {"Nats-Msg-Id": "feed:1"})
    await one.publish("in.swarm.market.A.feed", b"one again")
    await other.publish("in.swarm2.market.A.feed", b"other again")
    assert ack.duplicate is False
    assert [received.data for received in await found.reach(2)] == [b"one", b"one again"]
    assert [received.data for received in await found_other.reach(2)] == [b"other", b"other again"]
    assert [stored.data for stored in await other.read_back(("swarm2.>",), 1)] == [b"other", b"other again"]
    await one.kv_put(one.subjects.state_bucket, "feed", b"one", 0)
    assert await other.kv_get(other.subjects.state_bucket, "feed") is None


async def test_events_cannot_be_deleted_or_purged(nats_mesh):
    bus = await nats_mesh.connect()
    await bus.publish("in." + MARKET, b"1")
    with pytest.raises(Refused, match="purge not permitted"):
        await bus.api("STREAM.PURGE.swarm_events")
    with pytest.raises(Refused, match="delete not permitted"):
        await bus.api("STREAM.MSG.DELETE.swarm_events", {"seq": 1})
    for undo in ("deny_delete", "deny_purge"):
        config = (await bus.api("STREAM.INFO.swarm_events"))["config"]
        with pytest.raises(Refused):
            await bus.api("STREAM.UPDATE.swarm_events", {**config, undo: False})
    assert [stored.data for stored in await bus.read_back(("swarm.>",), 1)] == [b"1"]


async def test_headers_count_against_the_servers_limit(nats_mesh):
    bus = await nats_mesh.connect()
    with pytest.raises(Refused, match="message size exceeds maximum allowed"):
        await bus.publish("in." + MARKET, b"x" * 256 * 1024, {"traceparent": "y" * 8 * 1024})
    with pytest.raises(Refused, match="message size exceeds maximum allowed"):
        await bus.request("swarm.control.feed.probe", b"x" * 300 * 1024)
    with pytest.raises(Refused):
        await bus.notify("a subject with spaces", b"")
    assert bus.is_ready
    assert (await bus.publish("in." + MARKET, b"x" * 256 * 1024, {"traceparent": "y" * 8 * 1000})).sequence == 1


async def test_a_publish_that_timed_out_is_forgotten(nats_mesh):
    bus = await nats_mesh.connect()
    found: Collector[ReceivedMessage] = Collector()
    await bus.listen("unanswered", found)
    await bus.bounds()
    with pytest.raises(Exception, match="no acknowledgement within"):
        await bus.publish("unanswered", b"", timeout_s=0.05)
    assert bus.jetstream._acks == {}


async def test_a_follow_whose_consumer_was_made_unheard_delivers_nothing(nats_mesh, monkeypatch):
    bus = await nats_mesh.connect()
    watchers = len(bus.connection._up)
    api = bus.jetstream.api

    async def losing(command: str, *args: Any) -> dict[str, Any]:
        answer: dict[str, Any] = await api(command, *args)
        if command.startswith("CONSUMER.CREATE"):
            raise Refused(command, 0, "its answer was lost")
        return answer

    stray: Collector[Any] = Collector()
    found: Collector[Any] = Collector()
    with monkeypatch.context() as patch:
        patch.setattr(bus.jetstream, "api", losing)
        with pytest.raises(Refused):
            await bus.follow(("swarm.>",), 1, stray)
    await bus.follow(("swarm.>",), 1, found)
    await bus.publish("in." + MARKET, b"")
    await found.reach(1)
    assert stray.items == []
    assert len(bus.connection._up) == watchers + 1


async def test_a_reader_makes_up_for_what_was_lost_on_its_way(nats_mesh):
    bus = await nats_mesh.connect()
    found: Collector[Any] = Collector()
    reader: Any = await bus.follow(("swarm.>",), 1, found)
    await bus.publish("in." + MARKET, b"1")
    await found.reach(1)
    direct, sid = bus.connection.client._direct, b"%d" % reader._subscription._id
    deliver = direct[sid]

    def lose(*_: Any) -> None:
        direct[sid] = deliver

    direct[sid] = lose
    for data in (b"2", b"3", b"4"):
        await bus.publish("in." + MARKET, data)
    assert [stored.data for stored in await found.reach(4)] == [b"1", b"2", b"3", b"4"]


async def test_streams_are_made_once_and_their_limits_follow(nats_mesh):
    bus, fresh = await nats_mesh.connect(), await nats_mesh.connect("fresh")
    assert await streams_exist(bus)
    assert not await streams_exist(fresh)
    await bus.publish("in." + MARKET, b"1")
    await ensure_streams(bus, StreamLimits(max_age_s=60.0, max_bytes=1 << 20))
    config = (await bus.api("STREAM.INFO.swarm_events"))["config"]
    assert (config["max_age"], config["max_bytes"]) == (60 * 10**9, 1 << 20)
    assert (await bus.bounds()).last == 1


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("other_events", {"subjects": ["in.other.>"]}),
        ("KV_other_state", {"subjects": ["$KV.other_state.>"], "deny_delete": True, "allow_rollup_hdrs": True}),
        ("foreign", {"subjects": ["in.other.>"]}),
    ],
)
async def test_a_stream_of_another_purpose_is_refused_by_name(nats_mesh, name, config):
    bus = await nats_mesh.connect("other")
    await bus.api(f"STREAM.CREATE.{name}", {"name": name, "storage": "file", **config})
    with pytest.raises(UsageError, match=r"other_events|KV_other_state"):
        await ensure_streams(bus)
