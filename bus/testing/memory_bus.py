"""The bus in memory, with the same behaviour as the stream on NATS: duplicates, fence, order, read side, revisions.

`MemoryServer` is the store, `MemoryBus` a connection to it. The `gate` of a connection can block, disconnect or
crash it at any step: tests inject a fault at any await.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from bus.errors import MESSAGE_TOO_LARGE, BusError, BusTimeout, Disconnected, Refused, WrongSequence
from bus.interface import (
    Ack,
    Bounds,
    Done,
    Headers,
    KvEntry,
    OnMessage,
    OnReceived,
    OnRequest,
    OnStored,
    ReceivedMessage,
    StoredMessage,
)
from bus.messages import MAX_PAYLOAD_BYTES
from bus.messages import headers as h
from bus.messages.subjects import Subjects

ROLLUP = "Nats-Rollup"
Gate = Callable[[str], Awaitable[None]]
"""Awaited before and after every step of a connection with the step's name; it may block, or raise Disconnected."""

log = structlog.get_logger("signalmesh.bus")


def matches(pattern: str, subject: str) -> bool:
    """Whether a NATS subject pattern (`*` one token, `>` the rest) covers `subject`."""
    expected, actual = pattern.split("."), subject.split(".")
    for at, token in enumerate(expected):
        if token == ">":  # noqa: S105 - a part of a subject
            return len(actual) > at
        if at >= len(actual) or token not in ("*", actual[at]):
            return False
    return len(expected) == len(actual)


class MemoryServer:
    """The stream and the buckets of one swarm."""

    def __init__(self, swarm: str = "swarm", first_sequence: int = 1) -> None:
        self.subjects = Subjects(swarm)
        self.first_sequence = first_sequence
        self.messages: list[StoredMessage] = []
        self._last: dict[str, int] = {}
        self._ids: dict[str, int] = {}
        self.buckets: dict[str, dict[str, KvEntry]] = {}
        self._revisions: dict[str, int] = {}
        self._listeners: dict[int, tuple[str, Callable[[ReceivedMessage], None]]] = {}
        self._wakers: dict[int, Callable[[], None]] = {}
        self._keys = itertools.count(1)

    @property
    def last_sequence(self) -> int:
        return self.first_sequence + len(self.messages) - 1

    def store(self, subject: str, data: bytes, headers: Headers) -> Ack:
        """Store a publish on the write side as the stream does.

        Raises:
            Refused: no stream takes this subject, or the payload is too large.
            WrongSequence: the expected last sequence is not the last one.
        """
        if len(data) > MAX_PAYLOAD_BYTES:
            raise Refused(subject, MESSAGE_TOO_LARGE, "message size exceeds maximum allowed")
        if subject.startswith("$KV."):
            return self._store_key(subject, data, headers)
        if not subject.startswith(self.subjects.write_prefix):
            raise Refused(subject, 503, "no stream takes this subject now")
        read_side = subject[3:]
        if ROLLUP in headers:
            raise Refused(subject, 10111, "rollup not permitted")
        if (expected := headers.get(h.EXPECTED_LAST_SUBJECT_SEQUENCE)) is not None:
            guard = headers.get(h.EXPECTED_LAST_SUBJECT, read_side)
            last = self._last.get(guard, 0)
            if int(expected) != last:
                raise WrongSequence(subject, f"wrong last sequence: {last}")
        msg_id = headers.get(h.MSG_ID)  # after the fence, as on NATS: a superseded process's duplicate is refused
        if msg_id is not None and (known := self._ids.get(msg_id)) is not None:
            return Ack(known, duplicate=True)
        sequence = self.last_sequence + 1
        stored = StoredMessage(read_side, sequence, data, dict(headers))
        previous = self._last.get(read_side, 0)
        self.messages.append(stored)
        self._last[read_side] = sequence
        if msg_id is not None:
            self._ids[msg_id] = sequence
        self.deliver(
            ReceivedMessage(
                read_side,
                data,
                {**headers, h.SEQUENCE: str(sequence), h.LAST_SEQUENCE: str(previous), "Nats-Subject": read_side},
            )
        )
        for wake in list(self._wakers.values()):
            wake()
        return Ack(sequence)

    def _store_key(self, subject: str, data: bytes, headers: Headers) -> Ack:
        if ROLLUP in headers:
            raise Refused(subject, 10111, "rollup not permitted")
        _, bucket, key = subject.split(".", 2)
        keys = self.buckets.setdefault(bucket, {})
        revision = keys[key].revision if key in keys else 0
        expected = headers.get(h.EXPECTED_LAST_SUBJECT_SEQUENCE)
        if expected is not None and int(expected) != revision:
            raise WrongSequence(subject, f"wrong last sequence: {revision}")
        self._revisions[bucket] = self._revisions.get(bucket, 0) + 1
        keys[key] = KvEntry(data, self._revisions[bucket])
        self.deliver(ReceivedMessage(subject, data, {}))
        return Ack(self._revisions[bucket])

    def deliver(self, received: ReceivedMessage) -> None:
        """Deliver to the present core subscribers."""
        for pattern, listener in list(self._listeners.values()):
            if matches(pattern, received.subject):
                listener(received)

    def of(self, filters: tuple[str, ...], first: int) -> list[StoredMessage]:
        """Stored messages of `filters` from sequence `first` on."""
        start = max(0, first - self.first_sequence)
        return [m for m in self.messages[start:] if any(matches(f, m.subject) for f in filters)]

    def add_listener(self, pattern: str, listener: Callable[[ReceivedMessage], None]) -> int:
        key = next(self._keys)
        self._listeners[key] = (pattern, listener)
        return key

    def has_listener(self, subject: str) -> bool:
        return any(matches(pattern, subject) for pattern, _ in self._listeners.values())

    def add_waker(self, waker: Callable[[], None]) -> int:
        key = next(self._keys)
        self._wakers[key] = waker
        return key

    def remove(self, key: int) -> None:
        self._listeners.pop(key, None)
        self._wakers.pop(key, None)


class _Subscription:
    """Feeds a callback serially from a queue, as the NATS client does."""

    def __init__(self, bus: MemoryBus, pattern: str, on_message: OnMessage) -> None:
        self._bus = bus
        self._queue: asyncio.Queue[ReceivedMessage] = asyncio.Queue()
        self._on_message = on_message
        self._key = bus.server.add_listener(pattern, self._take)
        self._task = asyncio.create_task(self._run(), name=f"listen-{pattern}")

    def _take(self, received: ReceivedMessage) -> None:
        if self._bus.connected:
            self._queue.put_nowait(received)

    async def _run(self) -> None:
        while True:
            received = await self._queue.get()
            try:
                await self._bus.step("received")
                await self._on_message(received)
            except Disconnected:
                continue
            except Exception:
                log.exception("listener_failed", subject=received.subject)

    async def close(self) -> None:
        self._bus.server.remove(self._key)
        self._task.cancel()


def _with_pending(stored: StoredMessage, pending: int) -> StoredMessage:
    return StoredMessage(stored.subject, stored.sequence, stored.data, stored.headers, pending)


class _Reader:
    def __init__(self, bus: MemoryBus, filters: tuple[str, ...], first: int, on_stored: OnStored) -> None:
        self._bus, self._filters, self._next, self._on_stored = bus, filters, first, on_stored
        self._wake = asyncio.Event()
        self._wake.set()
        self._key = bus.server.add_waker(self._wake.set)
        self._task = asyncio.create_task(self._run(), name="reader")

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch = self._bus.server.of(self._filters, self._next)
            for at, stored in enumerate(batch):
                while True:
                    await self._bus.until_connected()
                    with contextlib.suppress(Disconnected):
                        await self._bus.step("read")
                        break
                self._next = stored.sequence + 1
                try:
                    if (handling := self._on_stored(_with_pending(stored, len(batch) - at - 1))) is not None:
                        await handling
                except Exception:
                    log.exception("reader_callback_failed", subject=stored.subject, sequence=stored.sequence)

    async def close(self) -> None:
        self._bus.server.remove(self._key)
        if self._task is not asyncio.current_task():
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


class MemoryBus:
    """A `bus.interface.Bus` connected to a MemoryServer in the same process."""

    def __init__(self, server: MemoryServer, gate: Gate | None = None) -> None:
        self.server = server
        self.subjects = server.subjects
        self.connected = True
        self._ready = True
        self._gate = gate
        self._watchers: list[tuple[Callable[[], None], Callable[[], Awaitable[None]]]] = []
        self._wire: deque[tuple[str, bytes, Headers, Done]] = deque()
        self._wire_task: asyncio.Task[None] | None = None
        self._back = asyncio.Event()
        self._back.set()
        self._open: list[Any] = []

    @property
    def is_ready(self) -> bool:
        return self._ready

    url = "memory"

    def watch_connection(self, down: Callable[[], None], up: Callable[[], Awaitable[None]]) -> None:
        self._watchers.append((down, up))

    async def step(self, name: str) -> None:
        if self._gate is not None:
            await self._gate(name)

    async def until_connected(self) -> None:
        await self._back.wait()

    async def wait_connected(self) -> None:
        while not self._ready:
            await self._back.wait()
            await asyncio.sleep(0)

    def disconnect(self, *, lose: bool = True) -> None:
        """Break the connection: messages in flight are lost (or stored, but their answers are lost)."""
        if not self.connected:
            return
        self.connected = self._ready = False
        self._back.clear()
        wire, self._wire = list(self._wire), deque()
        for subject, data, headers, _ in wire:
            if not lose:
                with contextlib.suppress(BusError):
                    self.server.store(subject, data, headers)
        for down, _ in list(self._watchers):
            down()
        for *_, done in wire:
            done(BusTimeout("the connection broke before the answer came"))

    async def reconnect(self) -> None:
        """Restore the connection, await the watchers, and only then be ready."""
        if self.connected:
            return
        self.connected = True
        self._back.set()
        for _, up in list(self._watchers):
            await up()
        self._ready = self.connected

    def _check(self) -> None:
        if not self.connected:
            raise Disconnected("not connected")

    async def publish(self, subject: str, data: bytes, headers: Headers | None = None, timeout_s: float = 5.0) -> Ack:
        await self.step("publish")
        self._check()
        ack = self.server.store(subject, data, headers or {})
        await self.step("published")
        return ack

    async def pipelines(self) -> bool:
        return True

    def send(self, subject: str, data: bytes, headers: Headers, done: Done) -> None:
        self._check()
        self._wire.append((subject, data, headers, done))
        if self._wire_task is None or self._wire_task.done():
            self._wire_task = asyncio.create_task(self._carry(), name="wire")

    async def _carry(self) -> None:
        while self._wire:
            entry = self._wire[0]
            try:
                await self.step("send")
            except Disconnected:
                return
            if not self._wire or self._wire[0] is not entry:
                continue  # the connection broke in the meantime
            self._wire.popleft()
            subject, data, headers, done = entry
            result: Ack | BusError
            try:
                result = self.server.store(subject, data, headers)
            except BusError as error:
                result = error
            try:
                await self.step("sent")
            except Disconnected:
                result = BusTimeout("the connection broke before the answer came")
            done(result)

    async def last(self, subject: str) -> StoredMessage | None:
        await self.step("last")
        self._check()
        found = self.server.of((subject,), 0)
        return found[-1] if found else None

    async def message(self, sequence: int) -> StoredMessage | None:
        await self.step("message")
        self._check()
        return next(iter(self.server.of((">",), sequence)), None)

    async def read_back(self, filters: tuple[str, ...], first: int) -> list[StoredMessage]:
        await self.step("read_back")
        self._check()
        found = self.server.of(filters, first)
        return [_with_pending(stored, len(found) - at - 1) for at, stored in enumerate(found)]

    async def follow(self, filters: tuple[str, ...], first: int, on_stored: OnStored) -> _Reader:
        await self.step("follow")
        self._check()
        reader = _Reader(self, filters, first, on_stored)
        self._open.append(reader)
        return reader

    async def bounds(self) -> Bounds:
        await self.step("bounds")
        self._check()
        return Bounds(self.server.first_sequence, self.server.last_sequence)

    async def kv_get(self, bucket: str, key: str) -> KvEntry | None:
        await self.step("kv_get")
        self._check()
        return self.server.buckets.get(bucket, {}).get(key)

    async def kv_put(self, bucket: str, key: str, value: bytes, expect: int) -> int:
        headers = {h.EXPECTED_LAST_SUBJECT_SEQUENCE: str(expect)}
        return (await self.publish(f"$KV.{bucket}.{key}", value, headers)).sequence

    async def kv_delete(self, bucket: str, key: str) -> None:
        await self.step("kv_delete")
        self._check()
        self.server.buckets.get(bucket, {}).pop(key, None)

    async def kv_all(self, bucket: str) -> dict[str, KvEntry]:
        await self.step("kv_all")
        self._check()
        return dict(self.server.buckets.get(bucket, {}))

    async def notify(self, subject: str, data: bytes) -> None:
        self._check()
        self.server.deliver(ReceivedMessage(subject, data))

    async def listen(self, subject: str, on_message: OnMessage) -> _Subscription:
        self._check()
        subscription = _Subscription(self, subject, on_message)
        self._open.append(subscription)
        return subscription

    async def listen_directly(self, subject: str, on_received: OnReceived) -> _Subscription:
        async def on_message(received: ReceivedMessage) -> None:
            on_received(received)

        return await self.listen(subject, on_message)

    async def flush(self) -> None:
        self._check()

    async def answer(self, subject: str, on_request: OnRequest) -> _Subscription:
        async def on_message(received: ReceivedMessage) -> None:
            data = await on_request(received)
            if received.reply:
                await self.notify(received.reply, data)

        return await self.listen(subject, on_message)

    async def request(self, subject: str, data: bytes, timeout_s: float = 2.0) -> bytes:
        self._check()
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        inbox = f"_INBOX.{id(answer):x}"

        def take(received: ReceivedMessage) -> None:
            if not answer.done():
                answer.set_result(received.data)

        if not self.server.has_listener(subject):
            raise BusTimeout(f"{subject}: no process serves it")
        key = self.server.add_listener(inbox, take)
        try:
            self.server.deliver(ReceivedMessage(subject, data, {}, inbox))
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            raise BusTimeout(f"{subject}: no answer within {timeout_s} s") from None
        finally:
            self.server.remove(key)

    async def close(self) -> None:
        self.connected = self._ready = False
        for item in self._open:
            await item.close()
        if self._wire_task is not None:
            self._wire_task.cancel()
