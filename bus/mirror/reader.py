"""Reads a mirror's file, with the bus up or down, also while the mirror writes it.

Synchronous, for the commands. Every row comes with the result of its checksum test; nothing is repaired here.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgspec

from bus.errors import MirrorDamaged, MirrorUnusable, UsageError
from bus.messages.subjects import Subjects
from bus.mirror.schema import (
    BUSY_TIMEOUT_S,
    SQLITE_ERRORS,
    KvRow,
    MessageRow,
    MirrorGap,
    StreamIncarnation,
    check_version,
    explained,
    kv_checksum,
    message_checksum,
    subject_columns,
)

MIRROR_FILE = "mirror.sqlite"
"""Default file, relative to the state directory."""
PAGE = 500
"""Rows fetched at a time."""


@dataclass(frozen=True, slots=True)
class Mirrored:
    """A message in the file; `intact` is False if the row has changed since it was written."""

    row: MessageRow
    intact: bool


@dataclass(frozen=True, slots=True)
class MirroredValue:
    """A write to a bucket in the file; `intact` as in Mirrored."""

    row: KvRow
    intact: bool


def _as_immutable(path: Path) -> str:
    """The option for a place that this process cannot write, where SQLite could not make its shared memory: the file is
    read as one that nothing changes.

    Raises:
        MirrorUnusable: it cannot be read, or its newest messages are in a log beside it.
    """
    if not os.access(path, os.R_OK):
        raise MirrorUnusable(str(path), "this user may not read it; run the command as its owner, or copy it")
    if os.access(path.parent, os.W_OK):
        return ""
    log = path.with_name(f"{path.name}-wal")
    if log.exists() and log.stat().st_size > 0:
        if os.access(log, os.R_OK) and os.access(path.with_name(f"{path.name}-shm"), os.R_OK):
            return ""  # another process has the shared memory open, and SQLite reads it
        raise MirrorUnusable(
            str(path),
            f"its newest messages are in {log.name}, which can be read only where the directory can be written; copy "
            "the files to a directory of yours, and name the copy with --file",
        )
    return "&immutable=1"


class MirrorFile:
    """An open mirror. Use it with `with`, or `close` it.

    Several threads may use it, one at a time. Every method raises MirrorDamaged if SQLite finds the file broken, and
    MirrorFailing if the file cannot be read now.
    """

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            MirrorUnusable: there is no such file, it is not a mirror, or has an unknown version.
        """
        self.path = path
        if not path.is_file():
            raise MirrorUnusable(
                str(path), "there is no such file; the role `signalmesh mirror` writes it, --file names another one"
            )
        try:
            self._db = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=ro{_as_immutable(path)}",
                uri=True,
                timeout=BUSY_TIMEOUT_S,
                check_same_thread=False,
            )
        except (sqlite3.Error, OSError) as error:
            raise MirrorUnusable(str(path), f"cannot be opened: {error}") from None
        try:
            self.version = check_version(self._db, path)
            if self.version == 0:
                raise MirrorUnusable(str(path), "it is empty; is its mirror only just starting?")
            self.swarm: str = self.meta("swarm") or ""
            if not self.swarm:
                raise MirrorDamaged(str(path), "the name of its swarm is missing")
        except SQLITE_ERRORS as error:
            self._db.close()
            raise explained(error, path) from None
        except BaseException:
            self._db.close()
            raise
        try:
            self.subjects = Subjects(self.swarm)
        except UsageError as error:
            self._db.close()
            raise MirrorDamaged(str(path), f"the name of its {error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    def freeze(self) -> None:
        """Read the file as it is now, until `thaw`, whatever its mirror writes or removes meanwhile.

        The log of the file grows for as long: read little before `thaw`.
        """
        self.rows("BEGIN")
        self.cursor()  # the first read is what begins it

    def thaw(self) -> None:
        """Read the file as it is at each read from now on."""
        self.rows("COMMIT")

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Any query."""
        try:
            return self._db.execute(sql, values).fetchall()
        except SQLITE_ERRORS as error:
            if str(error).startswith("no such "):  # a table that every file of this version has
                raise MirrorDamaged(str(self.path), str(error)) from None
            raise explained(error, self.path) from None

    # -- about the file

    def meta(self, key: str) -> str | None:
        found = self.rows("SELECT value FROM meta WHERE key = ?", key)
        return str(found[0][0]) if found else None

    def cursor(self, stream: str | None = None) -> int:
        """Last sequence of `stream` (default: the event stream) in the file; 0: none."""
        found = self.rows("SELECT cursor FROM cursors WHERE stream = ?", stream or self.subjects.stream)
        if found and not isinstance(found[0][0], int):
            raise MirrorDamaged(str(self.path), f"its cursor is {found[0][0]!r}, not a sequence")
        return found[0][0] if found else 0

    def incarnations(self, stream: str | None = None) -> list[StreamIncarnation]:
        """The incarnations of `stream` (default: the event stream) from which its rows are, oldest first."""
        sql = "SELECT stream, created, config, since, reason FROM incarnations WHERE stream = ? ORDER BY rowid"
        return [StreamIncarnation(*row) for row in self.rows(sql, stream or self.subjects.stream)]

    def gaps(self, stream: str | None = None) -> list[MirrorGap]:
        """Sequences of `stream` (default: the event stream) that are listed as missing from the file, by the first."""
        sql = "SELECT stream, first, last, reason, recorded_ns FROM gaps WHERE stream = ? ORDER BY first, last"
        found = self.rows(sql, stream or self.subjects.stream)
        if bad := [row for row in found if not all(isinstance(row[at], int) for at in (1, 2, 4))]:
            raise MirrorDamaged(str(self.path), f"its list of gaps has {bad[0][1]!r} to {bad[0][2]!r}, not sequences")
        return [MirrorGap(*row) for row in found]

    def held(self, first: int, last: int) -> tuple[int, int]:
        """How many of the messages `first` to `last` are in the file, and the first of them (0: none is)."""
        [(count, oldest)] = self.rows(
            "SELECT count(*), min(sequence) FROM messages WHERE sequence BETWEEN ? AND ?", first, last
        )
        return count, oldest or 0

    def bounds(self) -> tuple[int, int]:
        """First and last sequence of the messages in the file; (0, 0) if it has none."""
        [(first, last)] = self.rows("SELECT min(sequence), max(sequence) FROM messages")
        return (first or 0, last or 0)

    def problems(self) -> list[str]:
        """Errors that SQLite finds in the file's structure (not in the rows: see `intact`)."""
        found = [str(row[0]) for row in self.rows("PRAGMA quick_check(10)")]
        return [] if found == ["ok"] else found

    # -- messages

    def message(self, sequence: int) -> Mirrored | None:
        found = list(self.messages(first=sequence, last=sequence))
        return found[0] if found else None

    def messages(
        self,
        *,
        first: int = 1,
        last: int | None = None,
        kind: str | None = None,
        topic: str | None = None,
        agent: str | None = None,
        since_ns: int | None = None,
        page: int = PAGE,
    ) -> Iterator[Mirrored]:
        """Messages in order, read in pages: the file may grow in the meantime. `topic` is as in the subject."""
        where, values = self._where(kind, topic, agent, since_ns)
        if last is not None:
            where += " AND sequence <= ?"
            values.append(last)
        sql = f"SELECT {_MESSAGE} FROM messages WHERE sequence > ?{where} ORDER BY sequence LIMIT {page}"  # noqa: S608 - constants, and columns of our own
        after = first - 1
        while found := self.rows(sql, after, *values):
            yield from map(_mirrored, found)
            after = found[-1][0]

    def newest(
        self,
        limit: int,
        *,
        before: int | None = None,
        kind: str | None = None,
        topic: str | None = None,
        agent: str | None = None,
        since_ns: int | None = None,
    ) -> list[Mirrored]:
        """The last `limit` messages (below the sequence `before`), oldest of them first."""
        where, values = self._where(kind, topic, agent, since_ns)
        if before is not None:
            where += " AND sequence < ?"
            values.append(before)
        sql = f"SELECT {_MESSAGE} FROM messages WHERE sequence > 0{where} ORDER BY sequence DESC LIMIT ?"  # noqa: S608 - constants, and columns of our own
        return [_mirrored(row) for row in reversed(self.rows(sql, *values, limit))]

    @staticmethod
    def _where(kind: str | None, topic: str | None, agent: str | None, since_ns: int | None) -> tuple[str, list[Any]]:
        wanted = {"kind = ?": kind, "topic = ?": topic, "agent = ?": agent, "stored_ns >= ?": since_ns}
        given = {term: value for term, value in wanted.items() if value is not None}
        return "".join(f" AND {term}" for term in given), list(given.values())

    # -- buckets

    def values(self, bucket: str) -> dict[str, MirroredValue]:
        """Key -> its newest write, which may be a deletion (`operation`)."""
        return {
            row.row.key: row
            for row in self._values("SELECT max(revision) FROM kept WHERE bucket = ? GROUP BY key", bucket, bucket)
        }

    def value_history(
        self, bucket: str, key: str | None = None, *, since_ns: int = 0, limit: int = -1
    ) -> list[MirroredValue]:
        """The last `limit` (-1: all) writes to a bucket, or to one key of it, that the file has, oldest first."""
        found = self._values(
            "SELECT revision FROM kept WHERE bucket = ? AND (? IS NULL OR key = ?) AND stored_ns >= ? "
            "ORDER BY revision DESC LIMIT ?",
            bucket, bucket, key, key, since_ns, limit,
        )  # fmt: skip
        return list(found)

    def _values(self, revisions: str, *values: Any) -> Iterator[MirroredValue]:
        sql = f"SELECT {_VALUE_COLUMNS} FROM kept WHERE bucket = ? AND revision IN ({revisions}) ORDER BY revision"  # noqa: S608 - constants, and columns of our own
        return map(_mirrored_value, self.rows(sql, *values))

    def highest_revision(self, bucket: str) -> int:
        """The highest revision ever read from a bucket, even if its row was pruned."""
        return self.cursor(f"KV_{bucket}")


_MESSAGE = "sequence, stored_ns, subject, headers, payload, checksum, kind, topic, agent"
_VALUE_COLUMNS = "bucket, key, revision, operation, value, stored_ns, checksum"


def _mirrored(found: tuple[Any, ...]) -> Mirrored:
    sequence, stored_ns, subject, headers, payload, checksum, *columns = found
    try:
        intact = message_checksum(sequence, stored_ns, subject, headers, payload) == checksum
        intact = intact and subject_columns(subject) == tuple(columns)  # views and `history` search by them
        names = msgspec.json.decode(headers, type=dict[str, str])
        return Mirrored(MessageRow(sequence, stored_ns, subject, names, payload), intact)
    except (ValueError, TypeError, AttributeError):  # a damaged byte can cause any of these
        return Mirrored(MessageRow(sequence, _number(stored_ns), str(subject), {}, _bytes(payload)), intact=False)


def _mirrored_value(found: tuple[Any, ...]) -> MirroredValue:
    bucket, key, revision, operation, value, stored_ns, checksum = found
    try:
        intact = kv_checksum(bucket, revision, key, operation, value, stored_ns) == checksum
    except (ValueError, TypeError, AttributeError):
        intact = False
    row = KvRow(str(bucket), str(key), _number(revision), str(operation), _bytes(value), _number(stored_ns))
    return MirroredValue(row, intact)


def _number(value: Any) -> int:
    """A column of whole numbers, of which a damaged byte can make any type."""
    return value if isinstance(value, int) else 0


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode(errors="replace")
