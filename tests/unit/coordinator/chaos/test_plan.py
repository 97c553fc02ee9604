"""The plan of faults, whom they may hit, and what an observer makes of what it hears; the faults are in acceptance."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from bus.interface import ReceivedMessage
from bus.messages import Child, Decision, Epoch, encode, now
from bus.messages import headers as h
from bus.messages.subjects import Subjects
from coordinator.chaos.faults import FaultInjector
from coordinator.chaos.plan import EVERY_AGENT, KINDS, FaultTargets, PlannedFault, kinds_of, plan
from coordinator.chaos.processes import Processes, TargetUnavailable
from coordinator.chaos.report import FaultSeen, summarised
from coordinator.monitor.observer import Observer
from coordinator.reporting.percentiles import percentiles_of
from coordinator.runner.run_record import Recorded, Run, read_run, write_run

ALL = FaultTargets(
    agents=("research-1", "research-2", "coordinator"),
    sandboxes=("base", "python"),
    has=frozenset({"standby", "mirror", "nats-server", "proxy"}),
)


def first(seed: int, count: int = 200, candidates: FaultTargets = ALL) -> list[PlannedFault]:
    return list(itertools.islice(plan(seed, candidates), count))


# -- the plan


def test_the_same_seed_gives_the_same_faults_and_another_one_others():
    assert first(7) == first(7)
    assert first(7) != first(8)
    again = FaultTargets(agents=tuple(reversed(ALL.agents)), sandboxes=("python", "base"), has=ALL.has)
    assert first(7, candidates=again) == first(7)  # whatever order a configuration lists them in


def test_every_kind_comes_before_any_comes_again_and_hits_what_there_is():
    faults = first(3, len(KINDS) * 3)
    for at in range(0, len(faults), len(KINDS)):
        assert {fault.kind for fault in faults[at : at + len(KINDS)]} == set(KINDS)
    known = {*ALL.agents, *ALL.sandboxes, *ALL.has, "watchdog", EVERY_AGENT}
    assert {target for fault in faults for target in fault.targets} <= known
    assert [fault.number for fault in faults] == list(range(1, len(faults) + 1))
    assert any(fault.overlaps for fault in faults)


def test_only_what_the_swarm_has_is_hit():
    bare = FaultTargets(agents=("a",), sandboxes=("base",), has=frozenset())
    assert kinds_of(bare) == [
        "kill-agent", "kill-agents", "stop-agent", "pause-agent", "kill-host", "kill-watchdog", "stop-watchdog",
    ]  # fmt: skip
    assert {target for fault in first(1, candidates=bare) for target in fault.targets} == {"a", "base", "watchdog"}


def test_every_kind_of_the_plan_can_be_done():
    nothing: Any = None
    assert set(FaultInjector(silent(), nothing, nothing, (), nothing, 1.0)._kinds) == set(KINDS)


# -- whom it may hit


class Family:
    """A run whose `up` is this process, with one child of its own and one process that is none of it."""

    def __init__(self, directory) -> None:
        self.child = subprocess.Popen(["sleep", "60"])
        inner = "import subprocess as s; print(s.Popen(['sleep', '60'], stdout=s.DEVNULL, stderr=s.DEVNULL).pid)"
        made = subprocess.run([sys.executable, "-c", inner], capture_output=True, text=True, check=True)
        self.stranger = int(made.stdout)  # its parent has ended: it does not descend from us
        recorded = Recorded.of("sandbox", "base", self.child.pid)
        assert recorded is not None
        self.recorded = recorded
        write_run(directory, "swarm", "nats://127.0.0.1:1", "", [recorded])
        run = read_run(directory)
        assert run is not None
        self.run: Run = run
        self.processes = Processes(directory, run)

    def end(self) -> None:
        self.processes.close()
        os.kill(self.stranger, signal.SIGKILL)
        self.child.kill()
        self.child.wait()


@pytest.fixture
def family(tmp_path):
    made = Family(tmp_path)
    yield made
    made.end()


def status(pid: int) -> str:
    return psutil.Process(pid).status()


def test_a_child_of_the_run_is_hit_and_goes_on_when_let_go(family):
    member = family.processes.hold_child(family.processes.child("sandbox", name="base"))
    assert member.send(signal.SIGSTOP)
    assert os.waitid(os.P_PID, family.child.pid, os.WSTOPPED) is not None
    assert status(family.child.pid) == psutil.STATUS_STOPPED
    family.processes.close()
    assert os.waitid(os.P_PID, family.child.pid, os.WCONTINUED) is not None
    assert status(family.child.pid) != psutil.STATUS_STOPPED


def test_a_reused_pid_a_foreign_process_and_an_ended_one_are_left_alone(family):
    child = family.recorded
    later = Recorded(kind="sandbox", name="base", pid=child.pid, created=child.created - 60)
    with pytest.raises(TargetUnavailable, match="a later process"):
        family.processes.hold_child(later)
    stranger = Recorded.of("sandbox", "base", family.stranger)
    assert stranger is not None
    with pytest.raises(TargetUnavailable, match="does not descend"):
        family.processes.hold_child(stranger)
    agent = Child(agent="a", agent_id="i", epoch=1, pid=family.stranger, spawned_at=now())
    with pytest.raises(TargetUnavailable, match="does not descend"):
        family.processes.hold_agent(agent)
    family.child.kill()
    family.child.wait()
    with pytest.raises(TargetUnavailable, match="has ended"):
        family.processes.hold_child(child)
    with pytest.raises(TargetUnavailable):
        family.processes.child("sandbox")


def test_a_signal_after_the_end_hits_no_process(family):
    member = family.processes.hold_child(family.recorded)
    family.child.kill()
    family.child.wait()
    assert not member.send(signal.SIGKILL)


# -- what is heard


class _SilentBus:
    """What an observer needs of a connection."""

    def __init__(self) -> None:
        self.subjects = Subjects("swarm")

    def watch_connection(self, down: Callable[[], None], up: Callable[[], Any]) -> None:
        pass


def silent() -> Any:
    return _SilentBus()


class Subscribers:
    def __init__(self) -> None:
        self.generation = 1
        self.observer = Observer(silent())

    def hear(self, subject: str, data: bytes, sequence: int, **headers: str) -> None:
        named = {h.SEQUENCE: str(sequence), **headers}
        asyncio.run(self.observer._on_message(self.generation, ReceivedMessage(subject, data, named)))

    def decide(self, number: int, sequence: int, before: int) -> None:
        decision = Decision(
            final_decision="hold", position_size=0, risk_score=0, consensus_level=0, agents_consulted=(),
            timestamp=now(), source="coordinator", decision_id=f"BTC/USD:feed:{number}", symbol="BTC/USD", round=number,
        )  # fmt: skip
        subject = "swarm.decision.BTC-USD.coordinator"
        self.hear(subject, encode(decision), sequence, **{h.LAST_SEQUENCE: str(before)})


def test_a_gap_is_explained_by_a_broken_connection_only():
    subscribers = Subscribers()
    subscribers.decide(1, 10, 0)
    subscribers.decide(2, 20, 10)
    subscribers.generation = 2
    subscribers.decide(5, 50, 40)
    assert [(gap.after, gap.through, gap.broken) for gap in subscribers.observer.gaps] == [(20, 40, True)]
    assert subscribers.observer.problems == []
    subscribers.decide(7, 70, 60)
    assert [gap.broken for gap in subscribers.observer.gaps] == [True, False]
    assert "in one connection" in subscribers.observer.problems[0]


def test_a_round_received_twice_and_one_out_of_order_are_problems():
    subscribers = Subscribers()
    subscribers.decide(1, 10, 0)
    subscribers.decide(1, 11, 10)
    assert subscribers.observer.duplicated == 1
    subscribers.decide(3, 9, 8)
    assert len(subscribers.observer.problems) == 2


def test_a_superseded_incarnation_must_not_publish():
    subscribers = Subscribers()
    epoch = Epoch(agent="a", claim="agent_1_abcdef", claimed_by="watchdog", sandbox="b", timestamp=now(), source="w")
    subscribers.hear("swarm.signal.X.a", b"{}", 6, **{h.EPOCH: "5"})
    subscribers.hear("swarm.epoch.a", encode(epoch), 8)
    subscribers.hear("swarm.signal.X.a", b"{}", 9, **{h.EPOCH: "8"})
    subscribers.hear("swarm.signal.X.b", b"{}", 10, **{h.EPOCH: "5"})
    assert subscribers.observer.problems == []
    subscribers.hear("swarm.signal.X.a", b"{}", 11, **{h.EPOCH: "5"})
    assert len(subscribers.observer.problems) == 1
    assert "epoch 5, though 8 was claimed" in subscribers.observer.problems[0]


# -- what is reported


def seen(kind: str, recovered_ms: float | None, *, overlapping: bool = False) -> FaultSeen:
    return FaultSeen(
        number=1, kind=kind, targets=["a"], at_s=0, hold_s=0, overlapping=overlapping,
        outcome="not applicable" if recovered_ms is None else "recovered", recovered_ms=recovered_ms,
    )  # fmt: skip


def test_percentiles_are_of_each_kind_with_overlapping_ones_apart():
    faults = [seen("kill-agent", value) for value in (10.0, 30.0, 20.0)]
    faults += [seen("kill-agent", 99.0, overlapping=True), seen("kill-agent", None)]
    alone, overlapping = summarised(faults)
    assert (alone.count, alone.recovered, alone.not_applicable) == (4, 3, 1)
    assert (alone.recovered_ms.n, alone.recovered_ms.p50, alone.recovered_ms.max) == (3, 20.0, 30.0)
    assert alone.detected_ms == percentiles_of([])
    assert (overlapping.overlapping, overlapping.recovered_ms.p99) == (True, 99.0)
