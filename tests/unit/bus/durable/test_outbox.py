"""The outbox over memory, where any answer can be held back, lost or refused."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bus.durable import outbox as outbox_module
from bus.durable.message_ids import is_substitute
from bus.durable.outbox import Entry, Outbox, OutboxState
from bus.errors import MESSAGE_TOO_LARGE, BusError, Disconnected, Fenced, MeshError, Refused
from bus.interface import Ack, Done, Headers
from bus.messages import MAX_PAYLOAD_BYTES
from bus.messages import headers as h
from bus.testing.memory_bus import MemoryBus, MemoryServer
from tests.support.collecting import GUARD_S, Collector
from tests.support.outbox import MARKET, WRITER, WRITTEN_BY, entry, fail, flushed, numbers, publish


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
    outbox = Outbox(bus, WRITTEN_BY, fail, window=3, pipelined=True)
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
    outbox = Outbox(bus, WRITTEN_BY, fail, lambda done: acked.put(done.number), pipelined=True)
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
    outbox = Outbox(bus, WRITTEN_BY, fail, pipelined=True)
    for number in range(1, 7):  # all in flight before the first answer
        outbox.put(entry(number))
    outbox.push()
    async with asyncio.timeout(GUARD_S):
        while outbox._state is not OutboxState.RESYNCING:
            await asyncio.sleep(0)
    await publish(outbox, 7, 12)  # taken during the resync
    await flushed(outbox)
    assert numbers(server.messages) == [1, 2, 4, 5, 6, 3, *range(7, 13)]
    outbox.close()
    await bus.close()


async def test_a_refusal_of_what_nothing_follows_keeps_the_order(monkeypatch):
    monkeypatch.setattr(outbox_module, "RETRY_S", 0)
    server = RefusingOnce(f"{WRITER}:3")
    bus = MemoryBus(server)
    outbox = Outbox(bus, WRITTEN_BY, fail, pipelined=True)
    for number in range(1, 11):
        await publish(outbox, number, number)
        await flushed(outbox)
    assert numbers(server.messages) == list(range(1, 11))
    outbox.close()
    await bus.close()


async def test_a_lost_acknowledgement_is_overdue_however_many_follow(monkeypatch):
    monkeypatch.setattr(outbox_module, "RETRY_S", 0)
    bus = Held(MemoryServer())
    outbox = Outbox(bus, WRITTEN_BY, fail, pipelined=True)
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
    outbox = Outbox(bus, WRITTEN_BY, fail, pipelined=True)
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
    outbox = Outbox(bus, WRITTEN_BY, fail, pipelined=True)
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


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.integers(1, 150), st.booleans(), max_size=6), st.integers(1, 8))
def test_any_cuts_lose_duplicate_and_reorder_nothing(cuts, window):
    async def run() -> None:
        server, gate = MemoryServer(), CutAt(dict(cuts))
        bus = gate.bus = MemoryBus(server, gate)
        outbox = Outbox(bus, WRITTEN_BY, fail, window=window, pipelined=True)
        async with asyncio.timeout(GUARD_S):
            await publish(outbox, 1, 40)
            await outbox.flush()
        assert numbers(server.messages) == list(range(1, 41))
        outbox.close()
        await bus.close()

    asyncio.run(run())


def too_large(number: int | None) -> Entry:
    return Entry(MARKET, b"x" * (MAX_PAYLOAD_BYTES + 1), {h.MSG_ID: f"{WRITER}:large"}, number)


@pytest.mark.parametrize("pipelined", [True, False])
async def test_a_report_that_no_repetition_would_store_is_dropped_and_counted(
    pipelined: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(outbox_module, "TOO_LARGE_S", 0.0)
    server = MemoryServer()
    outbox = Outbox(MemoryBus(server), WRITTEN_BY, fail, pipelined=pipelined)
    for item in (entry(1), too_large(None), entry(2)):
        outbox.put(item)
    await flushed(outbox)
    assert ([message.data for message in server.messages], outbox.lost) == ([b"1", b"2"], 1)
    outbox.close()


@pytest.mark.parametrize("pipelined", [True, False])
async def test_an_output_that_no_repetition_would_store_ends_its_writer_with_the_reason(
    pipelined: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(outbox_module, "TOO_LARGE_S", 0.3)  # it is sent again meanwhile
    server, ends = MemoryServer(), Collector[MeshError]()
    outbox = Outbox(MemoryBus(server), WRITTEN_BY, ends.put, pipelined=pipelined)
    for item in (entry(1), too_large(2)):
        outbox.put(item)
    outbox.push()
    await ends.reach(1)
    assert outbox.closed
    assert f"takes no message of {MAX_PAYLOAD_BYTES + 1} bytes" in str(ends.items[0])
    assert not isinstance(ends.items[0], Fenced)
    assert [message.data for message in server.messages] == [b"1"]


async def test_a_resync_that_the_bus_refuses_is_tried_again(monkeypatch):
    monkeypatch.setattr(outbox_module, "RETRY_S", 0)
    refused = 0

    async def gate(step: str) -> None:
        nonlocal refused
        if step == "read_back" and refused < 2:
            refused += 1
            raise BusError("not now")

    server = RefusingOnce(f"{WRITER}:2")
    bus = MemoryBus(server, gate)
    outbox = Outbox(bus, WRITTEN_BY, fail, pipelined=True)
    await publish(outbox, 1, 3)
    await flushed(outbox)
    assert refused == 2
    assert numbers(server.messages) == [1, 3, 2]
    outbox.close()
    await bus.close()


async def test_what_was_put_while_the_connection_was_down_is_sent_when_it_is_up():
    server = MemoryServer()
    bus = MemoryBus(server)
    outbox = Outbox(bus, WRITTEN_BY, fail, pipelined=True)
    bus.disconnect()
    await publish(outbox, 1, 3)
    assert server.messages == []
    await bus.reconnect()
    await flushed(outbox)
    assert numbers(server.messages) == [1, 2, 3]
    outbox.close()
    await bus.close()


async def test_what_was_put_and_not_sent_is_sent_at_the_next_check():
    bus = MemoryBus(MemoryServer())
    outbox = Outbox(bus, WRITTEN_BY, fail, pipelined=True)
    outbox.put(entry(1))
    outbox.check()
    async with asyncio.timeout(GUARD_S):
        while len(outbox):
            await asyncio.sleep(0)
    assert numbers(bus.server.messages) == [1]
    outbox.close()
    await bus.close()


async def test_a_flush_and_a_sender_that_waits_end_with_a_closed_outbox():
    bus = Held(MemoryServer())
    outbox = Outbox(bus, WRITTEN_BY, fail, window=1, pipelined=True)
    sender = asyncio.create_task(publish(outbox, 1, 1))
    flush = asyncio.create_task(outbox.flush())
    await bus.answers.reach(1)
    assert not sender.done()
    outbox.close()
    async with asyncio.timeout(GUARD_S):
        await sender
        with pytest.raises(Fenced):
            await flush
    with pytest.raises(Fenced):
        outbox.put(entry(2))
    bus.let("1")
    assert outbox.stored_through == 0
    await bus.close()


async def test_an_outbox_that_finishes_stores_what_it_has_within_its_time(monkeypatch):
    async def slow(step: str) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    bus = MemoryBus(MemoryServer(), slow)
    outbox = Outbox(bus, WRITTEN_BY, fail, pipelined=True)
    await publish(outbox, 1, 3)
    await outbox.finish()
    assert numbers(bus.server.messages) == [1, 2, 3]
    assert outbox.closed
    await bus.close()
    monkeypatch.setattr(outbox_module, "FLUSH_TIMEOUT_S", 0.01)
    held = Held(MemoryServer())
    waiting = Outbox(held, WRITTEN_BY, fail, pipelined=True)
    await publish(waiting, 1, 1)
    async with asyncio.timeout(GUARD_S):
        await waiting.finish()
    assert waiting.closed
    await held.close()


@pytest.mark.parametrize("number", [2, None], ids=["an output", "a report"])
async def test_what_was_too_large_for_a_while_is_stored_when_the_limit_is_raised(number, monkeypatch):
    monkeypatch.setattr(outbox_module, "RETRY_S", 0)
    refused = 0

    class Limited(MemoryServer):
        def store(self, subject: str, data: bytes, headers: Headers) -> Ack:
            nonlocal refused
            if data == b"2" and refused < 3:
                refused += 1
                raise Refused(subject, MESSAGE_TOO_LARGE, "message size exceeds maximum allowed")
            return super().store(subject, data, headers)

    server = Limited()
    outbox = Outbox(MemoryBus(server), WRITTEN_BY, fail, pipelined=True)
    for item in (entry(1), Entry(MARKET, b"2", {h.MSG_ID: "two"}, number), entry(3)):
        outbox.put(item)
    await flushed(outbox)
    assert (refused, outbox.lost) == (3, 0)
    assert sorted(numbers(server.messages)) == [1, 2, 3]
    outbox.close()


def squat(server: MemoryServer, *ids: str, **headers: str) -> None:
    for each in ids:
        server.store("in.swarm.signal.x.thief", b"{}", {h.MSG_ID: each, **headers})


def ids_of(server: MemoryServer) -> dict[str, str]:
    """Number -> id of what the writer has stored."""
    own = [message for message in server.messages if message.subject.endswith(f".{WRITER}")]
    return {message.headers[h.OUTPUT]: message.headers[h.MSG_ID] for message in own}


async def test_a_message_whose_id_was_squatted_is_stored_under_another_one():
    server = MemoryServer()
    squat(server, f"{WRITER}:2", f"{WRITER}:3", f"{WRITER}:8")
    acked: list[int | None] = []
    reported: Collector[tuple[int | None, int, str]] = Collector()
    outbox = Outbox(MemoryBus(server), WRITTEN_BY, fail, lambda done: acked.append(done.number), pipelined=True)
    outbox.on_squatted = lambda entry, at, by: reported.put((entry.number, at, by.subject if by else ""))
    await publish(outbox, 1, 4)
    await flushed(outbox)
    await publish(outbox, 5, 9)
    await flushed(outbox)
    assert acked == list(range(1, 10))
    stored = ids_of(server)
    assert sorted(map(int, stored)) == acked
    assert len([m for m in server.messages if m.subject.endswith(f".{WRITER}")]) == 9
    assert [stored[str(number)] for number in (1, 4)] == [f"{WRITER}:1", f"{WRITER}:4"]
    assert [is_substitute(stored[str(number)], f"{WRITER}:{number}") for number in (2, 3, 5, 8, 9)] == 5 * [True]
    assert reported.items == [(2, 1, "swarm.signal.x.thief"), (3, 2, "swarm.signal.x.thief")], "8 could not be guessed"
    outbox.close()


async def test_a_squatter_that_is_gone_has_taken_the_id_nevertheless():
    server = MemoryServer()
    squat(server, f"{WRITER}:1")
    bus = MemoryBus(server)

    async def gone(_: int) -> None:
        return None

    bus.message = gone  # type: ignore[method-assign, assignment]
    outbox = Outbox(bus, WRITTEN_BY, fail, pipelined=True)
    await publish(outbox, 1, 2)
    await flushed(outbox)
    assert is_substitute(ids_of(server)["1"], f"{WRITER}:1")
    outbox.close()


async def test_a_repetition_of_its_own_is_stored_once():
    server = MemoryServer()
    outbox = Outbox(MemoryBus(server), WRITTEN_BY, fail, pipelined=True)
    await publish(outbox, 1, 3)
    await flushed(outbox)
    again = Outbox(MemoryBus(server), ("nothing",), fail, pipelined=True)
    squatted: list[object] = []
    again.on_squatted = lambda *arguments: squatted.append(arguments)
    await publish(again, 1, 3)
    await flushed(again)
    assert len(server.messages) == 3
    assert squatted == []
    for each in (outbox, again):
        each.close()


async def test_a_duplicate_is_judged_again_after_a_lost_connection():
    server = MemoryServer()
    squat(server, f"{WRITER}:1")
    asked = asyncio.Event()

    async def gate(step: str) -> None:
        if step == "message" and not asked.is_set():
            asked.set()
            bus.disconnect()
            raise Disconnected

    bus = MemoryBus(server, gate)
    outbox = Outbox(bus, WRITTEN_BY, fail, pipelined=True)
    await publish(outbox, 1, 3)
    async with asyncio.timeout(GUARD_S):
        await asked.wait()
    await bus.reconnect()
    await flushed(outbox)
    assert sorted(ids_of(server)) == ["1", "2", "3"]
    assert len([m for m in server.messages if m.subject.endswith(f".{WRITER}")]) == 3
    outbox.close()
