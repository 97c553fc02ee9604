"""The mirror's file: all or nothing, one writer, old and newer versions, damage found, retention."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from pathlib import Path

import pytest

from bus.errors import MirrorDamaged, MirrorFailing, MirrorUnusable
from bus.mirror import schema, writer
from bus.mirror.reader import MirrorFile
from bus.mirror.schema import STEPS, VERSION, KvRow, MessageRow, MirrorGap, StreamIncarnation
from bus.mirror.writer import PRUNE_ROWS, WAL_KEPT_BYTES, MirrorStore

EVENTS, STATE = "swarm_events", "KV_swarm_state"
DECISION = {
    "final_decision": "buy", "position_size": 0.2, "risk_score": 0.1, "consensus_level": 0.7, "symbol": "BTC/USD",
    "round": 3, "agents_consulted": ["a", "b"], "absent": [], "timestamp": "2017-07-12T04:00:00Z", "source": "c",
}  # fmt: skip


def message(sequence: int, payload: bytes = b"{}", subject: str = "swarm.signal.BTC-USD.one", at: int = 0):
    return MessageRow(sequence, at or time.time_ns(), subject, {"Nats-Msg-Id": f"one:{sequence}"}, payload)


def snapshot(revision: int, key: str = "one", operation: str = "PUT"):
    value = json.dumps({"epoch": 4, "cursor": revision, "outputs": 2, "inputs": 1, "state": {"x": 1}}).encode()
    return KvRow("swarm_state", key, revision, operation, value, time.time_ns())


async def filled(path: Path, count: int = 3) -> None:
    store = await MirrorStore.open(path, "swarm")
    await store.begin([StreamIncarnation(EVENTS, "2026-01-01T00:00:00Z", b"{}", 0, "first")])
    await store.write([message(n) for n in range(1, count + 1)], [snapshot(7)], {EVENTS: count, STATE: 7})
    await store.close()


async def test_what_was_written_is_read_back_while_it_is_being_written(tmp_path):
    path = tmp_path / "state" / "mirror.sqlite"
    store = await MirrorStore.open(path, "swarm")
    rows = [message(1), message(2, b"\xff no json"), message(5, json.dumps(DECISION).encode(), "swarm.decision.B.c")]
    await store.write(rows, [snapshot(7), snapshot(9), snapshot(11, "two", "DEL")], {EVENTS: 5, STATE: 11})
    await store.write([], [], {}, [MirrorGap(EVENTS, 3, 4, "expired")])
    with MirrorFile(path) as file:
        assert [found.row for found in file.messages()] == rows
        assert all(found.intact for found in file.messages())
        assert [found.row.sequence for found in file.newest(2)] == [2, 5]
        assert [found.row.sequence for found in file.messages(kind="signal", first=2)] == [2]
        assert [found.row.sequence for found in file.messages(agent="c")] == [5]
        assert file.message(4) is None
        assert (file.bounds(), file.cursor(), file.highest_revision("swarm_state")) == ((1, 5), 5, 11)
        assert {key: (v.row.revision, v.row.operation, v.intact) for key, v in file.values("swarm_state").items()} == {
            "one": (9, "PUT", True), "two": (11, "DEL", True),
        }  # fmt: skip
        assert [found.row.revision for found in file.value_history("swarm_state", "one")] == [7, 9]
        assert [(gap.first, gap.last, gap.reason) for gap in file.gaps()] == [(3, 4, "expired")]
        assert file.rows("SELECT agent, final_decision, agents_consulted, round FROM decisions") == [
            ("c", "buy", '["a","b"]', 3)
        ]
        assert file.rows("SELECT signal FROM signals") == [(None,), (None,)]  # one is no JSON: still a row
        assert file.rows("SELECT agent, revision, cursor FROM snapshots WHERE revision = 9") == [("one", 9, 9)]
        assert file.problems() == []
    await store.close()


async def test_a_write_is_all_or_nothing(tmp_path):
    path = tmp_path / "m.sqlite"
    await filled(path)
    store = await MirrorStore.open(path, "swarm")
    with pytest.raises(MirrorDamaged, match="UNIQUE"):
        await store.write([message(4), message(2)], [], {EVENTS: 4})
    assert store.cursors[EVENTS] == 3
    await store.write([message(4)], [], {EVENTS: 4})
    await store.close()
    with MirrorFile(path) as file:
        assert [found.row.sequence for found in file.messages()] == [1, 2, 3, 4]


async def test_a_cancelled_write_is_finished_and_leaves_no_transaction_open(tmp_path):
    path = tmp_path / "m.sqlite"
    store = await MirrorStore.open(path, "swarm")
    writing = asyncio.create_task(store.write([message(n) for n in range(1, 2000)], [], {EVENTS: 1999}))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    await store.write([message(2000)], [], {EVENTS: 2000})
    await store.close()
    with MirrorFile(path) as file:
        assert file.bounds() == (1, 2000)


async def test_a_second_writer_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "LOCK_TIMEOUT_S", 0.1)
    store = await MirrorStore.open(tmp_path / "m.sqlite", "swarm")
    with pytest.raises(MirrorUnusable, match="another mirror writes it"):
        await MirrorStore.open(tmp_path / "m.sqlite", "swarm")
    await store.close()
    await (await MirrorStore.open(tmp_path / "m.sqlite", "swarm")).close()


async def test_another_swarms_file_is_refused(tmp_path):
    await filled(tmp_path / "m.sqlite")
    with pytest.raises(MirrorUnusable, match="mirrors the swarm 'swarm', not 'two'"):
        await MirrorStore.open(tmp_path / "m.sqlite", "two")


def old_file(path: Path, version: int) -> None:
    db = sqlite3.connect(path)
    for number, step in enumerate(STEPS[:version], 1):
        db.executescript(f"{step};PRAGMA user_version = {number}")
    db.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
    db.execute(schema.INSERT_MESSAGE, message(1, json.dumps(DECISION).encode(), "swarm.decision.B.c").columns())
    db.execute("INSERT INTO meta VALUES ('swarm', 'swarm')")
    db.execute("INSERT INTO cursors VALUES ('swarm_events', 1)")
    db.commit()
    db.close()


@pytest.mark.parametrize("version", range(1, VERSION))
async def test_an_old_file_is_brought_up_to_date_with_what_it_holds(tmp_path, version):
    path = tmp_path / "m.sqlite"
    old_file(path, version)
    with MirrorFile(path) as file:
        assert file.version == version
    store = await MirrorStore.open(path, "swarm")
    assert store.cursors == {EVENTS: 1}
    await store.close()
    with MirrorFile(path) as file:
        assert file.version == VERSION
        assert file.rows("SELECT final_decision FROM decisions") == [("buy",)]
        assert [found.intact for found in file.messages()] == [True]


async def test_a_step_that_fails_leaves_the_older_version(tmp_path, monkeypatch):
    path = tmp_path / "m.sqlite"
    await filled(path)
    monkeypatch.setattr(schema, "STEPS", (*STEPS, "CREATE TABLE extra (x); INSERT INTO nowhere VALUES (1)"))
    monkeypatch.setattr(schema, "VERSION", VERSION + 1)
    with pytest.raises(MirrorFailing, match="nowhere"):
        await MirrorStore.open(path, "swarm")
    with MirrorFile(path) as file:
        assert file.version == VERSION
        assert file.rows("SELECT count(*) FROM sqlite_master WHERE name = 'extra'") == [(0,)]
        assert file.bounds() == (1, 3)


async def test_a_newer_file_is_refused_by_both(tmp_path):
    path = tmp_path / "m.sqlite"
    await filled(path)
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(MirrorUnusable, match="its version is 99"):
        await MirrorStore.open(path, "swarm")
    with pytest.raises(MirrorUnusable, match="its version is 99"):
        MirrorFile(path)


async def test_what_is_no_mirror_is_refused_and_left_alone(tmp_path):
    with pytest.raises(MirrorUnusable, match="no such file"):
        MirrorFile(tmp_path / "m.sqlite")
    other = tmp_path / "other.sqlite"
    db = sqlite3.connect(other)
    db.execute("CREATE TABLE precious (x)")
    db.close()
    for opening in (MirrorStore.open(other, "swarm"), asyncio.to_thread(MirrorFile, other)):
        with pytest.raises(MirrorUnusable, match="not a mirror"):
            await opening
    text = tmp_path / "text"
    text.write_text("no database at all, but some text that is long enough to be looked at" * 20)
    for opening in (MirrorStore.open(text, "swarm"), asyncio.to_thread(MirrorFile, text)):
        with pytest.raises(MirrorDamaged):
            await opening


@pytest.mark.parametrize("column", ["payload", "headers", "subject", "stored_ns", "checksum"])
async def test_a_changed_row_is_found(tmp_path, column):
    path = tmp_path / "m.sqlite"
    await filled(path)
    db = sqlite3.connect(path)
    db.execute(f"UPDATE messages SET {column} = ? WHERE sequence = 2", (5 if column == "stored_ns" else b"{} ",))
    db.commit()
    db.close()
    with MirrorFile(path) as file:
        assert [found.intact for found in file.messages()] == [True, False, True]


async def test_a_changed_byte_of_the_file_is_found(tmp_path):
    path = tmp_path / "m.sqlite"
    store = await MirrorStore.open(path, "swarm")
    await store.write([message(1, b'{"needle":1}'), message(2)], [], {EVENTS: 2})
    await store.close()
    data = path.read_bytes()
    assert data.count(b"needle") == 1
    path.write_bytes(data.replace(b"needle", b"noodle"))
    with MirrorFile(path) as file:
        assert [found.intact for found in file.messages()] == [False, True]


async def test_gaps_between_removed_rows_become_part_of_the_removed_range(tmp_path):
    """And one that is longer than a batch is no part of it before the rows behind it are removed."""
    path = tmp_path / "m.sqlite"
    store = await MirrorStore.open(path, "swarm")
    after = 2 * PRUNE_ROWS
    rows = [message(n) for n in (1, 2, 5, after, after + 1)]
    gaps = [MirrorGap(EVENTS, 3, 4, "before"), MirrorGap(EVENTS, 6, after - 1, "retention")]
    await store.write(rows, [], {EVENTS: after + 1}, gaps)

    def listed() -> list[tuple[int, int, str]]:
        with MirrorFile(path) as file:
            return [(gap.first, gap.last, gap.reason) for gap in file.gaps()]

    assert await store.prune(max_age_s=0, max_rows=1, revisions=0) == 3
    assert listed() == [(1, 5, "pruned"), (6, after - 1, "retention")]
    assert await store.prune(max_age_s=0, max_rows=1, revisions=0) == 1
    assert listed() == [(1, after, "pruned")]
    await store.close()


async def test_a_frozen_file_is_read_as_it_was(tmp_path):
    """Rows, list of gaps and cursor fit each other, though the mirror removes rows between two reads."""
    path = tmp_path / "m.sqlite"
    await filled(path)
    store = await MirrorStore.open(path, "swarm")
    with MirrorFile(path) as file:
        file.freeze()
        await store.prune(max_age_s=0, max_rows=1, revisions=0)
        await store.write([message(4)], [], {EVENTS: 4})
        assert (file.bounds(), file.gaps(), file.cursor()) == ((1, 3), [], 3)
    with MirrorFile(path) as file:
        assert (file.bounds(), len(file.gaps()), file.cursor()) == ((3, 4), 1, 4)
    await store.close()


async def test_a_gap_without_numbers_is_damage(tmp_path):
    path = tmp_path / "m.sqlite"
    await filled(path)
    with sqlite3.connect(path) as db:
        db.execute("INSERT INTO gaps VALUES (?, 'one', 2, 'before', 0)", (EVENTS,))
    with MirrorFile(path) as file, pytest.raises(MirrorDamaged, match="'one' to 2"):
        file.gaps()


async def test_retention_removes_the_oldest_in_batches_and_records_it(tmp_path):
    path, old = tmp_path / "m.sqlite", time.time_ns() - 3600 * 10**9
    count = 2 * PRUNE_ROWS + 300
    store = await MirrorStore.open(path, "swarm")
    rows = [message(n, at=old if n <= PRUNE_ROWS + 100 else 0) for n in range(1, count + 1)]
    await store.write(rows, [snapshot(n) for n in range(1, 11)], {EVENTS: count, STATE: 10})
    assert await store.prune(max_age_s=0, max_rows=0, revisions=0) == 0
    assert await store.prune(max_age_s=60, max_rows=0, revisions=0) == PRUNE_ROWS
    assert await store.prune(max_age_s=60, max_rows=0, revisions=0) == 100
    assert await store.prune(max_age_s=60, max_rows=0, revisions=0) == 0
    assert await store.prune(max_age_s=0, max_rows=PRUNE_ROWS, revisions=3) == 200 + 7
    with MirrorFile(path) as file:
        assert file.bounds() == (count - PRUNE_ROWS + 1, count)
        assert [(gap.first, gap.last, gap.reason) for gap in file.gaps()] == [(1, count - PRUNE_ROWS, "pruned")]
        assert [found.row.revision for found in file.value_history("swarm_state")] == [8, 9, 10]
        assert file.highest_revision("swarm_state") == 10
    await store.close()


def log_size(path: Path) -> int:
    return path.with_name(f"{path.name}-wal").stat().st_size


async def test_the_log_that_a_reader_let_grow_is_shortened_once_it_has_gone(tmp_path):
    path, half = tmp_path / "m.sqlite", WAL_KEPT_BYTES // 2
    store = await MirrorStore.open(path, "swarm")
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM messages").fetchall()
    await store.write([message(n, bytes(half)) for n in range(1, 5)], [], {EVENTS: 4})
    await store.trim_log()
    pinned = log_size(path)
    assert pinned > 2 * WAL_KEPT_BYTES
    reader.execute("COMMIT")
    await store.write([message(5)], [], {EVENTS: 5})  # SQLite moves the rows into the file
    await store.write([message(6)], [], {EVENTS: 6})  # and begins its log anew
    assert log_size(path) == WAL_KEPT_BYTES
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM messages").fetchall()
    await store.write([message(n, bytes(half)) for n in range(7, 11)], [], {EVENTS: 10})
    reader.close()
    await store.trim_log()  # without another message
    assert log_size(path) == 0
    with MirrorFile(path) as file:
        assert (file.bounds(), file.problems()) == ((1, 10), [])
    await store.close()


@pytest.mark.parametrize(("replaced", "problem"), [(False, "it was deleted"), (True, "another file is in its place")])
async def test_a_file_that_lost_its_name_is_noticed(tmp_path, replaced, problem):
    path = tmp_path / "m.sqlite"
    store = await MirrorStore.open(path, "swarm")
    await store.check_path()
    path.rename(tmp_path / "elsewhere")
    if replaced:
        path.touch()
    with pytest.raises(MirrorDamaged, match=problem):
        await store.check_path()
    await store.close()


async def test_pruning_without_limits_or_rows_or_need_removes_nothing(tmp_path):
    store = await MirrorStore.open(tmp_path / "m.sqlite", "swarm")
    assert await store.prune(max_age_s=60.0, max_rows=1, revisions=1) == 0
    await store.write([message(n) for n in range(1, 4)], [snapshot(n) for n in (7, 8)], {EVENTS: 3, STATE: 8})
    assert await store.prune(max_age_s=0, max_rows=0, revisions=0) == 0
    assert await store.prune(max_age_s=60.0, max_rows=3, revisions=2) == 0
    assert await store.prune(max_age_s=0, max_rows=2, revisions=0) == 1
    assert await store.prune(max_age_s=0, max_rows=0, revisions=1) == 1
    await store.close()
    with MirrorFile(tmp_path / "m.sqlite") as file:
        assert file.bounds() == (2, 3)
        assert [(gap.first, gap.last, gap.reason) for gap in file.gaps()] == [(1, 1, "pruned")]
        assert [value.row.revision for value in file.value_history("swarm_state", "one")] == [8]


async def test_old_rows_are_pruned_by_age_alone(tmp_path):
    store = await MirrorStore.open(tmp_path / "m.sqlite", "swarm")
    old = time.time_ns() - 100 * 10**9
    rows = [message(1, at=old), message(2, at=old), message(4)]
    await store.write(rows, [], {EVENTS: 4})
    assert await store.prune(max_age_s=50.0, max_rows=0, revisions=0) == 2
    assert await store.prune(max_age_s=50.0, max_rows=0, revisions=0) == 0
    await store.close()
    with MirrorFile(tmp_path / "m.sqlite") as file:
        assert file.bounds() == (4, 4)


async def test_an_empty_file_has_no_bounds_and_a_beginning_may_have_gaps(tmp_path):
    store = await MirrorStore.open(tmp_path / "m.sqlite", "swarm")
    incarnation = StreamIncarnation(EVENTS, "2026-01-01T00:00:00Z", b"{}", 0, "first")
    await store.begin([incarnation], {EVENTS: 6}, [MirrorGap(EVENTS, 1, 6, "lost")])
    assert (store.incarnations, store.cursors) == ({EVENTS: incarnation}, {EVENTS: 6})
    await store.close()
    with MirrorFile(tmp_path / "m.sqlite") as file:
        assert (file.bounds(), file.cursor()) == ((0, 0), 6)
        assert [(gap.first, gap.last, gap.reason) for gap in file.gaps()] == [(1, 6, "lost")]
