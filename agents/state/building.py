"""Makes the values of a State from their JSON, by the declared types."""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
import typing
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import msgspec

from agents.state.values import (
    LEAVES,
    SEQUENCES,
    StateMismatch,
    advice_for,
    hints_of,
    numpy_scalars,
    shown,
    unwrapped,
    usual_factory,
)

Build = Callable[[Any], Any]
"""Makes a value of one type from its JSON."""


def make_builder(hint: Any, known: dict[Any, Build]) -> Build:
    """What makes values of the type `hint`; `known` are those of the dataclasses around it."""
    hint = unwrapped(hint)
    origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in (Any, object) or isinstance(hint, typing.TypeVar):
        return lambda raw: raw
    if origin in (typing.Union, types.UnionType):
        return _union([_Member(arg, make_builder(arg, known)) for arg in args], hint)
    if origin is typing.Literal:
        return lambda raw: _literal(raw, args)
    if isinstance(origin, type) and origin in known:
        return known[origin]
    if not isinstance(origin, type):
        raise StateMismatch("", f"{hint!r} cannot be saved; annotate it with a type that JSON has, or a dataclass")
    return _class_builder(hint, origin, args, known)


def _class_builder(hint: Any, origin: type, args: tuple[Any, ...], known: dict[Any, Build]) -> Build:
    if origin in (type(None), bool, int, str):
        return lambda raw: _exact(raw, (origin,))
    if origin is float:
        return lambda raw: _exact(raw, (float, int))  # an int comes back as it was: as an int
    if dataclasses.is_dataclass(origin):
        return _dataclass(origin, known)
    return _container(origin, args, known) or _other(hint, origin)


def _container(origin: type, args: tuple[Any, ...], known: dict[Any, Build]) -> Build | None:
    if issubclass(origin, tuple):
        return _tuple(origin, args, known)
    if origin in SEQUENCES:
        item = make_builder(args[0] if args else Any, known)
        return _deque(item) if origin is deque else lambda raw: _constructed(origin, _items(raw, item, origin))
    if origin in (dict, defaultdict, OrderedDict, Counter):
        return _dict(origin, args, known)
    return None


def _other(hint: Any, origin: type) -> Build:
    if issubclass(origin, enum.Enum):
        return lambda raw: _member(origin, raw)
    if issubclass(origin, numpy_scalars()):
        return lambda raw: _constructed(origin, _exact(raw, (bool, int, float, str)))
    if origin in LEAVES or issubclass(origin, msgspec.Struct):
        return lambda raw: _converted(hint, raw)
    if origin.__module__ == "collections.abc" or hasattr(origin, "__required_keys__"):
        return lambda raw: raw  # as JSON has it; `verify` finds what is not
    raise StateMismatch("", f"a {origin.__name__} cannot be saved{advice_for(origin)}")


def _exact(raw: Any, expected: tuple[type, ...]) -> Any:
    if type(raw) not in expected:
        raise StateMismatch(
            "",
            f"expected {expected[0].__name__}, not {shown(raw)} ({type(raw).__name__}); annotate the field with the "
            "type that it has",
        )
    return raw


def _constructed(cls: Any, *values: Any) -> Any:
    try:
        return cls(*values)
    except (TypeError, ValueError, OverflowError) as error:
        raise StateMismatch("", f"expected {cls.__name__}, not {shown(values[0])} ({error})") from None


def _literal(raw: Any, values: tuple[Any, ...]) -> Any:
    for value in values:
        if type(value) is type(raw) and value == raw:
            return value
        if isinstance(value, enum.Enum) and value.value == raw:
            return value
    raise StateMismatch("", f"expected one of {', '.join(map(repr, values))}, not {shown(raw)}")


def _member(cls: type[enum.Enum], raw: Any) -> enum.Enum:
    for member in cls:
        if type(member.value) is type(raw) and member.value == raw:
            return member
    raise StateMismatch("", f"expected a value of {cls.__name__}, not {shown(raw)}")


class _Member:
    """One type of a union. A dataclass is recognised by its fields, and by those that are a Literal."""

    def __init__(self, hint: Any, build: Build) -> None:
        self.build = build
        self._cls = unwrapped(hint) if dataclasses.is_dataclass(unwrapped(hint)) else None

    @functools.cached_property
    def _fields(self) -> tuple[set[str], dict[str, tuple[Any, ...]]]:
        assert self._cls is not None
        hints = hints_of(self._cls)
        names = {field.name for field in dataclasses.fields(self._cls)}
        tags = {
            name: typing.get_args(hints[name]) for name in names if typing.get_origin(hints[name]) is typing.Literal
        }
        return names, tags

    def rank(self, raw: Any) -> int:
        """0 for the most likely member, 2 for one that cannot be meant."""
        if self._cls is None or type(raw) is not dict:
            return 1
        names, tags = self._fields
        if any(name in raw and raw[name] not in values for name, values in tags.items()):
            return 2
        return 0 if names == raw.keys() else 1


def _union(members: list[_Member], hint: Any) -> Build:
    def build(raw: Any) -> Any:
        for member in sorted(members, key=lambda member: member.rank(raw)):
            if member.rank(raw) > 1:
                break
            try:
                return member.build(raw)
            except StateMismatch:
                continue
        raise StateMismatch("", f"expected {hint}, not {shown(raw)}")

    return build


def _converted(hint: Any, raw: Any) -> Any:
    try:
        return msgspec.convert(raw, hint)
    except (msgspec.ValidationError, TypeError, ValueError) as error:
        raise StateMismatch("", str(error)) from None


def _items(raw: Any, item: Build, origin: type) -> list[Any]:
    if type(raw) is not list:
        raise StateMismatch("", f"expected {origin.__name__}, not {shown(raw)}")
    built = []
    for index, value in enumerate(raw):
        try:
            built.append(item(value))
        except StateMismatch as mismatch:
            raise mismatch.below(f"[{index}]") from None
    return built


def _deque(item: Build) -> Build:
    def build(raw: Any) -> Any:
        if type(raw) is dict and raw.keys() == {"maxlen", "items"}:
            return deque(_items(raw["items"], item, deque), maxlen=raw["maxlen"])
        return deque(_items(raw, item, deque))

    return build


def _tuple(origin: type, args: tuple[Any, ...], known: dict[Any, Build]) -> Build:
    if hasattr(origin, "_fields"):
        hints = hints_of(origin)
        parts = [make_builder(hints.get(name, Any), known) for name in origin._fields]
        return lambda raw: _constructed(origin, *_parts(raw, parts, origin))
    if origin is not tuple:
        raise StateMismatch("", f"a {origin.__name__} cannot be saved; use a NamedTuple or a dataclass")
    if not args or args[-1] is Ellipsis:
        item = make_builder(args[0] if args else Any, known)
        return lambda raw: tuple(_items(raw, item, tuple))
    fixed = [make_builder(arg, known) for arg in args]
    return lambda raw: tuple(_parts(raw, fixed, tuple))


def _parts(raw: Any, parts: list[Build], origin: type) -> list[Any]:
    if type(raw) is not list or len(raw) != len(parts):
        raise StateMismatch("", f"expected {origin.__name__} of {len(parts)} values, not {shown(raw)}")
    built = []
    for index, (part, value) in enumerate(zip(parts, raw, strict=True)):
        try:
            built.append(part(value))
        except StateMismatch as mismatch:
            raise mismatch.below(f"[{index}]") from None
    return built


def _dict(origin: type, args: tuple[Any, ...], known: dict[Any, Build]) -> Build:
    key_hint = args[0] if args else Any
    value_hint = int if origin is Counter else args[1] if len(args) > 1 else Any
    value = make_builder(value_hint, known)
    factory = usual_factory(value_hint) if origin is defaultdict else None

    def build(raw: Any) -> Any:
        if type(raw) is not dict:
            raise StateMismatch("", f"expected {origin.__name__}, not {shown(raw)}")
        built = defaultdict(factory) if origin is defaultdict else origin()
        for name, item in raw.items():
            try:
                built[_key(name, key_hint)] = value(item)
            except StateMismatch as mismatch:
                raise mismatch.below(f"[{name!r}]") from None
        return built

    return build


def _key(name: str, hint: Any) -> Any:
    """A key of JSON, which is a string, as the declared type."""
    plain = unwrapped(hint)
    if plain in (Any, object, str) or isinstance(plain, typing.TypeVar):
        return name
    if isinstance(plain, type) and issubclass(plain, enum.Enum):
        return next((member for member in plain if str(member.value) == name), name)
    try:
        return msgspec.convert(name, plain, strict=False)
    except (msgspec.ValidationError, TypeError, ValueError) as error:
        raise StateMismatch("", f"as a key: {error}") from None


def _dataclass(cls: Any, known: dict[Any, Build]) -> Build:
    names = [field.name for field in dataclasses.fields(cls)]

    def build(raw: Any) -> Any:
        if type(raw) is not dict:
            raise StateMismatch("", f"expected {cls.__name__}, not {shown(raw)}")
        built = cls.__new__(cls)  # as pickle does: `__init__` and `__post_init__` belong to a new one
        for field in dataclasses.fields(cls):
            try:
                found = builders[field.name](raw[field.name]) if field.name in raw else _default(field, cls)
            except StateMismatch as mismatch:
                raise mismatch.below(f".{field.name}") from None
            if found is not dataclasses.MISSING:
                object.__setattr__(built, field.name, found)
        return built

    known[cls] = build
    builders: dict[str, Build] = {}
    hints = hints_of(cls)
    for name in names:
        try:
            builders[name] = make_builder(hints[name], known)
        except StateMismatch as mismatch:
            raise mismatch.below(f".{name}") from None
    return build


def _default(field: dataclasses.Field[Any], cls: type) -> Any:
    """The value of a field that was not saved: an older class did not have it, or it was never set."""
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    if field.init:
        raise StateMismatch("", f"expected a value: an object of {cls.__name__} without it was saved")
    return dataclasses.MISSING
