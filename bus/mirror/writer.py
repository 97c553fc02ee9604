"""Writes a mirror's file: rows and their cursor in one transaction, from one process only.

A write completes even if its caller is cancelled (aiosqlite would continue anyway and leave the transaction open); a
failing write is rolled back. So at any time, even after a SIGKILL, the file contains each message up to its cursor
once, and nothing after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

import aiosqlite

from bus.errors import MirrorDamaged, MirrorUnusable
from bus.mirror.schema import (
    BUSY_TIMEOUT_S,
    INSERT_KV,
    INSERT_MESSAGE,
    SQLITE_ERRORS,
    KvRow,
    MessageRow,
    MirrorGap,
    StreamIncarnation,
    explained,
    prepare,
)
from bus.utils.file_lock import take_lock

LOCK_TIMEOUT_S = 2.0
"""A mirror needs a moment to end and to release its file after its parent was killed."""
COMPLETE = "complete"
"""Key in `meta` while the file is complete: from an orderly end to the next write."""
WAL_KEPT_BYTES = 16 << 20
"""SQLite's log beside the file is shortened to this size once no reader needs more of it."""
PRUNE_ROWS = 500
"""Rows that one transaction of pruning removes: a few milliseconds."""

T = TypeVar("T")


class MirrorStore:
    """The only writer of a mirror's file. Create it with `await MirrorStore.open(...)`, end it with `close`.

    Writing methods raise MirrorFailing if the file cannot be written now (the call changed nothing), and MirrorDamaged
    if its content is broken.
    """

    def __init__(self, path: Path, swarm: str, db: aiosqlite.Connection, lock: IO[str]) -> None:
        self.path, self.swarm = path, swarm
        self._db, self._lock = db, lock
        self._turn = asyncio.Lock()
        self.cursors: dict[str, int] = {}
        self.incarnations: dict[str, StreamIncarnation] = {}
        """The newest of each stream."""
        self.meta: dict[str, str] = {}

    @classmethod
    async def open(cls, path: Path, swarm: str) -> MirrorStore:
        """Lock the file, create or upgrade it, and read its cursors.

        Raises:
            MirrorUnusable: it is in use, not a mirror, of a newer version, or of another swarm.
            MirrorDamaged, MirrorFailing: as bus.mirror.schema.prepare.
        """
        lock = await asyncio.to_thread(_take_lock, path)
        try:
            await asyncio.to_thread(prepare, path, swarm)
            db = await aiosqlite.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        except BaseException:
            lock.close()
            raise
        store = cls(path, swarm, db, lock)
        try:
            await store._prepare_file()
        except BaseException as error:
            await store.close()
            if isinstance(error, SQLITE_ERRORS):
                raise explained(error, path) from None
            raise
        return store

    async def check_path(self) -> None:
        """Verify that the open file still has its name: writes to a deleted file would succeed without an error.

        Raises:
            MirrorDamaged: it was deleted or replaced.
        """
        found = await asyncio.to_thread(_identity, self.path)
        if found != self._identity:
            raise MirrorDamaged(str(self.path), "it was deleted" if found is None else "another file is in its place")

    async def _prepare_file(self) -> None:
        self._identity = await asyncio.to_thread(_identity, self.path)
        await self._db.execute("PRAGMA synchronous = FULL")
        await self._db.execute(f"PRAGMA journal_size_limit = {WAL_KEPT_BYTES}")
        self.cursors = dict(await self._all("SELECT stream, cursor FROM cursors"))
        sql = "SELECT stream, created, config, since, reason FROM incarnations ORDER BY rowid"
        self.incarnations = {row[0]: StreamIncarnation(*row) for row in await self._all(sql)}
        self.meta = dict(await self._all("SELECT key, value FROM meta"))

    async def _all(self, sql: str, *values: Any) -> list[Any]:
        return list(await self._db.execute_fetchall(sql, values))

    async def _whole(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` as one transaction, to its end even if the caller is cancelled."""

        async def transaction() -> T:
            async with self._turn:
                try:
                    await self._db.execute("BEGIN IMMEDIATE")
                    result = await work
                    await self._db.execute("COMMIT")
                except SQLITE_ERRORS as error:
                    raise explained(error, self.path) from None
                finally:
                    work.close()
                    if self._db.in_transaction:
                        with contextlib.suppress(sqlite3.Error):
                            await self._db.execute("ROLLBACK")
                return result

        task = asyncio.create_task(transaction(), name="mirror-transaction")
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            while not task.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait({task})
            if not task.cancelled():
                task.exception()  # retrieved, so that asyncio does not warn about it
            raise

    # -- following

    async def write(
        self,
        messages: Sequence[MessageRow],
        values: Sequence[KvRow],
        cursors: Mapping[str, int],
        gaps: Iterable[MirrorGap] = (),
    ) -> None:
        """Add rows and move the cursors of their streams in one transaction."""

        async def work() -> None:
            if messages:
                await self._db.executemany(INSERT_MESSAGE, [row.columns() for row in messages])
            if values:
                await self._db.executemany(INSERT_KV, [row.columns() for row in values])
            await self._put_gaps(gaps)
            await self._put_cursors(cursors)
            await self._db.execute("DELETE FROM meta WHERE key = ?", (COMPLETE,))

        await self._whole(work())
        self.cursors.update(cursors)
        self.meta.pop(COMPLETE, None)

    async def _put_cursors(self, cursors: Mapping[str, int]) -> None:
        sql = "INSERT INTO cursors VALUES (?, ?) ON CONFLICT (stream) DO UPDATE SET cursor = excluded.cursor"
        await self._db.executemany(sql, list(cursors.items()))

    async def _put_gaps(self, gaps: Iterable[MirrorGap]) -> None:
        rows = [(gap.stream, gap.first, gap.last, gap.reason, time.time_ns()) for gap in gaps]
        if rows:
            await self._db.executemany("INSERT INTO gaps VALUES (?, ?, ?, ?, ?)", rows)

    async def begin(
        self,
        incarnations: Sequence[StreamIncarnation],
        cursors: Mapping[str, int] | None = None,
        gaps: Iterable[MirrorGap] = (),
    ) -> None:
        """Record the incarnations of the streams that are followed from now on, and their cursors."""

        async def work() -> None:
            await self._db.executemany(
                "INSERT INTO incarnations VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (*(getattr(one, name) for name in StreamIncarnation.__slots__), time.time_ns())
                    for one in incarnations
                ],
            )
            await self._put_gaps(gaps)
            await self._put_cursors(cursors or {})

        await self._whole(work())
        self.incarnations.update({one.stream: one for one in incarnations})
        self.cursors.update(cursors or {})

    async def set_meta(self, key: str, value: str) -> None:
        """Store a value in `meta`; the next write of rows deletes COMPLETE."""

        async def work() -> None:
            sql = "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
            await self._db.execute(sql, (key, value))

        await self._whole(work())
        self.meta[key] = value

    # -- retention

    async def prune(self, *, max_age_s: float, max_rows: int, revisions: int) -> int:
        """Remove at most PRUNE_ROWS rows beyond the limits (0: no limit); returns how many were removed.

        `revisions`: number of newest writes to keep of each key. The oldest messages are removed first, and recorded
        as one gap, with the gaps between them.
        """

        async def work() -> int:
            removed = await self._prune_messages(max_age_s, max_rows)
            if revisions and removed < PRUNE_ROWS:
                sql = (
                    "DELETE FROM kept WHERE rowid IN (SELECT rowid FROM (SELECT rowid, row_number() OVER "
                    "(PARTITION BY bucket, key ORDER BY revision DESC) AS place FROM kept) WHERE place > ? LIMIT ?)"
                )
                removed += (await self._db.execute(sql, (revisions, PRUNE_ROWS - removed))).rowcount
            return removed

        return await self._whole(work())

    async def _prune_messages(self, max_age_s: float, max_rows: int) -> int:
        [(first, last)] = await self._all("SELECT min(sequence), max(sequence) FROM messages")
        if first is None or not (max_age_s or max_rows):
            return 0
        upto = first - 1
        if max_rows:  # by sequences, some of which may be missing: so at most max_rows rows are left
            upto = max(upto, last - max_rows)
        if max_age_s:
            sql = "SELECT max(sequence) FROM (SELECT * FROM messages ORDER BY sequence LIMIT ?) WHERE stored_ns < ?"
            [(old,)] = await self._all(sql, PRUNE_ROWS, time.time_ns() - int(max_age_s * 1e9))
            upto = max(upto, old or 0)
        upto = min(upto, first + PRUNE_ROWS - 1)
        if upto < first:
            return 0
        [(upto,)] = await self._all("SELECT max(sequence) FROM messages WHERE sequence <= ?", upto)
        removed = (await self._db.execute("DELETE FROM messages WHERE sequence <= ?", (upto,))).rowcount
        stream = f"{self.swarm}_events"
        [(pruned,)] = await self._all("SELECT min(first) FROM gaps WHERE stream = ? AND reason = 'pruned'", stream)
        if pruned is not None:
            first = min(first, pruned)
        # Gaps between removed rows, of any reason, become part of this one: the list has each sequence once.
        await self._db.execute("DELETE FROM gaps WHERE stream = ? AND first >= ? AND last <= ?", (stream, first, upto))
        await self._put_gaps([MirrorGap(stream, first, upto, "pruned")])
        return removed

    async def trim_log(self) -> None:
        """Empty SQLite's log if it is longer than WAL_KEPT_BYTES; without an effect while a reader needs it.

        SQLite shortens it by itself only at a later write, which an idle swarm does not cause.
        """
        async with self._turn:
            try:
                await asyncio.to_thread(_trim_log, self.path)
            except sqlite3.Error as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:  # else the next call may do it
                    raise explained(error, self.path) from None

    async def close(self) -> None:
        """Close the file. An open aiosqlite connection would keep the interpreter from exiting."""
        try:
            async with self._turn:
                with contextlib.suppress(sqlite3.Error, ValueError):
                    await asyncio.shield(self._db.close())
        finally:
            self._lock.close()


def _trim_log(path: Path) -> None:
    log = path.with_name(f"{path.name}-wal")
    if not log.exists() or log.stat().st_size <= WAL_KEPT_BYTES:
        return
    # A connection of its own, without a time-out: that of the writer would wait for readers, and delay the mirror.
    with contextlib.closing(sqlite3.connect(path, timeout=0)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _take_lock(path: Path) -> IO[str]:
    """Lock a separate file: closing any descriptor of the mirror's file would drop SQLite's own locks."""
    lock_path = path.with_name(path.name + ".lock")
    try:
        lock = take_lock(lock_path, LOCK_TIMEOUT_S)
    except OSError as error:
        raise MirrorUnusable(str(path), f"{lock_path}: {error.strerror}; choose another path with --file") from None
    if lock is None:
        raise MirrorUnusable(str(path), "another mirror writes it; end that one, or name another file with --file")
    return lock
