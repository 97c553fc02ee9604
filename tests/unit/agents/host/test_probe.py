"""What a host measures of its sandbox and its processes."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading

import pytest

from agents.host import probe
from agents.host.host import Host
from agents.host.probe import measure_usage, network_of_here, probe_sandbox
from bus.messages import SandboxUsage


@pytest.mark.skipif(not os.path.exists("/proc/self/ns/pid"), reason="namespaces are Linux's")  # noqa: PTH110
def test_a_probe_is_what_the_system_reports():
    seen = probe_sandbox()
    assert seen.pid == os.getpid()
    assert seen.uid == os.getuid()
    assert seen.namespaces["pid"] == os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    assert seen.kernel.endswith(os.uname().release)
    assert seen.versions["python"] == sys.version.split()[0]
    assert 0 < seen.memory_available_bytes <= seen.memory_bytes
    assert network_of_here() == f"{seen.boot_id} {seen.namespaces['net']}"


def test_usage_counts_children_while_they_live_and_their_processor_time_for_ever():
    burn = "import sys, time\nwhile time.process_time() < 0.2: pass\nprint(flush=True)\nsys.stdin.read()"
    before = measure_usage()
    with subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        during = measure_usage()
        child.communicate(b"")
    after = measure_usage()
    assert during.processes == before.processes + 1
    assert after.processes == before.processes
    assert after.cpu_s >= during.cpu_s >= before.cpu_s + 0.15
    assert during.rss_mb > before.rss_mb


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="this system does not tell it")  # noqa: PTH110
def test_memory_that_processes_share_adds_up_and_a_dead_one_takes_none():
    script = """
import os, signal
from agents.host import probe
from agents.host.host import Host
from agents.host.probe import measure_memory, measure_usage
block = os.urandom(64 << 20)
children = []
for _ in range(3):
    if (pid := os.fork()) == 0:
        signal.pause()
    children.append(pid)
print(measure_usage().rss_mb, measure_memory())
for pid in children:
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
print(measure_memory())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    rss, shared_out, alone = map(float, done.stdout.split())
    assert rss > 4 * 64, "each has the block"
    assert 64 < shared_out < 2 * 64, "the block is there once"
    assert 64 < alone < 2 * 64, "the dead ones are there until they are waited for, with nothing of their own"


@pytest.mark.parametrize(
    ("every_s", "expected"),
    [pytest.param(3600.0, [0, 0, 1, 1, 2], id="long"), pytest.param(0.0, [0, 1, 2, 3, 4], id="over")],
)
async def test_memory_is_measured_again_when_processes_come_or_go_and_after_a_while(every_s, expected, monkeypatch):
    host = Host.__new__(Host)
    running, measured = [1, 1, 3, 3, 2], itertools.count()
    printed: list[float | None] = []

    def look() -> SandboxUsage:
        if len(running) < 5:
            assert host._usage is not None
            printed.append(host._usage.pss_mb)
        return SandboxUsage(processes=running.pop(0), cpu_s=0.0, rss_mb=9.0)

    monkeypatch.setattr("agents.host.host.measure_usage", look)
    monkeypatch.setattr("agents.host.host.measure_memory", lambda: float(next(measured)))
    monkeypatch.setattr("agents.host.host.USAGE_S", 0.0)
    monkeypatch.setattr("agents.host.host.MEMORY_S", every_s)
    with pytest.raises(IndexError):
        await host._measure()
    assert printed == expected


@pytest.mark.parametrize("lists_children", [True, False])
def test_usage_counts_grandchildren_and_children_that_another_thread_started(monkeypatch, lists_children):
    if lists_children and not probe.LISTS_CHILDREN:
        pytest.skip("this kernel does not list children")
    monkeypatch.setattr(probe, "LISTS_CHILDREN", lists_children)
    before = measure_usage().processes
    parent = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(flush=True); input()'])"
    started: list[subprocess.Popen[bytes]] = []
    release = threading.Event()

    def start() -> None:
        started.append(subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        release.wait()

    thread = threading.Thread(target=start)
    thread.start()
    try:
        while not started:
            thread.join(0.01)
        with started[0] as child:
            assert child.stdout is not None
            child.stdout.readline()  # the grandchild runs
            assert measure_usage().processes == before + 2
            child.communicate(b"\n")
    finally:
        release.set()
        thread.join()
    assert measure_usage().processes == before
