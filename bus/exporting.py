"""What the standard OTEL_* variables say of exporting one signal, and how a process describes itself to a collector.

Nothing of OpenTelemetry is imported here. Endpoint, headers, time-out, compression and certificates the exporters read
themselves.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import structlog

from bus import __version__
from bus.process import MACHINE

__all__ = ["Exporting", "Signal", "describe_process", "read_exporting", "read_number"]

Signal = Literal["traces", "metrics"]
OTHERS = {"traces": ("none",), "metrics": ("none", "prometheus")}
"""Exporters that are no OTLP, and no mistake: a page for Prometheus is served anyway."""

log = structlog.get_logger("signalmesh.exporting")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exporting:
    """How a signal is exported, by OTLP."""

    protocol: str = "http/protobuf"
    named_service: bool = False
    """Whether OTEL_SERVICE_NAME names the service."""

    def describe(self, service: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """The attributes of the resource that exports; what the environment says of it is not among them, and wins."""
        return {**({} if self.named_service else {"service.name": service}), **attributes}


def read_exporting(environment: Mapping[str, str], signal: Signal) -> Exporting | None:
    """What is asked for; None: this signal is not exported."""

    def of_signal(name: str) -> str:
        own = environment.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}")
        return own or environment.get(f"OTEL_EXPORTER_OTLP_{name}", "")

    if not of_signal("ENDPOINT") or environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    exporters = [name.strip() for name in (environment.get(variable) or "otlp").split(",")]
    if "otlp" not in exporters:
        if not set(exporters) <= set(OTHERS[signal]):
            expected = " or ".join(("otlp", *OTHERS[signal]))
            log.warning("exporter_unknown", variable=variable, found=exporters, expected=expected, lost=f"all {signal}")
        return None
    return Exporting(
        protocol=of_signal("PROTOCOL") or "http/protobuf",
        named_service=bool(environment.get("OTEL_SERVICE_NAME")),
    )


def read_number(environment: Mapping[str, str], name: str, default: float) -> float:
    """The number above 0 that the variable `name` holds; `default` where it holds none."""
    try:
        value = float(environment.get(name) or default)
    except ValueError:
        value = 0
    if not 0 < value < float("inf"):
        log.warning("exporting_setting_ignored", variable=name, expected="a number above 0", used=default)
        value = default
    return value


def describe_process(swarm: str) -> dict[str, str | int]:
    """Attributes of a process that is no agent."""
    return {
        "service.version": __version__,
        "service.namespace": swarm,
        "service.instance.id": f"{MACHINE}-{os.getpid()}",
        "mesh.swarm": swarm,
        "process.pid": os.getpid(),
    }
