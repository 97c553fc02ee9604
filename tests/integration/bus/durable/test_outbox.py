"""The outbox: everything once and in order, through killed servers, cut connections and lost answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from bus.durable import outbox as outbox_module
from bus.durable.fencing import claim, fence
from bus.durable.outbox import Entry, Outbox
from bus.errors import Fenced, MeshError
from bus.interface import Bus, ReceivedMessage, StoredMessage
from bus.messages import headers as h
from bus.nats.bus import NatsBus
from bus.testing.memory_bus import MemoryBus, MemoryServer
from bus.testing.tcp_proxy import DOWN, UP, Proxy
from tests.support.collecting import GUARD_S, Collector
from tests.support.nats import Connections, supervised_server
from tests.support.outbox import MARKET, WRITER, WRITTEN_BY, entry, fail, flushed, numbers, publish

MANY = 5000


@pytest.fixture
async def connections() -> AsyncIterator[Connections]:
    async with Connections() as stack:
        yield stack


async def forget_ids_soon(bus: NatsBus) -> None:
    """Make the server forget message ids at once, so that nothing but reading back prevents a doubled message."""
    config = (await bus.api(f"STREAM.INFO.{bus.subjects.stream}"))["config"]
    await bus.api(f"STREAM.UPDATE.{bus.subjects.stream}", {**config, "duplicate_window": 100_000_000})


class Kills:
    """Kills the server when so many messages are acknowledged, and keeps what was acknowledged."""

    def __init__(self, kill: Callable[[], None], at: tuple[int, ...]) -> None:
        self._kill, self._at = kill, list(at)
        self.acked: list[tuple[int, int]] = []

    def __call__(self, entry: Entry) -> None:
        assert entry.number is not None
        self.acked.append((entry.number, entry.sequence))
        if self._at and len(self.acked) >= self._at[0]:
            self._at.pop(0)
            self._kill()


def assert_gaps_are_detectable(received: list[ReceivedMessage]) -> int:
    """Whatever a subscriber missed shows as a `Nats-Last-Sequence` that is not what it heard last; returns how much."""
    previous, missed = 0, 0
    for message in received:
        sequence, last = int(message.headers[h.SEQUENCE]), int(message.headers[h.LAST_SEQUENCE])
        assert sequence > previous
        assert last == sequence - 1  # the stream holds nothing but this subject
        missed += sequence - 1 - previous
        assert (last != previous) == (sequence != previous + 1)
        previous = sequence
    return missed


async def test_thousands_of_messages_through_killed_servers(tmp_path, connections):
    async with supervised_server(tmp_path) as server:
        bus = await connections.bus(server.url, streams=True)
        await forget_ids_soon(bus)
        kills = Kills(server.kill, (700, 2500, 4100))
        outbox = Outbox(bus, WRITTEN_BY, fail, kills, pipelined=True)
        async with asyncio.timeout(2 * GUARD_S):
            await publish(outbox, 1, MANY)
            await outbox.flush()
        await server.restarted.reach(3)
        stored = await bus.read_back(("swarm.>",), 1)
        assert numbers(stored) == list(range(1, MANY + 1))
        assert kills.acked == [(int(message.data), message.sequence) for message in stored]
        outbox.close()


async def test_readers_through_killed_servers(tmp_path, connections):
    async with supervised_server(tmp_path) as server:
        writer = await connections.bus(server.url, streams=True)
        reader = await connections.bus(server.url)
        followed: Collector[StoredMessage] = Collector()
        received: Collector[ReceivedMessage] = Collector()
        await reader.follow(("swarm.market.>",), 1, followed)
        await reader.listen("swarm.>", received)
        await reader.bounds()
        outbox = Outbox(writer, WRITTEN_BY, fail, Kills(server.kill, (1500, 3500)), pipelined=True)
        async with asyncio.timeout(2 * GUARD_S):
            await publish(outbox, 1, MANY)
            await outbox.flush()
        await server.restarted.reach(2)
        assert numbers(await followed.reach(MANY)) == list(range(1, MANY + 1))
        async with asyncio.timeout(GUARD_S):
            await reader.wait_connected()
        await reader.bounds()
        await writer.publish("in." + MARKET, b"end")
        async with asyncio.timeout(GUARD_S):
            while not received.items or received.items[-1].data != b"end":
                await received.reach(len(received.items) + 1)
        sequences = [int(message.headers[h.SEQUENCE]) for message in received.items]
        assert len(set(sequences)) == len(sequences)
        assert len(received.items) + assert_gaps_are_detectable(received.items) == MANY + 1
        await followed.reach(MANY + 1)
        assert [message.sequence for message in followed.items] == list(range(1, MANY + 2))
        outbox.close()


@pytest.fixture
async def proxied(tmp_path, connections) -> AsyncIterator[tuple[Proxy, NatsBus, NatsBus]]:
    """A proxy, a connection through it, and one past it."""
    async with supervised_server(tmp_path) as server, Proxy(server.url) as proxy, connections:
        direct = await connections.bus(server.url, streams=True)
        await forget_ids_soon(direct)
        yield proxy, await connections.bus(proxy.url), direct


async def test_a_subscriber_that_was_away_sees_the_gap(proxied):
    proxy, through, direct = proxied
    received: Collector[ReceivedMessage] = Collector()
    await through.listen("swarm.>", received)
    await through.bounds()
    went: Collector[str] = Collector()

    async def up() -> None:
        went.put("up")

    through.watch_connection(lambda: went.put("down"), up)
    await direct.publish("in." + MARKET, b"1")
    await received.reach(1)
    proxy.pause(DOWN)
    proxy.reset()
    await went.reach(1)
    for data in (b"2", b"3"):
        await direct.publish("in." + MARKET, data)
    proxy.release(DOWN)
    await went.reach(2)
    await through.bounds()
    await direct.publish("in." + MARKET, b"4")
    await received.reach(2)
    assert numbers(received.items) == [1, 4]
    assert assert_gaps_are_detectable(received.items) == 2


async def test_resets_lose_and_reorder_nothing(proxied):
    proxy, through, direct = proxied
    followed: Collector[StoredMessage] = Collector()
    await through.follow(("swarm.>",), 1, followed)
    outbox = Outbox(through, WRITTEN_BY, fail, Kills(proxy.reset, (100, 101, 400, 800, 1200, 1600)), pipelined=True)
    await publish(outbox, 1, 2000)
    await flushed(outbox)
    assert numbers(await direct.read_back(("swarm.>",), 1)) == list(range(1, 2001))
    assert numbers(await followed.reach(2000)) == list(range(1, 2001))
    assert proxy.accepted > 3  # direct and first ones aside, it came back several times
    outbox.close()


@pytest.mark.slow
@pytest.mark.parametrize("lost", [(UP,), (DOWN,), (UP, DOWN)], ids=["to", "from", "both"])
async def test_a_black_hole_loses_and_reorders_nothing(proxied, lost):
    proxy, through, direct = proxied
    down = asyncio.Event()

    async def up() -> None:
        """Nothing to do."""

    through.watch_connection(down.set, up)
    outbox = Outbox(through, WRITTEN_BY, fail, pipelined=True)
    await publish(outbox, 1, 100)
    await flushed(outbox)
    proxy.drop(*lost)
    await publish(outbox, 101, 300)
    async with asyncio.timeout(GUARD_S):
        await down.wait()  # nobody closed anything: the pings noticed
    await publish(outbox, 301, 500)
    await flushed(outbox)
    assert numbers(await direct.read_back(("swarm.>",), 1)) == list(range(1, 501))
    outbox.close()


async def test_nothing_new_overtakes_the_resend(proxied):
    proxy, through, direct = proxied
    outbox: Outbox | None = None

    async def up_before() -> None:
        assert outbox is not None
        assert not through.is_ready
        await publish(outbox, 21, 30)  # connected already, but what came before is not sent again yet

    through.watch_connection(lambda: None, up_before)
    outbox = Outbox(through, WRITTEN_BY, fail, pipelined=True)
    await publish(outbox, 1, 10)
    await flushed(outbox)
    proxy.drop(UP)
    await publish(outbox, 11, 20)
    assert numbers(await direct.read_back(("swarm.>",), 1)) == list(range(1, 11))
    proxy.reset()
    async with asyncio.timeout(GUARD_S):
        while len(outbox) != 0 or not through.is_ready:
            await outbox.wait_acknowledged()
            await through.wait_connected()
    assert numbers(await direct.read_back(("swarm.>",), 1)) == list(range(1, 31))
    outbox.close()


async def either(kind: str, tmp_path: Any, stack: Connections) -> Bus:
    if kind == "memory":
        bus = MemoryBus(MemoryServer())
        stack.push_async_callback(bus.close)
        return bus
    server = await stack.enter_async_context(supervised_server(tmp_path))
    return await stack.bus(server.url, streams=True)


@pytest.mark.parametrize("kind", ["memory", "nats"])
async def test_a_successor_fences(kind, tmp_path):
    async with Connections() as stack:
        bus = await either(kind, tmp_path, stack)
        epoch = await claim(bus, WRITER, agent_id="old", claimed_by="test", sandbox="")
        held = fence(bus, WRITER, epoch)
        reported: Collector[MeshError] = Collector()
        outbox = Outbox(bus, WRITTEN_BY, reported.put, pipelined=True)
        for number in range(1, 21):
            outbox.put(entry(number, held))
            outbox.push()
        await flushed(outbox)
        successor = await claim(bus, WRITER, agent_id="new", claimed_by="test", sandbox="")
        for number in range(21, 41):
            outbox.put(entry(number, held))
        outbox.push()
        with pytest.raises(Fenced):
            await flushed(outbox)
        assert [type(error) for error in await reported.reach(1)] == [Fenced]
        assert outbox.closed
        with pytest.raises(Fenced):
            outbox.put(entry(41, held))
        with pytest.raises(Fenced):
            await outbox.wait_acknowledged()
        stored = await bus.read_back((MARKET,), 1)
        assert numbers(stored) == list(range(1, 21))
        assert stored[-1].sequence < successor
        assert len(reported.items) == 1


@pytest.mark.parametrize("number", [2, None])
async def test_a_limit_that_stays_too_low_ends_the_writer_or_costs_a_report(tmp_path, connections, number, monkeypatch):
    monkeypatch.setattr(outbox_module, "TOO_LARGE_S", 0.3)
    async with supervised_server(tmp_path) as server:
        bus = await connections.bus(server.url, streams=True)
        ends: Collector[MeshError] = Collector()
        outbox = Outbox(bus, WRITTEN_BY, ends.put, pipelined=True)
        await publish(outbox, 1, 1)
        await flushed(outbox)
        config = (await bus.api(f"STREAM.INFO.{bus.subjects.stream}"))["config"]
        await bus.api(f"STREAM.UPDATE.{bus.subjects.stream}", {**config, "max_msg_size": 200})
        outbox.put(Entry(MARKET, b"x" * 300, {h.MSG_ID: f"{WRITER}:large"}, number))
        outbox.push()
        if number is None:
            await publish(outbox, 3, 3)
            await flushed(outbox)
            assert outbox.lost == 1
        else:
            await ends.reach(1)
            assert "takes no message of 300 bytes" in str(ends.items[0])
        stored = await bus.read_back(("swarm.>",), 1)
        assert numbers(stored) == ([1, 3] if number is None else [1])
        outbox.close()
