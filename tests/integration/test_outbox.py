"""The outbox: everything once and in order, through killed servers, cut connections and lost answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bus import headers as h
from bus import outbox as outbox_module
from bus.bus import Ack, Bus, Done, Headers, Heard, Stored
from bus.claims import claim, fence
from bus.errors import BusError, Disconnected, Fenced, MeshError, Refused
from bus.fault_proxy import DOWN, UP, Proxy
from bus.memory_bus import MemoryBus, MemoryServer
from bus.nats_bus import NatsBus
from bus.outbox import Entry, Outbox
from tests.support.collecting import GUARD_S, Collector
from tests.support.nats import Connections, supervised_server

WRITER = "feed"
MARKET = f"swarm.market.A.{WRITER}"
WRITTEN_BY = (f"swarm.*.*.{WRITER}",)
MANY = 5000


def entry(number: int, headers: Headers | None = None) -> Entry:
    data = str(number).encode()
    return Entry(MARKET, data, {h.MSG_ID: f"{WRITER}:{number}", **(headers or {})}, number)


def fail(error: MeshError) -> None:
    raise AssertionError(error)


def numbers(messages: list[Stored] | list[Heard]) -> list[int]:
    return [int(message.data) for message in messages]


async def publish(outbox: Outbox, first: int, last: int) -> None:
    for number in range(first, last + 1):
        outbox.put(entry(number))
        if (room := outbox.send()) is not None:
            await room


async def flushed(outbox: Outbox) -> None:
    async with asyncio.timeout(GUARD_S):
        await outbox.flush()


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


def assert_gaps_are_detectable(heard: list[Heard]) -> int:
    """Whatever a subscriber missed shows as a `Nats-Last-Sequence` that is not what it heard last; returns how much."""
    previous, missed = 0, 0
    for message in heard:
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
        outbox = Outbox(bus, WRITTEN_BY, fail, kills)
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
        followed: Collector[Stored] = Collector()
        heard: Collector[Heard] = Collector()
        await reader.follow(("swarm.market.>",), 1, followed)
        await reader.listen("swarm.>", heard)
        await reader.bounds()
        outbox = Outbox(writer, WRITTEN_BY, fail, Kills(server.kill, (1500, 3500)))
        async with asyncio.timeout(2 * GUARD_S):
            await publish(outbox, 1, MANY)
            await outbox.flush()
        await server.restarted.reach(2)
        assert numbers(await followed.reach(MANY)) == list(range(1, MANY + 1))
        async with asyncio.timeout(GUARD_S):
            await reader.until_live()
        await reader.bounds()
        await writer.publish("in." + MARKET, b"end")
        async with asyncio.timeout(GUARD_S):
            while not heard.items or heard.items[-1].data != b"end":
                await heard.reach(len(heard.items) + 1)
        sequences = [int(message.headers[h.SEQUENCE]) for message in heard.items]
        assert len(set(sequences)) == len(sequences)
        assert len(heard.items) + assert_gaps_are_detectable(heard.items) == MANY + 1
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
    heard: Collector[Heard] = Collector()
    await through.listen("swarm.>", heard)
    await through.bounds()
    went: Collector[str] = Collector()

    async def up() -> None:
        went.put("up")

    through.watch_connection(lambda: went.put("down"), up)
    await direct.publish("in." + MARKET, b"1")
    await heard.reach(1)
    proxy.hold(DOWN)
    proxy.cut()
    await went.reach(1)
    for data in (b"2", b"3"):
        await direct.publish("in." + MARKET, data)
    proxy.release(DOWN)
    await went.reach(2)
    await through.bounds()
    await direct.publish("in." + MARKET, b"4")
    await heard.reach(2)
    assert numbers(heard.items) == [1, 4]
    assert assert_gaps_are_detectable(heard.items) == 2


async def test_resets_lose_and_reorder_nothing(proxied):
    proxy, through, direct = proxied
    followed: Collector[Stored] = Collector()
    await through.follow(("swarm.>",), 1, followed)
    outbox = Outbox(through, WRITTEN_BY, fail, Kills(proxy.cut, (100, 101, 400, 800, 1200, 1600)))
    await publish(outbox, 1, 2000)
    await flushed(outbox)
    assert numbers(await direct.read_back(("swarm.>",), 1)) == list(range(1, 2001))
    assert numbers(await followed.reach(2000)) == list(range(1, 2001))
    assert proxy.accepted > 3  # direct and first ones aside, it came back several times
    outbox.close()


@pytest.mark.parametrize("lost", [(UP,), (DOWN,), (UP, DOWN)], ids=["to", "from", "both"])
async def test_a_black_hole_loses_and_reorders_nothing(proxied, lost):
    proxy, through, direct = proxied
    down = asyncio.Event()

    async def up() -> None:
        """Nothing to do."""

    through.watch_connection(down.set, up)
    outbox = Outbox(through, WRITTEN_BY, fail)
    await publish(outbox, 1, 100)
    await flushed(outbox)
    proxy.swallow(*lost)
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
        assert not through.live
        await publish(outbox, 21, 30)  # connected already, but what came before is not sent again yet

    through.watch_connection(lambda: None, up_before)
    outbox = Outbox(through, WRITTEN_BY, fail)
    await publish(outbox, 1, 10)
    await flushed(outbox)
    proxy.swallow(UP)
    await publish(outbox, 11, 20)
    assert numbers(await direct.read_back(("swarm.>",), 1)) == list(range(1, 11))
    proxy.cut()
    async with asyncio.timeout(GUARD_S):
        while len(outbox) != 0 or not through.live:
            await outbox.settled()
            await through.until_live()
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
        told: Collector[MeshError] = Collector()
        outbox = Outbox(bus, WRITTEN_BY, told.put)
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
        assert [type(error) for error in await told.reach(1)] == [Fenced]
        assert outbox.closed
        with pytest.raises(Fenced):
            outbox.put(entry(41, held))
        with pytest.raises(Fenced):
            await outbox.settled()
        stored = await bus.read_back((MARKET,), 1)
        assert numbers(stored) == list(range(1, 21))
        assert stored[-1].sequence < successor
        assert len(told.items) == 1


# -- over memory, where any answer can be held back, lost or refused


class Held(MemoryBus):
    """A memory bus whose answers wait for `let`, and can be lost."""

    def __init__(self, server: MemoryServer) -> None:
        super().__init__(server)
        self.answers: Collector[tuple[str, Callable[[], None]]] = Collector()
        self.sent: list[str] = []

    def send(self, subject: str, data: bytes, headers: Headers, done: Done) -> None:
        name = data.decode()
        self.sent.append(name)

        def answered(result: Ack | BusError) -> None:
            self.answers.put((name, lambda: done(result)))

        super().send(subject, data, headers, answered)

    def let(self, *names: str) -> None:
        for name, answer in list(self.answers.items):
            if name in names:
                self.answers.items.remove((name, answer))
                answer()


async def test_the_window_holds_senders_back():
    bus = Held(MemoryServer())
    outbox = Outbox(bus, WRITTEN_BY, fail, window=3)
    sender = asyncio.create_task(publish(outbox, 1, 10))
    await bus.answers.reach(3)
    for _ in range(20):
        await asyncio.sleep(0)
    assert bus.sent == ["1", "2", "3"]
    assert not sender.done()
    for number in range(1, 11):
        await bus.answers.reach(1)
        bus.let(str(number))
        assert len(outbox) <= 3
    async with asyncio.timeout(GUARD_S):
        await sender
    await flushed(outbox)
    assert bus.sent == [str(number) for number in range(1, 11)]
    outbox.close()
    await bus.close()


async def test_a_younger_acknowledgement_waits_for_the_older():
    bus = Held(MemoryServer())
    acked: Collector[int | None] = Collector()
    outbox = Outbox(bus, WRITTEN_BY, fail, lambda done: acked.put(done.number))
    await publish(outbox, 1, 3)
    await bus.answers.reach(3)
    bus.let("2", "3")
    assert (acked.items, outbox.oldest_number, outbox.stored_through) == ([], 1, 0)
    bus.let("1")
    assert (acked.items, outbox.oldest_number, outbox.stored_through) == ([1, 2, 3], None, 3)
    outbox.close()
    await bus.close()


class RefusingOnce(MemoryServer):
    """A store that refuses the message with this id once."""

    def __init__(self, msg_id: str) -> None:
        super().__init__()
        self._refuse: str | None = msg_id

    def store(self, subject: str, data: bytes, headers: Headers) -> Ack:
        if self._refuse is not None and headers.get(h.MSG_ID) == self._refuse:
            self._refuse = None
            raise Refused(subject, 10077, "insufficient storage resources")
        return super().store(subject, data, headers)


async def test_a_refusal_inside_an_unbroken_connection_is_made_up_for(monkeypatch):
    monkeypatch.setattr(outbox_module, "RETRY_S", 0)
    server = RefusingOnce(f"{WRITER}:3")
    bus = MemoryBus(server)
    outbox = Outbox(bus, WRITTEN_BY, fail)
    for number in range(1, 7):  # all in flight before the first answer
        outbox.put(entry(number))
    outbox.push()
    async with asyncio.timeout(GUARD_S):
        while not outbox._in_doubt:
            await asyncio.sleep(0)
    await publish(outbox, 7, 12)  # taken while it is in doubt
    await flushed(outbox)
    assert numbers(server.messages) == [1, 2, 4, 5, 6, 3, *range(7, 13)]
    outbox.close()
    await bus.close()


async def test_a_refusal_of_what_nothing_follows_keeps_the_order(monkeypatch):
    monkeypatch.setattr(outbox_module, "RETRY_S", 0)
    server = RefusingOnce(f"{WRITER}:3")
    bus = MemoryBus(server)
    outbox = Outbox(bus, WRITTEN_BY, fail)
    for number in range(1, 11):
        await publish(outbox, number, number)
        await flushed(outbox)
    assert numbers(server.messages) == list(range(1, 11))
    outbox.close()
    await bus.close()


async def test_a_lost_acknowledgement_is_overdue_however_many_follow(monkeypatch):
    monkeypatch.setattr(outbox_module, "RETRY_S", 0)
    bus = Held(MemoryServer())
    outbox = Outbox(bus, WRITTEN_BY, fail)
    await publish(outbox, 1, 1)
    await bus.answers.reach(1)
    bus.answers.items.clear()  # the answer to the first is never heard
    outbox._oldest_at -= 2 * outbox_module.ACK_TIMEOUT_S
    await publish(outbox, 2, 3)
    await bus.answers.reach(2)
    bus.let("2", "3")
    assert len(outbox) == 3
    outbox.check()
    await flushed(outbox)
    assert numbers(bus.server.messages) == [1, 2, 3]
    assert bus.sent == ["1", "2", "3"]  # it was stored: reading back was enough
    outbox.close()
    await bus.close()


async def test_a_message_that_was_lost_silently_is_sent_again(monkeypatch):
    monkeypatch.setattr(outbox_module, "RETRY_S", 0)
    bus = Held(MemoryServer())
    outbox = Outbox(bus, WRITTEN_BY, fail)
    store = bus.server.store
    bus.server.store = lambda *_: Ack(99)  # type: ignore[method-assign]
    await publish(outbox, 1, 2)
    await bus.answers.reach(2)
    bus.answers.items.clear()
    bus.server.store = store  # type: ignore[method-assign]
    outbox.check()
    assert bus.sent == ["1", "2"]  # not overdue yet
    outbox._oldest_at -= 2 * outbox_module.ACK_TIMEOUT_S
    outbox.check()
    await bus.answers.reach(2)
    bus.let("1", "2")
    await flushed(outbox)
    assert bus.sent == ["1", "2", "1", "2"]
    assert numbers(bus.server.messages) == [1, 2]
    outbox.close()
    await bus.close()


async def test_a_recovery_that_a_break_overtook_sends_nothing(monkeypatch):
    """Its reading back ends after the next recovery has sent everything again."""
    monkeypatch.setattr(outbox_module, "RETRY_S", 0)
    slow, reading, wire = asyncio.Event(), asyncio.Event(), asyncio.Event()
    wire.set()

    async def gate(step: str) -> None:
        if step == "read_back" and not reading.is_set():
            reading.set()
            await slow.wait()
        elif step == "send":
            await wire.wait()

    server = RefusingOnce(f"{WRITER}:2")
    bus = MemoryBus(server, gate)
    sent: list[str] = []
    send = bus.send

    def counted(subject: str, data: bytes, headers: Headers, done: Done) -> None:
        sent.append(data.decode())
        send(subject, data, headers, done)

    bus.send = counted  # type: ignore[method-assign]
    outbox = Outbox(bus, WRITTEN_BY, fail)
    await publish(outbox, 1, 3)
    async with asyncio.timeout(GUARD_S):
        await reading.wait()
    wire.clear()
    bus.disconnect()
    await bus.reconnect()
    assert sent == ["1", "2", "3", "2"]
    slow.set()
    for _ in range(20):
        await asyncio.sleep(0)
    await publish(outbox, 4, 4)
    wire.set()
    await flushed(outbox)
    assert sent == ["1", "2", "3", "2", "4"]
    assert numbers(server.messages) == [1, 3, 2, 4]
    outbox.close()
    await bus.close()


class CutAt:
    """A gate that breaks its bus's connection at the given steps and restores it soon after."""

    def __init__(self, cuts: dict[int, bool]) -> None:
        self._cuts, self._steps = cuts, 0
        self.bus: MemoryBus | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __call__(self, step: str) -> None:
        self._steps += 1
        lose = self._cuts.pop(self._steps, None)
        if lose is None:
            await asyncio.sleep(0)
            return
        assert self.bus is not None
        self.bus.disconnect(lose=lose)
        self._tasks.append(asyncio.create_task(self._again()))
        raise Disconnected(step)

    async def _again(self) -> None:
        assert self.bus is not None
        with contextlib.suppress(Disconnected):  # cut again meanwhile: that cut brings its own reconnect
            await self.bus.reconnect()


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.integers(1, 150), st.booleans(), max_size=6), st.integers(1, 8))
def test_any_cuts_lose_double_and_reorder_nothing(cuts, window):
    async def run() -> None:
        server, gate = MemoryServer(), CutAt(dict(cuts))
        bus = gate.bus = MemoryBus(server, gate)
        outbox = Outbox(bus, WRITTEN_BY, fail, window=window)
        async with asyncio.timeout(GUARD_S):
            await publish(outbox, 1, 40)
            await outbox.flush()
        assert numbers(server.messages) == list(range(1, 41))
        outbox.close()
        await bus.close()

    asyncio.run(run())
