"""Locks on files: one process holds a lock until it releases it or ends, however it ends."""

from __future__ import annotations

import fcntl
import time
from pathlib import Path
from typing import IO

POLL_INTERVAL_S = 0.02


def take_lock(path: Path, wait_s: float = 0.0) -> IO[str] | None:
    """The locked file `path`, held until all copies are closed; None if it is still in use after `wait_s` seconds.

    The wait blocks: call it in a thread. Creates missing directories.

    Raises:
        OSError: the file cannot be created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("w")
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                file.close()
                return None
            time.sleep(POLL_INTERVAL_S)
        else:
            return file
