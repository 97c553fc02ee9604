"""Parses JSON of any origin within limits of size and depth: no value may exhaust the stack or memory of a reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

MAX_DEPTH = 64
"""Levels of lists and objects of a message. Code that walks a value may use some Python frames a level."""
MAX_STATE_DEPTH = 254
"""The same of a State: orjson writes no more."""
MAX_SHOWN_DEPTH = 240
"""The same of a snapshot that is shown as a part of an answer."""
MAX_FILE_BYTES = 4 << 20
"""Largest record in a state directory."""


class TooDeep(ValueError):
    """Lists and objects are nested too deeply."""


def parse_json(data: bytes, max_depth: int = MAX_DEPTH) -> Any:
    """The value of `data`.

    Raises:
        ValueError: it is no JSON, or nested more deeply than `max_depth`.
    """
    value = orjson.loads(data)
    # Almost no message has so many brackets, so that the levels of almost none are counted.
    if data.count(b"[") + data.count(b"{") > max_depth and _is_deeper(value, max_depth):
        raise TooDeep(f"nested more than {max_depth} levels deep")
    return value


def _is_deeper(value: Any, max_depth: int) -> bool:
    level = [value]
    for _ in range(max_depth):
        level = [
            item
            for parent in level
            for item in (parent.values() if type(parent) is dict else parent if type(parent) is list else ())
            if type(item) in (dict, list)
        ]
        if not level:
            return False
    return True


def read_limited(path: Path, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of a small file.

    Raises:
        OSError: it cannot be read; ValueError: it is larger.
    """
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"expected at most {max_bytes} bytes, it has more")
    return data
