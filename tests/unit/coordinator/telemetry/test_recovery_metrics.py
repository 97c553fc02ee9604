"""Deaths, and the times of detection and recovery."""

from __future__ import annotations

from typing import Any

import pytest

from bus.messages import Epoch
from coordinator.telemetry.recovery_metrics import reason_class
from tests.support.counted import AGENTS, AT


def test_a_death_is_measured_from_its_sign_to_its_end(stream):
    stream.incarnation("exited", epoch=5)
    stream.incarnation("declared_dead", epoch=5, reason="signal 9", after_ms=2)
    stream.incarnation("spawned", epoch=9, after_ms=5)
    stream.incarnation("restored", epoch=9, after_ms=5)
    stream.incarnation("ready", epoch=9, after_ms=10)
    result = stream.result()
    assert result["signalmesh_deaths_total", ("momentum", "signal 9")] == 1
    assert result["signalmesh_restarts_total", ("momentum", "signal 9")] == 1
    assert result["signalmesh_detection_seconds_sum", ("exit",)] == pytest.approx(0.002)
    assert result["signalmesh_recovery_seconds_sum", ("momentum",)] == pytest.approx(0.020)


@pytest.mark.parametrize("before", [True, False], ids=["claimed before the first message", "claimed since"])
def test_reports_of_hosts_that_do_not_run_the_agent_are_not_measured(stream, before):
    def claim(host: str, **more: Any) -> Any:
        message = Epoch(agent="momentum", claim="c", claimed_by="w", sandbox=host, timestamp=AT, source="watchdog")
        return stream.put("swarm.epoch.momentum", message, **more)

    first = claim("base", count=not before)
    stream.incarnation("exited", epoch=first, by="python")
    stream.incarnation("exited", epoch=10**9, by="python")
    stream.incarnation("exited", epoch=first, by="base", after_ms=50)
    stream.incarnation("declared_dead", epoch=first, reason="signal 9", after_ms=2)
    stream.incarnation("spawned", epoch=10**9, by="python")
    assert stream.result()["signalmesh_restarts_total", ("momentum", "signal 9")] == 0
    second = claim("base")
    stream.incarnation("spawned", epoch=second, by="base")
    result = stream.result()
    assert result["signalmesh_detection_seconds_sum", ("exit",)] == pytest.approx(0.002)
    assert result["signalmesh_restarts_total", ("momentum", "signal 9")] == 1


def test_silence_counts_from_the_last_heartbeat(stream):
    stream.incarnation("suspected", epoch=5, detail={"silent_ms": 300})
    stream.incarnation("declared_dead", epoch=5, reason="stopped, and silent for 600 ms", after_ms=300)
    stream.incarnation("spawned", epoch=9)
    stream.incarnation("declared_dead", epoch=9, reason="exit code 1", after_ms=100)
    stream.incarnation("spawned", epoch=12)
    stream.incarnation("ready", epoch=12, after_ms=1)
    result = stream.result()
    assert result["signalmesh_detection_seconds_sum", ("silence",)] == pytest.approx(0.6)
    assert result["signalmesh_recovery_seconds_count", ("momentum",)] == 1
    assert result["signalmesh_recovery_seconds_sum", ("momentum",)] == pytest.approx(0.103)
    assert result["signalmesh_restarts_total", ("momentum", "silent")] == 1
    assert result["signalmesh_restarts_total", ("momentum", "exit code")] == 1


def test_a_drain_and_a_quarantine_are_no_recoveries(stream):
    stream.incarnation("drained", epoch=5)
    stream.incarnation("spawned", epoch=6)
    stream.incarnation("ready", epoch=6)
    stream.incarnation("declared_dead", epoch=6, reason="exit code 2")
    stream.incarnation("quarantined", epoch=6)
    stream.incarnation("spawned", epoch=7, after_ms=60_000)
    stream.incarnation("ready", epoch=7)
    result = stream.result()
    assert result["signalmesh_restarts_total", ("momentum", "drained")] == 1
    assert not any(result["signalmesh_recovery_seconds_count", (agent,)] for agent in AGENTS)


@pytest.mark.parametrize(
    ("reason", "word"),
    [
        ("signal 11", "signal 11"),
        ("signal 999", "other"),
        ("exit code 3", "exit code"),
        ("it ended with exit code 0 but has not drained", "exit code"),
        ("its sandbox host has been silent for 1.2 s", "sandbox lost"),
        ("silent for 700 ms without using or waiting for a CPU", "silent"),
        ("never became ready: no progress for 30 s", "silent"),
        (None, "other"),
    ],
)
def test_reasons_are_a_few_words(reason, word):
    assert reason_class(reason) == word
