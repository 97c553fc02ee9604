"""What the OTEL_ variables of the environment request."""

from __future__ import annotations

import pytest

from bus.observability import otel_env
from bus.observability.otel_env import Exporting, Settings, describe_process, host_id, read_exporting, read_settings
from bus.observability.tracer import modules_to_preload, open_tracer

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {**ENDPOINT, "OTEL_SDK_DISABLED": "true"},
        {**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"},
        {**ENDPOINT, "OTEL_TRACES_EXPORTER": "zipkin"},
        {"OTEL_TRACES_EXPORTER": "otlp"},
    ],
)
def test_no_traces_are_requested(environment):
    assert read_settings(environment) is None
    assert open_tracer(environment, "a", dict) is None
    assert modules_to_preload(environment) == ()


def test_traces_are_requested():
    assert read_settings(ENDPOINT) == Settings()
    assert read_settings({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c/v1/traces"}) == Settings()
    assert read_settings(
        {
            **ENDPOINT,
            "OTEL_TRACES_EXPORTER": "console,otlp",
            "OTEL_SDK_DISABLED": "false",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc",
            "OTEL_TRACES_SAMPLER": "traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": "0.1",
            "OTEL_SERVICE_NAME": "desk",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_BSP_MAX_QUEUE_SIZE": "16",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "64",
        }
    ) == Settings(
        protocol="grpc",
        sampler="traceidratio",
        sampler_argument="0.1",
        named_service=True,
        queue_spans=16,
        batch_spans=16,
        delay_s=0.1,
    )
    assert read_settings({**ENDPOINT, "OTEL_BSP_MAX_QUEUE_SIZE": "many", "OTEL_BSP_SCHEDULE_DELAY": "-1"}) == Settings()


@pytest.mark.parametrize(
    ("more", "requested"),
    [
        ({}, Exporting()),
        ({"OTEL_METRICS_EXPORTER": "none"}, None),
        ({"OTEL_METRICS_EXPORTER": "prometheus"}, None),
        ({"OTEL_METRICS_EXPORTER": "statsd"}, None),
        ({"OTEL_METRICS_EXPORTER": "prometheus,otlp"}, Exporting()),
        ({"OTEL_TRACES_EXPORTER": "none"}, Exporting()),
        ({"OTEL_SDK_DISABLED": "True"}, None),
        (
            {"OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "grpc", "OTEL_SERVICE_NAME": "x"},
            Exporting(protocol="grpc", named_service=True),
        ),
        ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}, Exporting()),
    ],
)
def test_metrics_are_requested_by_variables_of_their_own(more, requested):
    assert read_exporting({**ENDPOINT, **more}, "metrics") == requested
    assert (
        read_exporting({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c/v1/metrics", **more}, "metrics") == requested
    )
    assert read_exporting({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c/v1/metrics", **more}, "traces") is None
    assert read_exporting({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c/v1/traces", **more}, "metrics") is None


def test_a_host_is_identified_by_the_first_file_that_is_not_empty(tmp_path, monkeypatch):
    paths = [tmp_path / name for name in ("machine-id", "dbus", "boot_id")]
    monkeypatch.setattr(otel_env, "HOST_IDS", tuple(map(str, paths)))
    assert host_id() is None
    assert "host.id" not in describe_process("swarm")
    paths[2].write_text("boot\n")
    assert host_id() == "boot"
    paths[0].write_text("\n")  # as in the image of a container
    assert host_id() == "boot"
    paths[1].write_text("machine\n")
    assert describe_process("swarm")["host.id"] == "machine"
