"""What a nats-server reports about itself: on its port, in its ports file, and over HTTP.

After a write error a server stores nothing until it is restarted, even if the disk has space again. It still answers
requests: only its health endpoint reports the error, and publishers see timeouts. `keep_storing` kills such a server.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from bus.utils.json_text import parse_json, read_limited

__all__ = ["keep_storing", "listed", "read_info", "read_monitoring", "write_error"]

POLL_INTERVAL_S = 1.0
MAX_ANSWER_BYTES = 4 << 20
"""How much of an answer is read; one that is larger is none of a NATS server."""
MIN_FREE_BYTES = 8 << 20
"""Free bytes needed before the server is restarted."""


def listed(directory: Path, pid: int, service: str) -> str | None:
    """The URL at which the server `pid` serves `service` (`nats`, `monitoring`), from the file that it writes to
    `directory` when it listens; None before that, and if it does not serve it.
    """
    for path in directory.glob(f"*_{pid}.ports"):
        with contextlib.suppress(ValueError, LookupError, OSError, TypeError):  # not wholly written yet
            return str(parse_json(read_limited(path))[service][0])
    return None


async def read_info(host: str, port: int) -> dict[str, Any] | None:
    """The INFO of a NATS server; None if nothing, or another program, answers within half a second."""
    writer = None
    try:
        async with asyncio.timeout(0.5):
            reader, writer = await asyncio.open_connection(host, port)
            line = await reader.readline()
        info = parse_json(line.removeprefix(b"INFO ")) if line.startswith(b"INFO ") else None
    except (OSError, ValueError):  # TimeoutError is an OSError
        return None
    finally:
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    return info if isinstance(info, dict) else None


async def read_monitoring(url: str, path: str) -> dict[str, Any] | None:
    """A server's answer over HTTP (`path`: `varz`, `healthz` …); None without an answer within two seconds."""
    import urllib.error
    import urllib.request

    # Not through a proxy of the environment: an address of this machine is not for it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def read() -> dict[str, Any] | None:
        try:
            with opener.open(f"{url}/{path}", timeout=2) as answer:
                found = parse_json(answer.read(MAX_ANSWER_BYTES))
        except urllib.error.HTTPError as error:  # an unhealthy server answers with an error status
            with error, contextlib.suppress(OSError, ValueError):
                found = parse_json(error.read(MAX_ANSWER_BYTES))
                return found if isinstance(found, dict) else None
            return None
        except (OSError, ValueError):  # urllib's errors are OSErrors
            return None
        return found if isinstance(found, dict) else None

    return await asyncio.to_thread(read)


class Restartable(Protocol):
    """A supervised server (bus.server.supervisor.NatsServer)."""

    @property
    def pid(self) -> int | None: ...

    @property
    def directory(self) -> Path: ...

    def kill(self) -> None: ...


async def write_error(directory: Path, pid: int) -> str | None:
    """Why the server `pid` of this directory cannot store; empty if it reports no write error, None if it does not
    answer.
    """
    url = await asyncio.to_thread(listed, directory, pid, "monitoring")
    found = None if url is None else await read_monitoring(url, "healthz")
    if found is None:
        return None
    problem = str(found.get("error", ""))
    return problem if "write error" in problem else ""


def can_write(directory: Path) -> bool:
    """Whether the disk takes writes and has MIN_FREE_BYTES free."""
    probe = directory / "write-probe"
    try:
        found = os.statvfs(directory)
        probe.write_bytes(bytes(4096))
    except OSError:
        return False
    else:
        return found.f_bavail * found.f_frsize >= MIN_FREE_BYTES
    finally:
        probe.unlink(missing_ok=True)


async def keep_storing(server: Restartable, on_error: Callable[[int, str], None]) -> None:
    """Call `on_error` (pid, problem) when the server cannot store, and kill it when there is space: its supervisor
    starts it again. Runs until cancelled.
    """
    reported = None
    while True:
        await asyncio.sleep(POLL_INTERVAL_S)
        pid = server.pid
        problem = None if pid is None else await write_error(server.directory, pid)
        if pid is None or not problem:
            continue
        if reported != pid:
            reported = pid
            on_error(pid, problem)
        if await asyncio.to_thread(can_write, server.directory) and server.pid == pid:
            server.kill()
