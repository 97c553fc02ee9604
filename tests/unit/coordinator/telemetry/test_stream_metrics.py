"""Metrics of `signalmesh metrics` that are counted from messages of the stream."""

from __future__ import annotations

import pytest
from prometheus_client.openmetrics.exposition import generate_latest

from bus.messages import Alert, Epoch, Signal, VotingConfig
from bus.observability.spans import Context
from coordinator.config.changes import AddedAgent, Changes, encode_changes
from coordinator.telemetry.heartbeat_metrics import HeartbeatMetrics
from coordinator.telemetry.labels import MAX_UNKNOWN_WRITERS, OTHER
from tests.support.counted import AT, Stream, heartbeat
from tests.support.page import exemplars


def exemplars_of(stream: Stream) -> dict[str, str]:
    """Bound of the bucket -> the trace of its newest exemplar."""
    page = generate_latest(stream.metrics.registry).decode()
    found = exemplars(page)
    assert {name for name, _ in found} <= {"signalmesh_tick_to_decision_seconds_bucket"}
    assert all(exemplar.labels.keys() == {"trace_id"} for exemplar in found.values())
    return {bound: exemplar.labels["trace_id"] for (_, bound), exemplar in found.items()}


def test_a_latency_leads_to_the_trace_of_its_decision(stream):
    for number, latency_ms in enumerate((4, 40, 5), 1):
        stream.tick(number)
        context = Context(f"{number:032x}", f"{number:016x}")
        stream.decision(number, after_ms=latency_ms, traceparent=context.header)
    assert exemplars_of(stream) == {"0.005": f"{3:032x}", "0.05": f"{2:032x}"}, "the newest one of each bucket"


@pytest.mark.parametrize(
    "traceparent", ["", Context("1" * 32, "2" * 16, sampled=False).header, "00-" + "0" * 32, 'x"} 1\n', "1" * 5000]
)
def test_a_decision_without_a_sampled_trace_has_a_latency_and_no_exemplar(stream, traceparent):
    stream.tick(1)
    stream.decision(1, traceparent=traceparent)
    assert stream.result()["signalmesh_tick_to_decision_seconds_count", ()] == 1
    assert exemplars_of(stream) == {}


def test_a_hop_is_the_time_between_the_storing_of_cause_and_output(stream):
    tick = stream.tick(1)
    vote = Signal(signal="buy", strength=0.6, indicators={}, timestamp=AT, source="momentum", symbol="BTC/USD", round=1)
    signal = stream.put("swarm.signal.BTC-USD.momentum", vote, cause=tick, after_ms=4)
    stream.decision(1, cause=signal, after_ms=3)
    result = stream.result()
    assert result["signalmesh_hop_latency_seconds_sum", ("momentum", "signal")] == pytest.approx(0.004)
    assert result["signalmesh_hop_latency_seconds_sum", ("coordinator", "decision")] == pytest.approx(0.003)
    assert result["signalmesh_tick_to_decision_seconds_sum", ()] == pytest.approx(0.007)
    assert result["signalmesh_tick_to_decision_seconds_count", ()] == 1
    assert result["signalmesh_decisions_total", ("buy",)] == 1
    assert [result["signalmesh_messages_total", (kind,)] for kind in ("market", "signal", "decision")] == [1, 1, 1]


def test_what_can_be_known_beforehand_is_counted_from_0(stream):
    """Prometheus sees no increase in a series that begins at 1."""
    before = stream.result()
    tick = stream.tick(1)
    stream.decision(1, cause=tick)
    stream.put("swarm.signal.BTC-USD.momentum", b"not json")
    stream.incarnation("exited", epoch=1, reason="signal 9")
    stream.incarnation("declared_dead", epoch=1, reason="signal 9")
    stream.incarnation("spawned", epoch=2)
    stream.incarnation("ready", epoch=2)
    stream.incarnation("drained", "research-1", epoch=1)
    stream.incarnation("spawned", "research-1", epoch=2)
    born = {name for name, _ in stream.result().keys() - before.keys()}
    assert born == {f"signalmesh_hop_latency_seconds_{part}" for part in ("bucket", "count", "sum")}
    assert {value for (name, _), value in before.items() if name.endswith(("_total", "_count"))} == {0.0}


def test_earlier_messages_are_remembered_and_not_counted(stream):
    tick = stream.tick(1, count=False)
    stream.decision(1, cause=tick, after_ms=5)
    result = stream.result()
    assert result["signalmesh_messages_total", ("market",)] == 0
    assert result["signalmesh_tick_to_decision_seconds_sum", ()] == pytest.approx(0.005)
    assert result["signalmesh_hop_latency_seconds_sum", ("coordinator", "decision")] == pytest.approx(0.005)


@pytest.mark.parametrize("cause", ["", "-1", "x", "99", "9" * 5000, "²"])
def test_a_cause_that_is_none_has_no_latency(stream, cause):
    stream.decision(7, cause=cause)
    result = stream.result()
    assert result["signalmesh_decisions_total", ("buy",)] == 1
    assert not any(name.startswith("signalmesh_hop") for name, _ in result)
    assert result["signalmesh_tick_to_decision_seconds_count", ()] == 0


def test_restored_messages_have_no_latency(stream):
    stream.metrics.restored_through = 2
    tick = stream.tick(1)
    stream.decision(1, cause=tick)
    later = stream.tick(2)
    stream.decision(2, cause=later, after_ms=8)
    result = stream.result()
    assert result["signalmesh_decisions_total", ("buy",)] == 2
    assert result["signalmesh_tick_to_decision_seconds_sum", ()] == pytest.approx(0.008)


def test_a_clock_that_was_set_back_measures_nothing(stream):
    tick = stream.tick(1)
    stream.decision(1, cause=tick, after_ms=-50)
    assert stream.result()["signalmesh_tick_to_decision_seconds_count", ()] == 0


def test_decisions_of_others_are_not_the_swarms(stream):
    config = VotingConfig(voters={"momentum": 1.0}, timestamp=AT, source="watchdog", deciders=("coordinator",))
    stream.put("swarm.config.swarm.watchdog", config)
    stream.put("swarm.config.swarm.stranger", VotingConfig(voters={}, timestamp=AT, source="stranger", deciders=("x",)))
    stream.decision(1, absent=("momentum",))
    stream.decision(2, by="stranger")
    result = stream.result()
    assert result["signalmesh_decisions_total", ("buy",)] == 1
    assert result["signalmesh_degraded_decisions_total", ()] == 1
    assert result["signalmesh_decisions_from_unknown_writers_total", ()] == 1


def test_claims_and_terms(stream):
    for name in ("momentum", "watchdog", "watchdog"):
        claim = Epoch(agent=name, claim="c", claimed_by="w", sandbox="", timestamp=AT, source="w")
        stream.put(f"swarm.epoch.{name}", claim)
    result = stream.result()
    assert result["signalmesh_claims_total", ("momentum",)] == 1
    assert result["signalmesh_watchdog_term_changes_total", ()] == 2


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
    result = stream.result()
    unreadable = {labels[0]: value for (name, labels), value in result.items() if "unreadable" in name}
    assert unreadable == dict.fromkeys([*topics, "epoch"], 1) | {"signal": 2}
    assert result["signalmesh_messages_total", (OTHER,)] == 1


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
            stream.incarnation(event, name, epoch=1, reason=f"signal {number}")
        heartbeats.take(heartbeat(name, status=f"s{number}", sandbox=f"box-{number}"))
        heartbeats.take(heartbeat(f"host-{number}", role="sandbox"))
    stream.put("swarm.signal.BTC-USD.momentum", b"{}", cause=stream.tick(1000))
    result = stream.result()
    values: dict[str, set[tuple[str, ...]]] = {}
    for name, labels in result:
        values.setdefault(name, set()).add(labels)
    assert len(values["signalmesh_alerts_total"]) == MAX_UNKNOWN_WRITERS + 1  # (other) for codes of others and beyond
    assert len(values["signalmesh_hop_latency_seconds_count"]) <= 2 * (MAX_UNKNOWN_WRITERS + 2)
    assert len(values["signalmesh_heartbeats_total"]) <= MAX_UNKNOWN_WRITERS + 3
    assert len(values["signalmesh_agent_sandbox"]) <= MAX_UNKNOWN_WRITERS
    assert {labels[1] for labels in values["signalmesh_agent_state"]} == {OTHER}
    assert len(values["signalmesh_deaths_total"]) <= MAX_UNKNOWN_WRITERS
    assert ("momentum", "signal") in values["signalmesh_hop_latency_seconds_count"], "who is configured has a label"


def test_an_agent_that_was_added_at_run_time_is_counted_from_0_too(stream):
    before = stream.result()
    added = Changes(revision=1, agents={"new": AddedAgent(table={"kind": "momentum"}, after=1)})
    config = VotingConfig(voters={}, timestamp=AT, source="watchdog", changes=encode_changes(added))
    stream.put("swarm.config.swarm.watchdog", config)
    assert {
        ("signalmesh_claims_total", ("new",)),
        ("signalmesh_recovery_seconds_count", ("new",)),
    } <= stream.result().keys() - before.keys()
    assert "new" in stream.metrics.names.known
