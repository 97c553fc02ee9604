"""Checks of the state directory: its record, locks and permissions."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import orjson
import pytest

from coordinator.doctor.state_dir_checks import check_leftovers, check_locks, check_permissions, check_record
from coordinator.reporting.findings import Finding
from coordinator.runner.run_record import Recorded, Run, lock, write_run
from tests.support.run_records import living_run, run_of


def dead_run(*children: Recorded) -> Run:
    return run_of(os.getpid(), "earlier", *children)


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
        later = Recorded(kind="sandbox", name="base", pid=child.pid, started="earlier")
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
