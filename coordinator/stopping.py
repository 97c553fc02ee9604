"""`signalmesh down`: ask a running `up` to end, and wait until it has."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from bus.errors import MeshError
from bus.process import wait_pid_exit
from coordinator.e2b_record import read_pool
from coordinator.rundir import Run

STOP_S = 50.0
"""Longer than all graces of `up` together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """`down --json`: which swarm ended, the process id of its `up`, and how many seconds that took.

    `left` are sandboxes that could not be ended, at `endpoint`; they end by themselves at the end of their lifetime.
    """

    swarm: str
    pid: int
    took_s: float
    endpoint: str = ""
    left: list[str] = field(default_factory=list)


def stop_run(run: Run, state_dir: Path) -> Ended:
    """End the swarm of `run`, and wait for it; `state_dir` knows of sandboxes elsewhere.

    Raises:
        MeshError: it has not ended in time.
    """

    async def stop() -> None:
        os.kill(run.pid, signal.SIGTERM)
        async with asyncio.timeout(STOP_S):
            await wait_pid_exit(run.pid)

    since = time.monotonic()
    try:
        asyncio.run(stop())
    except TimeoutError:
        raise MeshError(
            f"the swarm {run.swarm} (pid {run.pid}) has not ended within {STOP_S:.0f} s; `kill -9 {run.pid}` ends it "
            "at once, and the next `up` recovers its state"
        ) from None
    pool = read_pool(state_dir)
    left = [] if pool is None else [sandbox.id for sandbox in pool.sandboxes]
    return Ended(
        swarm=run.swarm,
        pid=run.pid,
        took_s=round(time.monotonic() - since, 3),
        endpoint="" if pool is None else pool.endpoint,
        left=left,
    )
