"""What `doctor` finds of sandboxes elsewhere: those that an earlier run has left, and where it asked for them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from bus.errors import EXIT_USAGE, ConfigError
from coordinator.e2b_record import Pool, read_pool
from coordinator.e2b_settings import KEY_VARIABLE, Endpoint, files_of
from coordinator.findings import Finding, error, ok, unmade, warning
from coordinator.settings import SwarmConfig

__all__ = ["Listing", "check_e2b", "check_pool", "list_sandboxes"]

CHECK = "sandboxes elsewhere"
ANSWER_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The sandboxes of a state directory, as `endpoint` lists them by their metadata; None: see `problem`.

    `left` are those that were to be ended and could not be, each with the reason.
    """

    endpoint: str
    sandboxes: list[str] | None = None
    left: list[str] = field(default_factory=list)
    problem: str = ""
    remedy: str = ""


def list_sandboxes(state_dir: Path, *, end: bool = False) -> Listing:
    """Ask, with the key of the environment, and `end` them if wanted.

    Takes some seconds: the SDK is a process of its own, and 40 MB.
    """
    endpoint, what = Endpoint.of().shown, "--end" if end else "--check"
    try:
        done = subprocess.run(
            [sys.executable, "-m", "coordinator.main", "provider", what, "--state-dir", str(state_dir)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=ANSWER_S,
        )
    except subprocess.TimeoutExpired:
        return Listing(endpoint=endpoint, problem=f"no answer within {ANSWER_S:.0f} s", remedy="try again")
    if not done.stdout:
        problem = done.stderr.decode(errors="replace").strip().removeprefix("signalmesh: ")
        remedy = "mend what it says" if done.returncode == EXIT_USAGE else f"try again when {endpoint} answers"
        return Listing(endpoint=endpoint, problem=problem, remedy=remedy)
    said = orjson.loads(done.stdout)
    return Listing(endpoint=endpoint, sandboxes=said["sandboxes"], left=said["left"])


def check_e2b(config: SwarmConfig, state_dir: Path, *, running: bool) -> list[Finding]:
    """Nothing where no such sandbox is configured or remembered."""
    pool = read_pool(state_dir)
    if pool is None and not any(spec.e2b for spec in config.sandboxes):
        return []
    remedy = "`signalmesh down` ends them; the next `signalmesh up` takes them over, and ends what it cannot use"
    return [*_check_files(config), check_pool(CHECK, state_dir, pool, remedy, running=running)]


def _check_files(config: SwarmConfig) -> Iterator[Finding]:
    """Of the files that sandboxes are to get, those that `up` would refuse."""
    for spec in config.sandboxes:
        if spec.e2b is not None:
            try:
                files_of(config.file, f"sandboxes.{spec.name}", spec.e2b.files)
            except ConfigError as problem:
                yield error("files of sandboxes", str(problem), "put it there, or name another")


def check_pool(check: str, state_dir: Path, pool: Pool | None, remedy: str, *, running: bool = False) -> Finding:
    """Whether sandboxes of `pool` are left: by its provider where we have a key for it, else by its record."""
    here = Endpoint.of().shown
    if not os.environ.get(KEY_VARIABLE):
        return _by_record(check, pool, f"{KEY_VARIABLE} is not set here", remedy, running=running)
    if pool is not None and pool.endpoint not in ("", here):
        return _by_record(check, pool, f"{KEY_VARIABLE} is for {here} here", remedy, running=running)
    found = list_sandboxes(state_dir)
    if found.sandboxes is None:
        return error(check, found.problem, found.remedy)
    there = ", ".join(found.sandboxes)
    if not there:
        return ok(check, f"{here} has none of {state_dir}")
    if running:
        return ok(check, f"{here} has these of the running swarm: {there}")
    return warning(check, f"{here} has these of an earlier run, which cost until their lifetime ends: {there}", remedy)


def _by_record(check: str, pool: Pool | None, why: str, remedy: str, *, running: bool) -> Finding:
    if running or pool is None or not pool.sandboxes:
        return unmade(check, f"{why}; the record in the state directory names none that is left")
    names = ", ".join(left.id for left in pool.sandboxes)
    return warning(
        check,
        f"the last run has not ended these at {pool.endpoint}, as far as its record goes: {names} ({why})",
        f"their lifetime ends them; sooner, with {KEY_VARIABLE} of that endpoint set: {remedy}",
    )
