"""Where `explain` reads stored messages, by subject and sequence: the bus, or a mirror's file (file_source.py).

A source may be used for a long time, by several tasks at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from bus.durable.snapshots import Snapshot, read_snapshot
from bus.errors import MeshError
from bus.interface import StoredMessage
from bus.messages.subjects import STORED_KINDS, Subjects

if TYPE_CHECKING:  # a file is read without the NATS client, which takes long to import
    from bus.nats.bus import NatsBus

PAGE = 1000
"""Messages that are read at a time where their number is not known."""
FIRST_WINDOW = 2048
"""Messages of the stream among which those before one are looked for first; then four times as many."""
PERMANENT_KINDS = ("epoch", "config")
"""Kinds that retention never removes."""


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
        return None if entry is None else readable_snapshot(agent, entry.value)


def readable_snapshot(agent: str, data: bytes) -> Snapshot | None:
    """A stored snapshot; None if it cannot be read."""
    try:
        return read_snapshot(agent, data)
    except MeshError:
        return None
