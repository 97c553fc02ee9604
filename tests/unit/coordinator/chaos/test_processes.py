"""Signals to processes of the run, and to no other process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

from bus.messages import Child, now
from coordinator.chaos.processes import Processes, TargetUnavailable
from coordinator.runner.run_record import Recorded, Run, read_run, write_run


class Family:
    """A run whose `up` is this process, with one child of its own and one process that is none of it."""

    def __init__(self, directory) -> None:
        self.child = subprocess.Popen(["sleep", "60"])
        inner = "import subprocess as s; print(s.Popen(['sleep', '60'], stdout=s.DEVNULL, stderr=s.DEVNULL).pid)"
        created = subprocess.run([sys.executable, "-c", inner], capture_output=True, text=True, check=True)
        self.unknown_writer = int(created.stdout)  # its parent has ended: it does not descend from us
        recorded = Recorded.of("sandbox", "base", self.child.pid)
        assert recorded is not None
        self.recorded = recorded
        write_run(directory, "swarm", "nats://127.0.0.1:1", "", [recorded])
        run = read_run(directory)
        assert run is not None
        self.run: Run = run
        self.processes = Processes(directory, run)

    def end(self) -> None:
        self.processes.close()
        os.kill(self.unknown_writer, signal.SIGKILL)
        self.child.kill()
        self.child.wait()


@pytest.fixture
def family(tmp_path):
    created = Family(tmp_path)
    yield created
    created.end()


def status(pid: int) -> str:
    return psutil.Process(pid).status()


def test_a_child_of_the_run_is_hit_and_goes_on_when_let_go(family):
    member = family.processes.open_child(family.processes.child("sandbox", name="base"))
    assert member.send(signal.SIGSTOP)
    assert os.waitid(os.P_PID, family.child.pid, os.WSTOPPED) is not None
    assert status(family.child.pid) == psutil.STATUS_STOPPED
    family.processes.close()
    assert os.waitid(os.P_PID, family.child.pid, os.WCONTINUED) is not None
    assert status(family.child.pid) != psutil.STATUS_STOPPED


def test_a_reused_pid_a_foreign_process_and_an_ended_one_are_left_alone(family):
    child = family.recorded
    later = Recorded(kind="sandbox", name="base", pid=child.pid, started="earlier")
    with pytest.raises(TargetUnavailable, match="a later process"):
        family.processes.open_child(later)
    unknown_writer = Recorded.of("sandbox", "base", family.unknown_writer)
    assert unknown_writer is not None
    with pytest.raises(TargetUnavailable, match="does not descend"):
        family.processes.open_child(unknown_writer)
    agent = Child(
        agent="a", agent_id="i", epoch=1, pid=family.unknown_writer, spawned_at=now(), started=unknown_writer.started
    )
    with pytest.raises(TargetUnavailable, match="does not descend"):
        family.processes.open_agent(agent)
    family.child.kill()
    family.child.wait()
    with pytest.raises(TargetUnavailable, match="has ended"):
        family.processes.open_child(child)
    with pytest.raises(TargetUnavailable):
        family.processes.child("sandbox")


def test_a_signal_after_the_end_hits_no_process(family):
    member = family.processes.open_child(family.recorded)
    family.child.kill()
    family.child.wait()
    assert not member.send(signal.SIGKILL)
