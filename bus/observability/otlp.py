"""OpenTelemetry's OTLP exporters, by signal and protocol, and their errors. Imported only by exporting processes.

The exporters read the standard variables themselves: endpoint, headers, timeout, compression, certificates.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
from collections import deque
from typing import Any

import requests
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from urllib3.exceptions import HTTPError

from bus.observability.otel_env import PACKAGES, Signal, in_effect
from bus.utils.proxies import proxy_note

__all__ = ["ExporterErrors", "make_exporter", "make_resource"]

EXPORTERS = {
    "traces": ("trace_exporter", "OTLPSpanExporter"),
    "metrics": ("metric_exporter", "OTLPMetricExporter"),
}
CREDENTIAL_PROVIDER = "_CREDENTIAL_PROVIDER"
"""Last part of the variables that name another maker of sessions."""
MAX_ANSWER_BYTES = 64 * 1024
"""How much of a collector's answer is read. Only its status counts."""
SILENT = logging.NullHandler()
"""Stays after `close`: without a handler, logging would print the messages of an interrupted retry."""
HEADERS_LOGGER = "opentelemetry.util.re"
"""Logs the headers that it cannot parse, which are secrets."""


class _Session(requests.Session):
    """A session that does not read, or unpack, whatever a collector sends: an answer may have no end."""

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        response = super().request(*args, **{**kwargs, "stream": True})
        with contextlib.suppress(OSError, HTTPError), response:  # a short answer is read, and the connection kept
            response.raw.read1(MAX_ANSWER_BYTES)
        return response


class ExporterErrors(logging.Handler):
    """Keeps the newest two failures that the exporters log, instead of printing each one.

    Keeps only the type of an exception, and nothing before an @: either could contain a secret of the endpoint.
    """

    def __init__(self, signal: Signal) -> None:
        super().__init__(logging.WARNING)
        self._endpoint = in_effect(os.environ, signal, "ENDPOINT")[1]
        self._messages: deque[str] = deque(maxlen=2)
        logger = logging.getLogger("opentelemetry")
        logger.propagate = False
        logger.setLevel(logging.WARNING)  # independent of the configured log level
        logger.addHandler(SILENT)
        logger.addHandler(self)

    @property
    def newest(self) -> str:
        """The kept messages, with the proxy that the environment names for the collector; empty without failures."""
        return " ".join(self._messages) + proxy_note(self._endpoint) if self._messages else ""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == HEADERS_LOGGER:
            return
        arguments = tuple(map(_escape_control, record.args)) if isinstance(record.args, tuple) else ()
        text = record.msg % arguments if arguments else str(record.msg)
        if text not in self._messages:
            self._messages.append(text)

    def close(self) -> None:
        logging.getLogger("opentelemetry").removeHandler(self)
        super().close()


def _escape_control(argument: Any) -> Any:
    if isinstance(argument, BaseException):
        return type(argument).__name__
    return argument.rpartition("@")[2] if isinstance(argument, str) else argument


def make_exporter(protocol: str, signal: Signal) -> Any:
    """The SDK's exporter of `signal`: a SpanExporter or a MetricExporter.

    Raises:
        ValueError: the protocol is unknown, or its exporter is not installed.
    """
    package = PACKAGES.get(protocol)
    if package is None:
        raise ValueError(f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol}: expected {' or '.join(PACKAGES)}")
    module, name = EXPORTERS[signal]
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # else gRPC's core prints lines between those of the log
    try:
        exporter = getattr(importlib.import_module(f"opentelemetry.exporter.otlp.proto.{package}.{module}"), name)
        provided = any(variable.endswith(CREDENTIAL_PROVIDER) for variable in os.environ)  # it makes its own session
        return exporter() if package == "grpc" or provided else exporter(session=_Session())
    except ModuleNotFoundError:
        if package != "grpc":
            raise
        raise ValueError("OTLP over gRPC is not installed: pip install 'signalmesh[grpc]'") from None


def make_resource(attributes: dict[str, Any]) -> Resource:
    """The exporting resource; the environment's values take precedence over `attributes`."""
    return Resource.create({**attributes, **OTELResourceDetector().detect().attributes})
