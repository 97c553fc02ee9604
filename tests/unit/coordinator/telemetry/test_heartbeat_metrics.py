"""Series taken from heartbeats, and when they end."""

from __future__ import annotations

from typing import Any

import pytest

from agents.host.probe import network_of_here
from bus.messages import Child, SandboxAccount, SandboxUsage
from coordinator.config.changes import NO_CHANGES, Changes, RemovedAgent, RemovedSandbox
from coordinator.telemetry.heartbeat_metrics import FORGET_S, RECENT_HEARTBEAT_S, HeartbeatMetrics
from tests.support.counted import AT, Stream, heartbeat


def test_heartbeats(stream):
    time_s = [0.0]
    heartbeats = HeartbeatMetrics(stream.metrics.registry, stream.metrics.names, lambda: time_s[0])
    heartbeats.take(heartbeat(lag=3, outputs=7, poison=1, skipped=2, rss_mb=2.0, cpu_s=1.5, snapshot_ms=4.0))
    child = Child(agent="momentum", agent_id="a", epoch=5, pid=1, spawned_at=AT)
    usage = SandboxUsage(processes=4, cpu_s=1.5, rss_mb=3.0, pss_mb=2.0, network="of its own", rx_bytes=70, tx_bytes=80)
    heartbeats.take(heartbeat("base", role="sandbox", uptime_s=1800.0, inventory=(child,), usage=usage))
    shared = SandboxUsage(processes=4, cpu_s=1.5, rss_mb=3.0, network=network_of_here(), rx_bytes=70, tx_bytes=80)
    heartbeats.take(heartbeat("python", role="sandbox", uptime_s=9.0, usage=shared))
    accounts = {"base": SandboxAccount(seen_s=20.0, alive_s=19.0, price_per_hour=0.5, price_source="a bill")}
    heartbeats.take(
        heartbeat("watchdog", role="watchdog", epoch=44, phases={"research-1": "backoff"}, accounts=accounts)
    )
    heartbeats.take(heartbeat("mirror", role="mirror", status="catching-up", lag=6, lag_ms=1500))
    time_s[0] = 0.25
    heartbeats.take(heartbeat(epoch=4, lag=99))  # a zombie
    result = stream.result()
    expected = {
        ("signalmesh_heartbeats_total", ("momentum", "agent")): 2,
        ("signalmesh_heartbeat_age_seconds", ("momentum", "agent")): 0.25,
        ("signalmesh_agent_lag_messages", ("momentum",)): 3,
        ("signalmesh_agent_outputs_total", ("momentum",)): 7,
        ("signalmesh_agent_poison_total", ("momentum",)): 1,
        ("signalmesh_agent_skipped_total", ("momentum",)): 2,
        ("signalmesh_agent_cpu_seconds_total", ("momentum",)): 1.5,
        ("signalmesh_agent_resident_memory_bytes", ("momentum",)): 2 << 20,
        ("signalmesh_snapshot_seconds", ("momentum",)): 0.004,
        ("signalmesh_agent_sandbox", ("momentum", "base")): 1,
        ("signalmesh_agent_state", ("momentum", "live")): 1,
        ("signalmesh_agent_state", ("research-1", "backoff")): 1,
        ("signalmesh_sandbox_agents", ("base",)): 1,
        ("signalmesh_sandbox_uptime_seconds", ("base",)): 1800,
        ("signalmesh_sandbox_processes", ("base",)): 4,
        ("signalmesh_sandbox_cpu_seconds_total", ("base",)): 1.5,
        ("signalmesh_sandbox_resident_memory_bytes", ("base",)): 3 << 20,
        ("signalmesh_sandbox_memory_bytes", ("base",)): 2 << 20,
        ("signalmesh_sandbox_network_bytes_total", ("in", "base")): 70,
        ("signalmesh_sandbox_network_bytes_total", ("out", "base")): 80,
        ("signalmesh_sandbox_availability_ratio", ("base",)): 0.95,
        ("signalmesh_sandbox_price_dollars_per_hour", ("base",)): 0.5,
        ("signalmesh_sandbox_cost_dollars", ("base",)): 0.25,
        ("signalmesh_watchdog_term", ()): 44,
        ("signalmesh_watchdog_standby", ()): 0,
        ("signalmesh_mirror_lag_messages", ()): 6,
        ("signalmesh_mirror_lag_seconds", ()): 1.5,
        ("signalmesh_mirror_state", ("catching-up",)): 1,
    }
    assert {key: result[key] for key in expected} == expected
    not_its_own = {("signalmesh_sandbox_network_bytes_total", (way, "python")) for way in ("in", "out")}
    assert not (not_its_own | {("signalmesh_sandbox_cost_dollars", ("python",))}) & result.keys()


class HeartbeatScript:
    """Heartbeats at times that the test says, in seconds."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.time_s = stream, 0.0
        self.heartbeats = HeartbeatMetrics(stream.metrics.registry, stream.metrics.names, lambda: self.time_s)

    def host(self, name: str, group: str | None = "base", status: str = "live") -> None:
        usage = SandboxUsage(processes=4, cpu_s=1.5, rss_mb=3.0)
        options: dict[str, Any] = {"role": "sandbox", "group": group, "status": status, "uptime_s": 5.0, "usage": usage}
        self.heartbeats.take(heartbeat(name, **options))

    def ages(self) -> dict[str, float]:
        result = self.stream.result()
        return {labels[0]: age for (name, labels), age in result.items() if name == "signalmesh_heartbeat_age_seconds"}

    def series(self) -> set[tuple[str, str]]:
        """(name of the series, first label) of what processes have said."""
        families = ("signalmesh_agent_", "signalmesh_snapshot_", "signalmesh_sandbox_", "signalmesh_mirror_")
        result = {(name, labels[0] if labels else "") for name, labels in self.stream.result()}
        return {(name, of) for name, of in result if name.startswith(families) or name == "signalmesh_watchdog_term"}


@pytest.fixture
def received(stream: Stream) -> HeartbeatScript:
    return HeartbeatScript(stream)


def test_series_of_a_process_end_without_heartbeats(received):
    received.heartbeats.take(heartbeat(rss_mb=2.0, cpu_s=1.5, snapshot_ms=4.0))
    received.host("base", group=None)
    received.heartbeats.take(heartbeat("watchdog", role="watchdog", phases={"research-1": "quarantined"}))
    received.heartbeats.take(heartbeat("mirror", role="mirror", lag_ms=1500))
    received.time_s = RECENT_HEARTBEAT_S
    assert {of for _, of in received.series()} == {"momentum", "base", "research-1", "live", ""}
    received.time_s = RECENT_HEARTBEAT_S + 0.1
    assert received.series() == set()
    assert received.ages() == pytest.approx(
        dict.fromkeys(("momentum", "base", "watchdog", "mirror"), RECENT_HEARTBEAT_S + 0.1)
    )


def test_the_age_of_a_configured_process_keeps_growing_and_other_ages_end(received):
    received.heartbeats.take(heartbeat())
    received.heartbeats.take(heartbeat("somebody"))
    received.host("base", group=None)
    received.host("somewhere", group=None)
    received.time_s = FORGET_S
    assert received.ages().keys() == {"momentum", "somebody", "base", "somewhere"}
    received.time_s = 1e6
    assert received.ages() == {"momentum": 1e6, "base": 1e6}
    changes = Changes(removed={"momentum": RemovedAgent(after=1)}, removed_sandboxes={"base": RemovedSandbox(after=2)})
    received.stream.metrics.learn(changes)
    assert received.ages() == {}
    received.stream.metrics.learn(NO_CHANGES)
    assert received.ages() == {"momentum": 1e6, "base": 1e6}


def test_a_replica_that_was_taken_away_ends_and_the_last_host_of_a_sandbox_is_missed(received):
    for name in ("base-1", "base-2", "base-3"):
        received.host(name)
    received.time_s = 1.0
    received.host("base-2", status="draining")
    received.host("base-3")
    received.time_s = 1.0 + RECENT_HEARTBEAT_S + 0.1
    received.host("base-1")
    assert received.ages().keys() == {"base-1", "base-3"}, "who said that it drains is gone, who died is missed"
    assert {of for _, of in received.series()} == {"base-1"}
    received.time_s += FORGET_S
    received.host("base-1", status="draining")
    assert received.ages() == {"base-1": 0}, "for another one serves the sandbox"
    received.time_s += 1e6
    assert received.ages() == {"base-1": 1e6}, "nobody serves it: also where its end was orderly"
    received.host("base-4")
    assert received.ages() == {"base-4": 0}


def test_the_availability_of_a_dead_sandbox_is_what_the_watchdog_reports(received):
    received.host("base", group=None)
    received.time_s = 100.0
    accounts = {"base": SandboxAccount(seen_s=100.0, alive_s=1.0, price_per_hour=0.5)}
    received.heartbeats.take(heartbeat("watchdog", role="watchdog", accounts=accounts))
    assert received.series() == {("signalmesh_sandbox_availability_ratio", "base"), ("signalmesh_watchdog_term", "")}


def test_a_failed_sandbox_is_shown_while_its_provider_reports_it(received):
    provider = {"role": "provider", "status": "live", "provider": "e2b"}
    name = ("signalmesh_sandbox_failed", "base")
    received.heartbeats.take(heartbeat("provider", **provider, phases={"base": "creating"}))
    assert name not in received.series()
    received.heartbeats.take(heartbeat("provider", **provider, phases={"base": "failed", "momentum": "creating"}))
    assert {one for one in received.series() if one[0] == name[0]} == {name}
    received.time_s += RECENT_HEARTBEAT_S + 0.1
    assert name not in received.series(), "no heartbeat reports it any more"
    received.heartbeats.take(heartbeat("momentum", role="agent", phases={"base": "failed"}))
    assert name not in received.series(), "only its provider reports it"
