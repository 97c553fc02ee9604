"""Spans to a collector by OTLP, with OpenTelemetry's SDK and exporters. Imported only where spans are exported."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from opentelemetry.context import Context as OtelContext
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace import Span as SdkSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from bus import __version__
from bus.otlp_exporters import Complaints, make_exporter, make_resource

if TYPE_CHECKING:
    from bus.tracing import Context, Settings, Span

KINDS = {"internal": SpanKind.INTERNAL, "producer": SpanKind.PRODUCER, "consumer": SpanKind.CONSUMER}
SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class _Ids(IdGenerator):
    """Gives the SDK the ids that our spans have already."""

    next: Context | None = None

    def generate_trace_id(self) -> int:
        return int(self.next.trace_id, 16) if self.next else random.getrandbits(128)

    def generate_span_id(self) -> int:
        return int(self.next.span_id, 16) if self.next else random.getrandbits(64)


class _Ended(SpanProcessor):
    """Collects what has ended."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_start(self, span: SdkSpan, parent_context: OtelContext | None = None) -> None:
        """Nothing to do: it ends at once."""

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


def _remote(context: Context) -> SpanContext:
    return SpanContext(int(context.trace_id, 16), int(context.span_id, 16), is_remote=True, trace_flags=SAMPLED)


class OtlpExport:
    """Exports spans of the process that `resource` describes; what the environment says of it wins."""

    def __init__(self, settings: Settings, resource: dict[str, Any]) -> None:
        """Make the exporter.

        Raises:
            ValueError: the protocol is unknown or not installed.
        """
        self._complaints = Complaints()
        self._exporter: SpanExporter = make_exporter(settings.protocol, "traces")
        self._ids, self._ended = _Ids(), _Ended()
        provider = TracerProvider(
            sampler=ALWAYS_ON,  # who is sampled was decided before
            resource=make_resource(resource),
            id_generator=self._ids,
            shutdown_on_exit=False,
        )
        provider.add_span_processor(self._ended)
        self._tracer = provider.get_tracer("signalmesh", __version__)

    @property
    def why(self) -> str:
        """What the exporter has said of its newest failure; empty where it said nothing."""
        return self._complaints.newest

    def send(self, spans: list[Span]) -> bool:
        """Export them, with the exporter's own retries and time-out; False if they are lost."""
        self._ended.spans = []
        for span in spans:
            self._make(span)
        return self._exporter.export(self._ended.spans) is SpanExportResult.SUCCESS

    def _make(self, span: Span) -> None:
        context = OtelContext()
        if span.parent:
            parent = span.context._replace(span_id=span.parent)
            context = set_span_in_context(NonRecordingSpan(_remote(parent)), context)
        self._ids.next = span.context
        made = self._tracer.start_span(
            span.name,
            context,
            KINDS[span.kind],
            span.attributes,
            [Link(_remote(linked), attributes) for linked, attributes in span.links],
            start_time=span.start_ns,
            record_exception=False,
        )
        for name, at_ns, attributes in span.events:
            made.add_event(name, attributes, at_ns)
        if span.error:
            made.set_status(Status(StatusCode.ERROR, span.error))
        made.end(span.end_ns)

    def shutdown(self) -> None:
        """Break off a retry that is under way."""
        self._exporter.shutdown()
        self._complaints.close()
