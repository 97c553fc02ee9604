"""`signalmesh down`: end a running `up` and wait for it, or delete the sandboxes that a killed `up` has left."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from bus.errors import MeshError, UsageError
from bus.utils.processes import wait_pid_exit
from coordinator.runner.run_record import Run
from coordinator.sandboxes.environment import KEY_VARIABLE, Endpoint, export_key_of
from coordinator.sandboxes.pool_record import Pool, read_pool
from coordinator.sandboxes.provider_client import list_sandboxes

STOP_S = 50.0
"""Longer than all graces of `up` together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """`down --json`: which swarm ended, the process id of its `up`, and how many seconds that took.

    If none ran, `swarm` and `pid` are null, and `ended` lists the deleted sandboxes at `endpoint` that an earlier run
    had left. `orphans` lists sandboxes that could not be deleted; they end when their lifetime is over.
    """

    swarm: str | None
    pid: int | None
    duration_s: float
    endpoint: str = ""
    ended: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)


def stop_run(run: Run, state_dir: Path) -> Ended:
    """End the swarm of `run` and wait for it; remote sandboxes are on record in `state_dir`.

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
            f"the swarm {run.swarm} (pid {run.pid}) did not end within {STOP_S:.0f} s; `kill -9 {run.pid}` ends it "
            "at once, and the next `up` restores its state"
        ) from None
    pool = read_pool(state_dir)
    orphans = [] if pool is None else [sandbox.id for sandbox in pool.sandboxes]
    return Ended(
        swarm=run.swarm,
        pid=run.pid,
        duration_s=round(time.monotonic() - since, 3),
        endpoint="" if pool is None else pool.endpoint,
        orphans=orphans,
    )


def end_left(state_dir: Path) -> Ended:
    """Delete the remote sandboxes that a killed `up` has left, with the key of the environment or of ./swarm.toml.

    Raises:
        UsageError: there is no swarm and no such sandbox, or no key for its endpoint; MeshError: no answer.
    """
    nothing = f"no swarm runs in {state_dir}"
    pool = read_pool(state_dir)
    if pool is None:
        raise UsageError(f"{nothing}; name its directory with --state-dir")
    export_key_of(None)
    here = Endpoint.of().label
    if not os.environ.get(KEY_VARIABLE):
        raise UsageError(
            f"{nothing}{_by_record(pool)}; set {KEY_VARIABLE}, and `signalmesh down` finds and deletes them"
        )
    if pool.endpoint not in ("", here):
        raise UsageError(
            f"{nothing}{_by_record(pool)}; its sandboxes are at {pool.endpoint}, and {KEY_VARIABLE} is for {here} here"
        )
    since = time.monotonic()
    found = list_sandboxes(state_dir, end=True)
    if found.sandboxes is None:
        raise MeshError(f"{nothing}{_by_record(pool)}: {found.problem}")
    if not found.sandboxes:
        raise UsageError(f"{nothing}, and {here} has no sandbox of it; name its directory with --state-dir")
    not_ended = {one.partition(":")[0] for one in found.orphans}
    ended = [one for one in found.sandboxes if one.partition(" ")[0] not in not_ended]
    return Ended(
        swarm=None,
        pid=None,
        duration_s=round(time.monotonic() - since, 3),
        endpoint=found.endpoint,
        ended=ended,
        orphans=found.orphans,
    )


def _by_record(pool: Pool) -> str:
    names = ", ".join(sandbox.id for sandbox in pool.sandboxes)
    return (
        f"; its last run has left sandboxes at {pool.endpoint}, which cost until their lifetime ends: {names}"
        * bool(names)
    )
