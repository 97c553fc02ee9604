"""The verdict on a real process whose CPU quota is used up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agents.host.forkserver import probe_process
from coordinator.supervisor.failure_detector import judge
from coordinator.supervisor.model import CpuTimes, ProbeHistory, Timeouts
from coordinator.supervisor.policy import PROBE_INTERVAL_S

WAITS = """
import threading
def work():
    while True:
        pass
thread = threading.Thread(target=work)
thread.start()
print("working", flush=True)
thread.join()
"""
CGROUPS = Path("/sys/fs/cgroup")


@pytest.fixture
def small_quota() -> Iterator[Path]:
    """A control group of a hundredth of a CPU."""
    version_1 = (CGROUPS / "cpu").is_dir()
    group = (CGROUPS / "cpu" if version_1 else CGROUPS) / f"signalmesh-test-{os.getpid()}"
    try:
        group.mkdir()
        if version_1:
            (group / "cpu.cfs_period_us").write_text("100000")
            (group / "cpu.cfs_quota_us").write_text("1000")
        else:
            (group / "cpu.max").write_text("1000 100000")
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip(f"no control group can be made here: {error}")
    yield group
    group.rmdir()


@pytest.fixture
async def waiting() -> AsyncIterator[int]:
    """The pid of a process whose main thread waits for one that computes."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", WAITS, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"working\n"
    yield process.pid
    process.kill()
    await process.wait()


async def test_a_process_that_its_quota_holds_back_is_not_taken_for_one_that_blocks(small_quota, waiting):
    (small_quota / "cgroup.procs").write_text(str(waiting))
    history: ProbeHistory | None = None
    stood_still = 0
    for _ in range(10):
        await asyncio.sleep(PROBE_INTERVAL_S)
        earlier = history
        verdict, history = judge(earlier, Timeouts(), 0.8, *probed(waiting))
        assert verdict is None
        if earlier is not None:
            stood_still += (earlier.last.used_s, earlier.last.waited_s) == (history.last.used_s, history.last.waited_s)
    assert stood_still, "else it was no test"
    verdict, _ = judge(history, Timeouts(), 6.0, *probed(waiting))
    assert verdict is not None
    assert "CPU quota held its container back in" in verdict.reason
    assert not verdict.unresponsive


def probed(pid: int) -> tuple[str, CpuTimes]:
    found = probe_process(pid)
    return found["state"], CpuTimes(found["cpu_s"], found["waited_s"], found["throttled_s"], found["throttled_periods"])
