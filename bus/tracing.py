"""Tracing: the context that travels with messages, who is sampled, spans as plain data, and what OTEL_* variables say.

Nothing of OpenTelemetry is imported here. Spans are put into a queue (bus/span_queue.py), and a thread of their own
makes OTLP of them (bus/otlp.py); without an endpoint there is no tracer at all.

Whether a trace is sampled is decided once, by who publishes its first message. Ids of spans are derived from the trace
and from the message that they tell of, so that whoever has the message knows the span: an incarnation can export again
what its predecessor may not have exported, and it is the same span.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from bus.exporting import Exporting, read_exporting, read_number
from bus.span_queue import SpanQueue

TRACES_PER_S = 50.0
"""Sampled traces a second where no sampler is named: all at trading rates, a bounded cost at any rate."""
QUEUE_SPANS = 2048
BATCH_SPANS = 512
DELAY_S = 0.5
"""How long a span may wait for others before it is exported; shorter than the SDK's 5 s, as a death costs less then."""

Kind = Literal["internal", "producer", "consumer"]
Value = str | int | float | bool
Sampler = Callable[[int], bool]
"""Called with the id of a new trace: whether it is sampled."""

_LENGTH = 55
"""Of a `traceparent` of version 00."""
_SPAN_BITS = 2**64 - 1
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
    """What a `traceparent` header says; None where there is none, or none that the standard allows."""
    found = _TRACEPARENT.fullmatch(header) if header else None
    if found is None or (found[1] == "00" and found[5]):
        return None
    return Context(found[2], found[3], bool(int(found[4], 16) & 1))


def read_sampled(header: str) -> tuple[Context | None, str]:
    """The context of a sampled trace, and the header as far as it may be passed on: empty where it is none.

    Of a header that says "not sampled", as nearly all do at full speed, nothing else is looked at.
    """
    if not header or (len(header) == _LENGTH and header.endswith("-00")):
        return None, header
    context = read_context(header)
    if context is None:
        return None, ""
    return (context if context.sampled else None), header


def derived_id(trace_id: str, what: str) -> str:
    """The id of the span that tells of `what` in this trace: the same for whoever computes it."""
    return hashlib.blake2b(f"{trace_id} {what}".encode(), digest_size=8).hexdigest()


@dataclass(slots=True, kw_only=True)
class Span:
    """One finished step. `parent` is a span of the same trace, empty for the first one. Times in ns since 1970.

    `links` and `events` carry attributes; `error` is why it failed. `settled` is set, by the exporting thread, once it
    is exported or given up.
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
    settled: bool = False


# -- sampling


class RateLimiter:
    """Samples at most `rate` traces a second: a bucket of that many tokens, with one at the beginning."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = rate, clock
        self._tokens, self._at = min(1.0, rate), clock()

    def __call__(self, _: int) -> bool:
        at = self._clock()
        self._tokens = min(max(1.0, self._rate), self._tokens + (at - self._at) * self._rate)
        self._at = at
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Ratio:
    """Samples a fraction of all traces, by their id, as OpenTelemetry's TraceIdRatioBased does."""

    def __init__(self, ratio: float) -> None:
        self._bound = round(ratio * 2**64)

    def __call__(self, trace_id: int) -> bool:
        return trace_id & (2**64 - 1) < self._bound


def make_sampler(name: str, argument: str) -> Sampler:
    """The sampler that OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG name.

    A trace that comes from outside has been decided on there, so `parentbased_…` is no other than what it is based on.

    Raises:
        ValueError: there is none of that name, or its argument is wrong; the message names the variable.
    """
    base = name.strip().lower().removeprefix("parentbased_")
    if base in ("", "rate_limiting"):
        rate = _argument(argument, "traces a second, 0 or more") if base and argument else TRACES_PER_S
        return RateLimiter(rate)
    if base in ("always_on", "always_off"):
        return Ratio(float(base == "always_on"))
    if base == "traceidratio":
        return Ratio(_argument(argument, "a ratio from 0 to 1", 1) if argument else 1)
    raise ValueError(
        f"OTEL_TRACES_SAMPLER={name}: expected always_on, always_off, traceidratio, one of these with parentbased_ in "
        "front, or rate_limiting"
    )


def _argument(text: str, expected: str, most: float = sys.float_info.max) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= (value := float(text)) <= most:
            return value
    raise ValueError(f"OTEL_TRACES_SAMPLER_ARG={text}: expected {expected}")


# -- settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(Exporting):
    """What the environment says about tracing."""

    sampler: str = ""
    sampler_argument: str = ""
    queue_spans: int = QUEUE_SPANS
    batch_spans: int = BATCH_SPANS
    delay_s: float = DELAY_S


def read_settings(environment: Mapping[str, str]) -> Settings | None:
    """What the OTEL_* variables ask for; None: no traces."""
    exporting = read_exporting(environment, "traces")
    if exporting is None:
        return None
    queue = int(read_number(environment, "OTEL_BSP_MAX_QUEUE_SIZE", QUEUE_SPANS, whole=True))
    batch = int(read_number(environment, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", BATCH_SPANS, whole=True))
    return Settings(
        protocol=exporting.protocol,
        named_service=exporting.named_service,
        sampler=environment.get("OTEL_TRACES_SAMPLER", ""),
        sampler_argument=environment.get("OTEL_TRACES_SAMPLER_ARG", ""),
        queue_spans=queue,
        batch_spans=min(queue, batch),
        delay_s=read_number(environment, "OTEL_BSP_SCHEDULE_DELAY", DELAY_S * 1000) / 1000,
    )


def modules_to_preload(environment: Mapping[str, str]) -> tuple[str, ...]:
    """What the processes forked by a server will need if they trace, so that they share its memory."""
    settings = read_settings(environment)
    if settings is None:
        return ()
    # gRPC is left out: a process that has it in use must not be forked
    if settings.protocol == "grpc":
        return ("bus.otlp",)
    # the exporter imports requests only when it is made: 35 ms and some MiB in every agent
    return ("bus.otlp", "opentelemetry.exporter.otlp.proto.http.trace_exporter", "requests")


# -- the tracer of a process


class Tracer:
    """Begins traces and takes finished spans. `resource` says who we are, when the first span is exported."""

    def __init__(self, settings: Settings, resource: Callable[[], dict[str, Value]]) -> None:
        try:
            self._sample = make_sampler(settings.sampler, settings.sampler_argument)
        except ValueError:
            self._sample = RateLimiter(TRACES_PER_S)
        self.telling = not settings.sampler.strip().lower().endswith("always_off")
        """Whether rare events that begin a trace of their own are told: all of them, unless nothing is sampled."""
        self._random = random.Random()  # noqa: S311 - ids; of this process, not of the one that it was forked from
        self.queue = SpanQueue(settings, resource)

    def new_trace(self, writer: str, number: int) -> tuple[Context | None, str]:
        """The context of a first message, output `number` of `writer`, if it is sampled; and its header."""
        bits = self._random.getrandbits(192)
        trace_id = bits >> 64 or 1
        if not self._sample(trace_id):
            return None, f"00-{trace_id:032x}-{bits & _SPAN_BITS or 1:016x}-00"
        text = f"{trace_id:032x}"
        context = Context(text, derived_id(text, f"{writer}:{number}"))
        return context, context.header

    def new_event(self, what: str) -> Context | None:
        """The context of the trace of a rare event; None: it is not to be told."""
        if not self.telling:
            return None
        text = f"{self._random.getrandbits(128) or 1:032x}"
        return Context(text, derived_id(text, what))

    def emit(self, span: Span) -> None:
        """Have a finished span exported; never waits."""
        self.queue.put(span)


def open_tracer(environment: Mapping[str, str], service: str, resource: Callable[[], dict[str, Any]]) -> Tracer | None:
    """The tracer of this process, if the environment asks for one; `resource` are further attributes."""
    settings = read_settings(environment)
    if settings is None:
        return None
    return Tracer(settings, lambda: settings.describe(service, resource()))
