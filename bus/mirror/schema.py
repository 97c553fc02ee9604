"""The mirror's SQLite file: its tables, readable views, upgrades and checksums.

bus/mirror/writer.py writes the file, bus/mirror/reader.py reads it, bus/mirror/follower.py follows the bus.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from bus.errors import MirrorDamaged, MirrorFailing, MirrorUnusable

APPLICATION_ID = 0x6D657368
"""In the file's header: identifies a mirror among SQLite files ("mesh")."""
BUSY_TIMEOUT_S = 5.0

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

-- The messages of the stream, byte for byte. `headers` is a JSON object, in the order of the message.
CREATE TABLE messages (
    sequence INTEGER PRIMARY KEY,
    stored_ns INTEGER NOT NULL,     -- the server's clock, nanoseconds since 1970
    kind TEXT NOT NULL,
    topic TEXT NOT NULL,            -- as in the subject, escaped; '' where the kind has none
    agent TEXT NOT NULL,
    subject TEXT NOT NULL,
    headers BLOB NOT NULL,
    payload BLOB NOT NULL,
    checksum BLOB NOT NULL
);
CREATE INDEX messages_by_kind ON messages (kind, sequence);

-- Every write to a bucket that was read; the newest revision of a key is its value. `operation`: PUT, DEL, PURGE, ...
CREATE TABLE kept (
    bucket TEXT NOT NULL,
    revision INTEGER NOT NULL,
    key TEXT NOT NULL,
    operation TEXT NOT NULL,
    value BLOB NOT NULL,
    stored_ns INTEGER NOT NULL,
    checksum BLOB NOT NULL,
    UNIQUE (bucket, revision)
);
CREATE INDEX kept_by_key ON kept (bucket, key, revision);

-- Last sequence of each stream (the events, and KV_{bucket} of each bucket) in this file: written with the rows.
CREATE TABLE cursors (stream TEXT PRIMARY KEY, cursor INTEGER NOT NULL) WITHOUT ROWID;

-- The incarnation of a stream from which the rows after `since` are; the newest one is followed.
CREATE TABLE incarnations (
    stream TEXT NOT NULL,
    created TEXT NOT NULL,
    config BLOB NOT NULL,
    since INTEGER NOT NULL,
    reason TEXT NOT NULL,
    recorded_ns INTEGER NOT NULL
);

-- Sequences that are not in this file. `reason`: before (older than the mirror), retention (expired before being
-- read), expired (removed from the middle of the stream), pruned (by the mirror's own settings), lost (with the bus)
CREATE TABLE gaps (
    stream TEXT NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    reason TEXT NOT NULL,
    recorded_ns INTEGER NOT NULL
);
"""

_AT = "strftime('%Y-%m-%dT%H:%M:%fZ', stored_ns / 1e9, 'unixepoch') AS stored_at"
_VIEWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "market": ("market", ("symbol", "sequence", "price", "volume", "open", "high", "low", "timestamp")),
    "headlines": ("headline", ("text", "url", "timestamp")),
    "sentiments": ("sentiment", ("symbol", "round", "sentiment", "confidence", "p_up", "timestamp")),
    "signals": ("signal", ("symbol", "round", "signal", "strength", "p_up", "indicators", "timestamp")),
    "decisions": (
        "decision",
        ("decision_id", "symbol", "round", "final_decision", "position_size", "risk_score", "consensus_level",
         "agents_consulted", "absent", "timestamp"),
    ),
    "lifecycle": ("lifecycle", ("event", "agent", "epoch", "sandbox", "pid", "reason", "detail", "timestamp")),
    "alerts": ("alert", ("severity", "code", "message", "agent", "detail", "timestamp")),
}  # fmt: skip
"""View -> the kind it shows and the payload's fields, as columns of the same name (but see _RENAMED)."""
_RENAMED = {"sequence": "tick", "agent": "about"}
"""Fields with the name of a message's column."""


def _view(name: str, kind: str, fields: tuple[str, ...]) -> str:
    columns = ", ".join(f"json_extract(json, '$.{field}') AS {_RENAMED.get(field, field)}" for field in fields)
    return f"CREATE VIEW {name} AS SELECT sequence, {_AT}, agent, {columns} FROM readable WHERE kind = '{kind}';"  # noqa: S608 - constants


_READABLE = f"""
-- `json` is NULL if the payload is not JSON: any client may publish any bytes.
CREATE VIEW readable AS SELECT *,
    CASE WHEN json_valid(CAST(payload AS TEXT)) THEN CAST(payload AS TEXT) END AS json FROM messages;
{"".join(_view(name, kind, fields) for name, (kind, fields) in _VIEWS.items())}
CREATE VIEW newest AS SELECT * FROM kept k WHERE revision =
    (SELECT max(revision) FROM kept WHERE bucket = k.bucket AND key = k.key);
CREATE VIEW snapshots AS SELECT key AS agent, revision, {_AT},
    json_extract(json, '$.epoch') AS epoch, json_extract(json, '$.cursor') AS cursor,
    json_extract(json, '$.outputs') AS outputs, json_extract(json, '$.inputs') AS inputs,
    json_extract(json, '$.state') AS state, length(value) AS bytes
    FROM (SELECT *, CASE WHEN json_valid(CAST(value AS TEXT)) THEN CAST(value AS TEXT) END AS json FROM kept)
    WHERE substr(bucket, -6) = '_state' AND operation = 'PUT';
"""  # noqa: S608 - constants

STEPS: tuple[str, ...] = (_TABLES, _READABLE)
"""Step n upgrades a file from version n - 1 to n. Released steps never change; new ones are appended."""
VERSION = len(STEPS)


def subject_columns(subject: str) -> tuple[str, str, str]:
    """The columns kind, topic and agent of a message under `subject`."""
    parts = subject.split(".")
    return parts[1] if len(parts) > 1 else "", parts[2] if len(parts) > 3 else "", parts[-1]


@dataclass(frozen=True, slots=True)
class MessageRow:
    """A message of the stream as the mirror stores it."""

    sequence: int
    stored_ns: int
    subject: str
    headers: Mapping[str, str]
    payload: bytes

    def columns(self) -> tuple[object, ...]:
        """In the order of INSERT_MESSAGE."""
        headers = orjson.dumps(dict(self.headers.items()))
        return (
            self.sequence, self.stored_ns, *subject_columns(self.subject), self.subject, headers, self.payload,
            message_checksum(self.sequence, self.stored_ns, self.subject, headers, self.payload),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class KvRow:
    """A write to a bucket. `operation` is PUT, or that of the marker (DEL, PURGE, or a reason of the server's)."""

    bucket: str
    key: str
    revision: int
    operation: str
    value: bytes
    stored_ns: int

    def columns(self) -> tuple[object, ...]:
        """In the order of INSERT_KV."""
        return (
            self.bucket, self.revision, self.key, self.operation, self.value, self.stored_ns,
            kv_checksum(self.bucket, self.revision, self.key, self.operation, self.value, self.stored_ns),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class StreamIncarnation:
    """One incarnation of a stream: `created` is the server's creation time, `config` its configuration as JSON.

    `reason` is why the mirror follows it: `first`, or `rebuilt`.
    """

    stream: str
    created: str
    config: bytes
    since: int
    reason: str


@dataclass(frozen=True, slots=True)
class MirrorGap:
    """Sequences of a stream that are not in the file; `reason` as in the table gaps."""

    stream: str
    first: int
    last: int
    reason: str
    recorded_ns: int = 0


INSERT_MESSAGE = "INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
INSERT_KV = "INSERT INTO kept VALUES (?, ?, ?, ?, ?, ?, ?)"


def _checksum(numbers: str, *parts: bytes) -> bytes:
    sized = [b"%d:%b" % (len(part), part) for part in parts]
    return hashlib.blake2b(b"".join([numbers.encode(), *sized]), digest_size=8).digest()


def message_checksum(sequence: int, stored_ns: int, subject: str, headers: bytes, payload: bytes) -> bytes:
    """BLAKE2b of 8 bytes over all columns of a row of `messages`."""
    return _checksum(f"{sequence}:{stored_ns}:", subject.encode(), headers, payload)


def kv_checksum(bucket: str, revision: int, key: str, operation: str, value: bytes, stored_ns: int) -> bytes:
    """BLAKE2b of 8 bytes over all columns of a row of `kept`."""
    return _checksum(f"{revision}:{stored_ns}:", bucket.encode(), key.encode(), operation.encode(), value)


SQLITE_ERRORS = (sqlite3.Error, UnicodeDecodeError)
"""What a call of sqlite3 raises: the second where SQLite's message quotes a damaged name that is no text."""


def is_damage(error: sqlite3.Error | UnicodeDecodeError) -> bool:
    """Whether `error` means that the file's content is broken, rather than that a write fails now.

    A row beyond the cursor (a violated constraint) is damage: this program never leaves one.
    """
    if isinstance(error, UnicodeDecodeError):
        return True
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CONSTRAINT)


def explained(error: sqlite3.Error | UnicodeDecodeError, path: Path) -> MirrorDamaged | MirrorFailing:
    """Convert SQLite's error into a MeshError."""
    return MirrorDamaged(str(path), str(error)) if is_damage(error) else MirrorFailing(str(path), str(error))


def check_version(db: sqlite3.Connection, path: Path) -> int:
    """The version of an open file, 0 of an empty one.

    Raises:
        MirrorUnusable: it is not a mirror, or has a newer version.
    """
    [version] = db.execute("PRAGMA user_version").fetchone()
    [application] = db.execute("PRAGMA application_id").fetchone()
    [objects] = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != APPLICATION_ID and (objects or version or application):
        raise MirrorUnusable(str(path), "it is an SQLite file, but not a mirror; name another one with --file")
    if version > VERSION:
        raise MirrorUnusable(
            str(path),
            f"its version is {version}, this program supports up to {VERSION}; use the program that wrote it, or "
            "another file with --file",
        )
    return int(version)


def migrate(db: sqlite3.Connection, path: Path) -> None:
    """Upgrade an open file to VERSION, each step in its own transaction; an empty file gets all steps.

    Raises:
        MirrorUnusable: it is not a mirror, or has a newer version.
    """
    for number in range(check_version(db, path), VERSION):
        script = f"BEGIN IMMEDIATE;{STEPS[number]};PRAGMA user_version = {number + 1};"
        if number == 0:
            script += f"PRAGMA application_id = {APPLICATION_ID};"
        try:
            db.executescript(script + "COMMIT;")
        except SQLITE_ERRORS:
            if db.in_transaction:
                db.rollback()
            raise


def prepare(path: Path, swarm: str) -> None:
    """Create or upgrade the file, in WAL mode.

    Raises:
        MirrorUnusable: it cannot be opened, is not a mirror, has a newer version, or belongs to another swarm.
        MirrorDamaged: its content is broken.
        MirrorFailing: it cannot be written now.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    except (OSError, sqlite3.Error) as error:
        raise MirrorUnusable(str(path), f"cannot be opened: {error}; choose another path with --file") from None
    try:
        check_version(db, path)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        migrate(db, path)
        db.execute("INSERT INTO meta VALUES ('swarm', ?) ON CONFLICT DO NOTHING", (swarm,))
        [owner] = db.execute("SELECT value FROM meta WHERE key = 'swarm'").fetchone()
        if owner != swarm:
            raise MirrorUnusable(
                str(path), f"it mirrors the swarm {owner!r}, not {swarm!r}; name another file with --file"
            )
    except SQLITE_ERRORS as error:
        raise explained(error, path) from None
    finally:
        db.close()
