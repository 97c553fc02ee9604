"""The newest log lines about one agent, from the log files that `up` keeps in the state directory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import orjson

from bus.utils.json_text import parse_json

TAIL_BYTES = 1 << 20
"""Read from the end of each file."""
LINES = 200


def tail(logs: Path, agent: str, limit: int = LINES) -> list[dict[str, Any]] | None:
    """The newest lines about `agent`, oldest first: its own and those of its host; None if there are no log files.

    Agents write into the log of their sandbox's host, one JSON object a line. Each result has the fields of its line
    and `file`. Other lines name no agent: nobody knows whose they are.
    """
    try:
        files = sorted(path for path in logs.glob("*.log") if path.is_file())
    except OSError:
        return None
    if not files:
        return None
    found: list[dict[str, Any]] = []
    mark = orjson.dumps(agent)
    for path in files:
        for line in _last_lines(path):
            if mark not in line:
                continue
            try:
                entry = parse_json(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and agent in (entry.get("agent"), entry.get("of")):
                found.append({**entry, "file": path.name})
    return sorted(found, key=lambda entry: str(entry.get("timestamp", "")))[-limit:]


def _last_lines(path: Path) -> list[bytes]:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read(TAIL_BYTES).split(b"\n")
    except OSError:
        return []
    return lines[1:] if size > TAIL_BYTES else lines
