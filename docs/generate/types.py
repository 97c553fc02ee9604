"""Types, defaults and limits of dataclass fields, in words."""

from __future__ import annotations

import dataclasses
import types
import typing
from datetime import datetime
from typing import Any

import msgspec

from docs.generate.markdown import code, number

_WORDS: dict[Any, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    datetime: "time",
    dict: "object",
    type(None): "null",
    Any: "any",
}


def hints_of(cls: type) -> dict[str, Any]:
    """Field -> its type, with what is annotated."""
    return typing.get_type_hints(cls, include_extras=True)


def type_text(hint: Any, *, nullable: bool = True) -> str:
    """A type as a reader of JSON or TOML knows it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return type_text(arguments[0], nullable=nullable)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_text(item) for item in arguments if nullable or item is not type(None))
    if origin is typing.Literal:
        return ", ".join(code(f'"{item}"' if isinstance(item, str) else str(item)) for item in arguments)
    if origin in (tuple, list, frozenset):
        return f"list of {type_text(arguments[0])}"
    if origin is dict:
        return f"object of {type_text(arguments[1])}"
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    return _WORDS.get(hint) or str(getattr(hint, "__name__", hint))


def limits_text(hint: Any) -> str:
    """The limits of a type in msgspec.Meta: a range, a length."""
    found: list[str] = []
    for item in (hint, *typing.get_args(hint)):
        for meta in getattr(item, "__metadata__", ()):
            if isinstance(meta, msgspec.Meta):
                for text, bound in (("more than", meta.gt), ("at least", meta.ge), ("less than", meta.lt)):
                    found += [f"{text} {number(bound)}"] if bound is not None else []
                if meta.le is not None:
                    found.append("at most 2^63 - 1" if meta.le == (1 << 63) - 1 else f"at most {number(meta.le)}")
                if meta.min_length is not None:
                    found.append(f"at least {meta.min_length} item")
    return ", ".join(found)


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of a field; dataclasses.MISSING where it is required."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def classes_of(cls: type) -> list[type]:
    """`cls` and all dataclasses among the types of its fields, however deep, in order of appearance."""
    found: list[type] = []

    def collect(item: Any) -> None:
        if isinstance(item, type) and dataclasses.is_dataclass(item) and item not in found:
            found.append(item)
            for hint in typing.get_type_hints(item).values():
                collect(hint)
        for argument in typing.get_args(item):
            collect(argument)

    collect(cls)
    return found
