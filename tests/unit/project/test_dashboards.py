"""The dashboard and the alert rules name metrics and labels that exist, and every one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from bus.messages.subjects import Subjects
from coordinator.telemetry.heartbeat_metrics import HeartbeatMetrics
from coordinator.telemetry.labels import Names
from coordinator.telemetry.stream_metrics import StreamMetrics
from tests.support.repository import ROOT

DASHBOARD = json.loads((ROOT / "docs" / "grafana" / "signalmesh.json").read_text())
RULES = (ROOT / "docs" / "prometheus" / "alerts.yml").read_text()
NAME = re.compile(r"signalmesh_[a-z_]+")
OF_PROMETHEUS = {"le"}


def instruments(created: StreamMetrics) -> list[Any]:
    return [*vars(created).values(), *vars(created.recoveries).values()]


def metrics() -> dict[str, set[str]]:
    """Name of each series -> its labels."""
    created = StreamMetrics(Subjects("swarm"), Names(()))
    heartbeats = HeartbeatMetrics(created.registry, created.names)
    found: dict[str, set[str]] = {}
    # Not collected: families of labelled series that nothing has counted yet have no samples to tell their labels.
    families: list[Any] = [item for item in instruments(created) if hasattr(item, "_labelnames")]
    families += [item for item in vars(heartbeats).values() if hasattr(item, "_labelnames")]
    for item in families:
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(item._type, ("",))
        found |= {item._name + suffix: set(item._labelnames) for suffix in suffixes}
    for family in heartbeats.collect():
        suffix = "_total" if family.type == "counter" else ""
        found[family.name + suffix] = set(family._labelnames)  # type: ignore[attr-defined]
    return found


METRICS = metrics()


def queries() -> Iterator[tuple[str, str]]:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for rule in re.split(r"\n {6}- alert: ", RULES)[1:]:
        [expr] = re.findall(r"^ +expr: (.+)$", rule, re.MULTILINE)
        yield rule.partition("\n")[0], expr


QUERIES = list(queries())


def test_there_are_metrics_rules_and_panels():
    assert len(METRICS) > 40
    assert len(QUERIES) > 50


@pytest.mark.parametrize(("title", "query"), QUERIES)
def test_a_query_names_metrics_and_labels_that_exist(title, query):
    names = NAME.findall(query)
    assert names
    for name in names:
        assert name in METRICS, title
    for name, selector in re.findall(r"(signalmesh_[a-z_]+)\{([^}]*)\}", query):
        for label in re.findall(r"(\w+)\s*(?:=|!)", selector):
            assert label in METRICS[name] | OF_PROMETHEUS, f"{title}: {name} has no label {label}"
    everything = set().union(*(METRICS[name] for name in names)) | OF_PROMETHEUS
    for labels in re.findall(r"by \(([^)]*)\)", query):
        assert set(labels.split(", ")) <= everything, title
    assert query.count("(") == query.count(")")


def test_legends_name_labels_that_exist():
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            [*names] = NAME.findall(target["expr"])
            labels = set().union(*(METRICS[name] for name in names))
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels, panel["title"]


def test_bounds_of_buckets_in_rules_are_buckets():
    created = StreamMetrics(Subjects("swarm"), Names(()))
    for name, bound in re.findall(r"(signalmesh_[a-z_]+)_bucket\{le=\"([^\"]+)\"", RULES):
        [histogram] = [item for item in instruments(created) if getattr(item, "_name", "") == name]
        assert float(bound) in histogram._upper_bounds


def test_runbooks_of_rules_exist():
    found = re.findall(r"^ +runbook: (.+)$", RULES, re.MULTILINE)
    assert len(found) == RULES.count("- alert: ")
    for path in found:
        assert (ROOT / path).is_file(), path


def test_the_dashboard_shows_every_metric():
    result = {name for title, query in QUERIES for name in NAME.findall(query)}
    missing = {name for name in METRICS if not name.endswith(("_sum", "_count"))} - result
    assert missing == set()
