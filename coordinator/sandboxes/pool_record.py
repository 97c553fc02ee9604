"""The record of remote sandboxes in the state directory: e2b.json, written by the provider. Contains no secret."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec
import orjson

from bus.utils.json_text import parse_json, read_limited

__all__ = ["RECORD", "Orphan", "Pool", "read_pool", "write_pool"]

RECORD = "e2b.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphan:
    """A sandbox that may still exist: its host's name, E2B's id, and why it could not be deleted."""

    sandbox: str
    id: str
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """The sandboxes of one state directory; each has `id` in its metadata. `endpoint` labels their provider."""

    id: str
    endpoint: str = ""
    sandboxes: tuple[Orphan, ...] = ()


def read_pool(state_dir: Path) -> Pool | None:
    """The record of `state_dir`; None if it is missing or unreadable."""
    try:
        return msgspec.convert(parse_json(read_limited(state_dir / RECORD)), Pool)
    except (OSError, ValueError):
        return None


def write_pool(state_dir: Path, pool: Pool) -> None:
    state_dir.mkdir(parents=True, exist_ok=True)
    temporary = state_dir / f"{RECORD}.{os.getpid()}"
    temporary.write_bytes(orjson.dumps(pool))
    temporary.replace(state_dir / RECORD)
