"""The metrics of `signalmesh metrics`: from messages of the stream and from heartbeats."""

from __future__ import annotations

from typing import Any

import pytest

from agents.host.probe import network_of_here
from bus.messages import Alert, Child, Config, Epoch, Heartbeat, SandboxAccount, SandboxUsage, Signal
from coordinator.telemetry.heartbeat_metrics import FORGET_S, RECENT_HEARTBEAT_S, HeartbeatMetrics
from coordinator.telemetry.labels import MAX_UNKNOWN_WRITERS, OTHER
from coordinator.telemetry.recovery_metrics import reason_class
from tests.support.counted import AGENTS, AT, Stream


@pytest.fixture
def stream() -> Stream:
    return Stream()


def test_a_hop_is_the_time_between_the_storing_of_cause_and_output(stream):
    tick = stream.tick(1)
    vote = Signal(signal="buy", strength=0.6, indicators={}, timestamp=AT, source="momentum", symbol="BTC/USD", round=1)
    signal = stream.put("swarm.signal.BTC-USD.momentum", vote, cause=tick, after_ms=4)
    stream.decision(1, cause=signal, after_ms=3)
    shown = stream.shown()
    assert shown["signalmesh_hop_latency_seconds_sum", ("momentum", "signal")] == pytest.approx(0.004)
    assert shown["signalmesh_hop_latency_seconds_sum", ("coordinator", "decision")] == pytest.approx(0.003)
    assert shown["signalmesh_tick_to_decision_seconds_sum", ()] == pytest.approx(0.007)
    assert shown["signalmesh_tick_to_decision_seconds_count", ()] == 1
    assert shown["signalmesh_decisions_total", ("buy",)] == 1
    assert [shown["signalmesh_messages_total", (kind,)] for kind in ("market", "signal", "decision")] == [1, 1, 1]


def test_what_can_be_known_beforehand_is_counted_from_0(stream):
    """Prometheus sees no increase in a series that begins at 1."""
    before = stream.shown()
    tick = stream.tick(1)
    stream.decision(1, cause=tick)
    stream.put("swarm.signal.BTC-USD.momentum", b"not json")
    stream.life("exited", epoch=1, reason="signal 9")
    stream.life("declared_dead", epoch=1, reason="signal 9")
    stream.life("spawned", epoch=2)
    stream.life("ready", epoch=2)
    stream.life("drained", "research-1", epoch=1)
    stream.life("spawned", "research-1", epoch=2)
    born = {name for name, _ in stream.shown().keys() - before.keys()}
    assert born == {f"signalmesh_hop_latency_seconds_{part}" for part in ("bucket", "count", "sum")}
    assert {value for (name, _), value in before.items() if name.endswith(("_total", "_count"))} == {0.0}


def test_earlier_messages_are_remembered_and_not_counted(stream):
    tick = stream.tick(1, count=False)
    stream.decision(1, cause=tick, after_ms=5)
    shown = stream.shown()
    assert shown["signalmesh_messages_total", ("market",)] == 0
    assert shown["signalmesh_tick_to_decision_seconds_sum", ()] == pytest.approx(0.005)
    assert shown["signalmesh_hop_latency_seconds_sum", ("coordinator", "decision")] == pytest.approx(0.005)


@pytest.mark.parametrize("cause", ["", "-1", "x", "99", "9" * 5000, "²"])
def test_a_cause_that_is_none_has_no_latency(stream, cause):
    stream.decision(7, cause=cause)
    shown = stream.shown()
    assert shown["signalmesh_decisions_total", ("buy",)] == 1
    assert not any(name.startswith("signalmesh_hop") for name, _ in shown)
    assert shown["signalmesh_tick_to_decision_seconds_count", ()] == 0


def test_restored_messages_have_no_latency(stream):
    stream.metrics.restored_through = 2
    tick = stream.tick(1)
    stream.decision(1, cause=tick)
    later = stream.tick(2)
    stream.decision(2, cause=later, after_ms=8)
    shown = stream.shown()
    assert shown["signalmesh_decisions_total", ("buy",)] == 2
    assert shown["signalmesh_tick_to_decision_seconds_sum", ()] == pytest.approx(0.008)


def test_a_clock_that_was_set_back_measures_nothing(stream):
    tick = stream.tick(1)
    stream.decision(1, cause=tick, after_ms=-50)
    assert stream.shown()["signalmesh_tick_to_decision_seconds_count", ()] == 0


def test_decisions_of_others_are_not_the_swarms(stream):
    config = Config(voters={"momentum": 1.0}, timestamp=AT, source="watchdog", deciders=("coordinator",))
    stream.put("swarm.config.swarm.watchdog", config)
    stream.put("swarm.config.swarm.stranger", Config(voters={}, timestamp=AT, source="stranger", deciders=("x",)))
    stream.decision(1, absent=("momentum",))
    stream.decision(2, by="stranger")
    shown = stream.shown()
    assert shown["signalmesh_decisions_total", ("buy",)] == 1
    assert shown["signalmesh_degraded_decisions_total", ()] == 1
    assert shown["signalmesh_foreign_decisions_total", ()] == 1


def test_a_death_is_measured_from_its_sign_to_its_end(stream):
    stream.life("exited", epoch=5)
    stream.life("declared_dead", epoch=5, reason="signal 9", after_ms=2)
    stream.life("spawned", epoch=9, after_ms=5)
    stream.life("restored", epoch=9, after_ms=5)
    stream.life("ready", epoch=9, after_ms=10)
    shown = stream.shown()
    assert shown["signalmesh_deaths_total", ("momentum", "signal 9")] == 1
    assert shown["signalmesh_restarts_total", ("momentum", "signal 9")] == 1
    assert shown["signalmesh_detection_seconds_sum", ("exit",)] == pytest.approx(0.002)
    assert shown["signalmesh_recovery_seconds_sum", ("momentum",)] == pytest.approx(0.020)


def test_silence_counts_from_the_last_heartbeat(stream):
    stream.life("suspected", epoch=5, detail={"silent_ms": 300})
    stream.life("declared_dead", epoch=5, reason="stopped, and silent for 600 ms", after_ms=300)
    stream.life("spawned", epoch=9)
    stream.life("declared_dead", epoch=9, reason="exit code 1", after_ms=100)
    stream.life("spawned", epoch=12)
    stream.life("ready", epoch=12, after_ms=1)
    shown = stream.shown()
    assert shown["signalmesh_detection_seconds_sum", ("silence",)] == pytest.approx(0.6)
    assert shown["signalmesh_recovery_seconds_count", ("momentum",)] == 1
    assert shown["signalmesh_recovery_seconds_sum", ("momentum",)] == pytest.approx(0.103)
    assert shown["signalmesh_restarts_total", ("momentum", "silent")] == 1
    assert shown["signalmesh_restarts_total", ("momentum", "exit code")] == 1


def test_a_drain_and_a_quarantine_are_no_recoveries(stream):
    stream.life("drained", epoch=5)
    stream.life("spawned", epoch=6)
    stream.life("ready", epoch=6)
    stream.life("declared_dead", epoch=6, reason="exit code 2")
    stream.life("quarantined", epoch=6)
    stream.life("spawned", epoch=7, after_ms=60_000)
    stream.life("ready", epoch=7)
    shown = stream.shown()
    assert shown["signalmesh_restarts_total", ("momentum", "drained")] == 1
    assert not any(shown["signalmesh_recovery_seconds_count", (agent,)] for agent in AGENTS)


@pytest.mark.parametrize(
    ("reason", "word"),
    [
        ("signal 11", "signal 11"),
        ("signal 999", "other"),
        ("exit code 3", "exit code"),
        ("it ended by itself, with exit code 0 but without having drained", "exit code"),
        ("its sandbox host has been silent for 1.2 s", "sandbox lost"),
        ("silent for 700 ms without using or awaiting a CPU", "silent"),
        ("never became ready: no progress for 30 s", "silent"),
        (None, "other"),
    ],
)
def test_reasons_are_a_few_words(reason, word):
    assert reason_class(reason) == word


def test_claims_and_terms(stream):
    for name in ("momentum", "watchdog", "watchdog"):
        claim = Epoch(agent=name, claim="c", claimed_by="w", sandbox="", timestamp=AT, source="w")
        stream.put(f"swarm.epoch.{name}", claim)
    shown = stream.shown()
    assert shown["signalmesh_claims_total", ("momentum",)] == 1
    assert shown["signalmesh_watchdog_term_changes_total", ()] == 2


def test_poison_is_counted_by_kind(stream):
    topics = {
        "market": "BTC-USD", "headline": "BTC-USD", "sentiment": "BTC-USD", "signal": "BTC-USD", "decision": "BTC-USD",
        "alert": "warning", "lifecycle": "momentum", "timer": "momentum", "config": "swarm",
    }  # fmt: skip
    for kind, topic in topics.items():
        stream.put(f"swarm.{kind}.{topic}.evil", b"not json")
    stream.put("swarm.epoch.momentum", b"not json")
    stream.put("swarm.signal.BTC-USD.momentum", b"not json")
    stream.put("swarm.nonsense.x.y", b"")
    shown = stream.shown()
    unreadable = {labels[0]: value for (name, labels), value in shown.items() if "unreadable" in name}
    assert unreadable == dict.fromkeys([*topics, "epoch"], 1) | {"signal": 2}
    assert shown["signalmesh_messages_total", (OTHER,)] == 1


def test_an_unknown_writer_cannot_create_unlimited_series(stream):
    heartbeats = HeartbeatMetrics(stream.metrics.registry, stream.metrics.names)
    for number in range(500):
        name = f"stranger-{number}"
        tick = stream.tick(number)
        alert = Alert(severity="info", code=f"code-{number}", message="", timestamp=AT, source=name)
        stream.put(f"swarm.alert.info.{name}", alert)
        stream.put("swarm.alert.info.coordinator", alert)
        stream.put(f"swarm.signal.BTC-USD.{name}", b"{}", cause=tick)
        stream.put(f"swarm.kind{number}.x.{name}", b"{}", cause=tick)
        for event in ("exited", "declared_dead", "spawned", "ready"):
            stream.life(event, name, epoch=1, reason=f"signal {number}")
        heartbeats.take(heartbeat(name, status=f"s{number}", sandbox=f"box-{number}"))
        heartbeats.take(heartbeat(f"host-{number}", role="sandbox"))
    stream.put("swarm.signal.BTC-USD.momentum", b"{}", cause=stream.tick(1000))
    shown = stream.shown()
    values: dict[str, set[tuple[str, ...]]] = {}
    for name, labels in shown:
        values.setdefault(name, set()).add(labels)
    assert len(values["signalmesh_alerts_total"]) == MAX_UNKNOWN_WRITERS + 1  # (other) for codes of others and beyond
    assert len(values["signalmesh_hop_latency_seconds_count"]) <= 2 * (MAX_UNKNOWN_WRITERS + 2)
    assert len(values["signalmesh_heartbeats_total"]) <= MAX_UNKNOWN_WRITERS + 3
    assert len(values["signalmesh_agent_sandbox"]) <= MAX_UNKNOWN_WRITERS
    assert {labels[1] for labels in values["signalmesh_agent_state"]} == {OTHER}
    assert len(values["signalmesh_deaths_total"]) <= MAX_UNKNOWN_WRITERS
    assert ("momentum", "signal") in values["signalmesh_hop_latency_seconds_count"], "who is configured has a label"


def heartbeat(name: str = "momentum", **options: Any) -> Heartbeat:
    fields: dict[str, Any] = {
        "agent": name, "agent_id": "a", "epoch": 5, "sequence": 1, "progress": 1, "status": "live", "interval_ms": 100,
        "sandbox": "base", "pid": 1,
    }  # fmt: skip
    return Heartbeat(**fields | options)


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
    heartbeats.take(heartbeat("mirror", role="mirror", status="catching-up", lag=6, behind_ms=1500))
    time_s[0] = 0.25
    heartbeats.take(heartbeat(epoch=4, lag=99))  # a zombie
    shown = stream.shown()
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
    assert {key: shown[key] for key in expected} == expected
    not_its_own = {("signalmesh_sandbox_network_bytes_total", (way, "python")) for way in ("in", "out")}
    assert not (not_its_own | {("signalmesh_sandbox_cost_dollars", ("python",))}) & shown.keys()


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
        shown = self.stream.shown()
        return {labels[0]: age for (name, labels), age in shown.items() if name == "signalmesh_heartbeat_age_seconds"}

    def series(self) -> set[tuple[str, str]]:
        """(name of the series, first label) of what processes have said."""
        families = ("signalmesh_agent_", "signalmesh_snapshot_", "signalmesh_sandbox_", "signalmesh_mirror_")
        shown = {(name, labels[0] if labels else "") for name, labels in self.stream.shown()}
        return {(name, of) for name, of in shown if name.startswith(families) or name == "signalmesh_watchdog_term"}


@pytest.fixture
def received(stream: Stream) -> HeartbeatScript:
    return HeartbeatScript(stream)


def test_series_of_a_process_end_without_heartbeats(received):
    received.heartbeats.take(heartbeat(rss_mb=2.0, cpu_s=1.5, snapshot_ms=4.0))
    received.host("base", group=None)
    received.heartbeats.take(heartbeat("watchdog", role="watchdog", phases={"research-1": "quarantined"}))
    received.heartbeats.take(heartbeat("mirror", role="mirror", behind_ms=1500))
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
    received.heartbeats.take(heartbeat("provider", **provider, phases={"base": "being made"}))
    assert name not in received.series()
    received.heartbeats.take(heartbeat("provider", **provider, phases={"base": "given up", "momentum": "being made"}))
    assert {one for one in received.series() if one[0] == name[0]} == {name}
    received.time_s += RECENT_HEARTBEAT_S + 0.1
    assert name not in received.series(), "no heartbeat reports it any more"
    received.heartbeats.take(heartbeat("momentum", role="agent", phases={"base": "given up"}))
    assert name not in received.series(), "only its provider reports it"
