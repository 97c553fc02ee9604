"""Tracing of one process: which traces are sampled, and where finished spans go.

Imports OpenTelemetry only for the first exported span. Spans go into a queue (bus/observability/span_queue.py), and a
separate thread exports them by OTLP (bus/observability/span_exporter.py). Without an endpoint there is no tracer. The
process that publishes the first message of a trace decides whether it is sampled: only then the message has a
`traceparent`.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from bus.observability.otel_env import Settings, forget_count_limits, read_settings
from bus.observability.span_queue import Export, SpanQueue
from bus.observability.spans import Context, Span, Value, derived_id

TRACES_PER_S = 50.0
"""Sampled traces a second without a named sampler: all at trading rates, a bounded cost at any rate."""
Sampler = Callable[[int], bool]
"""Called with the id of a new trace: whether it is sampled."""

# -- sampling


class RateLimiter:
    """Samples at most `rate` traces a second: a bucket of that many tokens, initially one."""

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

    The process that started a trace has decided about it, so `parentbased_…` equals the sampler that it is based on.

    Raises:
        ValueError: the name is unknown, or the argument is invalid; the message names the variable.
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


def modules_to_preload(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Modules that traced processes need: imported before the fork, so that they share the memory."""
    settings = read_settings(environment)
    if settings is None:
        return ()
    # without gRPC: a process that uses it must not be forked
    if settings.protocol == "grpc":
        return ("bus.observability.span_exporter",)
    # the exporter imports requests only when it is created: 35 ms and some MiB in every agent
    return ("bus.observability.span_exporter", "opentelemetry.exporter.otlp.proto.http.trace_exporter", "requests")


# -- the tracer of a process


def make_export(settings: Settings, resource: dict[str, Any]) -> Export:
    """Create the OTLP exporter of this process; called by the queue's thread, with the first span.

    Raises:
        ValueError: the protocol is unknown or not installed.
    """
    forget_count_limits(os.environ)
    from bus.observability.span_exporter import (
        OtlpExport,  # imports OpenTelemetry: only here, and only when there is a span to export
    )

    return OtlpExport(settings, resource)


class Tracer:
    """Begins traces and takes finished spans. `resource` describes this process when the first span is exported."""

    def __init__(self, settings: Settings, resource: Callable[[], dict[str, Value]]) -> None:
        try:
            self._sample = make_sampler(settings.sampler, settings.sampler_argument)
        except ValueError:
            self._sample = RateLimiter(TRACES_PER_S)
        self.records_rare_events = not settings.sampler.strip().lower().endswith("always_off")
        """Whether rare events that start their own trace are recorded: all of them, unless nothing is sampled."""
        self._random = random.Random()  # noqa: S311 - ids; of this process, not of the one that it was forked from
        self.queue = SpanQueue(settings, resource, make_export)

    def new_trace(self, writer: str, number: int) -> Context | None:
        """The context of a first message, output `number` of `writer`; None: it is not sampled."""
        trace_id = self._random.getrandbits(128) or 1
        if not self._sample(trace_id):
            return None
        text = f"{trace_id:032x}"
        return Context(text, derived_id(text, f"{writer}:{number}"))

    def new_event(self, what: str) -> Context | None:
        """The context of the trace of a rare event; None: it is not recorded."""
        if not self.records_rare_events:
            return None
        text = f"{self._random.getrandbits(128) or 1:032x}"
        return Context(text, derived_id(text, what))

    def emit(self, span: Span) -> None:
        """Queue a finished span for export; never waits."""
        self.queue.put(span)


def open_tracer(environment: Mapping[str, str], service: str, resource: Callable[[], dict[str, Any]]) -> Tracer | None:
    """The tracer of this process, if the environment enables tracing; `resource` are further attributes."""
    settings = read_settings(environment)
    if settings is None:
        return None
    return Tracer(settings, lambda: settings.describe(service, resource()))
