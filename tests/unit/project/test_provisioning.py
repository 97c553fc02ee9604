"""Prometheus and Grafana of Compose's profile `metrics`: their files agree with each other, and hold no credential."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from tests.support.repository import ROOT

PROFILE = "metrics"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
OURS = {name: service for name, service in SERVICES.items() if service.get("profiles") == [PROFILE]}
SOURCES: list[dict[str, Any]] = yaml.safe_load((ROOT / "docker/grafana/datasources.yml").read_text())["datasources"]
SCRAPING: dict[str, Any] = yaml.safe_load((ROOT / "docker/prometheus.yml").read_text())
DASHBOARD: dict[str, Any] = json.loads((ROOT / "docs/grafana/signalmesh.json").read_text())


def mounts(service: str) -> dict[str, str]:
    """Path in the container -> path in this checkout, or name of the volume."""
    return {parts[1]: parts[0] for parts in (volume.split(":") for volume in SERVICES[service]["volumes"])}


def published(service: str) -> str:
    """The port inside the container."""
    [port] = SERVICES[service]["ports"]
    return str(port.rpartition(":")[2])


def test_the_profile_adds_two_services_and_no_other_has_it():
    assert set(OURS) == {"prometheus", "grafana"}
    assert [name for name, service in SERVICES.items() if "profiles" in service and name not in OURS] == ["cli"]
    others = {name: service for name, service in SERVICES.items() if name not in OURS}
    assert not any(set(service.get("depends_on", ())) & set(OURS) for service in others.values())


@pytest.mark.parametrize("name", OURS)
def test_a_service_is_pinned_confined_checked_and_published_on_loopback(name):
    service = OURS[name]
    assert re.fullmatch(r"\$\{[A-Z]+_IMAGE:-[\w./]+:v?\d+\.\d+\.\d+\}", service["image"])
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert "user" not in service, "the images have a user of their own"
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["ports"][0].startswith("${BIND:-127.0.0.1}:")


@pytest.mark.parametrize("name", OURS)
def test_every_file_that_is_mounted_is_there_and_cannot_be_written(name):
    for volume in OURS[name]["volumes"]:
        where, *rest = volume.split(":")
        if where.startswith("."):
            assert (ROOT / where).exists(), where
            assert rest[-1] == "ro", volume
        else:
            assert where in yaml.safe_load((ROOT / "docker-compose.yml").read_text())["volumes"]


def test_prometheus_scrapes_the_metrics_role_and_loads_the_rules():
    [job] = SCRAPING["scrape_configs"]
    [target] = job["static_configs"][0]["targets"]
    assert target == f"metrics:{published('metrics')}"
    assert SERVICES["metrics"]["command"][-1] == f":{published('metrics')}"
    mounted = mounts("prometheus")
    assert [mounted[file] for file in SCRAPING["rule_files"]] == ["./docs/prometheus/alerts.yml"]
    command = SERVICES["prometheus"]["command"]
    assert "--enable-feature=exemplar-storage" in command
    [config] = [flag.partition("=")[2] for flag in command if flag.startswith("--config.file=")]
    assert mounted[config] == "./docker/prometheus.yml"
    [data] = [flag.partition("=")[2] for flag in command if flag.startswith("--storage.tsdb.path=")]
    assert mounted[data] == "prometheus"


def test_grafanas_sources_are_services_and_exemplars_lead_to_one():
    by_uid = {source["uid"]: source for source in SOURCES}
    assert by_uid["prometheus"]["url"] == f"http://prometheus:{published('prometheus')}"
    assert by_uid["jaeger"]["url"] == f"http://jaeger:{published('jaeger')}"
    assert {source["type"] for source in SOURCES} == set(by_uid)
    assert [source["uid"] for source in SOURCES if source.get("isDefault")] == ["prometheus"]
    assert by_uid["prometheus"]["jsonData"]["timeInterval"] == SCRAPING["global"]["scrape_interval"]
    inside, outside = by_uid["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert {inside["name"], outside["name"]} == {"trace_id"}
    assert by_uid[inside["datasourceUid"]]["type"] == "jaeger"
    assert outside["url"] == "$JAEGER_PAGE/trace/$${__value.raw}"
    assert (
        SERVICES["grafana"]["environment"]["JAEGER_PAGE"] == SERVICES["dashboard"]["environment"]["SIGNALMESH_JAEGER"]
    )


def test_grafana_finds_the_dashboard_whose_source_is_chosen_by_type():
    [provider] = yaml.safe_load((ROOT / "docker/grafana/dashboards.yml").read_text())["providers"]
    mounted, environment = mounts("grafana"), SERVICES["grafana"]["environment"]
    assert mounted[provider["options"]["path"]] == "./docs/grafana"
    assert environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == f"{provider['options']['path']}/signalmesh.json"
    assert not provider["allowUiUpdates"]
    [variable] = DASHBOARD["templating"]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert {panel["datasource"]["uid"] for panel in panels} == {f"${{{variable['name']}}}"}
    with_exemplars = [target["expr"] for panel in panels for target in panel["targets"] if target.get("exemplar")]
    assert len(with_exemplars) == 1
    assert "signalmesh_tick_to_decision_seconds_bucket" in with_exemplars[0]


def test_grafana_has_no_account_and_no_credential():
    environment = SERVICES["grafana"]["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true", (
        "else there is admin with a known password"
    )
    assert environment["GF_AUTH_BASIC_ENABLED"] == "false"
    assert environment["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    for file in ("docker-compose.yml", "docker/prometheus.yml", "docker/grafana/datasources.yml"):
        assert re.findall(r"(?i)password|basicAuth\b|secureJsonData|bearer|ADMIN_USER", (ROOT / file).read_text()) == []
