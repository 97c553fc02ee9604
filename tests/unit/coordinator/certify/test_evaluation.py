"""Targets of certify: what is measured, or the reason why it was not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coordinator.certify.evaluation import targets
from coordinator.certify.measurements import RunRecording
from coordinator.certify.models import (
    Audited,
)
from coordinator.control.kill import KillReport
from tests.support.certified import EXPECTED, message, recording

KILLING = KillReport(
    agent="research-1", sandbox="base", pid=7, signal="SIGKILL", epoch_before=1, epoch_after=4, outcome="recovered",
    detected_ms=20.0, ready_ms=80.0, outputs_lost=0, outputs_duplicated=0, outputs_checked=4,
)  # fmt: skip
AUDITED = Audited(
    ok=True, messages=6, gaps=0, duplicated=0, rounds_decided=2, rounds_missing=0, mirror_compared=6, mirror_missing=0,
    mirror_differing=0, problems=[], notes=[],
)  # fmt: skip


def judge(
    fault: KillReport | None, before: RunRecording, after: RunRecording, audit: Audited | None
) -> dict[str, object]:
    limits = {"detection_s": 1.0, "recovery_s": 5.0, "downtime_s": 10.0}
    found = targets(EXPECTED, [], [], [], [], fault, before, after, audit, **limits)
    return {target.name: target for target in found}


def test_the_consequences_of_the_fault_are_read_from_the_stream():
    found = judge(KILLING, recording(), recording(), AUDITED)
    measured = {name: target.measured for name, target in found.items()}  # type: ignore[attr-defined]
    assert measured["detection"] == 0.02
    assert measured["recovery"] == 0.08
    assert measured["downtime"] == pytest.approx(0.2)
    assert measured["rejoin"] == pytest.approx(0.206)
    assert (measured["data loss"], measured["restoration"]) == (0, 100)


def test_an_output_that_is_gone_or_another_one_is_not_restored():
    for change in ("gone", "another"):
        after = recording()
        if change == "gone":
            del after.messages[2]
        else:
            after.messages[2] = message("market", "research-1", 100, data=b"forged")
        target = judge(KILLING, recording(), after, AUDITED)["restoration"]
        assert target.measured == 50  # type: ignore[attr-defined]
        assert not target.ok  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "audit", [replace(AUDITED, gaps=1), replace(AUDITED, duplicated=1), replace(AUDITED, rounds_missing=1)]
)
def test_what_the_audit_misses_is_data_loss_though_the_kill_did_not_see_it(audit):
    target = judge(KILLING, recording(), recording(), audit)["data loss"]
    assert (target.measured, target.ok) == (1, False)  # type: ignore[attr-defined]


def test_an_unmeasured_target_is_not_met_and_has_a_reason():
    nothing = judge(None, RunRecording(), RunRecording(), None)
    for name in ("detection", "recovery", "downtime", "rejoin", "restoration"):
        target = nothing[name]
        assert (target.measured, target.ok, target.why) == (None, False, "no agent was killed")  # type: ignore[attr-defined]
    assert nothing["data loss"].why == "the stream was not audited"  # type: ignore[attr-defined]
    unresponsive = judge(replace(KILLING, ready_ms=None, outcome="not back in time"), recording(), recording(), AUDITED)
    assert unresponsive["recovery"].why == "the kill's outcome: not back in time"  # type: ignore[attr-defined]
