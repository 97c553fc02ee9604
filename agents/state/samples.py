"""Sample values of declared types, to try a State class before it is used."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import types
import typing
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from agents.state.values import SEQUENCES, hints_of, numpy_scalars, unwrapped, usual_factory

SIMPLE: dict[Any, list[Any]] = {
    bool: [True],
    int: [7],
    float: [1.5, 2],
    str: ["a"],
    type(None): [None],
    datetime: [datetime(2024, 1, 2, 3, 4, 5, 6, UTC)],
    date: [date(2024, 1, 2)],
    time: [time(3, 4)],
    timedelta: [timedelta(seconds=1.5)],
    Decimal: [Decimal("1.50")],
    UUID: [UUID(int=1)],
    bytes: [b"\x00a"],
}
DEEPEST = 4
"""A type that holds itself has no end."""


def samples_of(hint: Any, depth: int = 0) -> Iterator[Any]:
    """A few values of a type, to try its round trip; none for types that have no obvious one."""
    hint = unwrapped(hint)
    origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if depth > DEEPEST or isinstance(origin, list):  # a list: the arguments of a Callable
        return
    if origin in SIMPLE:
        yield from SIMPLE[origin]
    elif origin in (typing.Union, types.UnionType):
        for arg in args:
            yield from samples_of(arg, depth + 1)
    elif origin is typing.Literal:
        yield from args
    elif dataclasses.is_dataclass(origin):
        yield from _dataclass_of(origin, depth + 1)
    elif isinstance(origin, type) and issubclass(origin, enum.Enum):
        yield from list(origin)[:1]
    elif isinstance(origin, type) and issubclass(origin, numpy_scalars()):
        with contextlib.suppress(TypeError, ValueError):  # of an abstract class, or one that needs a unit
            yield origin(1)
    elif args:
        yield from _containers_of(origin, args, depth + 1)


def _dataclass_of(cls: Any, depth: int) -> Iterator[Any]:
    """One with samples in the fields that have no default."""
    missing = dataclasses.MISSING
    hints = hints_of(cls)
    values = {}
    for field in dataclasses.fields(cls):
        if field.init and field.default is missing and field.default_factory is missing:
            values[field.name] = next(samples_of(hints[field.name], depth), None)
    with contextlib.suppress(Exception):  # its __init__ and __post_init__ are of users
        yield cls(**values)


def _containers_of(origin: Any, args: tuple[Any, ...], depth: int) -> Iterator[Any]:
    firsts = [next(samples_of(arg, depth), None) for arg in args if arg is not Ellipsis]
    if origin in SEQUENCES:
        for item in samples_of(args[0], depth):
            if origin in (list, deque) or item.__hash__ is not None:
                yield origin([item])
        if origin is deque:
            yield deque(maxlen=3)
    elif origin is tuple and None not in firsts:
        yield tuple(firsts)
    elif origin is Counter and None not in firsts:
        yield Counter(firsts)
    elif origin in (dict, OrderedDict, defaultdict) and firsts[0] is not None:
        for item in samples_of(args[1], depth):
            filled = defaultdict(usual_factory(args[1])) if origin is defaultdict else origin()
            filled[firsts[0]] = item
            yield filled
