"""A reader's consumer: what the server's messages about it lead to, with a connection that the test plays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from bus.interface import StoredMessage
from bus.nats.consumer import Reader

STALL = b"NATS/1.0 100 FlowControl Request\r\n\r\n"
IDLE = b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: %d\r\n\r\n"


class Played:
    """A connection and JetStream in one: it notes what the reader asks for, and the test delivers."""

    def __init__(self) -> None:
        self.connection = self.client = self
        self.is_connected = True
        self.written: list[str] = []
        self.name = "reader"
        self.begun: list[int] = []
        self.deleted: list[str] = []
        self.deliver: Callable[[str, str, bytes, bytes], None] = lambda *_: None
        self.again = asyncio.Event()

    def watch(self, *_: Any) -> None: ...
    def unwatch(self, *_: Any) -> None: ...
    async def unsubscribe(self) -> None: ...

    def new_inbox(self) -> str:
        return f"_INBOX.{len(self.begun)}"

    async def subscribe_directly(self, inbox: str, on_message: Callable[..., None]) -> Any:
        self.deliver = on_message
        return self

    async def create_consumer(self, stream: str, name: str, filters: Any, first: int, inbox: str, newest: bool) -> int:
        self.begun.append(first)
        self.again.set()
        return 0

    def delete_consumer(self, stream: str, name: str) -> None:
        self.deleted.append(name)

    def write(self, subject: str, data: bytes) -> None:
        self.written.append(subject)

    def message(self, sequence: int, delivered: int, pending: int = 0) -> None:
        self.deliver("swarm.a.b.c", f"$JS.ACK.S.C.1.{sequence}.{delivered}.1700000000.{pending}", b"{}", b"")

    def control(self, headers: bytes, reply: str = "") -> None:
        self.deliver("_INBOX", reply, b"", headers)


class Reading:
    def __init__(self) -> None:
        self.server = Played()
        self.stored: list[StoredMessage] = []
        server: Any = self.server
        self.reader = Reader(server, "S", ("swarm.>",), 5, self.stored.append)

    async def begun_again(self) -> list[int]:
        self.server.again.clear()
        async with asyncio.timeout(10):
            await self.server.again.wait()
        return self.server.begun


@pytest.fixture
async def reading():
    reading = Reading()
    await reading.reader.start()
    yield reading
    await reading.reader.close()


async def test_a_status_about_the_consumer_begins_another_after_the_last_message(reading):
    reading.server.message(7, 1, pending=3)
    assert ([stored.sequence for stored in reading.stored], reading.reader.pending) == ([7], 3)
    reading.server.control(b"NATS/1.0 409 Consumer Deleted\r\n\r\n")
    assert await reading.begun_again() == [5, 8]
    assert reading.server.deleted == ["reader-0"]


async def test_an_idle_heartbeat_without_a_gap_changes_nothing(reading):
    reading.server.message(7, 1)
    generation = reading.reader.generation
    reading.server.control(IDLE % 1)
    reading.server.control(b"\r\n")
    assert (reading.reader.generation, reading.server.written) == (generation, [])
    reading.server.message(8, 2)
    assert len(reading.stored) == 2


async def test_a_heartbeat_that_names_a_message_which_never_came_shows_a_gap(reading):
    reading.server.message(7, 1)
    reading.server.control(IDLE % 2)
    assert await reading.begun_again() == [5, 8]


async def test_a_message_out_of_turn_is_not_handled(reading):
    reading.server.message(7, 2)
    assert reading.stored == []
    assert await reading.begun_again() == [5, 5]


async def test_flow_control_is_answered(reading):
    reading.server.control(STALL, reply="flow.reply")
    reading.server.control(b"NATS/1.0 100 Idle Heartbeat\r\nNats-Consumer-Stalled: flow.stalled\r\n\r\n")
    assert reading.server.written == ["flow.reply", "flow.stalled"]
    assert reading.server.begun == [5]


async def test_messages_of_an_ended_generation_are_not_taken(reading):
    old = reading.server.deliver
    reading.server.control(b"NATS/1.0 409 Consumer Deleted\r\n\r\n")
    old("swarm.a.b.c", "$JS.ACK.S.C.1.7.1.1700000000.0", b"{}", b"")
    await reading.begun_again()
    old("swarm.a.b.c", "$JS.ACK.S.C.1.7.1.1700000000.0", b"{}", b"")
    assert reading.stored == []
