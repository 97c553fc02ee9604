"""Metrics over the wire, by both protocols: what arrives is what the page shows."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
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

from bus.messages import Heartbeat
from bus.messages.subjects import Subjects
from bus.observability.otel_env import Exporting
from coordinator.telemetry.heartbeat_metrics import HeartbeatMetrics
from coordinator.telemetry.labels import Names
from coordinator.telemetry.otlp_convert import OtlpMetrics
from coordinator.telemetry.otlp_push import UNANSWERED_S, MetricsExport
from coordinator.telemetry.stream_metrics import StreamMetrics
from tests.support.collector import Measured, collecting, read_measured
from tests.support.page import parsed

BEGAN_NS, AT_NS = 1_000_000_000, 2_000_000_000
CUMULATIVE = 2


def some_metrics() -> StreamMetrics:
    """Counters, gauges and histograms, with labels and without, and what heartbeats tell; the clock stands still."""
    metrics = StreamMetrics(Subjects("swarm"), Names(("momentum", "base")))
    metrics.messages.labels("market").inc(3)
    metrics.messages.labels("signal").inc(2)
    metrics.degraded_decisions.inc()
    for latency_s in (0.0001, 0.004, 0.004, 0.3, 60.0):
        metrics.hops.labels("signal", "momentum").observe(latency_s)
    metrics.hops.labels("decision", "coordinator").observe(0.002)
    metrics.tick_to_decision.observe(0.01)
    metrics.stream_bytes.set(12_345)
    heartbeats = HeartbeatMetrics(metrics.registry, metrics.names, lambda: 7.0)
    heartbeat: dict[str, Any] = {
        "agent_id": "a",
        "epoch": 5,
        "sequence": 1,
        "progress": 1,
        "interval_ms": 100,
        "pid": 1,
    }
    heartbeats.take(
        Heartbeat(agent="momentum", status="live", sandbox="base", outputs=9, cpu_s=1.25, rss_mb=2.0, **heartbeat)
    )
    heartbeats.take(Heartbeat(agent="base", status="live", sandbox="base", role="sandbox", uptime_s=3.5, **heartbeat))
    return metrics


def send(metrics: StreamMetrics, exporting: Exporting) -> bool:
    sender = OtlpMetrics(exporting, {"service.name": "metrics", "mesh.sandbox": "ours"})
    try:
        return sender.send(metrics.registry.collect(), BEGAN_NS, AT_NS, 10.0)
    finally:
        sender.shutdown()


def assert_same(measured: Measured, metrics: StreamMetrics) -> None:
    result = parsed(generate_latest(metrics.registry).decode())
    assert measured.display() == result
    assert len(result) > 60
    received = measured.metrics
    hops = received["signalmesh_hop_latency_seconds"]
    assert (hops.unit, hops.description[:20]) == ("s", "From storing an inpu")
    assert hops.histogram.aggregation_temporality == CUMULATIVE
    [point] = [point for point in hops.histogram.data_points if point.count == 5]
    assert (point.start_time_unix_nano, point.time_unix_nano) == (BEGAN_NS, AT_NS)
    assert sum(point.bucket_counts) == 5
    assert point.bucket_counts[-1] == 1, "above all bounds"
    assert not point.HasField("min")
    messages = received["signalmesh_messages"].sum
    assert (messages.is_monotonic, messages.aggregation_temporality) == (True, CUMULATIVE)
    assert {point.start_time_unix_nano for point in messages.data_points} == {BEGAN_NS}
    assert {p.start_time_unix_nano for p in received["signalmesh_agent_cpu_seconds"].sum.data_points} == {0}
    assert received["signalmesh_stream_bytes"].unit == "By"
    assert received["signalmesh_messages"].unit == ""


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "authorization=Bearer%20x")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,mesh.sandbox=theirs")


async def test_by_http(monkeypatch: pytest.MonkeyPatch):
    metrics = some_metrics()
    async with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        assert await asyncio.to_thread(send, metrics, Exporting())
        [measured] = collector.measured
        assert_same(measured, metrics)
        assert collector.headers["authorization"] == "Bearer x"
        found = {key: measured.resource[key] for key in ("service.name", "deployment.environment.name", "mesh.sandbox")}
        assert found == {
            "service.name": "metrics", "deployment.environment.name": "test", "mesh.sandbox": "theirs",
        }  # fmt: skip


def test_a_process_that_does_not_export_imports_no_opentelemetry():
    look = (
        "import sys, coordinator.telemetry.metrics_role; "
        "print([m for m in sys.modules if m.startswith('opentelemetry')])"
    )
    printed = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert printed.stdout == "[]\n"


class Servicer(metrics_service_pb2_grpc.MetricsServiceServicer):
    """A collector by gRPC. `refusals`: so many requests are answered with UNAVAILABLE; while `hanging`, none is."""

    def __init__(self) -> None:
        self.requests: list[ExportMetricsServiceRequest] = []
        self.metadata: dict[str, object] = {}
        self.refusals = 0
        self.requested, self.freed = threading.Event(), threading.Event()
        self.freed.set()

    def Export(self, request, context):  # noqa: N802
        self.requested.set()
        self.freed.wait()
        if self.refusals:
            self.refusals -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        self.requests.append(request)
        self.metadata = dict(context.invocation_metadata())
        return ExportMetricsServiceResponse()


@pytest.fixture
def servicer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Servicer]:
    servicer, server = Servicer(), grpc.server(ThreadPoolExecutor(1))
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    yield servicer
    servicer.freed.set()
    server.stop(None)


def test_by_grpc(servicer: Servicer):
    metrics = some_metrics()
    assert send(metrics, Exporting(protocol="grpc"))
    assert_same(read_measured(servicer.requests[0].SerializeToString()), metrics)
    assert servicer.metadata["authorization"] == "Bearer x"


@pytest.mark.slow
def test_the_last_export_by_grpc_succeeds_while_the_collector_starts(servicer: Servicer, log: LogLines):
    metrics, servicer.refusals = some_metrics(), 2  # the exporter asks again after one second, and after two more
    export = MetricsExport(Exporting(protocol="grpc"), {}, metrics.registry, dict)
    export.close()
    request = servicer.requests[-1]
    assert read_measured(request.SerializeToString()).display() == parsed(generate_latest(metrics.registry).decode())
    assert log.lines == []


def test_the_end_does_not_wait_long_for_a_collector_that_never_answered(
    servicer: Servicer, log: LogLines, monkeypatch: pytest.MonkeyPatch
):
    servicer.freed.clear()
    export = MetricsExport(Exporting(protocol="grpc"), {}, some_metrics().registry, dict)
    assert servicer.requested.wait(20), "the first export is immediate"
    joined: list[float | None] = []
    join = export._thread.join

    def noted(timeout: float | None = None) -> None:
        joined.append(timeout)
        join(0)

    monkeypatch.setattr(export._thread, "join", noted)
    assert export._unaccepted_since is not None
    export._unaccepted_since -= 100
    export.close()
    assert joined == [UNANSWERED_S]
    [(event, _, fields)] = log.lines
    assert (event, fields["why"]) == (
        "metrics_not_exported",
        "the collector did not accept the last export within 0.5 s",
    )
    servicer.freed.set()


def test_an_end_that_stops_waiting_for_the_collector_is_logged(servicer: Servicer, log: LogLines):
    servicer.freed.clear()
    export = MetricsExport(Exporting(protocol="grpc"), {}, some_metrics().registry, dict)
    export._ending.set()
    assert servicer.requested.wait(20)
    export.close(0.1)
    export._thread.join(20)
    assert not export._thread.is_alive(), "the request was broken off"
    [(event, level, fields)] = log.lines
    assert (event, level) == ("metrics_not_exported", "warning")
    assert "did not accept the last export" in fields["why"]


class LogLines:
    """In the place of the logger: (event, level, fields)."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def __getattr__(self, level: str) -> Any:
        return lambda event, **fields: self.lines.append((event, level, fields))


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> LogLines:
    log = LogLines()
    monkeypatch.setattr("coordinator.telemetry.otlp_push.log", log)
    return log


@pytest.mark.slow
async def test_a_failing_collector_is_logged_once_and_shows_no_secret(monkeypatch: pytest.MonkeyPatch, log: LogLines):
    metrics = some_metrics()
    async with collecting("unknown") as collector:
        secret = collector.url.replace("//", "//me:s3cret@") + "/s3cret"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", f"{secret}/v1/metrics")
        export = MetricsExport(Exporting(), {"OTEL_METRIC_EXPORT_INTERVAL": "10"}, metrics.registry, dict)
        await collector.until("some attempts", lambda: collector.requests > 5)
        [(event, level, fields)] = log.lines
        assert (event, level) == ("metrics_not_exported", "warning")
        assert "404" in fields["why"]
        assert "s3cret" not in str(log.lines)
        collector.mode = "well"
        await collector.until("it is taken", lambda: len(collector.measured) > 1)
        assert [line[:2] for line in log.lines[1:]] == [("metrics_exported_again", "info")]
        assert log.lines[1][2]["failed"] >= 5
        collector.mode = "hanging"
        requests = collector.requests
        await collector.until("it hangs", lambda: collector.requests > requests)
        async with asyncio.timeout(8):  # the exporter itself would wait for ten
            await asyncio.to_thread(export.close)
        assert collector.measured[-1].display() == parsed(generate_latest(metrics.registry).decode())


async def test_a_collector_that_is_gone_is_named_as_such(monkeypatch: pytest.MonkeyPatch, log: LogLines):
    async with collecting() as collector:
        await collector.stop()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", f"{collector.url}/s3cret/v1/metrics")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "2")
        export = MetricsExport(Exporting(), {}, some_metrics().registry, dict)
        export._ending.set()
        await asyncio.to_thread(export._thread.join, 20)
        [(event, _, fields)] = log.lines
        assert event == "metrics_not_exported"
        assert "ConnectionError" in fields["why"]
        assert "s3cret" not in str(fields)


def test_a_protocol_that_is_unknown_costs_the_export_only(log: LogLines):
    export = MetricsExport(Exporting(protocol="http/json"), {}, some_metrics().registry, dict)
    export._thread.join(20)
    export.close()
    [(event, level, fields)] = log.lines
    assert (event, level) == ("metrics_export_failed", "error")
    assert "http/json: expected http/protobuf or grpc" in fields["problem"]


BROKEN_OFF = """
import os, sys
from prometheus_client import CollectorRegistry, Gauge
from bus.observability.otel_env import Exporting
from bus.observability.logging import set_up_logs
from coordinator.telemetry.otlp_push import MetricsExport
set_up_logs()
registry = CollectorRegistry()
Gauge("x", "x", registry=registry)
export = MetricsExport(Exporting(protocol=sys.argv[1]), {}, registry, dict)
export._ending.set()
input()
export.close(0.1)
export._thread.join()
"""
"""Ends its export on request; whatever it and the exporter log goes to the standard error."""


async def say_all(protocol: str, requested: Callable[[], Awaitable[Any]]) -> list[str]:
    """The lines of a process that breaks off its export, once the collector was `asked`."""
    arguments, pipe = [sys.executable, "-c", BROKEN_OFF, protocol], asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*arguments, stdin=pipe, stderr=pipe)
    try:
        await requested()
        _, printed = await process.communicate(b"\n")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    return printed.decode().splitlines()


async def test_a_cancelled_export_over_http_logs_only_our_line(monkeypatch: pytest.MonkeyPatch):
    async with collecting("unavailable") as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        lines = await say_all("http/protobuf", lambda: collector.until("a retry", lambda: collector.requests > 0))
    assert [json.loads(line)["event"] for line in lines] == ["metrics_not_exported"]


async def test_a_cancelled_export_over_grpc_logs_only_our_line(servicer: Servicer):
    servicer.freed.clear()
    lines = await say_all("grpc", lambda: asyncio.to_thread(servicer.requested.wait, 20))
    assert [json.loads(line)["event"] for line in lines] == ["metrics_not_exported"]
