"""The audit of a mirror's file while its mirror writes, removes and shortens."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from pathlib import Path

from bus.mirror.schema import MessageRow, StreamIncarnation
from bus.mirror.writer import MirrorStore
from coordinator.audit.runner import audit_file

EVENTS = "swarm_events"
COUNT = 4000


def message(sequence: int) -> MessageRow:
    return MessageRow(sequence, time.time_ns(), "swarm.market.BTC-USD.stranger", {}, b"{}")


async def filled(path: Path) -> MirrorStore:
    store = await MirrorStore.open(path, "swarm")
    await store.begin([StreamIncarnation(EVENTS, "2026-01-01T00:00:00Z", b"{}", 0, "first")])
    await store.write([message(n) for n in range(1, COUNT + 1)], [], {EVENTS: COUNT})
    return store


async def test_rows_that_its_mirror_removes_meanwhile_are_no_problem(tmp_path):
    path = tmp_path / "m.sqlite"
    store = await filled(path)
    before = await asyncio.to_thread(audit_file, path)
    loop, read = asyncio.get_running_loop(), list[int]()

    async def prune() -> None:
        while await store.prune(max_age_s=0, max_rows=500, revisions=0):
            pass

    def progress(at: int, _: int) -> None:
        if not read:
            asyncio.run_coroutine_threadsafe(prune(), loop).result(20)
        read.append(at)

    found = await asyncio.to_thread(audit_file, path, progress)
    assert (found.problems, found.problems_total) == (before.problems, before.problems_total)
    assert found.mirror.compared == 500
    assert read == [1000, 4000]
    await store.close()


async def test_the_log_of_the_file_can_be_shortened_meanwhile(tmp_path):
    path = tmp_path / "m.sqlite"
    store = await filled(path)
    busy: list[int] = []

    def progress(_: int, __: int) -> None:
        with sqlite3.connect(path) as other:
            other.execute(
                "INSERT INTO meta VALUES ('touched', ?) ON CONFLICT DO UPDATE SET value = value || 'x'", ("x",)
            )
        busy.append(other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0])
        other.close()

    await asyncio.to_thread(audit_file, path, progress)
    assert busy
    assert not any(busy)
    await store.close()
