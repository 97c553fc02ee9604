"""Wrong values of OTEL_* variables: each is named, with what was expected and what is used; no secret is shown."""

from __future__ import annotations

import logging

import pytest

from bus.observability.otel_env import BATCH_SPANS, QUEUE_SPANS, read_settings
from bus.observability.otlp import ExporterErrors, make_exporter
from coordinator.telemetry.otel_env_check import check_variables

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
RIGHT = {
    "OTEL_SDK_DISABLED": "false",
    "OTEL_TRACES_EXPORTER": "otlp",
    "OTEL_METRICS_EXPORTER": "otlp,prometheus",
    "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20x, x-team = a b ,",
    "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
    "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION": "deflate",
    "OTEL_EXPORTER_OTLP_TIMEOUT": "2.5",
    "OTEL_EXPORTER_OTLP_CERTIFICATE": __file__,
    "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test,a=",
    "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
    "OTEL_TRACES_SAMPLER_ARG": "0.5",
    "OTEL_BSP_MAX_QUEUE_SIZE": "4096",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "512",
    "OTEL_BSP_SCHEDULE_DELAY": "0.5",
    "OTEL_METRIC_EXPORT_INTERVAL": "1000",
}
TOKEN = "s3cr3t-t0ken"
SAMPLERS = "expected always_on, always_off, traceidratio, one of these with parentbased_ in front, or rate_limiting"
LISTED = "expected NAME=VALUE with commas between"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        ENDPOINT,
        {**ENDPOINT, **RIGHT},
        {**ENDPOINT, "OTEL_SDK_DISABLED": "true", "OTEL_TRACES_SAMPLER": "banana"},
        {"OTEL_TRACES_SAMPLER": "banana"},  # nothing is exported, as nobody asked for it
        {**ENDPOINT, "OTEL_TRACES_EXPORTER": "none", "OTEL_TRACES_SAMPLER": "banana"},
        {
            **ENDPOINT, "OTEL_EXPORTER_OTLP_TIMEOUT": "abc", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "1",
            "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT": "1",
        },
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
    ],
)  # fmt: skip
def test_nothing_is_wrong(environment: dict[str, str]):
    assert check_variables(environment) == []


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("OTEL_SDK_DISABLED", "yes", "=yes: expected true or false; it is taken as false"),
        ("OTEL_TRACES_EXPORTER", "jaeger", "=jaeger: expected otlp or none; no traces are exported"),
        ("OTEL_TRACES_EXPORTER", "x,otlp", "=x,otlp: expected otlp or none; traces are exported by OTLP only"),
        ("OTEL_METRICS_EXPORTER", "x", "=x: expected otlp or none or prometheus; no metrics are exported"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "x", "=x: expected http/protobuf or grpc; no traces are exported"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "abc", "=abc: expected seconds, a number above 0; 10 s are used"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "-1", "=-1: expected seconds, a number above 0; no traces are exported"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip", "=zip: expected gzip or deflate or none; nothing is compressed"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=b,foo", f": 'foo': {LISTED}; it is left out"),
        ("OTEL_TRACES_SAMPLER", "parentbased_x", f"=parentbased_x: {SAMPLERS}; 50 traces a second are sampled"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0.5", "=0.5: expected spans, a whole number above 0; 2048 spans are used"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "many", "=many: expected spans, a whole number above 0; 512 spans are used"),
        (
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
            "9999",
            "=9999: expected at most OTEL_BSP_MAX_QUEUE_SIZE, 2048 spans; 2048 spans are used",
        ),
        (
            "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
            "abc",
            "=abc: expected characters, a whole number above 0; it counts as unset",
        ),
        ("OTEL_BSP_SCHEDULE_DELAY", "-1", "=-1: expected ms, a number above 0; 500 ms are used"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "inf", "=inf: expected ms, a number above 0; 60000 ms are used"),
        ("OTEL_METRIC_EXPORT_TIMEOUT", "soon", "=soon: expected ms, a number above 0; 30000 ms are used"),
    ],
)  # fmt: skip
def test_one_wrong_value_is_reported_once(variable: str, value: str, problem: str):
    assert check_variables({**ENDPOINT, variable: value}) == [f"{variable}{problem}"]


@pytest.mark.parametrize(
    ("sampler", "argument", "problem"),
    [
        ("traceidratio", "7", "=7: expected a ratio from 0 to 1"),
        ("traceidratio", "half", "=half: expected a ratio from 0 to 1"),
        ("rate_limiting", "nan", "=nan: expected traces a second, 0 or more"),
    ],
)
def test_a_samplers_argument(sampler: str, argument: str, problem: str):
    environment = {**ENDPOINT, "OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": argument}
    holds = "50 traces a second are sampled"
    assert check_variables(environment) == [f"OTEL_TRACES_SAMPLER_ARG{problem}; {holds}"]


@pytest.mark.parametrize(
    ("endpoint", "result"),
    [
        ("localhost:4318", "localhost:4318"),
        (f"collector/{TOKEN}/v1", "collector"),
        (f"user:{TOKEN}@collector:4318", "***"),
        (f"ftp://user:{TOKEN}@collector:4318/a", "ftp://***"),
        (f"http://collector:99999/?key={TOKEN}", "http://collector:99999"),
        (f"http:///v1/traces?key={TOKEN}&to=http://x", "http://"),
    ],
)
def test_an_invalid_endpoint_is_reported_without_its_secrets(endpoint: str, result: str):
    problem = check_variables({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": endpoint})
    expected = "expected http://HOST:PORT or https://HOST:PORT; no traces are exported"
    assert problem == [f"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT={result}: {expected}"]


def test_a_missing_file_is_reported_for_each_signal():
    problem = check_variables({**ENDPOINT, "OTEL_EXPORTER_OTLP_CERTIFICATE": "/nonexistent.pem"})
    wrong = "OTEL_EXPORTER_OTLP_CERTIFICATE=/nonexistent.pem: expected a file that can be read"
    assert problem == [f"{wrong}; over TLS no {signal} are exported" for signal in ("traces", "metrics")]


def test_headers_are_counted_and_not_printed(monkeypatch: pytest.MonkeyPatch):
    headers = f"a=b,Bearer {TOKEN}"
    problem = check_variables({**ENDPOINT, "OTEL_EXPORTER_OTLP_HEADERS": headers})
    where = "entry 2 of 2 (not shown: it may be a secret)"
    assert problem == [f"OTEL_EXPORTER_OTLP_HEADERS: {where}: {LISTED}; that header is not sent"]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", headers)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector.example.com:4318")
    monkeypatch.setenv("HTTP_PROXY", f"http://user:{TOKEN}@127.0.0.1:3128")
    errors = ExporterErrors("traces")
    try:
        make_exporter("http/protobuf", "traces")
        assert errors.newest == ""
        logging.getLogger("opentelemetry.sdk").warning("heard")
        assert errors.newest == "heard (through the proxy in HTTP_PROXY)"
    finally:
        errors.close()


@pytest.mark.parametrize(
    ("variable", "value"),
    [("OTEL_EXPORTER_OTLP_TIMEOUT", "abc"), ("OTEL_EXPORTER_OTLP_COMPRESSION", "deflate")],
)
def test_by_grpc_the_exporter_cannot_be_made(monkeypatch: pytest.MonkeyPatch, variable: str, value: str):
    problem = check_variables({**ENDPOINT, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc", variable: value})
    assert any(
        text.startswith(f"{variable}={value}: ") and text.endswith("; no traces are exported") for text in problem
    )
    monkeypatch.setenv(variable, value)
    with pytest.raises(Exception, match=value):
        make_exporter("grpc", "traces")


def test_the_value_named_as_used_is_used():
    wrong = {"OTEL_BSP_MAX_QUEUE_SIZE": "0.5", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "9999", "OTEL_BSP_SCHEDULE_DELAY": "x"}
    settings = read_settings({**ENDPOINT, **wrong})
    assert settings is not None
    assert (settings.queue_spans, settings.batch_spans, settings.delay_s) == (QUEUE_SPANS, QUEUE_SPANS, 0.5)
    settings = read_settings({**ENDPOINT, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "0.5"})
    assert settings is not None
    assert settings.batch_spans == BATCH_SPANS
