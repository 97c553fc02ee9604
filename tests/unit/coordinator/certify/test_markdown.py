"""The report as Markdown."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from agents.host.probe import probe_sandbox
from coordinator.certify.evaluation import targets
from coordinator.certify.markdown import markdown, verdict
from coordinator.certify.measurements import RunRecording
from coordinator.certify.models import (
    Certificate,
    Cleanup,
    CleanupCheck,
    Flow,
    LastValues,
    SandboxRow,
    Throughput,
)
from coordinator.reporting.percentiles import Percentiles, percentiles_of
from tests.support.certified import EXPECTED


def test_the_rounds_of_the_report_add_up():
    flow = Flow(
        rounds_at_once=250, rounds_warmup=10, rounds_awaited=310, tick_to_decision_ms=percentiles_of([1.0] * 54)
    )
    text = markdown(replace(nothing_measured(), flow=flow))
    assert (
        "The stream had 314 decided rounds when it was read after the fault: 250 that came at once and 10 paced" in text
    )
    assert "54 are measured. certify waited for 310 of all; the other 4 were decided during its other steps." in text


def nothing_measured() -> Certificate:
    return Certificate(
        ok=False, version="0", provider="local", endpoint=None,
        started_at=datetime(2026, 1, 1, tzinfo=UTC), duration_s=1.0,
        machine=probe_sandbox(), nats_server="", steps=[],
        targets=targets(
            EXPECTED, [], [], [], [], None, RunRecording(), RunRecording(), None,
            detection_s=1.0, recovery_s=5.0, downtime_s=10.0,
        ),
        sandboxes=[SandboxRow(name="base", why="no heartbeat of its host was received")], agents=[], flow=Flow(),
        throughput=Throughput(rounds=0, seconds=None, decisions_per_s=None, messages_per_s=None, why="no rounds"),
        memory=[], snapshots=[], last_values=LastValues(subjects=0, bytes=0, read_ms=Percentiles(n=0)), fault=None,
        restored={}, audit=None, alerts={"sandbox_no_heartbeat": 2},
        alert_texts={"sandbox_no_heartbeat": "it | is\nnot there"},
        cleanup=Cleanup(), problems=["it went | wrong\nbadly"],
    )  # fmt: skip


def test_an_empty_report_has_a_reason_in_every_part():
    found = nothing_measured()
    text = markdown(found)
    assert verdict(found).startswith("FAILED: 0 of 10 targets met; missed: sandboxes deployed, agents active")
    for text_part in (
        "not measured: no agent was killed", "no heartbeat of its host was received", "No memory key was read.",
        "No snapshot was read.", "No agent was killed; see the problems", "(no rounds)",
        "There was no audit; see the problems",
        "- PROBLEM: it went \\| wrong badly", "Alerts received: sandbox_no_heartbeat (2), the newest of each:",
        "- sandbox_no_heartbeat: it \\| is not there",
    ):  # fmt: skip
        assert text_part in text
    widths = {len(line.replace("\\|", "").split("|")) for line in text.splitlines() if line.startswith("| detection")}
    assert widths == {7}


def test_what_could_not_be_checked_may_be_left():
    unknown = CleanupCheck(what="remote sandboxes", how="listed", orphans=None, why="no answer")
    cleanup = Cleanup(exit_code=0, checks=[CleanupCheck(what="processes", how="3 seen", orphans=[]), unknown])
    assert cleanup.orphans == ["remote sandboxes: not known whether any is left: no answer"]
    assert not cleanup.ok
    assert cleanup.summary == "left behind: remote sandboxes: not known whether any is left: no answer"
    assert Cleanup(exit_code=0, checks=cleanup.checks[:1]).summary == "nothing is left: processes (3 seen)"
    text = markdown(replace(nothing_measured(), cleanup=cleanup))
    assert "| processes | 3 seen | none |" in text
    assert "| remote sandboxes | listed | not measured: no answer |" in text
