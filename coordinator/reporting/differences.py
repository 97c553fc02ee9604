"""The comparison of two payloads field by field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bus.utils.json_text import parse_json


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldDifference:
    """A field of an output, by its path (`indicators.rsi`), or one of its headers. None: it is missing."""

    field: str
    recorded: Any
    replayed: Any


def payload_differences(recorded: bytes, replayed: bytes) -> list[FieldDifference]:
    """The fields in which two payloads differ; the whole payload if one is no JSON, or if only the bytes differ."""
    if recorded == replayed:
        return []
    try:
        one, other = dict(_leaves(parse_json(recorded))), dict(_leaves(parse_json(replayed)))
    except ValueError:
        one = other = {}
    found = [
        FieldDifference(field=name, recorded=one.get(name), replayed=other.get(name))
        for name in dict.fromkeys((*one, *other))
        if one.get(name) != other.get(name)
    ]
    whole = (recorded.decode(errors="replace"), replayed.decode(errors="replace"))
    return found or [FieldDifference(field="payload", recorded=whole[0], replayed=whole[1])]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path or "payload", value
