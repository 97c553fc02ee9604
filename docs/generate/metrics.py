"""metrics.md: every metric of the `metrics` role with type, labels and help text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bus.messages.subjects import Subjects
from coordinator.telemetry.heartbeat_metrics import HeartbeatMetrics
from coordinator.telemetry.labels import Names
from coordinator.telemetry.recovery_metrics import RECOVERY_BUCKETS
from coordinator.telemetry.stream_metrics import LATENCY_BUCKETS, StreamMetrics
from docs.generate.markdown import code, page, table

GROUPS = {
    "agent": "Agents",
    "sandbox": "Sandboxes",
    "watchdog": "Watchdog",
    "mirror": "Mirror",
    "webhook": "Webhook",
    "observer": "The observer itself",
}
OTHER_GROUP = "Messages, decisions and recoveries"


def text() -> str:
    """The page."""
    groups: dict[str, list[tuple[str, ...]]] = {OTHER_GROUP: []}
    for name, kind, labels, meaning in series():
        group = GROUPS.get(name.split("_")[1], OTHER_GROUP)
        full_name = f"{name}_total" if kind == "counter" else name
        groups.setdefault(group, []).append((code(full_name), kind, ", ".join(map(code, labels)), meaning))
    parts = [
        "`signalmesh metrics` serves these to Prometheus, and pushes them by OTLP under the same names without "
        "`_total`. [Metrics](../ops/metrics.md) says when series start and end. A histogram has the series `_bucket`, "
        "`_sum` and `_count`.",
        f"Buckets of latencies, in seconds: {_listed(LATENCY_BUCKETS)}.",
        f"Buckets of `signalmesh_detection_seconds` and `signalmesh_recovery_seconds`: {_listed(RECOVERY_BUCKETS)}.",
    ]
    for group, rows in groups.items():
        parts += [f"## {group}", table(("metric", "type", "labels", "meaning"), rows)]
    return page("Metrics list", *parts)


def series() -> Iterator[tuple[str, str, tuple[str, ...], str]]:
    """Name, type, labels and help of every metric, as the registry has them."""
    metrics = StreamMetrics(Subjects("swarm"), Names(()))
    HeartbeatMetrics(metrics.registry, metrics.names)
    for item in _collectors(metrics.registry):
        if hasattr(item, "_labelnames"):
            yield item._name, item._type, tuple(item._labelnames), item._documentation  # noqa: SLF001 - not public
        else:  # a collector of families, which have their labels without a sample
            for family in item.collect():
                yield family.name, family.type, tuple(family._labelnames), family.documentation  # noqa: SLF001


def _collectors(registry: Any) -> list[Any]:
    return list(registry._collector_to_names)  # noqa: SLF001 - a registry lists its samples only


def _listed(bounds: tuple[float, ...]) -> str:
    return ", ".join(f"{bound:g}" for bound in bounds)
