"""Streams in memory behind the part of a NatsBus that a mirror uses: their info, and consumers of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bus.errors import Refused
from bus.messages.subjects import Subjects
from bus.nats.jetstream import STREAM_NOT_FOUND
from bus.testing.memory_bus import matches

OnMessage = Callable[[str, str, bytes, bytes], None]


@dataclass
class _Stream:
    created: str
    first: int = 1
    messages: list[tuple[int, str, bytes, bytes]] = field(default_factory=list)

    @property
    def last(self) -> int:
        return self.messages[-1][0] if self.messages else self.first - 1


@dataclass
class _Consumer:
    stream: str
    filters: tuple[str, ...]
    deliver: OnMessage
    delivered: int = 0


class MemoryStreams:
    """`bus`, `jetstream`, `connection` and `client` in one."""

    url = "memory"
    is_connected = True

    def __init__(self) -> None:
        self.subjects = Subjects("swarm")
        self.jetstream = self.connection = self.client = self
        self.streams: dict[str, _Stream] = {}
        self._inboxes: dict[str, OnMessage] = {}
        self._consumers: dict[str, _Consumer] = {}
        self.heartbeats: list[bytes] = []
        for bucket in ("state", "agents", "memory"):
            self.create(f"KV_swarm_{bucket}")
        self.create("swarm_events")

    def create(self, name: str, created: str = "2026-01-01T00:00:00Z", first: int = 1) -> None:
        self.streams[name] = _Stream(created, first)

    def put(self, stream: str, subject: str, data: bytes = b"{}", sequence: int | None = None) -> int:
        """Store a message and deliver it; `sequence`: with a hole before it."""
        at = self.streams[stream]
        sequence = at.last + 1 if sequence is None else sequence
        at.messages.append((sequence, subject, data, b""))
        for consumer in self._consumers.values():
            if consumer.stream == stream:
                self._deliver(consumer, at.messages[-1], 0)
        return sequence

    def _deliver(self, consumer: _Consumer, message: tuple[int, str, bytes, bytes], pending: int) -> None:
        sequence, subject, data, headers = message
        if any(matches(pattern, subject) for pattern in consumer.filters):
            consumer.delivered += 1
            reply = f"$JS.ACK.{consumer.stream}.c.1.{sequence}.{consumer.delivered}.{1_000 + sequence}.{pending}"
            asyncio.get_running_loop().call_soon(consumer.deliver, subject, reply, data, headers)

    # -- as the bus

    async def api(self, command: str, _: Any = None) -> dict[str, Any]:
        name = command.removeprefix("STREAM.INFO.")
        if name not in self.streams:
            raise Refused(command, STREAM_NOT_FOUND, "stream not found")
        at = self.streams[name]
        state = {"first_seq": at.first, "last_seq": at.last, "messages": len(at.messages)}
        return {"created": at.created, "config": {"subjects": [name]}, "state": state}

    async def wait_connected(self) -> None: ...

    async def notify(self, _: str, data: bytes) -> None:
        self.heartbeats.append(data)

    # -- as the connection

    name = "mirror"

    def watch(self, *_: Any) -> None: ...
    def unwatch(self, *_: Any) -> None: ...
    def write(self, *_: Any) -> None: ...
    async def unsubscribe(self) -> None: ...

    def new_inbox(self) -> str:
        return f"_INBOX.{len(self._inboxes)}"

    async def subscribe_directly(self, inbox: str, on_message: OnMessage) -> Any:
        self._inboxes[inbox] = on_message
        return self

    # -- as JetStream

    async def create_consumer(
        self, stream: str, name: str, filters: tuple[str, ...], first: int, inbox: str, newest: bool
    ) -> int:
        if stream not in self.streams:
            raise Refused(stream, STREAM_NOT_FOUND, "stream not found")
        consumer = self._consumers[name] = _Consumer(stream, filters, self._inboxes[inbox])
        found = [message for message in self.streams[stream].messages if message[0] >= first]
        for at, message in enumerate(found, 1):
            self._deliver(consumer, message, len(found) - at)
        return len(found)

    def delete_consumer(self, _: str, name: str) -> None:
        self._consumers.pop(name, None)
