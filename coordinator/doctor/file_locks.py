"""Which processes hold locks on a file: read from the kernel's list, as taking a lock could collide with a start."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

__all__ = ["describe_holder", "lock_holders"]

_LOCKS = Path("/proc/locks")


def lock_holders(path: Path, first: int = 0, last: int | None = None) -> list[int] | None:
    """Pids that hold a lock on the file, or on a byte from `first` to `last` of it; None if this system lists none.

    Raises:
        OSError: the file cannot be looked up.
    """
    try:
        about = path.stat()
    except FileNotFoundError:
        return []
    if not _LOCKS.exists():
        return None
    device = f"{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x}:{about.st_ino}"
    found = set()
    for line in _LOCKS.read_text().splitlines():
        fields = line.split()
        if len(fields) < 8 or fields[5] != device:
            continue
        begins, ends = int(fields[6]), None if fields[7] == "EOF" else int(fields[7])
        if (last is None or begins <= last) and (ends is None or ends >= first):
            found.add(int(fields[4]))
    return sorted(found)


def describe_holder(pid: int) -> str:
    """The pid with the name of its process."""
    try:
        return f"pid {pid} ({psutil.Process(pid).name()})"
    except psutil.Error:
        return f"pid {pid} (ended; a process that inherited the lock holds it)"
