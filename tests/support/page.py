"""What a page for Prometheus shows."""

from __future__ import annotations

from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Exemplar

Shown = dict[tuple[str, tuple[str, ...]], float]
"""(name, label values in the order of the labels' names) -> value."""


def parsed(text: str) -> Shown:
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def exemplars(text: str) -> dict[tuple[str, str], Exemplar]:
    """(name of the series, bound of the bucket) -> the exemplar, of a page in the OpenMetrics format."""
    return {
        (sample.name, sample.labels["le"]): sample.exemplar
        for family in openmetrics_families(text)
        for sample in family.samples
        if sample.exemplar is not None
    }
