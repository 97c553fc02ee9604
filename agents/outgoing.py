"""What handlers return, made ready to be published: encoded, and checked as its readers will check it.

A message that no reader could read is a fault of the handler that returned it, so it is told with the names of the
agent's own code: handler, field, value, and what was expected.
"""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from agents.agent import Agent, Outputs, published_kinds, topic_of
from bus.errors import MessageError
from bus.messages import KIND_OF, KINDS, MAX_PAYLOAD_BYTES, Alert, Event, decode, encode
from bus.subjects import Subjects

_AT_FIELD = re.compile(r" - at `\$\.(\w+)")
_MISSING = re.compile(r"missing required field `(\w+)`")
_JSON = (str, bool, int, float, type(None))
MAX_SHOWN = 100
"""Characters of a wrong value that an error shows."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """An output ready to be published: its read-side subject, its bytes, and what these were made of."""

    subject: str
    data: bytes
    kind: str
    message: Event | Alert


class BadOutput(ValueError):
    """A handler has returned something that cannot be published; the message says all."""


class Outgoing:
    """Prepares what the handlers of one agent return."""

    def __init__(self, agent: Agent, subjects: Subjects) -> None:
        self._name, self._subjects = agent.name, subjects
        self._publishes = published_kinds(type(agent))
        self._expected = ", ".join(KINDS[kind].__name__ for kind in self._publishes) or "none at all"

    def prepare(self, outputs: Outputs, handler: str, topic: str | None) -> list[Prepared]:
        """Encode and check what a handler returned about `topic`; `handler` begins the sentence: "on_market returned".

        Raises:
            BadOutput: it is no message of a kind that the agent publishes, or no reader could read it.
        """
        if outputs is None:
            return []
        if type(outputs) in KIND_OF:
            return [self._prepare(outputs, handler, topic)]  # type: ignore[arg-type]
        if isinstance(outputs, (str, bytes, dict)) or not isinstance(outputs, Iterable):
            raise self._unknown(outputs, handler)
        return [self._prepare(output, handler, topic) for output in outputs]

    def _prepare(self, output: Event | Alert, handler: str, topic: str | None) -> Prepared:
        kind = KIND_OF.get(type(output))
        if kind is None:
            raise self._unknown(output, handler)
        if kind not in self._publishes and kind != "alert":  # anybody may warn
            raise BadOutput(
                f"{handler} a {type(output).__name__}, but the kinds that agent {self._name} publishes are: "
                f"{self._expected}; name {kind!r} in its class variable `publishes`, or in the return annotation"
            )
        try:
            stamp: Any = output.timestamp
            if isinstance(stamp, datetime) and stamp.tzinfo is None:
                raise BadOutput(f"timestamp: {stamp.isoformat()} has no time zone, expected one: datetime.now(UTC)")
            subject = self._subjects.event(kind, topic_of(output, topic), self._name)
            data = encode(output)
            if len(data) > MAX_PAYLOAD_BYTES:
                raise BadOutput(f"{len(data)} bytes, expected at most {MAX_PAYLOAD_BYTES}")
            decode(self._subjects.parse(subject), subject, data)
        except (ValueError, TypeError, AttributeError, MessageError) as error:
            raise BadOutput(
                f"{handler} a {type(output).__name__} that nobody could read: "
                + explain(type(output), {name: getattr(output, name) for name in output.__slots__}, error)
            ) from None
        return Prepared(subject, data, kind, output)

    def _unknown(self, output: Any, handler: str) -> BadOutput:
        return BadOutput(
            f"{handler} {shown(output)} ({type(output).__name__}), expected None or messages of the kinds "
            f"that agent {self._name} publishes: {self._expected}"
        )


def explain(cls: type, fields: dict[str, Any], error: Exception) -> str:
    """What is wrong with a message of `cls` that has these fields, where making or reading it gave `error`."""
    problem = error.problem if isinstance(error, MessageError) else str(error)
    for path, value in _leaves(fields):
        if isinstance(value, float) and not math.isfinite(value):
            return f"{path}: expected a finite number, not {value}"
        if not isinstance(value, (*_JSON, datetime)):
            return f"{path}: expected what JSON has a form for, not {shown(value)} ({type(value).__name__})"
    if found := _MISSING.search(problem):
        return f"{found[1]}: missing, expected {_expected(cls, found[1])}"
    if found := _AT_FIELD.search(problem):
        name = found[1]
        return f"{name}: expected {_expected(cls, name)}, not {shown(fields.get(name))}"
    return problem


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for at, item in enumerate(value):
            yield from _leaves(item, f"{path}[{at}]")
    else:
        yield path, value


def _expected(cls: type, name: str) -> str:
    """A field's type in words."""
    hint = typing.get_type_hints(cls).get(name)
    values = [item for part in (hint, *typing.get_args(hint)) for item in typing.get_args(part)]
    if values and all(isinstance(value, str) for value in values):
        return f"one of {', '.join(values)}"
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def shown(value: Any) -> str:
    """A value for an error message."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"
