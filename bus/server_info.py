"""What a nats-server says of itself: on its port, in the file of its ports, and over HTTP. Reads only."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

__all__ = ["listed", "read_info", "read_monitoring"]


def listed(directory: Path, pid: int, service: str) -> str | None:
    """Where the server `pid` serves `service` (`nats`, `monitoring`), by the file in `directory` that it writes when
    it listens; None before, and where it does not serve it.
    """
    for path in directory.glob(f"*_{pid}.ports"):
        with contextlib.suppress(ValueError, LookupError, OSError, TypeError):  # not wholly written yet
            return str(json.loads(path.read_text())[service][0])
    return None


async def read_info(host: str, port: int) -> dict[str, Any] | None:
    """What a NATS server introduces itself with; None when nobody, or something else, answers within half a second."""
    writer = None
    try:
        async with asyncio.timeout(0.5):
            reader, writer = await asyncio.open_connection(host, port)
            line = await reader.readline()
        info = json.loads(line.removeprefix(b"INFO ")) if line.startswith(b"INFO ") else None
    except (OSError, ValueError):  # TimeoutError is an OSError
        return None
    finally:
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    return info if isinstance(info, dict) else None


async def read_monitoring(url: str, path: str) -> dict[str, Any] | None:
    """What a server answers over HTTP (`path`: `varz`, `healthz` …); None when it does not within two seconds."""
    import urllib.error
    import urllib.request

    def read() -> dict[str, Any] | None:
        try:
            with urllib.request.urlopen(f"{url}/{path}", timeout=2) as answer:  # noqa: S310 - the server said this URL
                found = json.loads(answer.read())
        except urllib.error.HTTPError as error:  # an answer as well: that of one that is not well
            with error, contextlib.suppress(OSError, ValueError):
                found = json.loads(error.read())
                return found if isinstance(found, dict) else None
            return None
        except (OSError, ValueError):  # urllib's errors are OSErrors
            return None
        return found if isinstance(found, dict) else None

    return await asyncio.to_thread(read)
