"""A collector of OTLP over HTTP, healthy or not, and questions about what it received."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, TypeVar

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric

from tests.support.page import Shown

GUARD_S = 60.0
Mode = Literal["well", "hanging", "unavailable", "unknown"]
"""hanging: accepts and never answers; unavailable: answers 503 to everything; unknown: 404."""
T = TypeVar("T")


@dataclass(frozen=True)
class Received:
    """A span as it came over the wire; ids in hexadecimal, `parent` empty for a root."""

    name: str
    trace: str
    id: str
    parent: str
    kind: int
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    resource: dict[str, Any]
    links: list[tuple[str, str, dict[str, Any]]]
    events: list[tuple[str, dict[str, Any]]]
    status: int
    problem: str

    @property
    def service(self) -> str:
        return str(self.resource["service.name"])


def _values(pairs: Any) -> dict[str, Any]:
    def value(pair: KeyValue) -> Any:
        return getattr(pair.value, pair.value.WhichOneof("value") or "string_value")

    return {pair.key: value(pair) for pair in pairs}


def read_request(body: bytes) -> list[Received]:
    """All spans of an export request."""
    found = []
    for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = _values(of_resource.resource.attributes)
        for scope in of_resource.scope_spans:
            for span in scope.spans:
                links = [(link.trace_id.hex(), link.span_id.hex(), _values(link.attributes)) for link in span.links]
                found.append(
                    Received(
                        name=span.name,
                        trace=span.trace_id.hex(),
                        id=span.span_id.hex(),
                        parent=span.parent_span_id.hex(),
                        kind=span.kind,
                        start_ns=span.start_time_unix_nano,
                        end_ns=span.end_time_unix_nano,
                        attributes=_values(span.attributes),
                        resource=resource,
                        links=links,
                        events=[(event.name, _values(event.attributes)) for event in span.events],
                        status=span.status.code,
                        problem=span.status.message,
                    )
                )
    return found


@dataclass(frozen=True)
class Measured:
    """One export of metrics as it came over the wire."""

    metrics: dict[str, Metric]
    resource: dict[str, Any]

    def display(self) -> Shown:
        """What a page for Prometheus would show of it."""
        return {key: value for metric in self.metrics.values() for key, value in _samples(metric)}


def _samples(metric: Metric) -> Iterator[tuple[tuple[str, tuple[str, ...]], float]]:
    def labels(point: Any, **more: str) -> tuple[str, ...]:
        return tuple(value for _, value in sorted({**_values(point.attributes), **more}.items()))

    for point in metric.gauge.data_points:
        yield (metric.name, labels(point)), point.as_double
    for point in metric.sum.data_points:
        yield (f"{metric.name}_total", labels(point)), point.as_double
    for of_buckets in metric.histogram.data_points:
        assert len(of_buckets.bucket_counts) == len(of_buckets.explicit_bounds) + 1
        bounds = [*map(str, of_buckets.explicit_bounds), "+Inf"]
        for bound, count in zip(bounds, accumulate(of_buckets.bucket_counts), strict=True):
            yield (f"{metric.name}_bucket", labels(of_buckets, le=bound)), count
        yield (f"{metric.name}_count", labels(of_buckets)), of_buckets.count
        yield (f"{metric.name}_sum", labels(of_buckets)), of_buckets.sum


def read_measured(body: bytes) -> Measured:
    """An export request of metrics, which is of one resource and scope."""
    [of_resource] = ExportMetricsServiceRequest.FromString(body).resource_metrics
    [scope] = of_resource.scope_metrics
    metrics = {metric.name: metric for metric in scope.metrics}
    assert len(metrics) == len(scope.metrics), "one name, one metric"
    return Measured(metrics, _values(of_resource.resource.attributes))


class OtlpCollector:
    """Takes POST /v1/traces and /v1/metrics. `requests` counts those that came, whatever became of them."""

    def __init__(self, mode: Mode = "well") -> None:
        self.mode = mode
        self.spans: list[Received] = []
        self.measured: list[Measured] = []
        self.requests = 0
        self.url = ""
        self.headers: dict[str, str] = {}
        self._more = asyncio.Event()
        self._server: asyncio.Server
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self, host: str = "127.0.0.1") -> None:
        self._server = await asyncio.start_server(self._serve, host, 0, limit=2**24)
        self.url = f"http://{host}:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """As a collector that dies: its port refuses from now on."""
        self._server.close()
        for writer in list(self._writers):
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while await self._answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            with contextlib.suppress(ConnectionError):
                writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.requests += 1
        self.headers = headers
        self._more.set()
        if self.mode == "hanging":
            await reader.read()  # until they give up
            return False
        answer, status = b"", b"404 Not Found" if self.mode == "unknown" else b"503 Service Unavailable"
        if self.mode == "well":
            assert headers.get("content-type") == "application/x-protobuf", head
            if head[0].endswith("/v1/metrics HTTP/1.1"):
                self.measured.append(read_measured(body))
                answer = ExportMetricsServiceResponse().SerializeToString()
            else:
                assert head[0] == "POST /v1/traces HTTP/1.1", head[0]
                self.spans += read_request(body)
                answer = ExportTraceServiceResponse().SerializeToString()
            status = b"200 OK"
            self._more.set()
        writer.write(b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status, len(answer), answer))
        await writer.drain()
        return True

    async def until(self, what: str, found: Callable[[], T | None]) -> T:
        """Wait until `found` returns something true, looking after every request."""
        try:
            async with asyncio.timeout(GUARD_S):
                while not (result := found()):
                    self._more.clear()
                    await self._more.wait()
                return result
        except TimeoutError:
            kinds = Counter((span.service, span.name) for span in self.spans)
            raise AssertionError(f"waited in vain: {what}; spans: {kinds}") from None

    async def more(self) -> None:
        """Wait for a request after those that were waited for."""
        await self._more.wait()
        self._more.clear()

    # -- what came

    def traces(self) -> dict[str, dict[str, Received]]:
        """Spans by trace and id. A span that came twice is one span."""
        traces: dict[str, dict[str, Received]] = {}
        for span in self.spans:
            traces.setdefault(span.trace, {})[span.id] = span
        return traces

    def of_round(self, number: int) -> dict[str, Received] | None:
        """The trace of the tick `number`, if it has come."""
        for trace in self.traces().values():
            if any(s.attributes.get("mesh.round") == number for s in trace.values() if s.name == "send swarm.market"):
                return trace
        return None


@asynccontextmanager
async def collecting(mode: Mode = "well") -> AsyncIterator[OtlpCollector]:
    collector = OtlpCollector(mode)
    await collector.start()
    try:
        yield collector
    finally:
        await collector.stop()


def orphans(trace: dict[str, Received]) -> list[Received]:
    """Spans whose parent is not there."""
    return [span for span in trace.values() if span.parent and span.parent not in trace]


def roots(trace: dict[str, Received]) -> list[Received]:
    return [span for span in trace.values() if not span.parent]
