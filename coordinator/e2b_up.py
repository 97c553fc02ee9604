"""What `up` does for sandboxes of E2B before anything starts: the key is taken away and tried, the address settled."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

from bus.errors import EXIT_DONE, EXIT_USAGE, UsageError
from bus.plain import harmless
from bus.urls import check_url
from coordinator.e2b_settings import (
    KEY_VARIABLE,
    PUBLIC_URL_VARIABLE,
    Endpoint,
    drop_key,
    files_of,
    public_url,
    take_key,
)
from coordinator.settings import SwarmConfig

__all__ = ["plan_provider"]


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
        "coordinator.main",
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
    text = harmless(said.decode(errors="replace").strip().removeprefix("signalmesh: "))
    if process.returncode == EXIT_USAGE:
        raise UsageError(text)
    print(f"warning: {text}; the sandboxes come when it does", file=sys.stderr)
