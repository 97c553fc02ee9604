"""An agent's process whose fork server has died does not live on by itself."""

from __future__ import annotations

import subprocess
import sys

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
