"""What tells a process from a later one of its pid."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from bus.utils.processes import is_running, start_identity


def test_a_process_is_known_until_it_ends():
    with subprocess.Popen(["sleep", "60"]) as child:
        started = start_identity(child.pid)
        assert is_running(child.pid, started)
        assert not is_running(child.pid, started[:-1])
        child.kill()
        child.wait()
        assert not is_running(child.pid, started)
        with pytest.raises(psutil.NoSuchProcess):
            start_identity(child.pid)


def test_a_zombie_does_not_run():
    with subprocess.Popen(["sleep", "60"]) as child:
        started = start_identity(child.pid)
        child.kill()
        psutil.Process(child.pid).status()
        while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
            pass
        assert not is_running(child.pid, started)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts ticks since the boot")
def test_the_time_of_day_is_no_part_of_it(monkeypatch):
    """psutil adds the time of the boot, which moves with a step of the clock."""
    with subprocess.Popen(["sleep", "60"]) as child:
        started, by_psutil = start_identity(child.pid), psutil.Process(child.pid).create_time()
        monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: 0.0)
        monkeypatch.setattr(psutil._pslinux, "BOOT_TIME", 0.0, raising=False)
        moved = psutil.Process(child.pid).create_time()
        child.kill()
        child.wait()
        assert moved != by_psutil
        assert started.rpartition(":")[2].isdigit()
