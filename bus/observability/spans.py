"""Spans as plain data, and the trace context in message headers. Imports nothing of OpenTelemetry.

The id of a span is derived from the trace and the message that it describes: any process with the message can compute
it. A successor can therefore export again what its predecessor may not have exported, as the same span.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Kind = Literal["internal", "producer", "consumer"]
Value = str | int | float | bool

_LENGTH = 55
"""Length of a `traceparent` of version 00."""
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class Context(NamedTuple):
    """A span, as W3C Trace Context names it: hexadecimal ids of 16 and 8 bytes."""

    trace_id: str
    span_id: str
    sampled: bool = True

    @property
    def header(self) -> str:
        """The value of a `traceparent` header."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


def read_context(header: str | None) -> Context | None:
    """The context in a `traceparent` header; None if it is missing or malformed."""
    found = _TRACEPARENT.fullmatch(header) if header else None
    if found is None or (found[1] == "00" and found[5]):
        return None
    return Context(found[2], found[3], bool(int(found[4], 16) & 1))


def read_sampled(header: str) -> tuple[Context | None, str]:
    """The context if the trace is sampled, and the header to pass on: empty if it is invalid.

    A header with "not sampled" is not parsed further: at full speed nearly all are such headers.
    """
    if not header or (len(header) == _LENGTH and header.endswith("-00")):
        return None, header
    context = read_context(header)
    if context is None:
        return None, ""
    return (context if context.sampled else None), header


def derived_id(trace_id: str, what: str) -> str:
    """The id of the span that describes `what` in this trace: the same in every process that computes it."""
    return hashlib.blake2b(f"{trace_id} {what}".encode(), digest_size=8).hexdigest()


@dataclass(slots=True, kw_only=True)
class Span:
    """One finished step. `parent` is a span of the same trace, empty for the first one. Times in ns since 1970.

    `links` and `events` carry attributes; `error` is why it failed. The exporting thread sets `resolved` when the span
    is exported or dropped.
    """

    name: str
    context: Context
    parent: str = ""
    kind: Kind = "internal"
    start_ns: int = 0
    end_ns: int = 0
    attributes: dict[str, Value] = field(default_factory=dict)
    links: list[tuple[Context, dict[str, Value]]] = field(default_factory=list)
    events: list[tuple[str, int, dict[str, Value]]] = field(default_factory=list)
    error: str = ""
    resolved: bool = False
