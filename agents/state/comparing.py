"""Compares a State with what its JSON gives back."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections import defaultdict, deque
from typing import Any

import msgspec

from agents.state.values import LEAVES, StateMismatch, advice, fields_of, numpy_scalars, shown


def check_finite(value: Any, path: str) -> None:
    """Raise StateMismatch for a number that is not finite, which JSON has as null."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise StateMismatch(path, f"{value} would come back as null{advice(value)}")
    elif isinstance(value, dict):
        for key, item in value.items():
            check_finite(item, f"{path}[{key!r}]")
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        for index, item in enumerate(value):
            check_finite(item, f"{path}[{index}]")
    else:
        for name, item in fields_of(value):
            check_finite(item, f"{path}.{name}")


def compare(live: Any, back: Any, seen: dict[int, str], path: str = "") -> None:
    """Raise StateMismatch where `back` differs from `live`; `seen` are the mutable objects met so far, by id."""
    kind = type(live)
    if kind in (str, bool, int, type(None)):
        if type(back) is not kind or back != live:
            raise StateMismatch(path, _difference(live, back))
        return
    if type(back) is not kind:
        raise StateMismatch(path, _difference(live, back))
    if isinstance(live, float) or (isinstance(live, numpy_scalars()) and live.dtype.kind == "f"):
        if repr(live) != repr(back):  # tells -0.0 from 0.0; a number that is not finite has become null above
            raise StateMismatch(path, _difference(live, back))
        return
    if not isinstance(live, (tuple, frozenset, enum.Enum, *numpy_scalars(), *LEAVES)) and not _is_frozen(live):
        if id(live) in seen:
            raise StateMismatch(path, f"is the same object as {seen[id(live)]}, and would be two; keep it once")
        seen[id(live)] = f"State{path}"
    _compare_parts(live, back, seen, path)


def _is_frozen(value: Any) -> bool:
    """Whether it cannot change: then it makes no difference whether two fields hold one object or two equal ones."""
    parameters = getattr(type(value), "__dataclass_params__", None)
    if parameters is not None:
        return bool(parameters.frozen)
    return isinstance(value, msgspec.Struct) and value.__struct_config__.frozen


def _compare_parts(live: Any, back: Any, seen: dict[int, str], path: str) -> None:
    if isinstance(live, dict):
        _compare_dicts(live, back, seen, path)
    elif isinstance(live, (list, tuple, deque)):
        if len(live) != len(back) or getattr(live, "maxlen", None) != getattr(back, "maxlen", None):
            raise StateMismatch(path, _difference(live, back))
        for index, (one, other) in enumerate(zip(live, back, strict=True)):
            compare(one, other, seen, f"{path}[{index}]")
    elif isinstance(live, (set, frozenset)):
        _compare_sets(live, back, seen, path)
    elif isinstance(live, msgspec.Struct):
        for name in live.__struct_fields__:
            compare(getattr(live, name), getattr(back, name), seen, f"{path}.{name}")
    elif dataclasses.is_dataclass(live):
        _compare_dataclasses(live, back, seen, path)
    elif repr(live) != repr(back):  # tells a zone and a fold, which `!=` may not
        raise StateMismatch(path, _difference(live, back))


def _compare_sets(live: Any, back: Any, seen: dict[int, str], path: str) -> None:
    if live != back:
        raise StateMismatch(path, _difference(live, back))
    found = {item: item for item in back}
    for item in live:
        compare(item, found[item], seen, f"{path}[{item!r}]")


def _compare_dicts(live: Any, back: Any, seen: dict[int, str], path: str) -> None:
    if isinstance(live, defaultdict) and live.default_factory is not back.default_factory:
        raise StateMismatch(
            path,
            f"its default factory {shown(live.default_factory)} would come back as {shown(back.default_factory)}; "
            "annotate it with the type of its values, like defaultdict[str, float] with defaultdict(float), or use "
            "`setdefault` on a dict",
        )
    for one, other in zip(live, back, strict=False):
        if type(one) is not type(other) or repr(one) != repr(other):
            raise StateMismatch(path, f"the key {_difference(one, other)}")
    if len(live) != len(back):
        raise StateMismatch(path, f"two of its keys are one in JSON: {shown(live)}")
    for key, value in live.items():
        compare(value, back[key], seen, f"{path}[{key!r}]")


def _compare_dataclasses(live: Any, back: Any, seen: dict[int, str], path: str) -> None:
    names = [field.name for field in dataclasses.fields(live)]
    slots = [name for base in type(live).__mro__ for name in base.__dict__.get("__slots__", ()) if hasattr(live, name)]
    undeclared = [name for name in (*getattr(live, "__dict__", ()), *slots) if name not in names]
    if undeclared:
        raise StateMismatch(
            f"{path}.{undeclared[0]}", f"is no field of {type(live).__name__}, so it is not saved; declare it there"
        )
    for name in names:
        if hasattr(live, name) != hasattr(back, name):
            raise StateMismatch(f"{path}.{name}", "would not come back")
        if hasattr(live, name):
            compare(getattr(live, name), getattr(back, name), seen, f"{path}.{name}")


def _difference(live: Any, back: Any) -> str:
    if type(live) is type(back):
        return f"{shown(live)} would come back as {shown(back)}{advice(live)}"
    return (
        f"{shown(live)} ({type(live).__name__}) would come back as {shown(back)} ({type(back).__name__}){advice(live)}"
    )
