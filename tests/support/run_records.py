"""Records of runs that live or have ended."""

from __future__ import annotations

import os

from bus.utils.processes import start_identity
from coordinator.runner.run_record import Recorded, Run


def run_of(pid: int, started: str, *children: Recorded) -> Run:
    return Run(pid=pid, started=started, swarm="swarm", url="nats://127.0.0.1:1", config="", children=children)


def living_run(*children: Recorded) -> Run:
    return run_of(os.getpid(), start_identity(os.getpid()), *children)
