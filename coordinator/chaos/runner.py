"""`signalmesh chaos`: injects random faults into a running swarm, measures each recovery, then verifies the stream.

It observes through a connection of its own, not through the proxy. The seed determines order and targets of the faults;
their times depend on how long each recovery takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bus.errors import BusError, MeshError, UsageError
from bus.mirror.reader import MIRROR_FILE
from bus.nats.bus import NatsBus
from bus.utils.aio import end_tasks
from bus.utils.processes import on_signals
from coordinator.audit.runner import audit_bus
from coordinator.chaos.faults import FaultInjector
from coordinator.chaos.plan import FaultRun, FaultTargets, PlannedFault, plan
from coordinator.chaos.processes import Processes, TargetUnavailable
from coordinator.chaos.report import Chaos, FaultSeen, ReceivedDecisions, Verification, summarised
from coordinator.config.changes import apply_changes, read_changes_file
from coordinator.config.settings import SwarmConfig
from coordinator.monitor.observer import Observer
from coordinator.monitor.run_files import config_of
from coordinator.replay.models import describe_missing
from coordinator.replay.runner import ReplayRange, replay_bus
from coordinator.runner.run_record import Run, read_run

__all__ = ["ChaosOptions", "candidates_of", "run_chaos", "running"]

DECIDING_S = 5.0
"""A swarm that has decided within this time before a fault must decide again after it."""
SPARE_DEATHS = 3
"""Margin below the deaths that quarantine an agent: the plan waits instead."""
POLL_INTERVAL_S = 0.05
ATTEMPTS = 3
"""For reads that fail because this process's own connection breaks."""
T = TypeVar("T")
OnFault = Callable[[FaultSeen], None]
Report = Callable[[str], None]


def running(state_dir: Path) -> Run:
    """The run of this state directory.

    Raises:
        UsageError: no swarm runs there.
    """
    run = read_run(state_dir)
    if run is None or not run.alive():
        raise UsageError(
            f"chaos: no swarm runs in {state_dir}; start one (`signalmesh up --fault-proxy`), or name it "
            "with --state-dir"
        )
    return run


def candidates_of(config: SwarmConfig, run: Run) -> FaultTargets:
    """What faults can hit in the run."""
    kinds = [child.kind for child in run.children]
    has: set[str] = {"mirror", "nats-server", "proxy"}.intersection(kinds)
    if kinds.count("watchdog") > 1:
        has.add("standby")
    return FaultTargets(
        agents=tuple(agent.spec.name for agent in config.agents if not agent.external),
        sandboxes=tuple(sandbox.name for sandbox in config.sandboxes),
        has=frozenset(has),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosOptions:
    """The options of the command line. `seed` None: a new one; a recovery may take `timeout_s` seconds."""

    for_s: float
    seed: int | None
    timeout_s: float


async def run_chaos(bus: NatsBus, state_dir: Path, options: ChaosOptions, on_fault: OnFault, report: Report) -> Chaos:
    """Inject faults for `options.for_s` seconds or until a signal, then verify the stream.

    `on_fault` is called with each fault when it is over, `report` with lines about the progress.

    Raises:
        UsageError: no swarm runs there; MeshError: it is unhealthy at the start; BusError: the bus does not answer.
    """
    run, signals = running(state_dir), 0
    stop = asyncio.Event()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    observer, processes = Observer(bus), Processes(state_dir, run)

    def on_signal() -> None:
        nonlocal signals
        signals += 1
        stop.set()
        if signals > 1:
            processes.close()  # no process may stay stopped
            os._exit(130)

    on_signals(on_signal)
    try:
        await observer.start()
        chaos = _Chaos(bus, observer, processes, run, state_dir, options, on_fault, report, stop)
        return await chaos.run(options.for_s, seed)
    finally:
        processes.close()


class _Chaos:
    def __init__(
        self,
        bus: NatsBus,
        observer: Observer,
        processes: Processes,
        run: Run,
        state_dir: Path,
        options: ChaosOptions,
        on_fault: OnFault,
        report: Report,
        stop: asyncio.Event,
    ) -> None:
        self._bus, self._observer, self._processes = bus, observer, processes
        self._state_dir, self._on_fault, self._report, self._stop = state_dir, on_fault, report, stop
        self._config = config_of(None, state_dir)
        changed = apply_changes(self._config, read_changes_file(state_dir))
        self._candidates = candidates_of(changed, run)
        self._injector = FaultInjector(bus, observer, processes, self._candidates.agents, state_dir, options.timeout_s)
        self._timeout_s = options.timeout_s
        self._started_at = time.monotonic()
        self._under_way: dict[asyncio.Task[None], FaultRun] = {}
        self._overlapping: set[int] = set()
        self._faults: list[FaultSeen] = []
        self._problems: list[str] = []

    async def run(self, for_s: float, seed: int) -> Chaos:
        if (unhealthy := await self._wait_healthy(0.0, deciding=False)) is not None:
            raise MeshError(f"chaos: the swarm is unhealthy before the first fault: {unhealthy}; see signalmesh doctor")
        self._started_at = time.monotonic()
        try:
            for fault in plan(seed, self._candidates):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(fault.rest_s):
                        await self._stop.wait()
                if self._stop.is_set() or self._problems or time.monotonic() - self._started_at >= for_s:
                    break
                await self._start_fault(fault)
            await self._finish_faults()
        finally:
            await end_tasks(self._under_way)
        duration_s = time.monotonic() - self._started_at
        await self._observer.stop()  # while the stream is read below, the server would drop this slow subscriber
        decisions = await self._compare_decisions()
        verifications = await self._verify()
        problems = [*self._problems, *self._observer.problems]
        problems += [
            f"{verification.name}: {verification.text}" for verification in verifications if verification.ok is False
        ]
        return Chaos(
            ok=not problems,
            swarm=self._bus.subjects.ns,
            seed=seed,
            for_s=for_s,
            duration_s=round(duration_s, 3),
            faults=self._faults,
            kinds=summarised(self._faults),
            decisions=decisions,
            verifications=verifications,
            problems=problems,
        )

    # -- one fault after the other

    async def _start_fault(self, fault: PlannedFault) -> None:
        await self._wait_out_quarantine()
        if all(task.done() for task in self._under_way):
            await self._finish_faults()
        fault_run = FaultRun(fault, started_at=time.monotonic())
        task = asyncio.create_task(self._watch(fault_run), name=f"fault-{fault.number}")
        if self._under_way:
            self._overlapping.update(each.number for each in (fault, *self._faults_under_way()))
        self._under_way[task] = fault_run
        injected = asyncio.create_task(fault_run.injected.wait())
        await asyncio.wait({task, injected}, return_when=asyncio.FIRST_COMPLETED)
        injected.cancel()
        if not (fault.overlaps and len(self._under_way) == 1):
            await self._finish_faults()

    def _faults_under_way(self) -> list[PlannedFault]:
        return [fault_run.fault for fault_run in self._under_way.values()]

    async def _finish_faults(self) -> None:
        """Wait for the recovery from all faults under way, and until the swarm is healthy."""
        if not self._under_way:
            return
        since = min(fault_run.started_at for fault_run in self._under_way.values())
        deciding = (self._observer.decided_at or 0.0) > since - DECIDING_S
        while self._under_way:
            done, _ = await asyncio.wait(self._under_way)
            for task in done:
                task.result()
            self._under_way = {task: fault_run for task, fault_run in self._under_way.items() if not task.done()}
        if (
            not self._problems
            and (unhealthy := await self._wait_healthy(time.monotonic(), deciding=deciding)) is not None
        ):
            self._problems.append(f"after fault #{self._faults[-1].number} {self._faults[-1].kind}: {unhealthy}")

    async def _watch(self, fault_run: FaultRun) -> None:
        outcome, note, fault = "recovered", "", fault_run.fault
        try:
            await self._injector.inject(fault_run)
        except TargetUnavailable as reason:
            outcome, note = "not applicable", str(reason)
        except TimeoutError:
            outcome, note = "not recovered", f"within {self._timeout_s:g} s"
        except MeshError as error:
            outcome, note = "not recovered", str(error)
        if outcome == "not recovered":
            self._problems.append(f"fault #{fault.number} {fault.kind} {', '.join(fault.targets)}: {outcome} {note}")

        def after_ms(at: float | None) -> float | None:
            return None if at is None or outcome == "not applicable" else round((at - fault_run.started_at) * 1000, 1)

        seen = FaultSeen(
            number=fault.number,
            kind=fault.kind,
            targets=list(fault.targets),
            at_s=round(fault_run.started_at - self._started_at, 3),
            fault_s=fault.fault_s,
            overlapping=fault.number in self._overlapping,
            outcome=outcome,
            detected_ms=after_ms(fault_run.detected),
            recovered_ms=after_ms(fault_run.recovered),
            note=note,
        )
        self._faults.append(seen)
        self._on_fault(seen)

    async def _wait_out_quarantine(self) -> None:
        """Wait while one more death could quarantine an agent: the swarm could then not recover."""
        watchdog = self._config.watchdog
        while True:
            oldest = time.monotonic() - watchdog.quarantine_window_s
            worst = max((sum(at > oldest for at in times) for times in self._observer.deaths.values()), default=0)
            if worst < max(1, watchdog.quarantine_deaths - SPARE_DEATHS):
                return
            await asyncio.sleep(POLL_INTERVAL_S)

    async def _wait_healthy(self, since: float, *, deciding: bool) -> str | None:
        """Wait for heartbeats after `since` of all processes; returns what is missing after the timeout."""
        until = time.monotonic() + self._timeout_s
        while (unhealthy := self._unhealthy(since, deciding)) is not None and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(POLL_INTERVAL_S)
        return unhealthy

    def _unhealthy(self, since: float, deciding: bool) -> str | None:
        observer = self._observer
        missing = [name for name in self._candidates.agents if not observer.lives(name, since)]
        for name in self._candidates.sandboxes:
            heartbeat = observer.hosts.get(name)
            if heartbeat is None or heartbeat.at <= since or heartbeat.heartbeat.status != "live":
                missing.append(f"sandbox {name}")
        if observer.leader is None or observer.leader.at <= since:
            missing.append("a leading watchdog")
        missing += [f"{child.kind} {child.name}" for child in self._processes.children if not child.alive()]
        if deciding and (observer.decided_at or 0.0) <= since:
            missing.append("a decision")
        return f"no heartbeat, or not running: {', '.join(missing)}" if missing else None

    # -- afterwards

    async def _compare_decisions(self) -> ReceivedDecisions:
        """Compare the received decisions with the stored ones, from the first to the last received of each subject."""
        observer = self._observer
        within = sum(not gap.broken for gap in observer.gaps)
        found = ReceivedDecisions(
            received=observer.decisions,
            gaps=len(observer.gaps) - within,
            gaps_in_one_connection=within,
            rounds_duplicated=observer.duplicated,
        )
        try:
            stored, found.missed = await self._retried(self._count_decisions)
        except BusError as error:
            observer.problems.append(f"the decisions could not be read back: {error}")
            return found
        found.stored = stored
        if stored != found.received + found.missed:
            observer.problems.append(
                f"decisions: {stored} are stored, but {found.received} were received and {found.missed} fell into gaps"
            )
        return found

    async def _count_decisions(self) -> tuple[int, int]:
        """Stored ones from the first to the last received of each subject, and how many of them are in gaps."""
        stored = missed = 0
        for subject, first in self._observer.first_decision.items():
            last = self._observer.last_decision[subject]
            numbers = [item.sequence for item in await self._bus.read_back((subject,), first) if item.sequence <= last]
            holes = [gap for gap in self._observer.gaps if gap.subject == subject]
            stored += len(numbers)
            missed += sum(any(hole.after < number <= hole.through for hole in holes) for number in numbers)
        return stored, missed

    async def _verify(self) -> list[Verification]:
        self._report("all faults are over; auditing and replaying the stream …")
        return [await self._verification("audit", self._audit), await self._verification("replay", self._replay)]

    async def _audit(self) -> Verification:
        audit = await audit_bus(self._bus, self._state_dir / MIRROR_FILE)
        text = audit.problems[0].text if audit.problems else f"{audit.stream.messages} messages, no problem"
        return Verification(name="audit", ok=audit.ok, text=text)

    async def _replay(self) -> Verification:
        replay = await replay_bus(self._bus, self._config, ReplayRange())
        if replay.differences:
            return Verification(name="replay", ok=False, text=replay.differences[0].text)
        if missing := describe_missing(replay):
            return Verification(name="replay", ok=False, text=missing)
        if not replay.compared:  # retention has removed the beginning, which is no failure
            return Verification(name="replay", ok=None, text="; ".join(replay.notes) or "nothing could be compared")
        return Verification(
            name="replay", ok=replay.ok, text=f"{replay.compared} outputs, {replay.differing} of them differ"
        )

    async def _verification(self, name: str, verify: Callable[[], Awaitable[Verification]]) -> Verification:
        try:
            return await self._retried(verify)
        except MeshError as error:
            return Verification(name=name, ok=False, text=str(error))

    async def _retried(self, work: Callable[[], Awaitable[T]]) -> T:
        """Repeat `work` if this process's own connection breaks: that is no failure of the swarm.

        Raises:
            BusError: it broke each time, or there is none.
        """
        problem = BusError(f"not connected to {self._bus.url} within {self._timeout_s:g} s")
        for _ in range(ATTEMPTS):
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._bus.wait_connected()
            except TimeoutError:
                break
            try:
                return await work()
            except BusError as error:
                problem = error
        raise problem
