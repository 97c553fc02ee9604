"""What an earlier run has left behind."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import orjson
import pytest

from coordinator.certify.leftovers import check_earlier_runs, create_directory, earlier_runs
from coordinator.runner.run_record import Recorded, Run
from coordinator.sandboxes.pool_record import Orphan, Pool, write_pool


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_directory_of_certify_is_left_once_its_owner_has_ended(temporary: Path):
    [nothing] = check_earlier_runs()
    assert nothing.level == "ok"
    mine = create_directory()
    assert earlier_runs() == [], "we are there"
    (mine / "certify.json").write_bytes(orjson.dumps(Recorded(kind="certify", name="certify", pid=1, started="")))
    assert earlier_runs() == [mine]
    [finding] = check_earlier_runs()
    assert (finding.level, finding.remedy) == ("warning", f"rm -r {mine}")
    assert str(mine) in finding.text


def test_what_an_earlier_run_has_left_is_named(temporary: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("E2B_API_KEY", raising=False)
    orphans = create_directory()
    (orphans / "certify.json").write_bytes(orjson.dumps(Recorded(kind="certify", name="certify", pid=1, started="")))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        alive = Recorded.of("sandbox", "base", child.pid)
        state_dir = orphans / "state"
        write_pool(
            state_dir, Pool(id="p", endpoint="E2B at https://x", sandboxes=(Orphan(sandbox="base-i1", id="i1"),))
        )
        assert alive is not None
        run = Run(pid=1, started="", swarm="swarm", url="nats://127.0.0.1:1", config="", children=(alive,))
        (state_dir / "run.json").write_bytes(orjson.dumps(run))
        sandboxes, processes, directory = check_earlier_runs()
        child.kill()
    assert "i1 (E2B_API_KEY is not set here)" in sandboxes.text
    assert (processes.level, processes.remedy) == ("error", f"kill -9 {child.pid}")
    assert directory.remedy.startswith(f"rm -r {orphans}, once none of its sandboxes is left")
    monkeypatch.setenv("E2B_API_KEY", "none")
    monkeypatch.setenv("E2B_API_URL", "http://127.0.0.1:1")
    elsewhere = check_earlier_runs()[0]
    assert "at E2B at https://x" in elsewhere.text, "another endpoint would only say that it has none"
    assert "is for custom endpoint http://127.0.0.1:1 here" in elsewhere.text
