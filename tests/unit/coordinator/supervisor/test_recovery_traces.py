"""When a recovery's trace begins: at the first sign of the death, independent of another machine's clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bus.messages import Lifecycle, encode, now
from bus.messages.headers import TRACEPARENT
from bus.observability.spans import Span
from bus.testing.memory_bus import MemoryBus, MemoryServer
from coordinator.supervisor.model import Dead
from coordinator.supervisor.recovery_traces import UNEXPORTED_S, RecoveryTraces
from tests.support.recording_tracer import RecordingTracer

DEAD = Dead("a", 7, "base", 1, "signal 9")
HEADER = f"00-{7:032x}-{8:016x}-01"
NOW_NS = 1_000_000_000_000
SILENT_S = 0.1


@pytest.fixture
def started_at(monkeypatch):
    """Seconds before the declaration at which the trace of a death begins, by what its host has reported."""
    monkeypatch.setattr("time.time_ns", lambda: NOW_NS)

    def started_at(*exits: tuple[int, float]) -> float:
        tracer = RecordingTracer()
        recoveries = RecoveryTraces(tracer)
        for epoch, before_s in exits:
            recoveries.exited("a", epoch, datetime.fromtimestamp(NOW_NS * 1e-9 - before_s, UTC))
        recoveries.died(DEAD, SILENT_S)
        recoveries.finish("a")
        assert tracer.spans["detect"].parent == tracer.spans["respawn a"].context.span_id
        starts = {(NOW_NS - span.start_ns) * 1e-9 for span in tracer.spans.values()}
        assert len(starts) == 1
        return starts.pop()

    return started_at


def test_an_exit_is_known_from_its_hosts_report_on(started_at):
    assert started_at((7, 0.02)) == pytest.approx(0.02, abs=1e-5)


def test_silence_is_known_from_the_last_heartbeat_on(started_at):
    assert started_at() == pytest.approx(SILENT_S)


def test_the_exit_of_another_incarnation_is_ignored(started_at):
    assert started_at((6, 0.02)) == pytest.approx(SILENT_S)


@pytest.mark.parametrize(("wrong_s", "expected_s"), [(3600.0, SILENT_S), (-3600.0, 0.0)], ids=["behind", "ahead"])
def test_a_clock_that_is_wrong_moves_it_no_further_than_heartbeats_allow(started_at, wrong_s, expected_s):
    assert started_at((7, wrong_s)) == pytest.approx(expected_s)


def test_nothing_is_recorded_without_a_tracer_or_without_a_recovery():
    recoveries = RecoveryTraces()
    recoveries.exited("a", 7, datetime.now(UTC))
    recoveries.died(DEAD, SILENT_S)
    assert recoveries.traceparent("a") == ""
    recoveries.finish("a")
    recoveries.close()
    tracer = RecordingTracer("always_off")
    RecoveryTraces(tracer).died(DEAD, SILENT_S)
    traced = RecoveryTraces(tracer)
    with traced.step("a", "claim"):
        pass
    traced.finish("a")
    assert tracer.emitted == []


def test_a_recovery_is_its_root_and_its_steps_and_is_exported_once():
    tracer = RecordingTracer()
    recoveries = RecoveryTraces(tracer)
    recoveries.died(DEAD, SILENT_S)
    with recoveries.step("a", "claim"):
        pass
    with pytest.raises(ValueError, match="no"), recoveries.step("a", "spawn"):
        raise ValueError("no")
    header = recoveries.traceparent("a")
    recoveries.finish("a", "gave up", {"mesh.epoch": 9})
    recoveries.finish("a")
    root, detect, claim, spawn = tracer.emitted
    assert header == root.context.header
    assert [span.name for span in tracer.emitted] == ["respawn a", "detect", "claim", "spawn"]
    assert {span.parent for span in (detect, claim, spawn)} == {root.context.span_id}
    assert len({span.context.span_id for span in tracer.emitted}) == 4
    assert (root.error, detect.error, claim.error, spawn.error) == ("gave up", "", "", "ValueError: no")
    assert root.attributes == {
        "mesh.agent": "a", "mesh.epoch_before": 7, "mesh.sandbox": "base", "mesh.reason": "signal 9", "mesh.epoch": 9,
    }  # fmt: skip
    assert detect.attributes == {"mesh.agent": "a", "mesh.reason": "signal 9"}
    assert root.end_ns >= spawn.end_ns >= spawn.start_ns >= root.start_ns
    assert recoveries.traceparent("a") == ""


def test_a_recovery_is_exported_soon_and_the_rest_at_the_end(monkeypatch):
    """The new process exports its part soon as well."""
    tracer = RecordingTracer()
    calls: list[str] = []
    for name in ("flush_soon", "close"):
        monkeypatch.setattr(tracer.queue, name, lambda name=name: calls.append(name))
    recoveries = RecoveryTraces(tracer)
    recoveries.died(DEAD, SILENT_S)
    assert calls == []
    recoveries.finish("a")
    recoveries.close()
    assert calls == ["flush_soon", "close"]


class History:
    """The lifecycle events in a stream, and what a leader of term 50 makes of them."""

    def __init__(self) -> None:
        self.server = MemoryServer()
        self.at = now()

    def event(self, name: str, seconds: float, *, source: str = "watchdog", header: str = "", **fields: Any) -> None:
        message = Lifecycle(
            event=name,  # type: ignore[arg-type]
            agent=fields.pop("agent", "a"),
            timestamp=self.at + timedelta(seconds=seconds),
            source=source,
            **fields,
        )
        headers = {TRACEPARENT: header} if header else {}
        self.server.store(f"in.swarm.lifecycle.{message.agent}.{source}", encode(message), headers)

    def declared(self, seconds: float = 0.0, header: str = HEADER, **fields: Any) -> None:
        known: dict[str, Any] = {"epoch": 7, "sandbox": "base", "reason": "x"}
        self.event("declared_dead", seconds, header=header, **known | fields)

    async def resumed(self, tracer: RecordingTracer, term: int = 50) -> list[Span]:
        bus = MemoryBus(self.server)
        await RecoveryTraces(tracer).resume(bus, term)
        await bus.close()
        return tracer.emitted


async def test_the_next_leader_exports_the_root_of_a_recovery_again():
    history = History()
    history.event("exited", -2.0, source="base", epoch=6)
    history.event("exited", -0.5, source="base", epoch=7)
    history.event("exited", -3.0, source="base", epoch=7, agent="b")
    history.server.store("in.swarm.lifecycle.a.x", b"{", {})
    history.declared()
    history.event("spawned", 0.2, source="base", epoch=7, pid=1)
    history.event("spawned", 0.3, source="base", epoch=9, pid=22)
    history.event("spawned", 0.9, source="base", epoch=12, pid=33)
    [root] = await history.resumed(RecordingTracer())
    assert (root.name, root.context.header, root.parent, root.error) == ("respawn a", HEADER, "", "")
    assert root.attributes == {
        "mesh.agent": "a", "mesh.epoch_before": 7, "mesh.sandbox": "base", "mesh.reason": "x", "mesh.reemitted": True,
        "mesh.epoch": 9, "process.pid": 22,
    }  # fmt: skip
    assert (root.end_ns - root.start_ns) / 1e9 == pytest.approx(0.8, abs=1e-3)


async def test_a_recovery_that_started_no_process_says_so():
    history = History()
    history.declared()
    [root] = await history.resumed(RecordingTracer())
    assert root.error == "the watchdog ended before it started a new process"
    assert root.end_ns == root.start_ns
    assert "mesh.epoch" not in root.attributes


@pytest.mark.parametrize(
    ("fields", "term"),
    [
        pytest.param({"seconds": -UNEXPORTED_S - 1}, 50, id="long ago"),
        pytest.param({"header": ""}, 50, id="without a trace"),
        pytest.param({"source": "somebody"}, 50, id="of another writer"),
        pytest.param({}, 1, id="of its own term"),
    ],
)
async def test_no_other_death_is_exported_again(fields, term):
    history = History()
    history.declared(**fields)
    assert await history.resumed(RecordingTracer(), term) == []


async def test_nothing_is_read_where_nothing_is_sampled():
    history = History()
    history.declared()
    assert await history.resumed(RecordingTracer("always_off")) == []
