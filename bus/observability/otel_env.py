"""Reads the standard OTEL_* variables for exporting one signal, and describes a process to a collector.

Imports nothing of OpenTelemetry. The exporters read endpoint, headers, timeout, compression and certificates
themselves. An invalid value counts as unset; coordinator/telemetry/otel_env_check.py reports it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bus import __version__
from bus.utils.processes import MACHINE

__all__ = [
    "BATCH_SPANS",
    "DELAY_S",
    "HOST_IDS",
    "LENGTH_LIMITS",
    "OTHERS",
    "PACKAGES",
    "QUEUE_SPANS",
    "Exporting",
    "Settings",
    "Signal",
    "describe_process",
    "exporters_of",
    "forget_count_limits",
    "host_id",
    "in_effect",
    "longest_value",
    "read_exporting",
    "read_number",
    "read_settings",
    "to_number",
]  # fmt: skip

Signal = Literal["traces", "metrics"]
OTHERS = {"traces": ("none",), "metrics": ("none", "prometheus")}
"""Valid exporters other than OTLP; the Prometheus page is served in any case."""
QUEUE_SPANS = 2048
BATCH_SPANS = 512
HOST_IDS = ("/etc/machine-id", "/var/lib/dbus/machine-id", "/proc/sys/kernel/random/boot_id")
"""Files that identify a machine; the first one that is there and not empty counts."""
DELAY_S = 0.5
"""How long a span may wait for others before its export; shorter than the SDK's 5 s, so a death loses fewer spans."""
PACKAGES = {"http/protobuf": "http", "grpc": "grpc"}
"""Protocol -> OpenTelemetry's package of exporters for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exporting:
    """How a signal is exported, by OTLP."""

    protocol: str = "http/protobuf"
    named_service: bool = False
    """Whether OTEL_SERVICE_NAME names the service."""

    def describe(self, service: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """The attributes of the exporting resource; without those that the environment sets, which take precedence."""
        return {**({} if self.named_service else {"service.name": service}), **attributes}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(Exporting):
    """The tracing settings of the environment."""

    sampler: str = ""
    sampler_argument: str = ""
    queue_spans: int = QUEUE_SPANS
    batch_spans: int = BATCH_SPANS
    delay_s: float = DELAY_S


def in_effect(environment: Mapping[str, str], signal: Signal, name: str) -> tuple[str, str]:
    """The variable for `name` of a signal, its own or else that of all signals, and its value ("" if unset)."""
    own = f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}"
    variable = own if environment.get(own) else f"OTEL_EXPORTER_OTLP_{name}"
    return variable, environment.get(variable, "")


def exporters_of(environment: Mapping[str, str], signal: Signal) -> list[str]:
    """The exporters of a signal."""
    value = environment.get(f"OTEL_{signal.upper()}_EXPORTER") or "otlp"
    return [name.strip() for name in value.split(",")]


def read_exporting(environment: Mapping[str, str], signal: Signal) -> Exporting | None:
    """The export settings; None: this signal is not exported."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if not in_effect(environment, signal, "ENDPOINT")[1] or "otlp" not in exporters_of(environment, signal):
        return None
    return Exporting(
        protocol=in_effect(environment, signal, "PROTOCOL")[1] or "http/protobuf",
        named_service=bool(environment.get("OTEL_SERVICE_NAME")),
    )


def to_number(text: str, *, whole: bool = False) -> float | None:
    """The number above 0 in `text`; None if it is not one."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < float("inf") and (not whole or value.is_integer()) else None


def read_number(environment: Mapping[str, str], name: str, default: float, *, whole: bool = False) -> float:
    """The number above 0 in the variable `name`; else `default`."""
    return to_number(environment.get(name, ""), whole=whole) or default


def read_settings(environment: Mapping[str, str]) -> Settings | None:
    """The tracing settings of the OTEL_* variables; None: no traces."""
    exporting = read_exporting(environment, "traces")
    if exporting is None:
        return None
    queue = int(read_number(environment, "OTEL_BSP_MAX_QUEUE_SIZE", QUEUE_SPANS, whole=True))
    batch = int(read_number(environment, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", BATCH_SPANS, whole=True))
    return Settings(
        protocol=exporting.protocol,
        named_service=exporting.named_service,
        sampler=environment.get("OTEL_TRACES_SAMPLER", ""),
        sampler_argument=environment.get("OTEL_TRACES_SAMPLER_ARG", ""),
        queue_spans=queue,
        batch_spans=min(queue, batch),
        delay_s=read_number(environment, "OTEL_BSP_SCHEDULE_DELAY", DELAY_S * 1000) / 1000,
    )


LENGTH_LIMITS = ("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT")


def longest_value(environment: Mapping[str, str]) -> int | None:
    """How many characters of an attribute's value are exported; None: all. The SDK's own reading raises."""
    numbers = (to_number(environment.get(name, ""), whole=True) for name in LENGTH_LIMITS)
    found = next((number for number in numbers if number is not None), None)
    return None if found is None else int(found)


def forget_count_limits(environment: MutableMapping[str, str]) -> None:
    """Remove the limits of a span's attributes from `environment`: the SDK cannot be imported with an invalid one.

    A valid limit has no effect here either: spans are created without the SDK's tracer.
    """
    environment.pop("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", None)


def host_id() -> str | None:
    """What identifies this machine: its machine-id, else (most containers have none) the boot of its kernel.

    A reader compares the clocks of two processes only if these differ: processes of one kernel share a clock.
    """
    for path in HOST_IDS:
        with contextlib.suppress(OSError):
            if found := Path(path).read_text("ascii", "replace").strip():
                return found
    return None


def describe_process(swarm: str) -> dict[str, str | int]:
    """Attributes of any process, by OpenTelemetry's semantic conventions for resources."""
    host = host_id()
    return {
        "host.name": MACHINE,
        **({} if host is None else {"host.id": host}),
        "service.version": __version__,
        "service.namespace": swarm,
        "service.instance.id": f"{MACHINE}-{os.getpid()}",
        "mesh.swarm": swarm,
        "process.pid": os.getpid(),
    }
