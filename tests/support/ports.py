"""Ports for processes of a test that must have a known one before they run."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path
from typing import IO

BELOW_EPHEMERAL = range(10_240, 32_000)
"""The system gives ports above to outgoing connections and to whoever asks for any free one."""
_reserved: list[IO[str]] = []


def free_ports(count: int) -> list[int]:
    """Ports that no process listens on, reserved until this process ends.

    Other test processes of this machine do not get them, nor does a connection that the system gives a port.
    """
    directory = Path(tempfile.gettempdir()) / f"test-ports-{os.getuid()}"
    directory.mkdir(exist_ok=True)
    found: list[int] = []
    for port in random.sample(BELOW_EPHEMERAL, len(BELOW_EPHEMERAL)):
        if len(found) == count:
            return found
        lock = (directory / str(port)).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError:
            lock.close()
        else:
            _reserved.append(lock)
            found.append(port)
    raise AssertionError(f"no {count} ports are free in {BELOW_EPHEMERAL}")


def free_port() -> int:
    """One of `free_ports`."""
    return free_ports(1)[0]
