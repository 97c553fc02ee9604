"""Each thing that `doctor` can find without a bus, found where it really is so."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest

from bus.interface import Bounds
from coordinator.config.loader import parse_swarm
from coordinator.doctor import machine_checks
from coordinator.doctor.bus_checks import _rate, _server_clock, judge_cursor
from coordinator.doctor.machine_checks import _at_least, _descriptors, check_disk, check_port, check_versions
from coordinator.doctor.runner import diagnose
from coordinator.doctor.state_dir_checks import check_leftovers, check_locks, check_permissions, check_record
from coordinator.reporting.findings import Finding
from coordinator.runner.run_record import Recorded, Run, lock, write_run

CONFIG = parse_swarm({}, "swarm.toml", "")
BIG = replace(CONFIG, stream=replace(CONFIG.stream, max_bytes=1 << 60))


def run_of(pid: int, created: float, *children: Recorded) -> Run:
    return Run(pid=pid, created=created, swarm="swarm", url="nats://127.0.0.1:1", config="", children=children)


def living_run(*children: Recorded) -> Run:
    return run_of(os.getpid(), psutil.Process().create_time(), *children)


def dead_run(*children: Recorded) -> Run:
    return run_of(os.getpid(), 1.0, *children)


def test_versions_of_this_environment_are_in_order():
    assert {finding.level for finding in check_versions(embedded=True)} == {"ok"}
    assert check_versions(embedded=False)[-1].skipped


@pytest.mark.parametrize(
    ("version", "level"), [("2.15.9", "error"), ("2.16", "ok"), ("2.16.0", "ok"), ("3.0b1", "ok"), ("1.99", "error")]
)
def test_a_version_that_is_too_old(version, level):
    assert _at_least("nats-py", "nats-py", version, (2, 16), "upgrade").level == level


def test_a_server_that_is_too_old(tmp_path, monkeypatch):
    fake = tmp_path / "nats-server"
    fake.write_text("#!/bin/sh\necho nats-server: v2.11.4\n")
    fake.chmod(0o755)
    monkeypatch.setattr(machine_checks, "find_binary", lambda: fake)
    finding = check_versions(embedded=True)[-1]
    assert (finding.check, finding.level) == ("nats-server program", "error")
    assert "2.11.4" in finding.text
    assert "2.12" in finding.text


async def test_a_mistake_in_the_configuration(tmp_path):
    (tmp_path / "swarm.toml").write_text("[stream]\ndurability = 'disk'\n")
    found = await diagnose(None, tmp_path / ".signalmesh", None, tmp_path)
    assert not found.ok
    [finding] = [finding for finding in found.findings if finding.level == "error"]
    assert finding.check == "configuration"
    assert "stream.durability" in finding.text


def test_a_disk_with_too_little_room(tmp_path, monkeypatch):
    assert check_disk(tmp_path / "not" / "yet", CONFIG).level == "ok"
    store = tmp_path / "nats" / "store"
    store.mkdir(parents=True)
    (store / "1.blk").write_bytes(b"x" * (3 << 20))
    finding = check_disk(tmp_path, BIG)
    assert finding.level == "warning"
    assert "the store has 3.0 MiB" in finding.text
    monkeypatch.setattr(machine_checks, "LEAST_FREE_BYTES", 1 << 60)
    assert check_disk(tmp_path, CONFIG).level == "error"


def test_descriptors():
    assert _descriptors("x", "pid 1", 20_000, 10).level == "ok"
    assert _descriptors("x", "pid 1", -1, 10).level == "ok"
    assert _descriptors("x", "pid 1", 256, 10).level == "warning"
    assert _descriptors("x", "pid 1", 1024, 900).level == "error"


async def test_a_port_that_another_program_has():
    async def on_client(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(on_client, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = f"nats://127.0.0.1:{port}"
    async with server:
        taken = await check_port(url, None, named=False)
        its = living_run(Recorded(kind="nats-server", name="nats-server", pid=1, created=1))
        instead = await check_port(url, its, named=False)
        elsewhere = await check_port(url, living_run(), named=False)
        named = await check_port(url, None, named=True)
    free = await check_port(url, None, named=False)
    gone = await check_port(url, None, named=True)
    assert (taken.level, free.level) == ("warning", "ok")
    assert f"pid {os.getpid()}" in taken.text
    assert "--port 0" in taken.remedy
    assert (instead.level, elsewhere.level) == ("error", "error")
    assert (named.level, gone.skipped) == ("error", True)
    assert str(os.getpid()) in instead.text


# -- the state directory


def test_a_record_that_is_garbage_stale_or_of_a_living_run(tmp_path):
    assert check_record(tmp_path)[1].level == "ok"
    (tmp_path / "run.json").write_text("{not json")
    run, finding = check_record(tmp_path)
    assert (run, finding.level) == (None, "error")
    assert "run.json" in finding.remedy
    write_run(tmp_path, "swarm", "nats://127.0.0.1:1", "", [])
    run, finding = check_record(tmp_path)
    assert finding.level == "ok"
    (tmp_path / "run.json").write_bytes(orjson.dumps(dead_run()))  # of our pid, but another start: a later process
    assert check_record(tmp_path)[1].level == "warning"


def test_a_process_that_has_outlived_its_run():
    child = subprocess.Popen(["sleep", "60"])
    try:
        recorded = Recorded.of("sandbox", "base", child.pid)
        assert recorded is not None
        finding = check_leftovers(dead_run(recorded))
        assert finding.level == "error"
        assert finding.remedy == f"kill -9 {child.pid}"
        assert check_leftovers(living_run(recorded)).level == "ok"
        later = Recorded(kind="sandbox", name="base", pid=child.pid, created=recorded.created - 5)
        assert check_leftovers(dead_run(later)).level == "ok"  # another process of the same pid is none of ours
        assert check_leftovers(living_run(later)).level == "warning"
    finally:
        child.kill()
        child.wait()


def levels(findings: list[Finding]) -> list[str]:
    return [finding.level for finding in findings]


def test_locks_that_are_held_or_free_against_the_record(tmp_path):
    assert levels(check_locks(tmp_path, None)) == ["ok", "ok"]
    with lock(tmp_path):
        held = check_locks(tmp_path, None)
        assert levels(held) == ["error", "ok"]
        assert str(os.getpid()) in held[0].remedy
        assert levels(check_locks(tmp_path, living_run())) == ["ok", "ok"]
    free = check_locks(tmp_path, living_run())
    assert levels(free) == ["error", "ok"]
    assert "not held" in free[0].text
    (tmp_path / "nats").mkdir()
    with (tmp_path / "nats" / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert levels(check_locks(tmp_path, dead_run())) == ["ok", "error"]


def test_what_others_may_change(tmp_path):
    (tmp_path / "logs").mkdir(mode=0o755)
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "run.json").chmod(0o644)
    tmp_path.chmod(0o755)
    assert check_permissions(tmp_path).level == "ok"
    (tmp_path / "run.json").chmod(0o666)
    finding = check_permissions(tmp_path)
    assert finding.level == "warning"
    assert "run.json (-rw-rw-rw-)" in finding.text
    assert check_permissions(tmp_path / "run.json").level == "error"  # no directory
    assert check_permissions(tmp_path / "run.json" / "below").level == "error"
    assert check_permissions(tmp_path / "never").level == "ok"


def _as_nobody(pipe: Any, check: Callable[[Path], Finding], path: Path) -> None:
    os.setuid(65534)
    pipe.send(check(path).level)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_a_directory_of_another_user(tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    context = get_context("fork")
    for readable, path in ((True, theirs), (False, theirs)):
        for directory in (theirs, *theirs.parents[:3]):
            directory.chmod(0o755 if readable else 0o700)
        ours, pipe = context.Pipe(duplex=False)
        process = context.Process(target=_as_nobody, args=(pipe, check_permissions, path))
        process.start()
        assert ours.recv() == "error"
        process.join()


async def test_a_state_directory_that_is_a_file(tmp_path):
    (tmp_path / "state").write_text("not a directory")
    found = await diagnose(None, tmp_path / "state", None, tmp_path)
    errors = {finding.check for finding in found.findings if finding.level == "error"}
    assert errors == {"run record", "permissions"}


# -- clocks and cursors


class ClockBus:
    """A server whose clock is `ahead` of ours."""

    def __init__(self, ahead: timedelta) -> None:
        self._ahead = ahead
        self.subjects = type("Names", (), {"stream": "swarm_events"})

    async def api(self, command: str) -> dict[str, str]:
        stamp = (datetime.now(UTC) + self._ahead).isoformat(timespec="microseconds")
        return {"ts": stamp.replace("+00:00", "123Z")}  # nine places of the second, as the server writes them


@pytest.mark.parametrize(("ahead_s", "level"), [(0, "ok"), (0.5, "warning"), (-0.5, "warning"), (60, "error")])
async def test_a_server_whose_clock_is_off(ahead_s, level):
    bus: Any = ClockBus(timedelta(seconds=ahead_s))
    assert (await _server_clock(bus)).level == level


def test_a_clock_that_was_set_between_two_heartbeats():
    assert _rate("wall clock", "ours", 1.2001, 1.2).level == "ok"
    assert _rate("wall clock", "ours", 3601.2, 1.2).level == "warning"
    assert _rate("wall clock", "ours", 1.1, 1.2).level == "warning"


@pytest.mark.parametrize(
    ("cursor", "first", "last", "level"),
    [
        (0, 500, 900, "warning"),  # it starts with what is there, but that goes soon
        (498, 500, 900, "error"),
        (499, 500, 900, "warning"),
        (880, 500, 900, "ok"),
        (5, 1, 900, "ok"),  # nothing was dropped yet
        (900, 900, 900, "ok"),
    ],
)
def test_a_cursor_against_what_the_stream_holds(cursor, first, last, level):
    assert judge_cursor("cursor", cursor, Bounds(first, last)).level == level


def test_the_limit_of_this_shell(tmp_path):
    command = f"ulimit -n 200; exec {sys.executable} -m coordinator doctor --json --state-dir {tmp_path}/state"
    done = subprocess.run(["sh", "-c", command], capture_output=True, check=False, cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr
    [finding] = [item for item in orjson.loads(done.stdout)["findings"] if item["check"] == "file descriptors"]
    assert finding["level"] == "warning"
    assert "200" in finding["text"]
