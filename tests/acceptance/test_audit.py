"""`signalmesh audit`: a run with kills is whole (see `good`), and whatever is damaged in its copy is named, with its
sequence.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from bus.interface import StoredMessage
from bus.messages import headers as h
from coordinator.audit.models import Audit, Problem
from coordinator.audit.runner import audit_bus
from tests.acceptance.conftest import LENGTH
from tests.acceptance.swarm import AGENTS, run_command
from tests.support.copying import FENCE, Recorded, copied

KEPT = 560
"""First decision that retention has left: near the end, where the recording comes at its pace."""
MOMENTUM, REVERSION, COORDINATOR = "strategy-momentum", "strategy-mean-reversion", "coordinator"


async def audit_of(directory: Path, run: Recorded, **how: tuple[int, ...]) -> Audit:
    async with copied(directory, run, **how) as bus:
        return await audit_bus(bus)


def only(audit: Audit, check: str) -> Problem:
    """The one problem of this check."""
    assert not audit.ok
    [problem] = [problem for problem in audit.problems if problem.check == check]
    return problem


def spare(run: Recorded, after: int = 0) -> int:
    """The sequence of a message that nothing depends on, so that a damaged one can replace it."""
    return next(m.sequence for m in run.messages if m.subject.startswith("swarm.lifecycle.") and m.sequence > after)


async def test_a_copy_is_whole(tmp_path: Path, good: Recorded):
    audit = await audit_of(tmp_path, good)
    assert audit.problems == []
    assert audit.ok
    assert audit.notes == []
    assert {name: agent.outputs for name, agent in audit.agents.items()} == {
        name: sum(m.subject.endswith(f".{name}") and h.OUTPUT in m.headers for m in good.messages) for name in AGENTS
    }
    assert audit.rounds.decided == LENGTH
    assert audit.rounds.waiting == 0
    assert set(audit.snapshots) == set(AGENTS)
    assert all(snapshot.implied == snapshot.outputs for name, snapshot in audit.snapshots.items() if name in AGENTS[1:])


async def test_a_missing_output(tmp_path: Path, good: Recorded):
    lost = good.find("swarm.signal.", Mesh_Output=77).sequence
    audit = await audit_of(tmp_path, good, without=(lost,))
    agent = good.at(lost).subject.rpartition(".")[2]
    assert only(audit, "holes").sequences == [lost, lost]
    problem = only(audit, "outputs")
    assert (problem.agent, problem.expected, problem.found) == (agent, "77", "78")
    assert problem.sequences == [good.find(good.at(lost).subject, Mesh_Output=78).sequence]
    assert audit.agents[agent].gaps == 1


async def test_a_missing_decision(tmp_path: Path, good: Recorded):
    """Another message has its sequence: no hole, but a round without a decision."""
    decision = good.find("swarm.decision.", Mesh_Output=50)
    audit = await audit_of(tmp_path, good.replaced(decision.sequence, good.at(spare(good))))
    problem = only(audit, "rounds")
    assert (problem.agent, problem.expected) == (COORDINATOR, "BTC/USD:research-1:50")
    assert problem.sequences[0] == good.find("swarm.market.", Mesh_Output=50).sequence
    assert audit.rounds.missing == 1
    assert only(audit, "outputs").agent == COORDINATOR


async def test_a_duplicated_output(tmp_path: Path, good: Recorded):
    first = good.find("swarm.decision.", Mesh_Output=20)
    position = spare(good, after=good.find("swarm.decision.", Mesh_Output=30).sequence)
    audit = await audit_of(tmp_path, good.replaced(position, first))
    duplicated = only(audit, "outputs")
    assert (duplicated.agent, duplicated.sequences, duplicated.found) == (COORDINATOR, [position], "20")
    assert audit.agents[COORDINATOR].duplicated == 1
    assert only(audit, "rounds").sequences == [position]
    assert audit.rounds.duplicated == 1


async def test_a_superseded_epoch(tmp_path: Path, good: Recorded):
    claims = [m.sequence for m in good.messages if m.subject == f"swarm.epoch.{COORDINATOR}"]
    late = next(m for m in good.messages if m.sequence > claims[1] and m.subject.startswith("swarm.decision."))
    audit = await audit_of(tmp_path, good.with_headers(late.sequence, Mesh_Epoch=claims[0]))
    problem = only(audit, "fence")
    assert (problem.agent, problem.sequences) == (COORDINATOR, [late.sequence])
    assert (problem.expected, problem.found) == (str(claims[1]), str(claims[0]))


async def test_an_output_that_no_fence_held_back(tmp_path: Path, good: Recorded):
    """A claim where the agent went on publishing under the one before it, as on a server that lets everything pass."""
    position = spare(good, after=good.find(f"swarm.signal.BTC-USD.{REVERSION}", Mesh_Output=1).sequence)
    claim = good.find(f"swarm.epoch.{REVERSION}")
    without_fence = {name: value for name, value in claim.headers.items() if name not in FENCE}
    run = good.replaced(position, replace(claim, headers=without_fence))
    of_agent = [m for m in good.messages if m.sequence > position and m.subject.endswith(f".{REVERSION}")]
    for message in of_agent:
        run = run.with_headers(message.sequence, **dict.fromkeys(FENCE))
    audit = await audit_of(tmp_path, run)
    outrun = [problem for problem in audit.problems if "the fence did not hold" in problem.text]
    second = next(m.sequence for m in good.messages if m.subject == claim.subject and m.sequence > position)
    late = [m.sequence for m in of_agent if h.EPOCH in m.headers and m.sequence < second]
    assert late
    assert [problem.sequences for problem in outrun] == [[sequence] for sequence in late]
    assert {problem.agent for problem in outrun} == {REVERSION}


@pytest.mark.parametrize(
    ("check", "changed", "found"),
    [
        ("ids", {"Nats_Msg_Id": "coordinator:9999"}, "coordinator:9999"),
        ("causes", {"Mesh_Cause": 9999}, "9999"),
        ("causes", {"Mesh_Cause": 2}, "2"),
        ("fence", {"Mesh_Epoch": None}, "none"),
        ("fence", {name.replace("-", "_"): None for name in FENCE}, "none"),
        ("outputs", {"Mesh_Output": "many"}, "many"),
    ],
)
async def test_a_wrong_header(tmp_path: Path, good: Recorded, check: str, changed: dict[str, object], found: str):
    damaged = good.find("swarm.decision.", Mesh_Output=100).sequence
    audit = await audit_of(tmp_path, good.with_headers(damaged, **changed))
    problem = next(problem for problem in audit.problems if problem.check == check)
    assert (problem.agent, problem.sequences, problem.found) == (COORDINATOR, [damaged], found)


async def test_another_writer_in_an_agents_name(tmp_path: Path, good: Recorded):
    position = spare(good, after=100)
    decision = good.find("swarm.decision.")
    audit = await audit_of(tmp_path, good.replaced(position, replace(decision, headers={})))
    problem = only(audit, "outputs")
    assert (problem.agent, problem.sequences) == (COORDINATOR, [position])
    assert audit.stream.unnumbered == {COORDINATOR: 1}


async def test_messages_of_other_writers_are_counted_and_reported(tmp_path: Path, good: Recorded):
    poison, unknown_writer = spare(good), spare(good, after=100)
    run = good.replaced(poison, StoredMessage("swarm.market.BTC-USD.research-9", 0, b"not JSON"))
    vote = replace(good.find("swarm.signal."), subject="swarm.signal.BTC-USD.outsider", headers={})
    audit = await audit_of(tmp_path, run.replaced(unknown_writer, vote))
    assert audit.ok, audit.problems
    assert [(item.sequence, item.subject) for item in audit.poison] == [(poison, "swarm.market.BTC-USD.research-9")]
    assert audit.poison_total == 1
    assert audit.stream.unnumbered == {"research-9": 1, "outsider": 1}
    assert any("outsider" in note for note in audit.notes)


@pytest.mark.parametrize(
    ("field", "by", "expected"),
    [("epoch", 100_000, "at most"), ("cursor", 100_000, "at most"), ("outputs", 1000, "at most"), ("outputs", -1, "")],
)
async def test_a_snapshot_that_does_not_fit(tmp_path: Path, good: Recorded, field: str, by: int, expected: str):
    def change(data: bytes) -> bytes:
        snapshot = orjson.loads(data)
        return orjson.dumps({**snapshot, field: snapshot[field] + by})

    audit = await audit_of(tmp_path, good.with_value("swarm_state", MOMENTUM, change))
    problem = only(audit, "snapshots")
    assert problem.agent == MOMENTUM
    assert problem.expected.startswith(expected)
    assert not audit.snapshots[MOMENTUM].ok
    assert audit.snapshots[COORDINATOR].ok


@pytest.mark.parametrize(("bucket", "check"), [("swarm_state", "snapshots"), ("swarm_agents", "registry")])
async def test_garbage_in_a_bucket(tmp_path: Path, good: Recorded, bucket: str, check: str):
    audit = await audit_of(tmp_path, good.with_value(bucket, MOMENTUM, lambda _: b"{"))
    assert only(audit, check).agent == MOMENTUM


@pytest.mark.parametrize("change", [{"epoch": 100_000}, {"agent_id": "agent_1_aaaaaa"}])
async def test_a_registry_record_without_an_epoch(tmp_path: Path, good: Recorded, change: dict[str, object]):
    run = good.with_value("swarm_agents", MOMENTUM, lambda data: orjson.dumps({**orjson.loads(data), **change}))
    assert only(await audit_of(tmp_path, run), "registry").agent == MOMENTUM


async def test_what_retention_has_removed_is_noted_and_no_problem(tmp_path: Path, good: Recorded):
    begins = good.find("swarm.decision.", Mesh_Output=KEPT).sequence
    gone = tuple(m.sequence for m in good.messages if m.sequence < begins and m.headers.get(h.TTL) != "never")
    audit = await audit_of(tmp_path, good, without=gone)
    assert audit.problems == []
    assert audit.stream.kept_from == begins
    assert any(f"{len(gone)} messages" in note for note in audit.notes)
    assert audit.agents[COORDINATOR].first == KEPT
    assert audit.agents[COORDINATOR].gaps == 0


async def test_a_gap_after_what_retention_has_removed(tmp_path: Path, good: Recorded):
    begins = good.find("swarm.decision.", Mesh_Output=KEPT).sequence
    gone = [m.sequence for m in good.messages if m.sequence < begins and m.headers.get(h.TTL) != "never"]
    lost = good.find("swarm.decision.", Mesh_Output=KEPT + 20).sequence
    audit = await audit_of(tmp_path, good, without=(*gone, lost))
    assert only(audit, "holes").sequences == [lost, lost]
    assert only(audit, "rounds").agent == COORDINATOR
    assert only(audit, "outputs").expected == str(KEPT + 20)


async def test_the_command_ends_with_1_and_prints_what_is_wrong(tmp_path: Path, good: Recorded):
    lost = good.find("swarm.decision.", Mesh_Output=10).sequence
    async with copied(tmp_path, good, without=(lost,)) as bus:
        result = await run_command(tmp_path, "audit", "--nats", bus.url)
        as_json = await run_command(tmp_path, "audit", "--nats", bus.url, "--json")
    assert result.code == as_json.code == 1
    assert f"message {lost} is missing" in result.out
    assert "output 10 is missing before output 11" in result.out
    assert as_json.json["ok"] is False
    assert as_json.json["agents"][COORDINATOR]["gaps"] == 1
    assert as_json.json["mirror"]["missing"] == 0
