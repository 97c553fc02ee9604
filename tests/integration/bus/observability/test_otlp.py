"""Spans over the wire, by both protocols, as the standard variables say."""

from __future__ import annotations

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from bus.observability.otel_env import Settings
from bus.observability.span_exporter import OtlpExport
from bus.observability.spans import Context, Span
from tests.support.collector import Received, collecting, read_request

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = Span(
    name="send swarm.decision",
    context=Context(TRACE, "00f067aa0ba902b7"),
    parent="00000000000000aa",
    kind="producer",
    start_ns=1_000_000_000,
    end_ns=1_000_000_500,
    attributes={"mesh.round": 7, "mesh.symbol": "BTC/USD"},
    links=[(Context("a" * 32, "b" * 16), {"mesh.voter": "x"})],
    events=[("absent", 1_000_000_100, {"mesh.voter": "y"})],
    error="it failed",
)


def assert_same(received: Received) -> None:
    assert (received.trace, received.id, received.parent) == (TRACE, "00f067aa0ba902b7", "00000000000000aa")
    assert (received.name, received.kind) == ("send swarm.decision", 4)
    assert (received.start_ns, received.end_ns) == (1_000_000_000, 1_000_000_500)
    assert received.attributes == {"mesh.round": 7, "mesh.symbol": "BTC/USD"}
    assert received.links == [("a" * 32, "b" * 16, {"mesh.voter": "x"})]
    assert received.events == [("absent", {"mesh.voter": "y"})]
    assert (received.status, received.problem) == (2, "it failed")


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,mesh.sandbox=theirs")


async def test_by_http(monkeypatch: pytest.MonkeyPatch):
    async with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        export = OtlpExport(Settings(), {"service.name": "coordinator", "mesh.sandbox": "ours"})
        assert await asyncio.to_thread(export.send, [SPAN])
        [received] = collector.spans
        assert_same(received)
        assert collector.headers["authorization"] == "Bearer x"
        named = {key: received.resource[key] for key in ("service.name", "deployment.environment.name", "mesh.sandbox")}
        assert named == {
            "service.name": "coordinator", "deployment.environment.name": "test", "mesh.sandbox": "theirs",
        }  # fmt: skip
        collector.mode = "unavailable"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
        assert not await asyncio.to_thread(OtlpExport(Settings(), {}).send, [SPAN])


async def test_a_service_named_by_the_environment(monkeypatch: pytest.MonkeyPatch):
    async with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "desk")
        assert await asyncio.to_thread(OtlpExport(Settings(), {"mesh.agent": "coordinator"}).send, [SPAN])
        assert collector.spans[0].service == "desk"


async def test_long_values_are_cut_as_the_environment_requests(monkeypatch: pytest.MonkeyPatch):
    async with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "3")
        assert await asyncio.to_thread(OtlpExport(Settings(), {}).send, [SPAN])
        assert collector.spans[0].attributes == {"mesh.round": 7, "mesh.symbol": "BTC"}


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "abc"),
        ("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "-5"),
        ("OTEL_SPAN_LINK_COUNT_LIMIT", "-5"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many"),
    ],
)
async def test_a_wrong_limit_loses_no_span(monkeypatch: pytest.MonkeyPatch, variable: str, value: str):
    async with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv(variable, value)
        assert await asyncio.to_thread(OtlpExport(Settings(), {}).send, [SPAN])
        assert collector.spans[0].attributes == SPAN.attributes


IMPORTING = """
import time
from bus.observability.span_queue import SpanQueue
from bus.observability.tracer import make_export
from bus.observability.otel_env import Settings
from bus.observability.spans import Context, Span
from prometheus_client import CollectorRegistry
from bus.observability.otel_env import Exporting
from coordinator.telemetry.otlp_push import MetricsExport
queue = SpanQueue(Settings(), dict, make_export)
queue.put(Span(name='decide', context=Context('a' * 32, 'b' * 16), start_ns=1, end_ns=2))
assert queue.flush(20)
MetricsExport(Exporting(), {}, CollectorRegistry(), dict).close()
"""


async def test_the_sdk_is_imported_beside_a_wrong_limit_too():
    """It reads one of them when it is imported, and raises."""
    async with collecting() as collector:
        wrong = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "many"}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", IMPORTING, env={**os.environ, **wrong}, stderr=asyncio.subprocess.PIPE
        )
        _, printed = await process.communicate()
        assert (process.returncode, printed) == (0, b"")
        assert [span.name for span in collector.spans] == ["decide"]


class Servicer(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.metadata: dict[str, object] = {}

    def Export(self, request, context):  # noqa: N802
        self.requests.append(request)
        self.metadata = dict(context.invocation_metadata())
        return ExportTraceServiceResponse()


def test_by_grpc(monkeypatch: pytest.MonkeyPatch):
    servicer = Servicer()
    server = grpc.server(ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        export = OtlpExport(Settings(protocol="grpc"), {"service.name": "coordinator"})
        assert export.send([SPAN])
        export.shutdown()
        [received] = read_request(servicer.requests[0].SerializeToString())
        assert_same(received)
        assert received.service == "coordinator"
        assert servicer.metadata["authorization"] == "Bearer x"
    finally:
        server.stop(None)


def test_an_unknown_protocol_is_named():
    with pytest.raises(ValueError, match="http/json: expected http/protobuf or grpc"):
        OtlpExport(Settings(protocol="http/json"), {})
