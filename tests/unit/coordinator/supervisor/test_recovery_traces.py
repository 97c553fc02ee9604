"""When a recovery's trace begins: at the first sign of the death, independent of another machine's clock."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from bus.observability.otel_env import read_settings
from bus.observability.spans import Span
from bus.observability.tracer import Tracer
from coordinator.supervisor.model import Dead
from coordinator.supervisor.recovery_traces import RecoveryTraces

NOW_NS = 1_000_000_000_000
SILENT_S = 0.1


class RecordingTracer(Tracer):
    """A tracer that keeps what it is given."""

    def __init__(self) -> None:
        settings = read_settings({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9"})
        assert settings is not None
        super().__init__(settings, lambda: pytest.fail("nothing is exported here"))
        self.spans: dict[str, Span] = {}

    def emit(self, span: Span) -> None:
        self.spans[span.name] = span


@pytest.fixture
def started_at(monkeypatch):
    """Seconds before the declaration at which the trace of a death begins, by what its host has reported."""
    monkeypatch.setattr("time.time_ns", lambda: NOW_NS)

    def started_at(*exits: tuple[int, float]) -> float:
        tracer = RecordingTracer()
        recoveries = RecoveryTraces(tracer)
        for epoch, before_s in exits:
            recoveries.exited("a", epoch, datetime.fromtimestamp(NOW_NS * 1e-9 - before_s, UTC))
        recoveries.died(Dead("a", 7, "base", 1, "signal 9"), SILENT_S)
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
