"""Where the socket of a fork server lies: multiprocessing makes a directory for it, and a SIGKILL leaves it for ever.

So we make it: its host holds a lock in it, and the next host removes those whose lock nobody holds any more.
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing.process
import multiprocessing.util
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

__all__ = ["make_directory"]

PREFIX = "mesh-fork-"
LOCK = "lock"
LONGEST_TMPDIR = 64
"""Bytes; the path of a socket in a directory of ours has 37 more, and may have 103 (macOS), or 107."""
MAKING_S = 10.0
"""An older directory without a lock is nobody's."""


def make_directory() -> None:
    """Have multiprocessing use a directory of ours, in TMPDIR if that is short enough, until this process ends."""
    current: Any = multiprocessing.process.current_process()
    if current._config.get("tempdir") is not None:  # noqa: SLF001 - there is no other way
        return
    there = tempfile.gettempdir()
    base = Path(there if len(os.fsencode(there)) <= LONGEST_TMPDIR else "/tmp")  # noqa: S108 - the name is random
    for directory in base.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # somebody else's, or removed just now
            if _is_left(directory):
                shutil.rmtree(directory)
    made = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    lock = os.open(made / LOCK, os.O_CREAT | os.O_RDWR, 0o600)  # closed by the end of this process alone
    fcntl.flock(lock, fcntl.LOCK_SH)
    current._config["tempdir"] = str(made)  # noqa: SLF001
    multiprocessing.util.Finalize(None, shutil.rmtree, args=(made,), kwargs={"ignore_errors": True}, exitpriority=-100)


def _is_left(directory: Path) -> bool:
    young = time.time() - directory.stat().st_mtime < MAKING_S
    try:
        lock = os.open(directory / LOCK, os.O_RDWR)
    except FileNotFoundError:
        return not young
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return not young  # or its maker is about to take the lock
