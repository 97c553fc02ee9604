"""An agent's process ends with its fork server, and its end does not depend on who else has its descriptors."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from agents.host.forkserver import AgentProcess
from tests.support.collecting import GUARD_S

# Three generations: this program stands for the host; its child is the fork server and dies; its grandchild only gets
# to run when it has no parent of its own any more.
ORPHAN = """
import os
import agents.host.forkserver as children
import agents.host.preload
from types import SimpleNamespace

said, say = os.pipe()
children.Incarnation = SimpleNamespace(from_json=lambda data: data)
children.forkserver._forkserver._forkserver_alive_fd = -1
children.run_incarnation = lambda incarnation: os.write(say, b"ran") and 0
if os.fork() == 0:
    agents.host.preload.FORK_SERVER = fork_server = os.getpid()
    if os.fork() == 0:
        while os.getppid() == fork_server:
            pass
        children._child(b"{}")
    os._exit(0)
os.wait()
os.close(say)
print(os.read(said, 3))
"""


def test_an_agent_whose_fork_server_died_before_it_could_look_ends():
    reported = subprocess.run([sys.executable, "-c", ORPHAN], capture_output=True, text=True, timeout=60, check=True)
    assert reported.stdout == "b''\n"


@pytest.mark.timeout(GUARD_S)
@pytest.mark.parametrize("written", [b"", b"\0\0", b"it failed", 20_000 * b"x"], ids=["nothing", "2", "9", "20000"])
async def test_the_end_of_a_process_waits_for_no_end_of_its_pipe(written: bytes):
    """The writing end stays open here, as in what a handler has forked; whatever was written is taken as it is."""
    context = multiprocessing.get_context("spawn")
    errors, held = context.Pipe(duplex=False)
    stacks, also_held = context.Pipe(duplex=False)
    process = context.Process(target=time.sleep, args=(GUARD_S,), daemon=True)
    process.start()
    agent = AgentProcess(process, errors, stacks)
    os.write(held.fileno(), written)
    agent.send_signal(signal.SIGKILL)
    async with asyncio.timeout(GUARD_S):
        assert await agent.wait() == -signal.SIGKILL
    assert (agent.error or "").encode() == written[:16384]
    held.close()
    also_held.close()
