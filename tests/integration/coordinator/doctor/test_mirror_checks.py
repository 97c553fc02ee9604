"""What `doctor` finds of a mirror's file, beside a real server."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from bus.mirror.reader import MIRROR_FILE
from bus.mirror.schema import MessageRow, StreamIncarnation
from bus.mirror.writer import MirrorStore
from bus.server.supervisor import NatsServer
from coordinator.doctor import mirror_checks
from coordinator.doctor.mirror_checks import check_mirror_file, check_mirror_log, check_mirror_position
from tests.support.nats import Connections

EVENTS = "swarm_events"


async def at(directory: Path, cursor: int) -> None:
    store = await MirrorStore.open(directory / MIRROR_FILE, "swarm")
    await store.begin([StreamIncarnation(EVENTS, "2026-01-01T00:00:00Z", b"{}", 0, "first")])
    await store.write([], [], {EVENTS: cursor})
    await store.close()


async def test_a_mirror_that_is_equal_behind_ahead_or_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(mirror_checks, "CATCH_UP_S", 0.1)
    async with NatsServer(tmp_path, port=0) as server, Connections() as connections:
        bus = await connections.bus(server.url, streams=True)
        for _ in range(3):
            await bus.publish("in.swarm.headline.X.stranger", b"{}")
        none = await check_mirror_position(bus, tmp_path)
        assert none.skipped
        for cursor, level, printed in ((1, "warning", "2 behind"), (3, "ok", "up to 3"), (9, "error", "ahead")):
            await at(tmp_path, cursor)
            found = await check_mirror_position(bus, tmp_path)
            assert (found.level, found.skipped) == (level, False)
            assert printed in found.text


async def test_a_mirrors_file_that_is_whole_missing_or_no_mirror(tmp_path):
    assert check_mirror_file(tmp_path).skipped
    await at(tmp_path, 3)
    assert check_mirror_file(tmp_path).level == "ok"
    (tmp_path / MIRROR_FILE).write_bytes(b"not a database" * 400)
    assert check_mirror_file(tmp_path).level == "error"


READER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN")
db.execute("SELECT count(*) FROM messages").fetchall()
print("reading", flush=True)
sys.stdin.read()
"""


async def test_a_reader_that_lets_the_log_grow_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(mirror_checks, "WAL_LIMIT_BYTES", 1 << 20)
    assert check_mirror_log(tmp_path).skipped
    await at(tmp_path, 3)
    path = tmp_path / MIRROR_FILE
    command = [sys.executable, "-c", READER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"reading\n"
        store = await MirrorStore.open(path, "swarm")
        assert check_mirror_log(tmp_path).level == "ok"
        row = MessageRow(4, time.time_ns(), "swarm.signal.A.one", {}, bytes(2 << 20))
        await store.write([row], [], {EVENTS: 4})
        held = check_mirror_log(tmp_path)
        assert (held.level, f"kill {reader.pid};" in held.remedy) == ("warning", True)
        assert f"a reader holds a transaction open: pid {reader.pid}" in held.text
        reader.communicate()
    gone = check_mirror_log(tmp_path)
    assert "not seen here" in gone.text  # the mirror runs
    await store.close()
    assert check_mirror_log(tmp_path).level == "ok"
    path.with_name(f"{MIRROR_FILE}-wal").write_bytes(bytes(2 << 20))
    assert check_mirror_log(tmp_path).remedy == "start it (signalmesh mirror)"
