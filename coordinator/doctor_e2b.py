"""What `doctor` finds of sandboxes elsewhere: those that an earlier run has left, and where it asked for them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import orjson

from coordinator.e2b_record import Pool, read_pool
from coordinator.e2b_settings import KEY_VARIABLE, Endpoint
from coordinator.findings import Finding, error, ok, unmade, warning
from coordinator.settings import SwarmConfig

__all__ = ["check_e2b"]

CHECK = "sandboxes elsewhere"
ANSWER_S = 30.0


def check_e2b(config: SwarmConfig, state_dir: Path, *, running: bool) -> list[Finding]:
    """Nothing where no such sandbox is configured or remembered."""
    pool = read_pool(state_dir)
    if pool is None and not any(spec.e2b for spec in config.sandboxes):
        return []
    if not os.environ.get(KEY_VARIABLE):
        return [_by_record(pool, running=running)]
    done = subprocess.run(  # the SDK takes a second to import, and 40 MB
        [sys.executable, "-m", "coordinator.main", "provider", "--check", "--state-dir", str(state_dir)],
        capture_output=True,
        check=False,
        timeout=ANSWER_S,
    )
    if done.returncode != 0:
        text = done.stderr.decode(errors="replace").strip().removeprefix("signalmesh: ")
        return [error(CHECK, text, f"set {KEY_VARIABLE} anew, or try again when {Endpoint.of().shown} answers")]
    found = orjson.loads(done.stdout)
    where, there = found["endpoint"], ", ".join(found["sandboxes"])
    if not there:
        return [ok(CHECK, f"{where} has none of {state_dir}")]
    if running:
        return [ok(CHECK, f"{where} has these of the running swarm: {there}")]
    return [
        warning(
            CHECK,
            f"{where} has these of an earlier run, which cost until their lifetime ends: {there}",
            "the next `signalmesh up` takes them over, and ends what it cannot use",
        )
    ]


def _by_record(pool: Pool | None, *, running: bool) -> Finding:
    if running or pool is None or not pool.sandboxes:
        return unmade(
            CHECK, f"{KEY_VARIABLE} is not set here; the record in the state directory names none that is left"
        )
    names = ", ".join(left.id for left in pool.sandboxes)
    return warning(
        CHECK,
        f"the last run has not ended these at {pool.endpoint}, as far as its record goes: {names}",
        f"their lifetime ends them; with {KEY_VARIABLE} set, `signalmesh doctor` asks whether they are there",
    )
