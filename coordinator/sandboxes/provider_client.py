"""The client of the `provider` role: runs `provider --check` and `provider --end` in a process of its own.

The SDK takes a second to import, and 40 MB. `up` takes the key away and tries it, and settles the address of the bus,
before anything starts.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from bus.errors import EXIT_DONE, EXIT_USAGE, UsageError
from bus.nats.urls import check_url
from bus.utils.terminal import escape_control
from coordinator.config.e2b import files_of
from coordinator.config.settings import SwarmConfig
from coordinator.reporting.findings import Finding, error, ok, skipped, warning
from coordinator.sandboxes.environment import (
    KEY_VARIABLE,
    PUBLIC_URL_VARIABLE,
    Endpoint,
    drop_key,
    public_url,
    take_key,
)
from coordinator.sandboxes.pool_record import Pool

ANSWER_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The sandboxes of a state directory, as `endpoint` lists them by their metadata; None: see `problem`.

    `left` are those that were to be ended and could not be, each with the reason.
    """

    endpoint: str
    sandboxes: list[str] | None = None
    orphans: list[str] = field(default_factory=list)
    problem: str = ""
    remedy: str = ""


def list_sandboxes(state_dir: Path, *, end: bool = False) -> Listing:
    """Ask, with the key of the environment, and `end` them if wanted.

    Takes some seconds: the SDK is a process of its own, and 40 MB.
    """
    endpoint, what = Endpoint.of().shown, "--end" if end else "--check"
    try:
        done = subprocess.run(
            [sys.executable, "-m", "coordinator", "provider", what, "--state-dir", str(state_dir)],
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
    return Listing(endpoint=endpoint, sandboxes=said["sandboxes"], orphans=said["left"])


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
        return skipped(check, f"{why}; the record in the state directory names none that is left")
    names = ", ".join(orphans.id for orphans in pool.sandboxes)
    return warning(
        check,
        f"the last run has not ended these at {pool.endpoint}, as far as its record goes: {names} ({why})",
        f"their lifetime ends them; sooner, with {KEY_VARIABLE} of that endpoint set: {remedy}",
    )


async def plan_provider(config: SwarmConfig, public_nats: str | None, nats: str | None) -> dict[str, str] | None:
    """What the provider role needs in its environment, and nobody else may have; None where nothing is configured.

    From here on this process and what it starts has no key.

    Raises:
        UsageError: there is no key, or it is not accepted; no address for sandboxes; a file that is not there.
    """
    specs = [spec for spec in config.sandboxes if spec.e2b is not None]
    if not specs:
        drop_key()
        return None
    key = take_key()
    for spec in specs:
        assert spec.e2b is not None
        files_of(config.file, f"sandboxes.{spec.name}", spec.e2b.files)
    if public_nats is not None:
        check_url(public_nats, "--public-nats")
    os.environ.pop(PUBLIC_URL_VARIABLE, None)  # it may hold a password: not for everybody
    own = {KEY_VARIABLE: key, PUBLIC_URL_VARIABLE: public_url(public_nats, nats, Endpoint.of())}
    await _try_key(own)
    return own


async def _try_key(own: dict[str, str]) -> None:
    """By a process of its own: the SDK takes a second to import, and 40 MB."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "coordinator",
        "provider",
        "--check",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, **own},
    )
    _, said = await process.communicate()
    if process.returncode == EXIT_DONE:
        return
    text = escape_control(said.decode(errors="replace").strip().removeprefix("signalmesh: "))
    if process.returncode == EXIT_USAGE:
        raise UsageError(text)
    print(f"warning: {text}; the sandboxes come when it does", file=sys.stderr)
