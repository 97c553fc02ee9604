"""Checks of the OTEL_* variables, run by `up`, each role and `doctor` before anything is exported.

By OpenTelemetry's rules a wrong value stops no process: it is reported with the value that is used instead. Values of
headers are never shown, and of an endpoint only its host.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

import structlog

from bus.observability.otel_env import (
    BATCH_SPANS,
    DELAY_S,
    LENGTH_LIMITS,
    OTHERS,
    PACKAGES,
    QUEUE_SPANS,
    Signal,
    exporters_of,
    in_effect,
    to_number,
)
from bus.observability.tracer import TRACES_PER_S, make_sampler
from coordinator.reporting.findings import Finding, ok, warning

__all__ = ["INTERVAL_MS", "TIMEOUT_MS", "check_exporting", "check_variables", "log_wrong_variables"]

INTERVAL_MS, TIMEOUT_MS = 60_000, 30_000
"""Defaults of OpenTelemetry, for OTEL_METRIC_EXPORT_INTERVAL and OTEL_METRIC_EXPORT_TIMEOUT."""
_HEADER = re.compile(r"[!#-'*+\-.0-9A-Z^-z|~]+[ \t]*=[ \t]*[ !#-+\--:<-\[\]-~]*")
"""One of a list of headers: a token, and no quotation mark, comma, semicolon or backslash (W3C Baggage)."""
_QUEUE, _BATCH = "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"
_NUMBERS: dict[Signal, tuple[tuple[str, float, str, bool], ...]] = {
    "traces": (
        (_QUEUE, QUEUE_SPANS, "spans", True),
        (_BATCH, BATCH_SPANS, "spans", True),
        ("OTEL_BSP_SCHEDULE_DELAY", DELAY_S * 1000, "ms", False),
    ),
    "metrics": (
        ("OTEL_METRIC_EXPORT_INTERVAL", INTERVAL_MS, "ms", False),
        ("OTEL_METRIC_EXPORT_TIMEOUT", TIMEOUT_MS, "ms", False),
    ),
}
"""Variable, default, unit, and whether it must be a whole number."""
_FILES = ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE")

log = structlog.get_logger("signalmesh.exporting")


def check_variables(environment: Mapping[str, str]) -> list[str]:
    """Each wrong value of a variable that is in effect, as text: the value, what was expected, what is used instead."""
    disabled = environment.get("OTEL_SDK_DISABLED", "")
    if disabled.strip().lower() == "true":
        return []
    found: dict[str, None] = {}
    if disabled.strip().lower() not in ("", "false"):
        found[f"OTEL_SDK_DISABLED={disabled}: expected true or false; it is taken as false"] = None
    signals: tuple[Signal, ...] = ("traces", "metrics")
    for signal in signals:
        found.update(dict.fromkeys(_of_signal(environment, signal)))
    return list(found)


def log_wrong_variables() -> None:
    """Log the wrong values in the environment of this process; called once, when a role starts."""
    for problem in check_variables(os.environ):
        log.warning("otel_variable_invalid", problem=problem)


def check_exporting() -> list[Finding]:
    """The same checks as findings of `doctor`, on its own environment."""
    remedy = "correct or unset it; `up` and the roles read it when they start"
    found = [warning("exporting", problem, remedy) for problem in check_variables(os.environ)]
    return found or [ok("exporting", "no OTEL_* variable here has a wrong value")]


def _of_signal(environment: Mapping[str, str], signal: Signal) -> Iterator[str]:
    if not in_effect(environment, signal, "ENDPOINT")[1]:
        return
    exporters, known = exporters_of(environment, signal), ("otlp", *OTHERS[signal])
    nothing = f"no {signal} are exported"
    if not set(exporters) <= set(known):
        holds = f"{signal} are exported by OTLP only" if "otlp" in exporters else nothing
        yield f"OTEL_{signal.upper()}_EXPORTER={','.join(exporters)}: expected {' or '.join(known)}; {holds}"
    if "otlp" not in exporters:
        return
    variable, protocol = in_effect(environment, signal, "PROTOCOL")
    protocol = protocol or "http/protobuf"
    if protocol not in PACKAGES:
        yield f"{variable}={protocol}: expected {' or '.join(PACKAGES)}; {nothing}"
        return
    grpc = protocol == "grpc"
    if grpc and importlib.util.find_spec("opentelemetry.exporter.otlp.proto.grpc") is None:
        yield f"{variable}=grpc: expected together with `pip install 'signalmesh[grpc]'`; {nothing}"
        return
    yield from _of_connection(environment, signal, nothing, grpc=grpc)
    yield from _of_lists(environment, signal)
    yield from _of_numbers(environment, signal)
    if signal == "traces":
        for variable in LENGTH_LIMITS:
            value = environment.get(variable, "")
            if value and to_number(value, whole=True) is None:
                yield f"{variable}={value}: expected characters, a whole number above 0; it counts as unset"
        try:
            make_sampler(environment.get("OTEL_TRACES_SAMPLER", ""), environment.get("OTEL_TRACES_SAMPLER_ARG", ""))
        except ValueError as error:
            yield f"{error}; {TRACES_PER_S:g} traces a second are sampled"


def _of_connection(environment: Mapping[str, str], signal: Signal, nothing: str, *, grpc: bool) -> Iterator[str]:
    variable, endpoint = in_effect(environment, signal, "ENDPOINT")
    if not _is_endpoint(endpoint, grpc=grpc):
        yield f"{variable}={_redacted(endpoint)}: expected http://HOST:PORT or https://HOST:PORT; {nothing}"
    variable, timeout = in_effect(environment, signal, "TIMEOUT")
    if timeout and to_number(timeout) is None:
        holds = "10 s are used" if not grpc and not _is_number(timeout) else nothing
        yield f"{variable}={timeout}: expected seconds, a number above 0; {holds}"
    variable, compression = in_effect(environment, signal, "COMPRESSION")
    known = ("gzip",) if grpc else ("gzip", "deflate", "none")
    if compression and compression.strip().lower() not in known:
        holds = nothing if grpc else "nothing is compressed"
        yield f"{variable}={compression}: expected {' or '.join(known)}; {holds}"
    for name in _FILES:
        variable, path = in_effect(environment, signal, name)
        if path and not os.access(path, os.R_OK):
            holds = "it counts as unset" if grpc and not os.path.lexists(path) else f"over TLS {nothing}"
            yield f"{variable}={path}: expected a file that can be read; {holds}"
    variable, insecure = in_effect(environment, signal, "INSECURE")
    if grpc and insecure and insecure.lower() not in ("true", "false"):
        yield f"{variable}={insecure}: expected true or false; it is taken as false"


def _of_lists(environment: Mapping[str, str], signal: Signal) -> Iterator[str]:
    variable, headers = in_effect(environment, signal, "HEADERS")
    entries = [entry.strip() for entry in headers.split(",") if entry.strip()]
    for number, entry in enumerate(entries, 1):
        if not _HEADER.fullmatch(entry):
            where = f"entry {number} of {len(entries)} (not shown: it may be a secret)"
            yield f"{variable}: {where}: expected NAME=VALUE with commas between; that header is not sent"
    attributes = environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    for attribute in attributes.split(",") if attributes else ():
        if "=" not in attribute:
            where = f"OTEL_RESOURCE_ATTRIBUTES: {attribute.strip()!r}"
            yield f"{where}: expected NAME=VALUE with commas between; it is left out"


def _of_numbers(environment: Mapping[str, str], signal: Signal) -> Iterator[str]:
    used: dict[str, float] = {}
    for variable, default, unit, whole in _NUMBERS[signal]:
        value = environment.get(variable, "")
        number = to_number(value, whole=whole)
        used[variable] = number or default
        if value and number is None:
            expected = f"{unit}, a {'whole ' if whole else ''}number above 0"
            yield f"{variable}={value}: expected {expected}; {default:g} {unit} are used"
    if environment.get(_BATCH) and used.get(_BATCH, 0) > used.get(_QUEUE, 0):
        most = f"{used[_QUEUE]:g}"
        yield f"{_BATCH}={used[_BATCH]:g}: expected at most {_QUEUE}, {most} spans; {most} spans are used"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_endpoint(value: str, *, grpc: bool) -> bool:
    if grpc and "://" not in value:
        return value.isprintable() and " " not in value
    try:
        parts = urlsplit(value)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _redacted(endpoint: str) -> str:
    """An endpoint as far as it holds no secret: no user, password, path or query."""
    found = re.match("([^:/?#@]*://)?(.*)", endpoint, re.DOTALL)
    assert found is not None
    host = "***" if "@" in found[2] else re.split("[/?#]", found[2])[0]
    return f"{found[1] or ''}{host}"
