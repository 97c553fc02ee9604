"""A nats-server that met an error of its disk stores nothing more until it is started anew, room or not.

It goes on answering meanwhile, and nobody hears of it but who asks for its health: publishers see time-outs.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from bus.server_info import listed, read_monitoring

__all__ = ["keep_storing", "write_error"]

LOOK_S = 1.0
ROOM_BYTES = 8 << 20
"""Free bytes from which on a new start is worth trying."""


class Restartable(Protocol):
    """A supervised server (bus.server.NatsServer)."""

    @property
    def pid(self) -> int | None: ...

    @property
    def directory(self) -> Path: ...

    def kill(self) -> None: ...


async def write_error(directory: Path, pid: int) -> str | None:
    """What keeps the server `pid`, whose directory this is, from storing; None when nothing does, as far as it says."""
    url = await asyncio.to_thread(listed, directory, pid, "monitoring")
    found = None if url is None else await read_monitoring(url, "healthz")
    problem = str((found or {}).get("error", ""))
    return problem if "write error" in problem else None


def has_room(directory: Path) -> bool:
    """Whether something can be written there."""
    trial = directory / "trial"
    try:
        found = os.statvfs(directory)
        trial.write_bytes(bytes(4096))
    except OSError:
        return False
    else:
        return found.f_bavail * found.f_frsize >= ROOM_BYTES
    finally:
        trial.unlink(missing_ok=True)


async def keep_storing(server: Restartable, on_error: Callable[[int, str], None]) -> None:
    """Call `on_error` (pid, problem) when the server stores nothing more, and kill it when there is room: whoever
    supervises it starts it again. For ever.
    """
    told = None
    while True:
        await asyncio.sleep(LOOK_S)
        pid = server.pid
        problem = None if pid is None else await write_error(server.directory, pid)
        if pid is None or problem is None:
            continue
        if told != pid:
            told = pid
            on_error(pid, problem)
        if await asyncio.to_thread(has_room, server.directory) and server.pid == pid:
            server.kill()
