"""What the conversion of a State needs to know of values and types, and how it reports what does not come back."""

from __future__ import annotations

import dataclasses
import math
import sys
import types
import typing
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from bus.utils.error_text import describe_error, shorten

LEAVES = (datetime, date, time, timedelta, Decimal, UUID, bytes)
"""Types that JSON has as a string."""
SEQUENCES = (list, set, frozenset, deque)
MAX_SHOWN = 80


class StateMismatch(ValueError):
    """A value at `path` that JSON, or the annotation of its field, does not give back as it was."""

    def __init__(self, path: str, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(f"{path}: {problem}" if path else problem)

    def below(self, step: str) -> StateMismatch:
        """The same, seen from one step further out."""
        return StateMismatch(f"{step}{self.path}", self.problem)


def numpy_scalars() -> tuple[Any, ...]:
    """The class of numpy's scalars, where numpy is loaded: most processes do without it."""
    numpy = sys.modules.get("numpy")
    return () if numpy is None else (numpy.generic,)


def fields_of(value: Any) -> list[tuple[str, Any]]:
    """Names and values of a dataclass; a field that was never set is left out."""
    if not dataclasses.is_dataclass(value):
        return []
    names = [field.name for field in dataclasses.fields(value)]
    return [(name, getattr(value, name)) for name in names if hasattr(value, name)]


def hints_of(cls: type) -> dict[str, Any]:
    """Field -> type, of a dataclass.

    Raises:
        StateMismatch: an annotation names what is not defined when the agent runs.
    """
    try:
        return typing.get_type_hints(cls, localns=_namespace_around(cls), include_extras=False)
    except NameError as error:
        raise StateMismatch(
            "",
            f" has an annotation with {error.name!r}, which is not defined; define it in the module, or import it for "
            "more than TYPE_CHECKING",
        ) from None
    except Exception as error:  # noqa: BLE001 - annotations are evaluated
        raise StateMismatch("", f" has an annotation that cannot be read: {describe_error(error)}") from None


def _namespace_around(cls: type) -> dict[str, Any]:
    """The names of the classes in whose bodies `cls` is defined, such as that of its agent."""
    found: dict[str, Any] = {}
    around: Any = sys.modules.get(cls.__module__)
    for name in cls.__qualname__.split(".")[:-1]:
        around = getattr(around, name, None)
        found |= vars(around) if isinstance(around, type) else {}
    return found


def unwrapped(hint: Any) -> Any:
    while True:
        if isinstance(hint, typing.NewType):
            hint = hint.__supertype__
        elif typing.get_origin(hint) in (typing.Annotated, typing.Final, typing.ClassVar):
            hint = typing.get_args(hint)[0]
        elif hasattr(hint, "__value__"):  # `type X = ...`
            hint = hint.__value__
        elif isinstance(hint, dataclasses.InitVar):
            hint = hint.type
        else:
            return hint


def usual_factory(hint: Any) -> Any:
    """The usual factory of a defaultdict whose values are of this type: the type itself."""
    plain = unwrapped(hint)
    origin = typing.get_origin(plain) or plain
    if origin in (typing.Union, types.UnionType):  # of the first one: `defaultdict(float)` for float | None
        return usual_factory(next(iter(typing.get_args(plain))))
    return origin if isinstance(origin, type) and origin not in (object, Any) else None


def shown(value: Any) -> str:
    try:
        text = repr(value)
    except BaseException as error:  # noqa: BLE001 - a `__repr__` of users may raise anything
        text = f"a {type(value).__name__} whose repr raises {type(error).__name__}"
    return shorten(text, MAX_SHOWN)


def advice(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "; JSON has finite numbers only: keep None for it"
    if isinstance(value, numpy_scalars()):
        return f"; convert it: {type(value.item()).__name__}(...), or annotate the field np.{type(value).__name__}"
    if isinstance(value, float):
        return "; annotate the field float"
    return advice_for(type(value))


def advice_for(cls: type) -> str:
    examples = {
        tuple: "tuple[float, ...]",
        deque: "deque[float]",
        set: "set[str]",
        frozenset: "frozenset[str]",
        defaultdict: "defaultdict[str, float]",
        Counter: "Counter[str]",
        OrderedDict: "OrderedDict[str, float]",
    }
    if cls in examples:
        return f"; annotate the field with its type and that of its items, like {examples[cls]}"
    if cls.__name__ == "ndarray":
        return "; keep a list: values.tolist()"
    if cls in (int, str, bool, type(None), dict, list):
        return "; annotate the field with the type that it has"
    if cls in LEAVES:
        return f"; annotate the field {cls.__name__}"
    return "; use JSON-like values, or a dataclass with annotated fields"
