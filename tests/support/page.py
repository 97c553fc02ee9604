"""What a page for Prometheus shows."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

Shown = dict[tuple[str, tuple[str, ...]], float]
"""(name, label values in the order of the labels' names) -> value."""


def parsed(text: str) -> Shown:
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
