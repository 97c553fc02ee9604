"""The wheel of the code that runs here."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from io import BytesIO

import pytest

from coordinator.sandboxes import wheel
from tests.support.repository import ROOT


@pytest.mark.slow
def test_our_wheel_has_the_code_that_runs_here_and_is_the_same_each_time(tmp_path):
    name, content = wheel.wheel()
    assert wheel.wheel() == (name, content)
    with zipfile.ZipFile(BytesIO(content)) as archive:
        names = archive.namelist()
        for module in ("bus/nats/connection.py", "agents/host/host.py", "coordinator/sandboxes/wheel.py"):
            assert archive.read(module) == (ROOT / module).read_bytes()
        assert not [member for member in names if "__pycache__" in member]
        recorded = [line.split(",")[0] for line in archive.read(names[-1]).decode().splitlines()]
        assert sorted(recorded) == sorted(names)
    (tmp_path / name).write_bytes(content)
    target = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*pip, str(tmp_path / name)], check=True)
    script = "import coordinator.sandboxes.wheel as own; print(own.__file__); print(own.digest())"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=True,
    )
    file, digest = done.stdout.split()
    assert file.startswith(str(target))
    assert digest == wheel.digest()
    assert (
        hashlib.sha256(wheel.lock_file()).digest() == hashlib.sha256((ROOT / "requirements.lock").read_bytes()).digest()
    )
