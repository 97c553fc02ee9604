"""Encodes the outputs of handlers, and checks them as their readers will.

A message that readers could not decode is a fault of the handler. The error names the handler, the field, the value and
the expectation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from agents.agent import Agent, Outputs, published_kinds, topic_of
from bus.errors import MessageError
from bus.messages import KIND_OF, KINDS, MAX_PAYLOAD_BYTES, Alert, Event, decode, encode, explain, format_value
from bus.messages.subjects import Subjects

MAX_OUTPUTS = 4096
"""Messages that a handler may return for one input."""
MAX_OUTPUTS_BYTES = 16 << 20
"""The size of all of them together."""


@dataclass(slots=True)
class Prepared:
    """An output ready to be published: its read-side subject, its bytes, and its message."""

    subject: str
    data: bytes
    kind: str
    message: Event | Alert


class BadOutput(ValueError):
    """A handler has returned something that cannot be published; the message names it and what was expected."""


class OutputValidator:
    """Prepares what the handlers of one agent return."""

    def __init__(self, agent: Agent, subjects: Subjects) -> None:
        self._name, self._subjects = agent.name, subjects
        self._publishes = published_kinds(type(agent))
        self._expected = ", ".join(KINDS[kind].__name__ for kind in self._publishes) or "none at all"

    def prepare(self, outputs: Outputs, handler: str, topic: str | None) -> list[Prepared]:
        """Encode and check what a handler returned about `topic`; `handler` starts the error: "on_market returned".

        Raises:
            BadOutput: it is no message of a kind that the agent publishes, or no reader could read it.
        """
        if outputs is None:
            return []
        if type(outputs) in KIND_OF:
            return [self._prepare(outputs, handler, topic)]  # type: ignore[arg-type]
        if isinstance(outputs, (str, bytes, dict)) or not isinstance(outputs, Iterable):
            raise self._unknown(outputs, handler)
        prepared: list[Prepared] = []
        size = 0
        for output in outputs:  # it may have no end
            prepared.append(self._prepare(output, handler, topic))
            size += len(prepared[-1].data)
            if len(prepared) > MAX_OUTPUTS or size > MAX_OUTPUTS_BYTES:
                raise BadOutput(
                    f"{handler} {len(prepared)} messages of {size} bytes or more, expected at most {MAX_OUTPUTS} of "
                    f"{MAX_OUTPUTS_BYTES} bytes for one input"
                )
        return prepared

    def _prepare(self, output: Event | Alert, handler: str, topic: str | None) -> Prepared:
        kind = KIND_OF.get(type(output))
        if kind is None:
            raise self._unknown(output, handler)
        if kind not in self._publishes and kind != "alert":  # every agent may
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
                f"{handler} a {type(output).__name__} that readers could not decode: "
                + explain(type(output), {name: getattr(output, name) for name in output.__slots__}, error)
            ) from None
        return Prepared(subject, data, kind, output)

    def _unknown(self, output: Any, handler: str) -> BadOutput:
        return BadOutput(
            f"{handler} {format_value(output)} ({type(output).__name__}), expected None or messages of the kinds "
            f"that agent {self._name} publishes: {self._expected}"
        )
