"""What the stand-in writes down: a JSON line for every request, and for all a process prints.

`body` is what the service sees in a request and may log: envd logs whole unary requests, and the request that opens a
stream. `unlogged` is what it does not: the bodies of `/files`, and the messages of StreamInput. So a secret may stand
in `unlogged` and nowhere else. Keys and tokens in headers are replaced by "present".
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SECRET_HEADERS = frozenset({"x-api-key", "x-access-token", "authorization", "e2b-traffic-access-token"})


class Log:
    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)  # a line is in the file before its request is answered

    def write(self, kind: str, **fields: Any) -> None:
        line = {"at": datetime.now(UTC).isoformat(), "kind": kind, **fields}
        self._file.write(json.dumps(line, separators=(",", ":"), default=str) + "\n")

    def close(self) -> None:
        self._file.close()


def formatted(headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
    """Headers by their lower-case names, secrets blanked out."""
    pairs = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in headers]
    return {name: "present" if name in SECRET_HEADERS else value for name, value in pairs}
