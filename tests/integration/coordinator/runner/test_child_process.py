"""A child process of `up` (coordinator/runner/child_process.py), as a new interpreter."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import psutil

from coordinator.runner.child_process import ChildProcess, ChildSpec
from coordinator.runner.launcher import Launcher


async def test_a_process_that_is_being_started_when_stop_comes_is_ended(tmp_path: Path):
    spec = ChildSpec(kind="mirror", name="mirror", args=("--version",), grace_s=1.0)
    child = ChildProcess(spec, "nats://127.0.0.1:1", tmp_path, Launcher(None))
    starting = asyncio.create_task(child.start())
    await asyncio.sleep(0)  # its start is under way
    assert child.pid is None
    await child.stop()
    await starting
    process = child._process
    assert process is not None
    assert await process.wait() == -signal.SIGKILL
    assert not psutil.pid_exists(process.pid)
