"""The end of the temporary swarm."""

from __future__ import annotations

import os
import subprocess
import sys

from bus.utils.processes import start_identity
from coordinator.certify.temporary_swarm import TemporarySwarm


async def test_a_process_that_outlives_its_swarm_is_listed():
    swarm = TemporarySwarm("")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        started = start_identity(child.pid)
        swarm._all_agents = {child.pid: (started, "python -c input()"), os.getpid(): ("earlier", "another")}
        cleanup = await swarm.stop()
        assert cleanup.orphans == [f"process {child.pid} (python -c input()): end it with `kill {child.pid}`"]
        assert not cleanup.ok
        child.kill()
    assert not swarm.directory.exists()
