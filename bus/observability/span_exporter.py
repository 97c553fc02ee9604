"""Exports spans by OTLP, with OpenTelemetry's SDK and exporters. Imported only when there is a span to export."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from bus import __version__
from bus.observability.otel_env import Settings, longest_value
from bus.observability.otlp import ExporterErrors, make_exporter, make_resource
from bus.observability.spans import Context, Span, Value

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.util.types import Attributes

KINDS = {"internal": SpanKind.INTERNAL, "producer": SpanKind.PRODUCER, "consumer": SpanKind.CONSUMER}
SAMPLED = TraceFlags(TraceFlags.SAMPLED)
UNSET = Status(StatusCode.UNSET)


def _context(span_id: str, of: Context, *, is_remote: bool = True) -> SpanContext:
    return SpanContext(int(of.trace_id, 16), int(span_id, 16), is_remote=is_remote, trace_flags=SAMPLED)


class OtlpExport:
    """Exports spans of the process that `resource` describes; the environment's values take precedence."""

    def __init__(self, settings: Settings, resource: dict[str, Any]) -> None:
        """Create the exporter.

        Raises:
            ValueError: the protocol is unknown or not installed.
        """
        self._errors = ExporterErrors("traces")
        self._exporter: SpanExporter = make_exporter(settings.protocol, "traces")
        self._resource = make_resource(resource)
        self._scope = InstrumentationScope("signalmesh", __version__)
        self._longest = longest_value(os.environ)

    @property
    def reason(self) -> str:
        """The exporter's message about its newest failure; empty without one."""
        return self._errors.newest

    def send(self, spans: list[Span]) -> bool:
        """Export them, with the exporter's own retries and timeout; False if they are lost."""
        return self._exporter.export([self._make(span) for span in spans]) is SpanExportResult.SUCCESS

    def _make(self, span: Span) -> ReadableSpan:
        # Without the SDK's tracer: sampling, ids and times are already decided, and its other work costs 25 us a span.
        return ReadableSpan(
            span.name,
            _context(span.context.span_id, span.context, is_remote=False),
            _context(span.parent, span.context) if span.parent else None,
            self._resource,
            self._bounded(span.attributes),
            [Event(name, self._bounded(attributes), at_ns) for name, at_ns, attributes in span.events],
            [Link(_context(linked.span_id, linked), self._bounded(attributes)) for linked, attributes in span.links],
            KINDS[span.kind],
            status=Status(StatusCode.ERROR, span.error) if span.error else UNSET,
            start_time=span.start_ns,
            end_time=span.end_ns,
            instrumentation_scope=self._scope,
        )

    def _bounded(self, attributes: Mapping[str, Value]) -> Attributes:
        if self._longest is None:
            return attributes
        return BoundedAttributes(attributes=attributes, max_value_len=self._longest)

    def shutdown(self) -> None:
        """Interrupt a running retry."""
        self._exporter.shutdown()
        self._errors.close()
