"""`history KIND`: messages in the file of the mirror; the bus may be up or down."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
from rich.text import Text

from bus.errors import UsageError
from bus.messages.subjects import STORED_KINDS
from bus.mirror.reader import MirrorFile
from bus.utils.json_text import MAX_SHOWN_DEPTH, parse_json
from bus.utils.terminal import escape_control
from coordinator.reporting.formatting import LONGEST_CELL, format_value
from coordinator.reporting.tables import Column, console, print_table

SNAPSHOT = "snapshot"
KINDS = (*STORED_KINDS, SNAPSHOT)
UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
FIELDS: dict[str, tuple[tuple[str, int], ...]] = {
    "market": (("symbol", 0), ("sequence", 0), ("price", 0), ("volume", 2), ("timestamp", 1)),
    "headline": (("text", 0), ("symbols", 1), ("timestamp", 2)),
    "sentiment": (("symbol", 0), ("round", 0), ("sentiment", 0), ("confidence", 0), ("p_up", 1)),
    "signal": (("symbol", 0), ("round", 0), ("signal", 0), ("strength", 0), ("p_up", 1)),
    "decision": (
        ("symbol", 0), ("round", 0), ("final_decision", 0), ("position_size", 0), ("risk_score", 2),
        ("consensus_level", 1), ("absent", 3),
    ),
    "timer": (("name", 0), ("number", 0), ("timestamp", 1)),
    "epoch": (("claimed_by", 0), ("sandbox", 1), ("claim", 2)),
    "config": (("voters", 0), ("quorum", 1), ("round_timeout_ms", 2)),
    "lifecycle": (("agent", 0), ("event", 0), ("epoch", 1), ("sandbox", 2), ("pid", 3), ("reason", 1)),
    "alert": (("severity", 0), ("code", 0), ("message", 0)),
    SNAPSHOT: (("epoch", 0), ("cursor", 0), ("outputs", 0), ("inputs", 1), ("bytes", 2)),
}  # fmt: skip
"""Columns of each kind, and their rank (see coordinator.reporting.tables.Column)."""
LONGEST_TEXT = 2000
"""Limit for the text of an alert: it ends with the action to take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    """A message, or a snapshot (then `sequence` is its revision, `subject` its key in the bucket).

    Either `payload` or `malformed` (the text of what is not JSON) is set. `intact` is False where the file's row has
    changed since it was written.
    """

    sequence: int
    stored_at: datetime
    subject: str
    agent: str
    headers: dict[str, str]
    payload: Any = None
    malformed: str | None = None
    intact: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """`history --json`: the newest entries of `kind` in `file`, oldest of them first."""

    kind: str
    swarm: str
    file: str
    entries: list[HistoryEntry] = field(default_factory=list)


LARGEST_INTEGER = (1 << 63) - 1
"""Of SQLite."""


def since_ns(text: str, now_ns: int | None = None) -> int:
    """Nanoseconds since 1970 of a duration before now (`90s`, `10m`, `1h30m`) or of an ISO time (without offset: UTC).

    Raises:
        UsageError: it is neither.
    """
    now_ns = time.time_ns() if now_ns is None else now_ns
    if re.fullmatch(r"(\d+(\.\d+)?(ms|[smhdw]))+", text):
        ago_s = sum(float(number) * UNITS_S[unit] for number, _, unit in re.findall(r"(\d+(\.\d+)?)(ms|[smhdw])", text))
        return now_ns - int(min(ago_s * 1e9, now_ns))
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"--since {text}: expected a duration such as 90s, 10m or 2h, or a time such as 2026-07-12T04:00:00Z"
        ) from None
    at = at.replace(tzinfo=UTC) if at.tzinfo is None else at
    return min(max(0, int(at.timestamp() * 1e9)), LARGEST_INTEGER)


def kind_of(word: str) -> str:
    """The kind that `word` names, in the singular or the plural.

    Raises:
        UsageError: there is no such kind.
    """
    for kind in (word, word.removesuffix("s")):
        if kind in KINDS:
            return kind
    raise UsageError(f"history {word}: unknown kind, expected one of {', '.join(KINDS)}")


def read_history(path: Path, word: str, since: str | None, limit: int) -> History:
    """The newest `limit` entries of a kind.

    Raises:
        UsageError: an unknown kind, a malformed --since, or a file that is no mirror.
        MirrorDamaged: the file is broken.
    """
    kind = kind_of(word)
    begin = since_ns(since) if since is not None else 0
    with MirrorFile(path) as file:
        entries: list[HistoryEntry] = []
        if kind == SNAPSHOT:
            for value in file.value_history(file.subjects.state_bucket, since_ns=begin, limit=limit):
                row = value.row
                entries.append(
                    entry_of(row.revision, row.stored_ns, row.key, row.key, {}, row.value, intact=value.intact)
                )
        else:
            for message in file.newest(limit, kind=kind, since_ns=begin):
                stored = message.row
                agent = stored.subject.rpartition(".")[2]
                entries.append(
                    entry_of(
                        stored.sequence, stored.stored_ns, stored.subject, agent, dict(stored.headers), stored.payload,
                        intact=message.intact,
                    )
                )  # fmt: skip
        return History(kind=kind, swarm=file.swarm, file=str(path), entries=entries)


def entry_of(
    sequence: int, stored_ns: int, subject: str, agent: str, headers: dict[str, str], data: bytes, *, intact: bool
) -> HistoryEntry:
    """The entry of a message, or of a value in a bucket, with the bytes `data`."""
    payload: Any = None
    malformed: str | None = None
    try:
        payload = parse_json(data, MAX_SHOWN_DEPTH)
    except ValueError:
        malformed = data.decode(errors="replace")
    return HistoryEntry(
        sequence=sequence,
        stored_at=datetime.fromtimestamp(stored_ns / 1e9, UTC),
        subject=subject,
        agent=agent,
        headers=headers,
        payload=payload,
        malformed=malformed,
        intact=intact,
    )


def print_history(history: History) -> None:
    """A table as wide as there is room for."""
    out = console()
    if not history.entries:
        out.print(escape_control(f"no {history.kind} in {history.file}"), soft_wrap=True)
        return
    fields = FIELDS[history.kind]
    writer = "writer" if history.kind == "lifecycle" else "agent"
    columns = [
        Column("stored (UTC)"), Column("revision" if history.kind == SNAPSHOT else "message", right=True),
        Column(writer, 1 if history.kind in ("lifecycle", "decision", "alert") else 0),
        *(Column(name.replace("_", " "), rank) for name, rank in fields),
    ]  # fmt: skip
    rows: list[list[str | Text]] = []
    for entry in history.entries:
        payload = entry.payload if isinstance(entry.payload, dict) else {}
        if history.kind == SNAPSHOT:
            payload = {**payload, "bytes": len(orjson.dumps(entry.payload))}
        cells = [
            format_value(payload.get(name), LONGEST_TEXT if name == "message" else LONGEST_CELL) for name, _ in fields
        ]
        if not payload:
            cells[0] = format_value(entry.malformed if entry.malformed is not None else entry.payload)
        at = f"{entry.stored_at:%Y-%m-%d %H:%M:%S.%f}"[:-3]
        number = f"{entry.sequence}" if entry.intact else f"{entry.sequence} DAMAGED"
        rows.append([at, number, format_value(entry.agent), *cells])
    print_table(out, columns, rows)
