"""Breaking the connections of other processes, as a sandbox's are broken when it is paused."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from collections.abc import Iterable

import psutil

_SYS_PIDFD_GETFD = 438
"""The same number on every architecture that has it (Linux 5.6)."""
_libc = ctypes.CDLL(None, use_errno=True)


def drop_connections(processes: Iterable[psutil.Process]) -> int:
    """Shut down every TCP connection of these processes, both ways; how many.

    They find out when they run again. Where the kernel does not lend us a descendant's descriptor, the connection
    stays: it is stopped like its process, and the other side notices by its own means.
    """
    count = 0
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError):
            owner = os.pidfd_open(process.pid)
            try:
                for connection in process.net_connections("tcp"):
                    if connection.status == psutil.CONN_ESTABLISHED and connection.fd >= 0:
                        borrowed = _libc.syscall(_SYS_PIDFD_GETFD, owner, connection.fd, 0)
                        if borrowed >= 0:
                            with socket.socket(fileno=borrowed) as there, contextlib.suppress(OSError):
                                there.shutdown(socket.SHUT_RDWR)
                                count += 1
            finally:
                os.close(owner)
    return count
