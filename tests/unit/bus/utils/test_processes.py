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


IDENTIFY = "import sys; from bus.utils.processes import start_identity; print(start_identity(int(sys.argv[1])))"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has time namespaces")
@pytest.mark.parametrize("seconds", [100_000, -1])
def test_it_is_the_same_in_every_time_namespace(seconds: int):
    elsewhere = ["unshare", "--user", "--map-root-user", "--time", "--boottime", str(seconds)]
    if subprocess.run([*elsewhere, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user cannot make a time namespace")
    with subprocess.Popen(["sleep", "60"]) as child:
        command = [*elsewhere, sys.executable, "-c", IDENTIFY, str(child.pid)]
        seen = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        here = start_identity(child.pid)
        child.kill()
    assert seen.stdout.strip() == here, seen.stderr


ADOPTION = """
import os, signal, subprocess, sys, time
from bus.utils.processes import OrphanReaper, adopt_orphans

reaper = OrphanReaper()
assert reaper.check() is None  # there is no child
assert adopt_orphans(True)
told, tell = os.pipe()
own = os.fork()
if own == 0:
    orphan = os.fork()
    if orphan == 0:
        signal.pause()
    os.write(tell, b"%d" % orphan)
    os._exit(7)
orphan = int(os.read(told, 20))
os.waitid(os.P_PID, own, os.WEXITED | os.WNOWAIT)
adopt_orphans(False)
assert reaper.check() is None  # its owner may still reap it
assert os.waitstatus_to_exitcode(os.waitpid(own, 0)[1]) == 7
os.kill(orphan, signal.SIGKILL)
os.waitid(os.P_PID, orphan, os.WEXITED | os.WNOWAIT)
print(reaper.check(), reaper.check() == orphan, reaper.check())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has subreapers")
def test_an_adopted_orphan_is_reaped_and_a_child_of_its_own_is_left_to_its_owner():
    done = subprocess.run([sys.executable, "-c", ADOPTION], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("None True None\n", "")


ENDING = """
import asyncio, os, pathlib, signal, subprocess, sys
from bus.utils import processes
from bus.utils.processes import adopt_orphans, end_orphans

processes._TASKS = pathlib.Path(sys.argv[1])
assert adopt_orphans(True)
told, tell = os.pipe()
agent = os.fork()
if agent == 0:
    os.setpgid(0, 0)
    orphan = os.fork()
    if orphan == 0:
        os.setsid()
        program = subprocess.Popen(["sleep", "3600"], start_new_session=True)
        os.write(tell, b"%d %d" % (os.getpid(), program.pid))
        signal.pause()
    os._exit(0)
os.waitpid(agent, 0)
orphans = [int(pid) for pid in os.read(told, 40).split()]
own = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
asyncio.run(end_orphans())
for pid in orphans:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        print("gone")
own.stdin.close()
print(own.wait())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has subreapers")
@pytest.mark.parametrize("tasks", ["/proc/self/task", "/no-lists-of-children"])
def test_orphans_end_with_what_they_have_started_and_children_of_its_own_do_not(tasks: str):
    command = [sys.executable, "-c", ENDING, tasks]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("gone\ngone\n0\n", "")
