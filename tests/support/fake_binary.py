"""A program in the place of nats-server."""

from __future__ import annotations

import stat
from pathlib import Path


def fake_binary(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path
