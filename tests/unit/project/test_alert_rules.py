"""The rules for Prometheus fire by the figures as they are scraped, asked of Prometheus's own evaluator where it is."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from bus.messages import Alert
from tests.support.counted import AT, Stream
from tests.support.repository import ROOT

RULES = ROOT / "docs" / "prometheus" / "alerts.yml"
PROMTOOL = shutil.which("promtool")
SCRAPE_S = 15
FIRST = 4
"""So many scrapes find nothing but what there is at the start; a figure that begins later is born with its event."""

pytestmark = pytest.mark.skipif(PROMTOOL is None, reason="there is no promtool on PATH")


class Scraped(Stream):
    """A stream whose metrics are scraped now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.series: dict[str, list[str]] = {}
        self.scrapes = 0

    def scrape(self, times: int = 1) -> None:
        """Prometheus comes by, so often."""
        for _ in range(times):
            for family in text_string_to_metric_families(generate_latest(self.metrics.registry).decode()):
                for sample in family.samples:
                    labels = ",".join(f"{key}={json.dumps(value)}" for key, value in sample.labels.items())
                    row = self.series.setdefault(f"{sample.name}{{{labels}}}", ["_"] * self.scrapes)
                    row.append(f"{sample.value:g}")
            self.scrapes += 1

    def restart(self) -> None:
        """The observer ends, and another one begins: its counters are at 0."""
        fresh = Scraped()
        self.metrics = fresh.metrics

    def alert(self, severity: str, code: str) -> None:
        alert = Alert(severity=severity, code=code, message="it is told of", timestamp=AT, source="watchdog")  # type: ignore[arg-type]
        self.put(f"swarm.alert.{severity}.watchdog", alert)

    def die(self, agent: str, epoch: int, away_ms: float = 30) -> None:
        self.incarnation("declared_dead", agent, epoch=epoch, reason="signal 9")
        self.incarnation("spawned", agent, epoch=epoch + 1)
        self.incarnation("ready", agent, epoch=epoch + 1, after_ms=away_ms)

    def firing(self, rule: str, directory: Path) -> list[dict[str, str]]:
        """Labels of what of `rule` fires at the last scrape, as promtool finds."""
        end = (self.scrapes - 1) * SCRAPE_S
        test = {
            "rule_files": [str(RULES)],
            "evaluation_interval": f"{SCRAPE_S}s",
            "tests": [
                {
                    "interval": f"{SCRAPE_S}s",
                    "input_series": [{"series": name, "values": " ".join(row)} for name, row in self.series.items()],
                    "alert_rule_test": [{"eval_time": f"{end}s", "alertname": rule, "exp_alerts": []}],
                }
            ],
        }
        file = directory / "rules.json"  # JSON is YAML
        file.write_text(json.dumps(test))
        assert PROMTOOL is not None
        done = subprocess.run([PROMTOOL, "test", "rules", str(file)], capture_output=True, text=True, check=False)
        printed = done.stdout + done.stderr
        _, _, got = printed.partition("got:[")
        assert (done.returncode == 0) == (not got), printed
        found = []
        for part in got.split("Labels:{")[1:]:
            pairs = (pair.partition("=") for pair in part.partition("}")[0].split(", "))
            found.append({key: value.strip('"') for key, _, value in pairs})
        return found


@pytest.fixture
def stream() -> Scraped:
    scraped = Scraped()
    scraped.scrape(FIRST)
    return scraped


def test_the_rules_are_rules():
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, "check", "rules", str(RULES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_first_critical_alert_of_a_code_fires_and_ends(stream: Scraped, tmp_path: Path):
    rule = "SignalmeshCriticalAlert"
    assert stream.firing(rule, tmp_path) == []
    stream.alert("warning", "not_so_bad")
    stream.alert("critical", "bad")
    stream.scrape()
    [fires] = stream.firing(rule, tmp_path)
    assert fires["code"] == "bad"
    stream.scrape(8)
    assert len(stream.firing(rule, tmp_path)) == 1
    stream.scrape(5 * 60 // SCRAPE_S)
    assert stream.firing(rule, tmp_path) == []
    stream.alert("critical", "bad")
    stream.alert("critical", "worse")
    stream.scrape(2)
    assert {fires["code"] for fires in stream.firing(rule, tmp_path)} == {"bad", "worse"}


def test_a_critical_alert_between_a_restart_of_the_observer_and_its_first_scrape_fires(stream: Scraped, tmp_path: Path):
    stream.restart()
    stream.alert("critical", "bad")
    stream.scrape()
    assert [fires["code"] for fires in stream.firing("SignalmeshCriticalAlert", tmp_path)] == ["bad"]


def test_the_first_poison_fires(stream: Scraped, tmp_path: Path):
    assert stream.firing("SignalmeshPoison", tmp_path) == []
    stream.put("swarm.signal.BTC-USD.momentum", b"not json")
    stream.scrape()
    [fires] = stream.firing("SignalmeshPoison", tmp_path)
    assert fires["kind"] == "signal"


def test_the_first_three_deaths_are_flapping(stream: Scraped, tmp_path: Path):
    for epoch in (1, 3):
        stream.die("momentum", epoch)
        stream.scrape()
    assert stream.firing("SignalmeshAgentFlapping", tmp_path) == []
    stream.die("momentum", 5)
    stream.die("research-1", 5)
    stream.scrape()
    assert [fires["agent"] for fires in stream.firing("SignalmeshAgentFlapping", tmp_path)] == ["momentum"]


def test_the_first_slow_recovery_fires(stream: Scraped, tmp_path: Path):
    stream.die("momentum", 1, away_ms=2900)
    stream.scrape()
    assert stream.firing("SignalmeshSlowRecovery", tmp_path) == []
    stream.die("momentum", 3, away_ms=3100)
    stream.scrape()
    assert len(stream.firing("SignalmeshSlowRecovery", tmp_path)) == 1


@pytest.mark.parametrize("restarted", [False, True])
def test_ticks_without_any_decision_fire(stream: Scraped, tmp_path: Path, restarted: bool):
    """Also where none was made since the observer began: then there is nothing to be counted."""
    if restarted:
        stream.decision(1)
        stream.scrape(2)
        stream.restart()
        stream.scrape()
    for number in range(2, 2 + 3 * 60 // SCRAPE_S):
        stream.tick(number)
        stream.scrape()
    assert len(stream.firing("SignalmeshNoDecisions", tmp_path)) == 1
    stream.decision(2)
    stream.tick(100)
    stream.scrape()
    assert stream.firing("SignalmeshNoDecisions", tmp_path) == []


def test_nothing_fires_of_a_swarm_that_decides(stream: Scraped, tmp_path: Path):
    for number in range(1, 1 + 3 * 60 // SCRAPE_S):
        stream.tick(number)
        stream.decision(number)
        stream.scrape()
    for rule in ("NoDecisions", "AgentFlapping", "SlowRecovery", "DegradedDecisions", "Poison", "CriticalAlert"):
        assert stream.firing(f"Signalmesh{rule}", tmp_path) == [], rule
