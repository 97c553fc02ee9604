"""A mirror's file as a source of `explain`. Apart, because reading a bus needs no SQLite."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, TypeVar

from bus.durable.snapshots import Snapshot
from bus.interface import StoredMessage
from bus.mirror.reader import Mirrored, MirrorFile
from coordinator.audit.mirror_checks import stored_of, why_gone
from coordinator.explain.errors import RowChanged
from coordinator.explain.sources import Filter, readable_snapshot

T = TypeVar("T")


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
        return readable_snapshot(agent, found[-1].row.value) if found and found[-1].row.operation == "PUT" else None


def _merged(found: Iterable[Iterable[Mirrored]]) -> list[Mirrored]:
    """Rows of several searches, each once and in their order."""
    rows = {one.row.sequence: one for each in found for one in each}
    return [rows[sequence] for sequence in sorted(rows)]


def _columns(wanted: Filter) -> dict[str, Any]:
    return {"kind": wanted.kind, "topic": wanted.topic, "agent": wanted.agent}
