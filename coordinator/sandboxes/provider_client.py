"""The client of the provider role: runs `provider --check` and `provider --end` in a subprocess.

A subprocess, because importing the SDK takes a second and 40 MB. `up` checks the key and the bus URL for sandboxes
here, before it starts any process.
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
    export_key,
    public_url,
    take_key,
)
from coordinator.sandboxes.pool_record import Pool
from signalmesh import python_command

ANSWER_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The sandboxes of a state directory, as `endpoint` lists them by their metadata; None: see `problem`.

    `orphans` are those that could not be deleted, each with the reason.
    """

    endpoint: str
    sandboxes: list[str] | None = None
    orphans: list[str] = field(default_factory=list)
    problem: str = ""
    remedy: str = ""


def list_sandboxes(state_dir: Path, *, end: bool = False) -> Listing:
    """List the sandboxes with the key of the environment; with `end` also delete them. Takes some seconds."""
    endpoint, what = Endpoint.of().label, "--end" if end else "--check"
    try:
        done = subprocess.run(
            python_command("provider", what, "--state-dir", str(state_dir)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=ANSWER_S,
        )
    except subprocess.TimeoutExpired:
        return Listing(endpoint=endpoint, problem=f"no answer within {ANSWER_S:.0f} s", remedy="try again")
    if not done.stdout:
        problem = done.stderr.decode(errors="replace").strip().removeprefix("signalmesh: ")
        remedy = (
            "fix the reported problem" if done.returncode == EXIT_USAGE else f"try again when {endpoint} is reachable"
        )
        return Listing(endpoint=endpoint, problem=problem, remedy=remedy)
    report = orjson.loads(done.stdout)
    return Listing(endpoint=endpoint, sandboxes=report["sandboxes"], orphans=report["orphans"])


def check_pool(check: str, state_dir: Path, pool: Pool | None, remedy: str, *, running: bool = False) -> Finding:
    """Whether sandboxes of `pool` are left: from its provider if its key is set here, else from the record."""
    here = Endpoint.of().label
    if not os.environ.get(KEY_VARIABLE):
        return _by_record(check, pool, f"{KEY_VARIABLE} is not set here", remedy, running=running)
    if pool is not None and pool.endpoint not in ("", here):
        return _by_record(check, pool, f"{KEY_VARIABLE} is for {here} here", remedy, running=running)
    found = list_sandboxes(state_dir)
    if found.sandboxes is None:
        return error(check, found.problem, found.remedy)
    there = ", ".join(found.sandboxes)
    if not there:
        return ok(check, f"{here} has no sandboxes of {state_dir}")
    if running:
        return ok(check, f"{here} has these sandboxes of the running swarm: {there}")
    return warning(
        check,
        f"{here} has these sandboxes of an earlier run, which cost money until their lifetime ends: {there}",
        remedy,
    )


def _by_record(check: str, pool: Pool | None, why: str, remedy: str, *, running: bool) -> Finding:
    if running or pool is None or not pool.sandboxes:
        return skipped(check, f"{why}; the record in the state directory lists no remaining sandbox")
    names = ", ".join(orphan.id for orphan in pool.sandboxes)
    return warning(
        check,
        f"the last run has not deleted these at {pool.endpoint}, according to its record: {names} ({why})",
        f"they end with their lifetime; to delete them sooner, set {KEY_VARIABLE} of that endpoint: {remedy}",
    )


async def plan_provider(config: SwarmConfig, public_nats: str | None, nats: str | None) -> dict[str, str] | None:
    """Environment variables for the provider role only; None if no E2B sandbox is configured.

    Removes the key from the environment of this process and so of its children.

    Raises:
        UsageError: the key is missing or refused, sandboxes have no bus URL, or a file does not exist.
    """
    specs = [spec for spec in config.sandboxes if spec.e2b is not None]
    if not specs:
        drop_key()
        return None
    await asyncio.to_thread(export_key, config)
    key = take_key()
    for spec in specs:
        assert spec.e2b is not None
        files_of(config.file, f"sandboxes.{spec.name}", spec.e2b.files)
    if public_nats is not None:
        check_url(public_nats, "--public-nats")
    os.environ.pop(PUBLIC_URL_VARIABLE, None)  # it may contain a password: only for the provider
    own = {KEY_VARIABLE: key, PUBLIC_URL_VARIABLE: public_url(public_nats, nats, Endpoint.of())}
    await _check_key(own)
    return own


async def _check_key(own: dict[str, str]) -> None:
    """Run `provider --check`; prints a warning if the endpoint is unreachable."""
    process = await asyncio.create_subprocess_exec(
        *python_command("provider", "--check"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, **own},
    )
    _, stderr = await process.communicate()
    if process.returncode == EXIT_DONE:
        return
    text = escape_control(stderr.decode(errors="replace").strip().removeprefix("signalmesh: "))
    if process.returncode == EXIT_USAGE:
        raise UsageError(text)
    print(f"warning: {text}; sandboxes are created when it does", file=sys.stderr)
