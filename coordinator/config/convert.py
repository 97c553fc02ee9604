"""TOML tables into dataclasses, with errors that name the file and the whole key. Independent of the tables."""

from __future__ import annotations

import datetime as dt
import difflib
import math
import re
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from bus.errors import ConfigError
from bus.observability.logging import is_secret

__all__ = ["convert", "plain_options", "similar", "table_of"]

T = TypeVar("T")
_PATH = re.compile(r"(?P<problem>.*) - at `\$(?P<path>.*)`", re.DOTALL)
_TYPE = re.compile(r"`([a-z]+)(?: \| null)?`")
_WORDS = {
    "array": "a list",
    "bool": "true or false",
    "float": "a number",
    "int": "a whole number",
    "object": "a table",
    "str": "a text in quotes",
}
_ITEM = re.compile(r"\[(\d+|\.\.\.)\]")


def similar(name: str, known: Iterable[str]) -> str:
    """A hint with the known name that is closest to `name`, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def table_of(raw: Any, file: str, key: str) -> dict[str, Any]:
    """`raw` if it is a TOML table.

    Raises:
        ConfigError: it is something else.
    """
    if not isinstance(raw, dict):
        raise ConfigError(file, key, f"expected a table [{key}], not {_named(raw)}")
    return raw


def convert(raw: Mapping[str, Any], cls: type[T], file: str, key: str) -> T:
    """The table `raw` under `key` as the dataclass `cls`; a field `class_` is the key `class`.

    Raises:
        ConfigError: an unknown key, a value of another type or out of range, a number that is not finite.
    """
    prefix = f"{key}." if key else ""
    known = ["class" if name == "class_" else name for name in getattr(cls, "__dataclass_fields__", ())]
    expected = f"expected one of: {', '.join(known)}" if known else "there are none here"
    values = {}
    for name, value in raw.items():
        if name not in known:
            raise ConfigError(file, f"{prefix}{name}", f"unknown key{similar(name, known)}; {expected}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(file, f"{prefix}{name}", f"expected a finite number, not {value}")
        values["class_" if name == "class" else name] = value
    try:
        return msgspec.convert(values, cls)
    except msgspec.ValidationError as error:
        match = _PATH.fullmatch(str(error))
        problem, path = (match["problem"], match["path"].lstrip(".")) if match else (str(error), "")
        where = re.match(r"\w*", path)
        name = "" if where is None else "class" if where[0] == "class_" else where[0]
        rest = path[len(where[0]) :] if where else ""
        value = "***" if is_secret(name) else raw.get(name)
        given = f" (given: {_named(value)})" if name in raw and "got" not in problem else ""
        if problem.startswith("Invalid enum value"):
            choices = typing.get_args(typing.get_type_hints(cls)[name])
            problem = f"expected one of {', '.join(map(repr, choices))}"
        if name in raw and not rest:  # the written value helps more than its type
            problem = re.sub(r", got `.*`$", f", got {_named(value)}", problem)
        text = _TYPE.sub(_type_in_words, problem[:1].lower() + problem[1:]).replace(", got ", ", not ")
        raise ConfigError(file, f"{prefix}{name}{_ITEM.sub(_item, rest)}".rstrip("."), f"{text}{given}") from None


def plain_options(options: Mapping[str, Any], file: str, key: str) -> dict[str, Any]:
    """An agent's options as values that JSON can carry: dates and times become ISO 8601 text.

    Raises:
        ConfigError: a number that is not finite, or too large.
    """
    return {name: _plain(value, file, f"{key}.{name}") for name, value in options.items()}


def _plain(value: Any, file: str, key: str) -> Any:
    if isinstance(value, dict):
        return plain_options(value, file, key)
    if isinstance(value, list):
        return [_plain(item, file, f"{key}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(file, key, f"expected a finite number, not {value}")
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise ConfigError(file, key, f"expected a whole number of at most 64 bits, not {_named(value)}")
    if isinstance(value, (dt.date, dt.time)):  # a datetime is a date
        return value.isoformat()
    return value


def _type_in_words(match: re.Match[str]) -> str:
    return _WORDS.get(match[1], match[1])


def _item(match: re.Match[str]) -> str:
    return "" if match[1] == "..." else f"[{match[1]}]"


def _named(value: Any) -> str:
    """A value as written in the file, shortened."""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
