"""Figures over the wire, by both protocols: what arrives is what the page shows."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from prometheus_client import generate_latest

from bus.exporting import Exporting
from bus.messages import Heartbeat
from bus.subjects import Subjects
from coordinator.beat_figures import BeatFigures
from coordinator.exporting import MetricsExport
from coordinator.otlp_metrics import OtlpMetrics
from coordinator.stream_figures import Figures, Names
from tests.support.collector import Measured, collecting, read_measured
from tests.support.page import parsed

BEGAN_NS, AT_NS = 1_000_000_000, 2_000_000_000
CUMULATIVE = 2


def some_figures() -> Figures:
    """Counters, gauges and histograms, with labels and without, and what heartbeats tell; the clock stands still."""
    figures = Figures(Subjects("swarm"), Names(("momentum", "base")))
    figures.messages.labels("market").inc(3)
    figures.messages.labels("signal").inc(2)
    figures.degraded_decisions.inc()
    for latency_s in (0.0001, 0.004, 0.004, 0.3, 60.0):
        figures.hops.labels("signal", "momentum").observe(latency_s)
    figures.hops.labels("decision", "coordinator").observe(0.002)
    figures.tick_to_decision.observe(0.01)
    figures.stream_bytes.set(12_345)
    beats = BeatFigures(figures.registry, figures.names, lambda: 7.0)
    beat: dict[str, Any] = {"agent_id": "a", "epoch": 5, "sequence": 1, "progress": 1, "interval_ms": 100, "pid": 1}
    beats.take(Heartbeat(agent="momentum", status="live", sandbox="base", outputs=9, cpu_s=1.25, rss_mb=2.0, **beat))
    beats.take(Heartbeat(agent="base", status="live", sandbox="base", role="sandbox", uptime_s=3.5, **beat))
    return figures


def send(figures: Figures, exporting: Exporting) -> bool:
    sender = OtlpMetrics(exporting, {"service.name": "metrics", "mesh.sandbox": "ours"})
    try:
        return sender.send(figures.registry.collect(), BEGAN_NS, AT_NS, 10.0)
    finally:
        sender.shutdown()


def assert_same(measured: Measured, figures: Figures) -> None:
    shown = parsed(generate_latest(figures.registry).decode())
    assert measured.shown() == shown
    assert len(shown) > 60
    metrics = measured.metrics
    hops = metrics["signalmesh_hop_latency_seconds"]
    assert (hops.unit, hops.description[:20]) == ("s", "From the storing of ")
    assert hops.histogram.aggregation_temporality == CUMULATIVE
    [point] = [point for point in hops.histogram.data_points if point.count == 5]
    assert (point.start_time_unix_nano, point.time_unix_nano) == (BEGAN_NS, AT_NS)
    assert sum(point.bucket_counts) == 5
    assert point.bucket_counts[-1] == 1, "above all bounds"
    assert not point.HasField("min")
    messages = metrics["signalmesh_messages"].sum
    assert (messages.is_monotonic, messages.aggregation_temporality) == (True, CUMULATIVE)
    assert {point.start_time_unix_nano for point in messages.data_points} == {BEGAN_NS}
    assert {p.start_time_unix_nano for p in metrics["signalmesh_agent_cpu_seconds"].sum.data_points} == {0}
    assert metrics["signalmesh_stream_bytes"].unit == "By"
    assert metrics["signalmesh_messages"].unit == ""


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "authorization=Bearer%20x")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,mesh.sandbox=theirs")


async def test_by_http(monkeypatch: pytest.MonkeyPatch):
    figures = some_figures()
    async with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        assert await asyncio.to_thread(send, figures, Exporting())
        [measured] = collector.measured
        assert_same(measured, figures)
        assert collector.headers["authorization"] == "Bearer x"
        told = {key: measured.resource[key] for key in ("service.name", "deployment.environment.name", "mesh.sandbox")}
        assert told == {
            "service.name": "metrics", "deployment.environment.name": "test", "mesh.sandbox": "theirs",
        }  # fmt: skip


def test_who_does_not_export_imports_nothing_of_it():
    look = "import sys, coordinator.observing; print([m for m in sys.modules if m.startswith('opentelemetry')])"
    said = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"


class Servicer(metrics_service_pb2_grpc.MetricsServiceServicer):
    def __init__(self) -> None:
        self.requests: list[ExportMetricsServiceRequest] = []
        self.metadata: dict[str, object] = {}

    def Export(self, request, context):  # noqa: N802
        self.requests.append(request)
        self.metadata = dict(context.invocation_metadata())
        return ExportMetricsServiceResponse()


def test_by_grpc(monkeypatch: pytest.MonkeyPatch):
    figures, servicer = some_figures(), Servicer()
    server = grpc.server(ThreadPoolExecutor(1))
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        assert send(figures, Exporting(protocol="grpc"))
        assert_same(read_measured(servicer.requests[0].SerializeToString()), figures)
        assert servicer.metadata["authorization"] == "Bearer x"
    finally:
        server.stop(None)


class Told:
    """In the place of the logger: (event, level, fields)."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def __getattr__(self, level: str) -> Any:
        return lambda event, **fields: self.lines.append((event, level, fields))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    told = Told()
    monkeypatch.setattr("coordinator.exporting.log", told)
    return told


async def test_an_ill_collector_is_told_of_once_and_shows_no_secret(monkeypatch: pytest.MonkeyPatch, told: Told):
    figures = some_figures()
    async with collecting("unknown") as collector:
        secret = collector.url.replace("//", "//me:s3cret@") + "/s3cret"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", f"{secret}/v1/metrics")
        export = MetricsExport(Exporting(), {"OTEL_METRIC_EXPORT_INTERVAL": "10"}, figures.registry, dict)
        await collector.until("some attempts", lambda: collector.requests > 5)
        [(event, level, fields)] = told.lines
        assert (event, level) == ("metrics_not_exported", "warning")
        assert "404" in fields["why"]
        assert "s3cret" not in str(told.lines)
        collector.mode = "well"
        await collector.until("it is taken", lambda: len(collector.measured) > 1)
        assert [line[:2] for line in told.lines[1:]] == [("metrics_exported_again", "info")]
        assert told.lines[1][2]["failed"] >= 5
        collector.mode = "hanging"
        requests = collector.requests
        await collector.until("it hangs", lambda: collector.requests > requests)
        async with asyncio.timeout(8):  # the exporter itself would wait for ten
            await asyncio.to_thread(export.close)
        assert collector.measured[-1].shown() == parsed(generate_latest(figures.registry).decode())


async def test_a_collector_that_is_gone_is_named_as_such(monkeypatch: pytest.MonkeyPatch, told: Told):
    async with collecting() as collector:
        await collector.stop()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", f"{collector.url}/s3cret/v1/metrics")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "8")
        export = MetricsExport(Exporting(), {}, some_figures().registry, dict)
        export._ending.set()
        await asyncio.to_thread(export._thread.join, 20)
        [(event, _, fields)] = told.lines
        assert event == "metrics_not_exported"
        assert "ConnectionError" in fields["why"]
        assert "s3cret" not in str(fields)


def test_a_protocol_that_is_unknown_costs_the_export_only(told: Told):
    export = MetricsExport(Exporting(protocol="http/json"), {}, some_figures().registry, dict)
    export._thread.join(20)
    export.close()
    [(event, level, fields)] = told.lines
    assert (event, level) == ("metrics_export_failed", "error")
    assert "http/json: expected http/protobuf or grpc" in fields["problem"]
