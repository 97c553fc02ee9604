"""The State of an agent as JSON and back, exactly: what would not come back as it was is refused by name.

msgspec and orjson convert silently in both directions: a tuple comes back as a list, a number that is not finite as
null, a field with a leading underscore not at all. `StateCodec.verify` compares a state with its own round trip.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import inspect
from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any

import msgspec
import orjson

from agents.state.building import make_builder
from agents.state.comparing import check_finite, compare
from agents.state.samples import samples_of
from agents.state.values import LEAVES, StateMismatch, advice, fields_of, hints_of, numpy_scalars
from bus.errors import UsageError
from bus.utils.error_text import describe_error

OPTIONS = (
    orjson.OPT_NON_STR_KEYS
    | orjson.OPT_PASSTHROUGH_DATACLASS
    | orjson.OPT_PASSTHROUGH_DATETIME
    | orjson.OPT_PASSTHROUGH_SUBCLASS
)


class StateCodec:
    """Converts instances of one State class.

    Raises:
        UsageError: an annotation cannot be read, or is of a type that cannot be saved.
    """

    def __init__(self, cls: type) -> None:
        self._cls = cls
        if "__dataclass_fields__" not in vars(cls) and inspect.get_annotations(cls):
            raise UsageError("State: expected @dataclass above it: only its base has it")
        try:
            self._build = make_builder(cls, {})
        except StateMismatch as mismatch:
            raise UsageError(f"State{mismatch}") from None

    @classmethod
    @functools.cache
    def checked(cls, state_class: type) -> StateCodec:
        """A codec whose class has passed `check`; the fork server makes those of the built-in agents.

        Raises:
            UsageError: as `check`.
        """
        codec = cls(state_class)
        codec.check()
        return codec

    def encode(self, state: Any) -> bytes:
        """The JSON of `state`.

        Raises:
            StateMismatch: JSON has no form for a value; the path names its field.
        """
        try:
            return orjson.dumps(state, default=encode_value, option=OPTIONS)
        except (orjson.JSONEncodeError, StateMismatch) as error:
            for name, value in fields_of(state):
                try:
                    orjson.dumps(value, default=encode_value, option=OPTIONS)
                except (orjson.JSONEncodeError, StateMismatch) as cause:
                    raise StateMismatch(f".{name}", reason_of(cause)) from None
            raise StateMismatch("", reason_of(error)) from None

    def decode(self, raw: Any) -> Any:
        """A State from parsed JSON.

        Raises:
            StateMismatch: a value is of another type than the class declares.
        """
        return self._build(raw)

    def verify(self, state: Any, data: bytes) -> None:
        """Compare `state` with what `data`, its JSON, gives back.

        Raises:
            StateMismatch: it would come back with another value or type, or two of its parts are one object.
        """
        if b"null" in data:
            check_finite(state, "")
        compare(state, self.decode(orjson.loads(data)), {})

    def check(self) -> None:
        """Try the round trip of an empty State, and of filled ones: each field with samples of its declared type.

        Raises:
            UsageError: the class does not come back as it was; the message names the field and the remedy.
        """
        hints = hints_of(self._cls)
        try:
            self._round_trip({})
            for field in dataclasses.fields(self._cls):
                for sample in samples_of(hints[field.name]):
                    self._round_trip({field.name: sample})
        except StateMismatch as mismatch:
            raise UsageError(f"State{mismatch}") from None

    def _round_trip(self, values: dict[str, Any]) -> None:
        state = self._cls()
        for name, value in values.items():
            object.__setattr__(state, name, value)
        self.verify(state, self.encode(state))


def encode_value(value: Any) -> Any:
    """The JSON form of what orjson does not encode by itself, or would encode with a loss."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dict(fields_of(value))
    if isinstance(value, deque):
        return list(value) if value.maxlen is None else {"maxlen": value.maxlen, "items": list(value)}
    if isinstance(value, (set, frozenset)):
        return list(value)
    if isinstance(value, (defaultdict, Counter, OrderedDict)):
        return dict(value)
    if isinstance(value, tuple):  # a NamedTuple
        return list(value)
    if isinstance(value, numpy_scalars()):
        return value.item()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, (*LEAVES, msgspec.Struct)):
        return msgspec.to_builtins(value)
    raise StateMismatch("", f"a {type(value).__name__} has no JSON form{advice(value)}")


def reason_of(error: BaseException) -> str:
    while isinstance(error.__cause__, StateMismatch):
        error = error.__cause__
    problem = error.problem if isinstance(error, StateMismatch) else describe_error(error).partition(": ")[2]
    if problem.startswith("Dict key"):
        return "a key of a dict is of a type that JSON has no keys of; use strings or numbers"
    return problem
