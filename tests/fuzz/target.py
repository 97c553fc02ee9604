"""What a target is, and how one is run."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LONGEST_PROBLEM = 4000
"""Characters of an error: it becomes an alert, a log line or the answer to a request."""


@dataclass(frozen=True)
class Target:
    """`run` takes any bytes; `seeds` are some of those that it understands."""

    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    examples: int = 60
    """Of a short run without coverage."""


TARGETS: dict[str, Target] = {}


def target(*seeds: bytes, examples: int = 60) -> Callable[[Callable[[bytes], None]], Callable[[bytes], None]]:
    def add(run: Callable[[bytes], None]) -> Callable[[bytes], None]:
        TARGETS[run.__name__] = Target(run, seeds, examples)
        return run

    return add


@functools.cache
def directory() -> Path:
    """A directory of this process, in memory where the system has such a place."""
    memory = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(prefix="signalmesh-fuzz-", dir=memory if memory.is_dir() else None))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def written(name: str, data: bytes) -> Path:
    path = directory() / name
    path.write_bytes(data)
    return path


def check_problem(error: Exception) -> None:
    assert len(str(error)) <= LONGEST_PROBLEM, f"{len(str(error))} characters: {str(error)[:200]}"


def run_for(name: str, data: bytes, limit_s: float = 10.0) -> None:
    """Run a target; an input that takes longer than `limit_s` is a fault too."""
    started = time.monotonic()
    TARGETS[name].run(data)
    assert time.monotonic() - started < limit_s
