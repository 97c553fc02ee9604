"""The mirror's buffer of unwritten messages: bounded, in order, converted to rows and cursors."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field

import orjson

from bus.interface import EVERYTHING, StoredMessage
from bus.messages import headers as h
from bus.messages.subjects import Subjects
from bus.mirror.schema import KvRow, MessageRow, MirrorGap
from bus.nats.bus import NatsBus
from bus.nats.consumer import Reader

BATCH_ROWS = 1000
BATCH_S = 0.1
"""A message waits so long for others to share a transaction and its fsync, less than half of the 250 ms of the goal."""
PAUSE_S = 0.02
"""Shortest pause between two transactions of less than BATCH_ROWS messages."""
BUFFER_ROWS = 5000
"""Most unwritten rows of one stream; at more the mirror stops reading."""
MAX_DEFER_S = 2.0
"""Longest time that a snapshot waits for the messages that it references, if none arrive."""
MARKER_REASON = "Nats-Marker-Reason"
POSITIONS = ("epoch", "cursor", "output_sequence")
"""Fields of a snapshot or a registry record that are sequences of the stream."""


@dataclass(slots=True)
class Followed:
    """One stream that is copied into the file. `bucket` is empty for the event stream."""

    stream: str
    filters: tuple[str, ...]
    bucket: str = ""
    references_events: bool = False
    """Whether its values reference the event stream, and so must never be ahead of it in the file."""
    waiting: deque[tuple[float, StoredMessage]] = field(default_factory=deque)
    """Time of arrival (monotonic), message."""
    room: asyncio.Event = field(default_factory=asyncio.Event)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a message arrives, of all streams that share it."""
    full: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when BATCH_ROWS messages are waiting."""
    reader: Reader | None = None
    verified: int = -1
    """The reader's generation for which the stream was last found to be the mirrored one."""

    async def start(self, bus: NatsBus, first: int) -> None:
        """Read from sequence `first` on."""
        self.reader = Reader(bus.jetstream, self.stream, self.filters, first, self.take)
        await self.reader.start()

    def take(self, stored: StoredMessage) -> Awaitable[None] | None:
        """Buffer a message; the result is to be awaited, if any: the buffer is full."""
        self.put(stored)
        return self._wait_for_room() if len(self.waiting) >= BUFFER_ROWS else None

    async def _wait_for_room(self) -> None:
        while len(self.waiting) >= BUFFER_ROWS:
            self.room.clear()
            await self.room.wait()

    def put(self, stored: StoredMessage) -> None:
        self.waiting.append((time.monotonic(), stored))
        self.arrived.set()
        if len(self.waiting) >= BATCH_ROWS:
            self.full.set()

    @property
    def lag(self) -> int:
        """Rows of the stream that are not in the file."""
        return len(self.waiting) + (0 if self.reader is None else self.reader.pending)

    @property
    def unverified(self) -> bool:
        return self.reader is not None and self.reader.generation > self.verified

    def written(self, count: int) -> None:
        for _ in range(count):
            self.waiting.popleft()
        self.room.set()

    async def close(self) -> None:
        """Stop reading; the buffer stays."""
        if self.reader is not None:
            closing = asyncio.create_task(self.reader.close())
            self.room.set()  # a delivery that waits for room would block the reader
            await closing
            self.reader = None


def followed_streams(subjects: Subjects) -> tuple[Followed, ...]:
    """The event stream, then the buckets; they share `arrived`."""
    arrived = asyncio.Event()
    buckets = ((subjects.state_bucket, True), (subjects.registry_bucket, True), (subjects.memory_bucket, False))
    return (
        Followed(subjects.stream, EVERYTHING, arrived=arrived),
        *(
            Followed(f"KV_{bucket}", (f"$KV.{bucket}.>",), bucket, events, arrived=arrived)
            for bucket, events in buckets
        ),
    )


def pause_before(rows: int, lag_s: float) -> float:
    """Seconds to wait before `rows` messages are written, the oldest of which was stored `lag_s` ago."""
    return 0.0 if rows >= BATCH_ROWS else max(BATCH_S - lag_s, PAUSE_S)


@dataclass(slots=True)
class Batch:
    """Rows to write in one transaction, and the new cursors."""

    messages: list[MessageRow] = field(default_factory=list)
    values: list[KvRow] = field(default_factory=list)
    cursors: dict[str, int] = field(default_factory=dict)
    gaps: list[MirrorGap] = field(default_factory=list)
    taken: dict[str, int] = field(default_factory=dict)


def next_batch(
    followed: tuple[Followed, ...], cursors: Mapping[str, int], started_at: int, *, defer: bool = True
) -> Batch:
    """At most BATCH_ROWS buffered rows of each stream.

    `started_at` is the last sequence of the stream when the mirror was created. A value that references messages which
    the file will not have after this batch waits for them (unless `defer` is False), with all later values. So state
    and messages in the file match, even if the mirror is killed.
    """
    batch = Batch()
    events, *buckets = followed
    cursor = cursors.get(events.stream, 0)
    for _, stored in itertools.islice(events.waiting, BATCH_ROWS):
        if stored.sequence > cursor:  # otherwise it was read again after a reconnect
            if stored.sequence > cursor + 1:
                reason = "before" if stored.sequence <= started_at else "retention"
                batch.gaps.append(MirrorGap(events.stream, cursor + 1, stored.sequence - 1, reason))
            cursor = stored.sequence
            batch.messages.append(
                MessageRow(stored.sequence, stored.stored_ns, stored.subject, stored.headers, stored.data)
            )
            batch.cursors[events.stream] = cursor
        batch.taken[events.stream] = batch.taken.get(events.stream, 0) + 1
    may_wait = defer and (events.lag > len(batch.messages) or bool(batch.messages))
    for one in buckets:
        _take_values(one, batch, cursors.get(one.stream, 0), cursor if defer else None, may_wait=may_wait)
    return batch


def _take_values(one: Followed, batch: Batch, revision: int, reached: int | None, *, may_wait: bool) -> None:
    prefix = len(f"$KV.{one.bucket}.")
    overdue = time.monotonic() - MAX_DEFER_S
    for arrived, stored in itertools.islice(one.waiting, BATCH_ROWS):
        operation = stored.headers.get(h.KV_OPERATION) or stored.headers.get(MARKER_REASON) or "PUT"
        may_defer = one.references_events and reached is not None and operation == "PUT"
        deferred = may_defer and (may_wait or arrived > overdue)
        if deferred and references(stored.data) > (reached or 0):
            return
        if stored.sequence > revision:
            revision = stored.sequence
            batch.values.append(
                KvRow(one.bucket, stored.subject[prefix:], revision, operation, stored.data, stored.stored_ns)
            )
            batch.cursors[one.stream] = revision
        batch.taken[one.stream] = batch.taken.get(one.stream, 0) + 1


def references(value: bytes) -> int:
    """The highest sequence of the stream that a snapshot or a registry record references; else 0."""
    try:
        fields = orjson.loads(value)
        found = [fields[name] for name in POSITIONS if name in fields]
        return max((number for number in found if isinstance(number, int)), default=0)
    except (orjson.JSONDecodeError, TypeError):
        return 0
