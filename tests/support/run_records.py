"""Records of runs that live or have ended."""

from __future__ import annotations

import os

import psutil

from coordinator.runner.run_record import Recorded, Run


def run_of(pid: int, created: float, *children: Recorded) -> Run:
    return Run(pid=pid, created=created, swarm="swarm", url="nats://127.0.0.1:1", config="", children=children)


def living_run(*children: Recorded) -> Run:
    return run_of(os.getpid(), psutil.Process().create_time(), *children)
