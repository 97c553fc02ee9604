"""A mirror's file of a recorded run, as the mirror itself writes it, and damage to it."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path

from bus.mirror.schema import KvRow, MessageRow, MirrorGap, StreamIncarnation
from bus.mirror.writer import MirrorStore
from tests.support.copying import Recorded

EVENTS = "swarm_events"


async def mirrored(path: Path, run: Recorded, *, created: str = "", first: int = 1, last: int | None = None) -> Path:
    """A mirror's file of `run` from `first` to `last`, as the mirror itself writes it."""
    now_ns = time.time_ns()
    store = await MirrorStore.open(path, "swarm")
    end = len(run.messages) if last is None else last
    gaps = [MirrorGap(EVENTS, 1, first - 1, "before")] if first > 1 else []
    await store.begin([StreamIncarnation(EVENTS, created, b"{}", first - 1, "first")], {}, gaps)
    rows = [MessageRow(m.sequence, now_ns + m.sequence, m.subject, m.headers, m.data) for m in run.messages]
    retained = [
        KvRow(bucket, key, number, "PUT", value, now_ns + len(rows))
        for bucket, values in run.buckets.items()
        for number, (key, value) in enumerate(values.items(), 1)
    ]
    await store.write(rows[first - 1 : end], retained, {EVENTS: end})
    await store.close()
    return path


def damage(path: Path, sql: str, *values: object) -> None:
    """What a mirror never does to its own file."""
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        assert db.execute(sql, values).rowcount == 1
