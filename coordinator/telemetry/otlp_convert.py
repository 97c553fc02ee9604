"""The metrics of `/metrics` as OpenTelemetry's data, sent by its exporters. Imported only if they are exported.

Everything that the registry collects is converted, by OpenTelemetry's rules for compatibility with Prometheus. A name
is that of the page, without the `_total` of counters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, cast

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.metrics_core import Metric as Family

from bus import __version__
from bus.observability.otel_env import Exporting
from bus.observability.otlp import ExporterErrors, make_exporter, make_resource

__all__ = ["OtlpMetrics", "to_metrics"]

UNITS = {"seconds": "s", "bytes": "By"}
"""The last word of a name -> its unit in UCUM; other metrics are counts and have none."""
UNKNOWN = cast(float, None)
"""Smallest and largest value of a histogram: the page does not have them, and the encoder leaves them out."""
CUMULATIVE = AggregationTemporality.CUMULATIVE


def to_metrics(families: Iterable[Family], started_ns: int, at_ns: int) -> Iterator[Metric]:
    """Each family that has a value, collected at `at_ns`, counted since `started_ns` (ns since 1970)."""
    for family in families:
        if not family.samples:
            continue
        data: Sum | Gauge | Histogram
        if family.type == "histogram":
            data = Histogram(list(_histograms(family, started_ns, at_ns)), CUMULATIVE)
        elif family.type == "counter":
            # The start of a counter from a heartbeat is not known: the agent counts it, not this process.
            since_ns = 0 if isinstance(family, CounterMetricFamily) else started_ns
            data = Sum(_numbers(family, since_ns, at_ns), CUMULATIVE, is_monotonic=True)
        else:
            data = Gauge(_numbers(family, 0, at_ns))
        yield Metric(family.name, family.documentation, UNITS.get(family.name.rpartition("_")[2], ""), data)


def _numbers(family: Family, since_ns: int, at_ns: int) -> list[NumberDataPoint]:
    return [NumberDataPoint(sample.labels, since_ns, at_ns, float(sample.value)) for sample in family.samples]


def _histograms(family: Family, started_ns: int, at_ns: int) -> Iterator[HistogramDataPoint]:
    """A point for each set of labels. The page's buckets hold all values up to a bound, OTLP's those of one bucket."""
    found: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}
    for sample in family.samples:
        labels = {name: value for name, value in sample.labels.items() if name != "le"}
        point = found.setdefault(tuple(labels.items()), {"buckets": {}})
        what = sample.name.removeprefix(f"{family.name}_")
        if what == "bucket":
            point["buckets"][float(sample.labels["le"])] = int(sample.value)
        else:
            point[what] = sample.value
    for labels_of, point in found.items():
        bounds = sorted(point["buckets"])
        up_to = [0, *(point["buckets"][bound] for bound in bounds)]
        yield HistogramDataPoint(
            dict(labels_of),
            started_ns,
            at_ns,
            count=int(point["count"]),
            sum=point["sum"],
            bucket_counts=[more - less for less, more in pairwise(up_to)],
            explicit_bounds=bounds[:-1],
            min=UNKNOWN,
            max=UNKNOWN,
        )


class OtlpMetrics:
    """Sends metrics of the process that `attributes` describe."""

    def __init__(self, exporting: Exporting, attributes: dict[str, Any]) -> None:
        """Make the exporter.

        Raises:
            ValueError: the protocol is unknown or not installed.
        """
        self._errors = ExporterErrors("metrics")
        self._exporter: MetricExporter = make_exporter(exporting.protocol, "metrics")
        self._resource = make_resource(attributes)
        self._scope = InstrumentationScope("signalmesh", __version__)

    @property
    def why(self) -> str:
        """The exporter's text about its newest failure, or empty."""
        return self._errors.newest

    def send(self, families: Iterable[Family], started_ns: int, at_ns: int, timeout_s: float) -> bool:
        """Export them, with the exporter's own retries; False if the collector did not accept them."""
        metrics = list(to_metrics(families, started_ns, at_ns))
        of_scope = ScopeMetrics(self._scope, metrics, "")
        data = MetricsData([ResourceMetrics(self._resource, [of_scope], "")])
        return self._exporter.export(data, timeout_millis=timeout_s * 1000) is MetricExportResult.SUCCESS

    def shutdown(self) -> None:
        """Cancel a retry that is under way."""
        self._exporter.shutdown()
        self._errors.close()
