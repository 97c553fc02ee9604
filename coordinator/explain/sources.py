"""Where `explain` reads stored messages: the bus or a mirror's file, by subject and sequence.

A source may be used for a long time, by several tasks at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from bus.durable.snapshots import Snapshot, read_snapshot
from bus.errors import MeshError
from bus.interface import StoredMessage
from bus.messages.subjects import STORED_KINDS, Subjects
from bus.mirror.reader import Mirrored, MirrorFile
from coordinator.audit.mirror_checks import stored_of, why_gone
from coordinator.explain.errors import RowChanged

if TYPE_CHECKING:  # a file is read without the NATS client, which takes long to import
    from bus.nats.bus import NatsBus

PAGE = 1000
"""Messages that are read at a time where their number is not known."""
FIRST_WINDOW = 2048
"""Messages of the stream among which those before one are looked for first; then four times as many."""
PERMANENT_KINDS = ("epoch", "config")
"""Kinds that retention never removes."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Filter:
    """The messages of a kind; with `topic` (as in the subject) or `agent` only those. None: of every one."""

    kind: str
    topic: str | None = None
    agent: str | None = None

    def subject(self, subjects: Subjects) -> str:
        """The filter as a pattern of subjects."""
        if self.kind == "epoch":
            return f"{subjects.ns}.epoch.{self.agent or '>'}"
        return f"{subjects.ns}.{self.kind}.{self.topic or '*'}.{self.agent or '*'}"


class MessageSource(Protocol):
    """Stored messages. Methods raise what their bus or file raises."""

    subjects: Subjects
    elsewhere: str
    """Where else to look for what is missing here."""

    @property
    def name(self) -> str:
        """The URL of the bus, or the path of the file."""

    async def last_sequence(self) -> int:
        """The sequence of the newest message."""

    async def newest(self, wanted: Filter) -> StoredMessage | None:
        """The newest message."""

    async def first_from(self, wanted: Filter, sequence: int) -> StoredMessage | None:
        """The first message from `sequence` on."""

    async def read(
        self, wanted: Iterable[Filter], first: int, last: int, limit: int | None = None
    ) -> list[StoredMessage]:
        """The messages of any of `wanted` from `first` to `last` in their order, at most the first `limit`."""

    async def read_before(self, wanted: Iterable[Filter], before: int, limit: int) -> list[StoredMessage]:
        """The newest `limit` messages of any of `wanted` below the sequence `before`, in their order."""

    async def missing(self, first: int, last: int) -> str | None:
        """Which of the messages `first` to `last` are not there any more and why, as text; None: all are there."""

    async def writers(self, kind: str) -> dict[str, int]:
        """Read-side subject -> number of its messages, of a kind."""

    async def snapshot(self, agent: str) -> Snapshot | None:
        """The newest snapshot of an agent; None if there is none that can be read."""


async def read_all(
    source: MessageSource, wanted: Iterable[Filter], first: int, last: int
) -> AsyncIterator[StoredMessage]:
    """As `source.read`, of any number of messages: they are read in pages."""
    filters = tuple(wanted)
    while True:
        found = await source.read(filters, first, last, PAGE)
        for stored in found:
            yield stored
        if len(found) < PAGE:
            return
        first = found[-1].sequence + 1


class BusSource:
    """The stream of a bus."""

    elsewhere = "a mirror's file may have it (--file FILE)"

    def __init__(self, bus: NatsBus) -> None:
        self._bus = bus
        self.subjects = bus.subjects

    @property
    def name(self) -> str:
        return self._bus.url

    async def last_sequence(self) -> int:
        return (await self._bus.bounds()).last

    async def newest(self, wanted: Filter) -> StoredMessage | None:
        return await self._bus.last(wanted.subject(self.subjects))

    async def first_from(self, wanted: Filter, sequence: int) -> StoredMessage | None:
        return await self._bus.first_from(wanted.subject(self.subjects), sequence)

    async def read(
        self, wanted: Iterable[Filter], first: int, last: int, limit: int | None = None
    ) -> list[StoredMessage]:
        filters = tuple(dict.fromkeys(one.subject(self.subjects) for one in wanted))
        return await self._bus.read_range(filters, max(first, 1), last, limit)

    async def read_before(self, wanted: Iterable[Filter], before: int, limit: int) -> list[StoredMessage]:
        filters, bounds = tuple(wanted), await self._bus.bounds()
        found: list[StoredMessage] = []
        end, window = min(before, bounds.last + 1), FIRST_WINDOW
        while len(found) < limit and end > bounds.first:  # a stream cannot be read backwards
            begin = max(bounds.first, end - window)
            newest: deque[StoredMessage] = deque(maxlen=limit - len(found))
            async for stored in read_all(self, filters, begin, end - 1):
                newest.append(stored)
            found = [*newest, *found]
            end, window = begin, window * 4
        return found

    async def missing(self, first: int, last: int) -> str | None:
        """Retention removes the oldest messages, but no claims and no Configs: the first other one is the boundary."""
        state = (await self._bus.api(f"STREAM.INFO.{self.subjects.stream}"))["state"]
        if state["first_seq"] <= 1 and not state.get("num_deleted"):
            return None
        kinds = [Filter(kind) for kind in STORED_KINDS if kind not in PERMANENT_KINDS]
        oldest = [found.sequence for one in kinds if (found := await self.first_from(one, 1)) is not None]
        removed = min(oldest, default=state["last_seq"] + 1) - 1
        return f"messages up to {removed} have been removed by retention" if first <= min(last, removed) else None

    async def writers(self, kind: str) -> dict[str, int]:
        return await self._bus.subject_counts(self.subjects.all_of(kind))

    async def snapshot(self, agent: str) -> Snapshot | None:
        entry = await self._bus.kv_get(self.subjects.state_bucket, agent)
        return None if entry is None else _readable(agent, entry.value)


class FileSource:
    """An open mirror's file. Its reads are done in threads, one at a time.

    With `leave_out` the lists lack the rows that were changed, and it is called with their sequences.
    """

    elsewhere = "the bus may have it (without --file)"

    def __init__(self, file: MirrorFile, leave_out: Callable[[int], None] | None = None) -> None:
        self._file = file
        self._leave_out = leave_out
        self._reading = asyncio.Lock()
        self.subjects = file.subjects

    @property
    def name(self) -> str:
        return str(self._file.path)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Do other work with the file, while no other is done."""
        async with self._reading:
            return await asyncio.to_thread(work)

    async def last_sequence(self) -> int:
        return (await self.in_thread(self._file.bounds))[1]

    async def newest(self, wanted: Filter) -> StoredMessage | None:
        found = await self.in_thread(lambda: self._file.newest(1, **_columns(wanted)))
        return self._intact(found[0]) if found else None

    async def first_from(self, wanted: Filter, sequence: int) -> StoredMessage | None:
        found = await self.in_thread(
            lambda: next(self._file.messages(first=sequence, page=1, **_columns(wanted)), None)
        )
        return None if found is None else self._intact(found)

    async def read(
        self, wanted: Iterable[Filter], first: int, last: int, limit: int | None = None
    ) -> list[StoredMessage]:
        def kept(one: Filter) -> Iterable[Mirrored]:
            rows = self._file.messages(first=first, last=last, **_columns(one))
            return islice(filter(self._keeps, rows), limit)

        rows = await self.in_thread(lambda: _merged(kept(one) for one in wanted)[:limit])
        return [stored_of(found) for found in rows]

    async def read_before(self, wanted: Iterable[Filter], before: int, limit: int) -> list[StoredMessage]:
        def newest(one: Filter) -> list[Mirrored]:
            found: list[Mirrored] = []
            end, count = before, limit
            while count > 0:
                rows = self._file.newest(count, before=end, **_columns(one))
                found = [*filter(self._keeps, rows), *found]
                if len(rows) < count:
                    break
                end, count = rows[0].row.sequence, limit - len(found)
            return found

        rows = await self.in_thread(lambda: _merged(newest(one) for one in wanted)[-limit:])
        return [stored_of(found) for found in rows]

    def _keeps(self, found: Mirrored) -> bool:
        if found.intact:
            return True
        if self._leave_out is None:
            raise RowChanged(self.name, found.row.sequence)
        self._leave_out(found.row.sequence)
        return False

    def _intact(self, found: Mirrored) -> StoredMessage:
        if not found.intact:
            raise RowChanged(self.name, found.row.sequence)
        return stored_of(found)

    async def missing(self, first: int, last: int) -> str | None:
        def work() -> str | None:
            gaps = [gap for gap in self._file.gaps() if gap.first <= last and gap.last >= first]
            if not gaps:
                return None
            return f"messages {gaps[0].first} to {gaps[-1].last} are not all in the file ({why_gone(self._file)})"

        return await self.in_thread(work)

    async def writers(self, kind: str) -> dict[str, int]:
        sql = "SELECT subject, count(*) FROM messages WHERE kind = ? GROUP BY subject"
        return dict(await self.in_thread(lambda: self._file.rows(sql, kind)))

    async def snapshot(self, agent: str) -> Snapshot | None:
        found = await self.in_thread(lambda: self._file.value_history(self.subjects.state_bucket, agent, limit=1))
        return _readable(agent, found[-1].row.value) if found and found[-1].row.operation == "PUT" else None


def _merged(found: Iterable[Iterable[Mirrored]]) -> list[Mirrored]:
    """Rows of several searches, each once and in their order."""
    rows = {one.row.sequence: one for each in found for one in each}
    return [rows[sequence] for sequence in sorted(rows)]


def _columns(wanted: Filter) -> dict[str, Any]:
    return {"kind": wanted.kind, "topic": wanted.topic, "agent": wanted.agent}


def _readable(agent: str, data: bytes) -> Snapshot | None:
    try:
        return read_snapshot(agent, data)
    except MeshError:
        return None
