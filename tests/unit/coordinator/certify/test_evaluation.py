"""certify's report: every row says what was measured, or why it was not; the verdict follows from nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import orjson
import psutil
import pytest

from agents.host.probe import network_of_here, probe_sandbox
from bus.errors import UsageError
from bus.messages import SandboxUsage
from coordinator.certify.evaluation import targets
from coordinator.certify.expected import configuration, expected
from coordinator.certify.leftovers import check_earlier_runs, earlier_runs, make_directory
from coordinator.certify.markdown import markdown, target_text, verdict
from coordinator.certify.measurements import RecordedMessage, RunRecording, Value, digest, match_by_digest
from coordinator.certify.models import (
    Audited,
    Certificate,
    Cleanup,
    CleanupCheck,
    Flow,
    LastValues,
    SandboxRow,
    Throughput,
    judged,
)
from coordinator.certify.temporary_swarm import TemporarySwarm
from coordinator.config.loader import DEFAULT_AGENTS, DEFAULT_SANDBOXES, parse_swarm
from coordinator.control.kill import KillReport
from coordinator.reporting.percentiles import Percentiles, percentiles_of
from coordinator.runner.run_record import Recorded, Run
from coordinator.sandboxes.health import HERE, shared_with
from coordinator.sandboxes.pool_record import Orphan, Pool, write_pool

MS = 1_000_000
KILLING = KillReport(
    agent="research-1", sandbox="base", pid=7, signal="SIGKILL", epoch_before=1, epoch_after=4, outcome="recovered",
    detected_ms=20.0, ready_ms=80.0, outputs_lost=0, outputs_duplicated=0, outputs_checked=4,
)  # fmt: skip
WANTED, _ = expected(None, None)
AUDITED = Audited(
    ok=True, messages=6, gaps=0, duplicated=0, rounds_decided=2, rounds_missing=0, mirror_compared=6, mirror_missing=0,
    mirror_differing=0, problems=[], notes=[],
)  # fmt: skip


def message(
    kind: str, writer: str, at_ms: int, cause: int | None = None, epoch: int = 1, data: bytes = b"x"
) -> RecordedMessage:
    return RecordedMessage(f"swarm.{kind}.BTC-USD.{writer}", kind, writer, at_ms * MS, cause, epoch, digest(data))


def recording() -> RunRecording:
    """Two rounds: a tick before the kill, a tick after it, each with a vote and a decision."""
    found = RunRecording()
    found.messages = {
        1: message("epoch", "research-1", 0),
        2: message("market", "research-1", 100, data=b"tick 1"),
        3: message("signal", "momentum", 103, cause=2),
        4: message("epoch", "research-1", 150),
        5: message("market", "research-1", 300, epoch=4, data=b"tick 2"),
        6: message("signal", "momentum", 305, cause=5),
        7: message("decision", "coordinator", 306, cause=6),
    }
    found.ticks = {("BTC/USD research-1", 1): 2, ("BTC/USD research-1", 2): 5}
    found.decisions = {7: ("BTC/USD research-1", 2, ("momentum",))}
    found.claims = {"research-1": [1, 4]}
    found.events = {("ready", "research-1", 4): (190 * MS, {"replayed": 0})}
    return found


def judge(
    fault: KillReport | None, before: RunRecording, after: RunRecording, audit: Audited | None
) -> dict[str, object]:
    limits = {"detection_s": 1.0, "recovery_s": 5.0, "downtime_s": 10.0}
    found = targets(WANTED, [], [], [], [], fault, before, after, audit, **limits)
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


def test_a_limit_is_not_met_by_what_equals_it():
    assert not judged("detection", 1.0, "s", 1.0, "", "").ok
    assert judged("loss", 0.0, "outputs", 0.0, "", "", exactly=True).ok
    assert not judged("loss", 1.0, "outputs", 0.0, "", "", exactly=True).ok
    assert target_text(judged("a", None, "s", 1.0, "", "the bus was down")) == (
        "< 1.0 s",
        "not measured: the bus was down",
    )


def test_hops_and_rounds_are_those_of_the_paced_part():
    flow = recording().flow(at_once=1, settling=0, awaited=2)
    assert [(hop.source, hop.to, hop.kind, hop.ms.n, hop.ms.max) for hop in flow.hops] == [
        ("momentum", "coordinator", "decision", 1, 1.0),
        ("research-1", "momentum", "signal", 1, 5.0),
    ]
    assert (flow.tick_to_decision_ms.n, flow.tick_to_decision_ms.p50) == (1, 6.0)
    assert flow.votes == {"momentum": 1}
    assert recording().flow(at_once=1, settling=1, awaited=2) == Flow(rounds_settling=1, rounds_awaited=2)
    assert recording().flow(at_once=2, settling=0, awaited=2) == Flow(rounds_at_once=1, rounds_awaited=2)
    assert recording().since_claim_ms("ready", "research-1", 4) == 40.0
    assert recording().since_claim_ms("ready", "research-1", 1) is None


def test_the_rounds_of_the_report_add_up():
    flow = Flow(
        rounds_at_once=250, rounds_settling=10, rounds_awaited=310, tick_to_decision_ms=percentiles_of([1.0] * 54)
    )
    text = markdown(replace(nothing_measured(), flow=flow))
    assert (
        "The stream had 314 decided rounds when it was read after the fault: 250 that came at once and 10 paced" in text
    )
    assert "54 are measured. certify waited for 310 of all; the other 4 were decided during its other steps." in text


def test_throughput_without_decisions_has_a_reason():
    assert recording().throughput(1).why == "the stream holds 0 decisions of the first 1 rounds"


def test_a_value_that_the_stream_does_not_have_is_not_intact(tmp_path: Path):
    from bus.interface import KvEntry

    values = [
        Value("research-1", "k", KvEntry(b"tick 2", 9), (1.0, 2.0)),
        Value("research-1", "k", KvEntry(b"forged", 9), (1.0,)),
        Value("research-1", "k", None, ()),
    ]
    there, forged, missing = match_by_digest(values, recording(), tmp_path / "mirror.sqlite")
    assert (there.sequence, there.mirrored) == (5, None)
    assert "the mirror cannot be read" in there.why
    assert (forged.sequence, forged.mirrored) == (None, None)
    assert forged.why == "none of its 2 messages in the stream has this digest"
    assert missing.why == "the bucket has no such key"


def nothing_measured() -> Certificate:
    return Certificate(
        ok=False, version="0", provider="local", endpoint=None,
        started_at=datetime(2026, 1, 1, tzinfo=UTC), duration_s=1.0,
        machine=probe_sandbox(), nats_server="", steps=[],
        targets=targets(
            WANTED, [], [], [], [], None, RunRecording(), RunRecording(), None,
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


def test_the_configuration_is_the_default_swarm_with_the_given_provider():
    config = parse_swarm(tomllib.loads(configuration("local")), "x.toml", "")
    assert [item.name for item in config.sandboxes] == list(DEFAULT_SANDBOXES)
    assert {item.spec.name: item.spec.sandbox for item in config.agents} == {
        name: table["sandbox"] for name, table in DEFAULT_AGENTS.items()
    }
    assert {table["provider"] for table in tomllib.loads(configuration("x"))["sandboxes"].values()} == {"x"}


def test_what_to_expect_of_another_swarm_is_its_configurations(tmp_path: Path):
    file = tmp_path / "swarm.toml"
    file.write_text("""
[sandboxes.one]
[agents.feed]
kind = "market-data"
options = { history = 60 }
[agents.vote]
kind = "momentum"
memory_key = "mine"
[agents.decider]
kind = "coordinator"
[agents.other]
external = true
""")
    found, _ = expected(file, None)
    assert (found.sandboxes, found.target, found.history) == ({"one": "local"}, "feed", 60)
    assert found.agents == {"feed": "market-data", "vote": "momentum", "decider": "coordinator"}
    assert found.keys == {"feed": "market_data", "vote": "mine", "decider": "decision"}
    assert (WANTED.target, WANTED.history, WANTED.providers) == ("research-1", 250, "local")


@pytest.mark.parametrize(
    ("kind", "lacking"), [("market-data", "no agent that decides"), ("coordinator", "no agent of kind")]
)
def test_a_swarm_without_rounds_cannot_be_certified(tmp_path: Path, kind, lacking):
    (tmp_path / "swarm.toml").write_text(f'[agents.a]\nkind = "{kind}"\n[agents.b]\nkind = "momentum"')
    with pytest.raises(UsageError, match=lacking):
        expected(tmp_path / "swarm.toml", None)


async def test_a_process_that_outlives_its_swarm_is_listed():
    swarm = TemporarySwarm("")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        created = psutil.Process(child.pid).create_time()
        swarm._all_agents = {child.pid: (created, "python -c input()"), os.getpid(): (created - 1000, "another")}
        cleanup = await swarm.stop()
        assert cleanup.orphans == [f"process {child.pid} (python -c input()): end it with `kill {child.pid}`"]
        assert not cleanup.ok
        child.kill()
    assert not swarm.directory.exists()


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


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_directory_of_certify_is_left_once_its_owner_has_ended(temporary: Path):
    [nothing] = check_earlier_runs()
    assert nothing.level == "ok"
    mine = make_directory()
    assert earlier_runs() == [], "we are there"
    (mine / "certify.json").write_bytes(orjson.dumps(Recorded(kind="certify", name="certify", pid=1, created=1.0)))
    assert earlier_runs() == [mine]
    [finding] = check_earlier_runs()
    assert (finding.level, finding.remedy) == ("warning", f"rm -r {mine}")
    assert str(mine) in finding.text


def test_what_an_earlier_run_has_left_is_named(temporary: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("E2B_API_KEY", raising=False)
    orphans = make_directory()
    (orphans / "certify.json").write_bytes(orjson.dumps(Recorded(kind="certify", name="certify", pid=1, created=1.0)))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        alive = Recorded.of("sandbox", "base", child.pid)
        state_dir = orphans / "state"
        write_pool(
            state_dir, Pool(id="p", endpoint="E2B at https://x", sandboxes=(Orphan(sandbox="base-i1", id="i1"),))
        )
        assert alive is not None
        run = Run(pid=1, created=1.0, swarm="swarm", url="nats://127.0.0.1:1", config="", children=(alive,))
        (state_dir / "run.json").write_bytes(orjson.dumps(run))
        sandboxes, processes, directory = check_earlier_runs()
        child.kill()
    assert "i1 (E2B_API_KEY is not set here)" in sandboxes.text
    assert (processes.level, processes.remedy) == ("error", f"kill -9 {child.pid}")
    assert directory.remedy.startswith(f"rm -r {orphans}, once none of its sandboxes is left")
    monkeypatch.setenv("E2B_API_KEY", "none")
    monkeypatch.setenv("E2B_API_URL", "http://127.0.0.1:1")
    elsewhere = check_earlier_runs()[0]
    assert "at E2B at https://x" in elsewhere.text, "another endpoint would only say that it has none"
    assert "is for custom endpoint http://127.0.0.1:1 here" in elsewhere.text


def test_a_network_is_own_only_if_it_is_not_shared():
    def usage(network: str | None) -> SandboxUsage:
        return SandboxUsage(processes=1, cpu_s=0.0, rss_mb=1.0, network=network, rx_bytes=1, tx_bytes=1)

    usages = {"a": usage("n1"), "b": usage("n1"), "c": usage("n2"), "d": usage(network_of_here()), "e": usage(None)}
    assert shared_with("a", usages) == ["b"]
    assert shared_with("c", usages) == []
    assert shared_with("d", usages) == [HERE]
    assert shared_with("e", usages) is None
