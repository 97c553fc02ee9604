"""The temporary directories of `certify`, and leftovers of earlier runs: one killed by SIGKILL leaves its directory and
its remote sandboxes. This finds them and removes nothing.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import orjson

from bus.errors import UsageError
from bus.utils.json_text import parse_json, read_limited
from coordinator.reporting.findings import Finding, error, ok, warning
from coordinator.runner.run_record import Recorded, read_run
from coordinator.sandboxes.pool_record import read_pool
from coordinator.sandboxes.provider_client import check_pool

__all__ = ["STATE", "check_earlier_runs", "create_directory", "earlier_runs"]

PREFIX = "signalmesh-certify-"
OWNER = "certify.json"
STATE = "state"
CHECK = "earlier certify"
CREATE_S = 10.0
"""An older directory without an owner file is a leftover."""


def create_directory() -> Path:
    """A temporary directory with an owner file, so that another process can check whether its run is over."""
    directory = Path(tempfile.mkdtemp(prefix=PREFIX))
    (directory / OWNER).write_bytes(orjson.dumps(Recorded.of("certify", "certify", os.getpid())))
    return directory


def earlier_runs() -> list[Path]:
    """Directories of this user whose `certify` has ended."""
    return sorted(path for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*") if _is_left(path))


def _is_left(directory: Path) -> bool:
    try:
        if not directory.is_dir() or directory.stat().st_uid != os.getuid():
            return False
        owner = msgspec.convert(parse_json(read_limited(directory / OWNER)), Recorded)
    except FileNotFoundError:
        with contextlib.suppress(FileNotFoundError):  # unless it was removed just now, or is being created
            return time.time() - directory.stat().st_mtime > CREATE_S
        return False
    except (OSError, ValueError):
        return False
    return not owner.alive()


def check_earlier_runs() -> list[Finding]:
    """The leftovers of each run, with remedies; one finding `ok` if there are none."""
    found = [finding for directory in earlier_runs() for finding in _findings(directory)]
    return found or [ok(CHECK, f"no leftovers of certify in {tempfile.gettempdir()}")]


def _findings(directory: Path) -> Iterator[Finding]:
    state_dir = directory / STATE
    pool = read_pool(state_dir)
    condition = ""
    if pool is not None:
        yield check_pool(f"{CHECK}: sandboxes", state_dir, pool, f"signalmesh down --state-dir {state_dir}")
        condition = ", once none of its sandboxes is left: it has the record of them"
    try:
        run = read_run(state_dir)
    except UsageError:
        run = None
    if run is not None:
        recorded = (Recorded(kind="up", name="up", pid=run.pid, started=run.started), *run.children)
        if alive := [one for one in recorded if one.alive()]:
            names = ", ".join(f"{one.kind} {one.name} (pid {one.pid})" for one in alive)
            pids = " ".join(str(one.pid) for one in alive)
            yield error(f"{CHECK}: processes", f"still running from {directory}: {names}", f"kill -9 {pids}")
    yield warning(CHECK, f"an interrupted run has left {directory}", f"rm -r {directory}{condition}")
