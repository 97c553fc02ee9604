"""`signalmesh chaos`: random faults on the swarm of this state directory, each with its measured recovery, and a proof.

It listens from outside, on a connection of its own that goes through no proxy. Order and targets of the faults come
from the seed alone; when each comes depends on how long the swarm takes to recover from the one before.
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
from coordinator.chaos.faults import Deeds
from coordinator.chaos.plan import Fault, Happening, Places, plan
from coordinator.chaos.processes import NotOurs, Processes
from coordinator.chaos.report import Chaos, FaultSeen, HeardDecisions, Proof, summarised
from coordinator.config.settings import SwarmConfig
from coordinator.monitor.observer import Observer
from coordinator.replay.runner import Span, config_of, replay_bus
from coordinator.runner.run_record import Run, read_run

__all__ = ["ChaosOptions", "places_of", "run_chaos", "running"]

DECIDING_S = 5.0
"""A swarm that has decided within this time before a fault must decide again after it."""
SPARE_DEATHS = 3
"""So many deaths fewer than would put an agent into quarantine: the plan waits rather than have that happen."""
LOOK_S = 0.05
ATTEMPTS = 3
"""At work during which our own connection breaks."""
T = TypeVar("T")
Tell = Callable[[FaultSeen], None]
Say = Callable[[str], None]


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


def places_of(config: SwarmConfig, run: Run) -> Places:
    """What of the run can be hit."""
    kinds = [child.kind for child in run.children]
    has: set[str] = {"mirror", "nats-server", "proxy"}.intersection(kinds)
    if kinds.count("watchdog") > 1:
        has.add("standby")
    return Places(
        agents=tuple(agent.spec.name for agent in config.agents if not agent.external),
        sandboxes=tuple(sandbox.name for sandbox in config.sandboxes),
        has=frozenset(has),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosOptions:
    """What was asked for on the command line. `seed` None: a new one; a recovery may take `patience_s` seconds."""

    for_s: float
    seed: int | None
    patience_s: float


async def run_chaos(bus: NatsBus, state_dir: Path, options: ChaosOptions, tell: Tell, say: Say) -> Chaos:
    """Faults for so many seconds or until a signal, then the proofs. `tell` gets each fault when it is over,
    `say` what goes on else.

    Raises:
        UsageError: no swarm runs there; MeshError: it is not well to begin with; BusError: the bus does not answer.
    """
    run, asked = running(state_dir), 0
    stop = asyncio.Event()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    observer, processes = Observer(bus), Processes(state_dir, run)

    def on_signal() -> None:
        nonlocal asked
        asked += 1
        stop.set()
        if asked > 1:
            processes.close()  # nobody may stay stopped
            os._exit(130)

    on_signals(on_signal)
    try:
        await observer.start()
        chaos = _Chaos(bus, observer, processes, run, state_dir, options, tell, say, stop)
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
        tell: Tell,
        say: Say,
        stop: asyncio.Event,
    ) -> None:
        self._bus, self._observer, self._processes = bus, observer, processes
        self._state_dir, self._tell, self._say, self._stop = state_dir, tell, say, stop
        self._config = config_of(None, state_dir)
        self._places = places_of(self._config, run)
        self._deeds = Deeds(bus, observer, processes, self._places.agents, state_dir, options.patience_s)
        self._patience_s = options.patience_s
        self._began = time.monotonic()
        self._under_way: dict[asyncio.Task[None], Happening] = {}
        self._overlapping: set[int] = set()
        self._faults: list[FaultSeen] = []
        self._problems: list[str] = []

    async def run(self, for_s: float, seed: int) -> Chaos:
        if (unwell := await self._settled(0.0, deciding=False)) is not None:
            raise MeshError(f"chaos: the swarm is not well to begin with: {unwell}; see signalmesh doctor")
        self._began = time.monotonic()
        try:
            for fault in plan(seed, self._places):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(fault.rest_s):
                        await self._stop.wait()
                if self._stop.is_set() or self._problems or time.monotonic() - self._began >= for_s:
                    break
                await self._happen(fault)
            await self._all_over()
        finally:
            await end_tasks(self._under_way)
        lasted_s = time.monotonic() - self._began
        await self._observer.stop()  # what follows takes all of our time, and a server drops who does not read
        decisions = await self._compare_decisions()
        proofs = await self._prove()
        problems = [*self._problems, *self._observer.problems]
        problems += [f"{proof.name}: {proof.text}" for proof in proofs if proof.ok is False]
        return Chaos(
            ok=not problems,
            swarm=self._bus.subjects.ns,
            seed=seed,
            for_s=for_s,
            lasted_s=round(lasted_s, 3),
            faults=self._faults,
            kinds=summarised(self._faults),
            decisions=decisions,
            proofs=proofs,
            problems=problems,
        )

    # -- one fault after the other

    async def _happen(self, fault: Fault) -> None:
        await self._spare()
        if all(task.done() for task in self._under_way):
            await self._all_over()
        happening = Happening(fault, began=time.monotonic())
        task = asyncio.create_task(self._watch(happening), name=f"fault-{fault.number}")
        if self._under_way:
            self._overlapping.update(each.number for each in (fault, *self._faults_under_way()))
        self._under_way[task] = happening
        injected = asyncio.create_task(happening.injected.wait())
        await asyncio.wait({task, injected}, return_when=asyncio.FIRST_COMPLETED)
        injected.cancel()
        if not (fault.overlaps and len(self._under_way) == 1):
            await self._all_over()

    def _faults_under_way(self) -> list[Fault]:
        return [happening.fault for happening in self._under_way.values()]

    async def _all_over(self) -> None:
        """Wait for the recovery from all that is under way, and until the swarm is whole."""
        if not self._under_way:
            return
        since = min(happening.began for happening in self._under_way.values())
        deciding = (self._observer.decided_at or 0.0) > since - DECIDING_S
        while self._under_way:
            done, _ = await asyncio.wait(self._under_way)
            for task in done:
                task.result()
            self._under_way = {task: happening for task, happening in self._under_way.items() if not task.done()}
        if not self._problems and (unwell := await self._settled(time.monotonic(), deciding=deciding)) is not None:
            self._problems.append(f"after fault #{self._faults[-1].number} {self._faults[-1].kind}: {unwell}")

    async def _watch(self, happening: Happening) -> None:
        outcome, note, fault = "recovered", "", happening.fault
        try:
            await self._deeds.do(happening)
        except NotOurs as reason:
            outcome, note = "not applicable", str(reason)
        except TimeoutError:
            outcome, note = "not recovered", f"within {self._patience_s:g} s"
        except MeshError as error:
            outcome, note = "not recovered", str(error)
        if outcome == "not recovered":
            self._problems.append(f"fault #{fault.number} {fault.kind} {', '.join(fault.targets)}: {outcome} {note}")

        def after_ms(at: float | None) -> float | None:
            return None if at is None or outcome == "not applicable" else round((at - happening.began) * 1000, 1)

        seen = FaultSeen(
            number=fault.number,
            kind=fault.kind,
            targets=list(fault.targets),
            at_s=round(happening.began - self._began, 3),
            hold_s=fault.hold_s,
            overlapping=fault.number in self._overlapping,
            outcome=outcome,
            detected_ms=after_ms(happening.detected),
            recovered_ms=after_ms(happening.recovered),
            note=note,
        )
        self._faults.append(seen)
        self._tell(seen)

    async def _spare(self) -> None:
        """Wait while one more death could put an agent into quarantine: that would be right, and end the run."""
        watchdog = self._config.watchdog
        while True:
            oldest = time.monotonic() - watchdog.quarantine_window_s
            worst = max((sum(at > oldest for at in times) for times in self._observer.deaths.values()), default=0)
            if worst < max(1, watchdog.quarantine_deaths - SPARE_DEATHS):
                return
            await asyncio.sleep(LOOK_S)

    async def _settled(self, since: float, *, deciding: bool) -> str | None:
        """Wait until everybody was heard well after `since`; what is missing if that does not come."""
        until = time.monotonic() + self._patience_s
        while (unwell := self._unwell(since, deciding)) is not None and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)
        return unwell

    def _unwell(self, since: float, deciding: bool) -> str | None:
        observer = self._observer
        missing = [name for name in self._places.agents if not observer.lives(name, since)]
        for name in self._places.sandboxes:
            beat = observer.hosts.get(name)
            if beat is None or beat.at <= since or beat.said.status != "live":
                missing.append(f"sandbox {name}")
        if observer.leader is None or observer.leader.at <= since:
            missing.append("a leading watchdog")
        missing += [f"{child.kind} {child.name}" for child in self._processes.children if not child.alive()]
        if deciding and (observer.decided_at or 0.0) <= since:
            missing.append("a decision")
        return f"not heard or not running: {', '.join(missing)}" if missing else None

    # -- afterwards

    async def _compare_decisions(self) -> HeardDecisions:
        """What was heard, beside what is stored between the first and the last heard one of each subject."""
        observer = self._observer
        within = sum(not gap.broken for gap in observer.gaps)
        found = HeardDecisions(
            heard=observer.decisions,
            gaps=len(observer.gaps) - within,
            gaps_in_one_connection=within,
            rounds_doubled=observer.doubled,
        )
        try:
            stored, found.missed = await self._steadily(self._count_decisions)
        except BusError as error:
            observer.problems.append(f"the decisions could not be read back: {error}")
            return found
        found.stored = stored
        if stored != found.heard + found.missed:
            observer.problems.append(
                f"decisions: {stored} are stored, {found.heard} were heard and {found.missed} fell into gaps that show"
            )
        return found

    async def _count_decisions(self) -> tuple[int, int]:
        """Stored ones between the first and the last heard of each subject, and those of them in the gaps."""
        stored = missed = 0
        for subject, first in self._observer.first_decision.items():
            last = self._observer.last_decision[subject]
            numbers = [item.sequence for item in await self._bus.read_back((subject,), first) if item.sequence <= last]
            holes = [gap for gap in self._observer.gaps if gap.subject == subject]
            stored += len(numbers)
            missed += sum(any(hole.after < number <= hole.through for hole in holes) for number in numbers)
        return stored, missed

    async def _prove(self) -> list[Proof]:
        self._say("all faults are over; audit and replay of all that is stored …")
        return [await self._proof("audit", self._audit), await self._proof("replay", self._replay)]

    async def _audit(self) -> Proof:
        audit = await audit_bus(self._bus, self._state_dir / MIRROR_FILE)
        text = audit.problems[0].text if audit.problems else f"{audit.stream.messages} messages, no problem"
        return Proof(name="audit", ok=audit.ok, text=text)

    async def _replay(self) -> Proof:
        replay = await replay_bus(self._bus, self._config, Span())
        if replay.differences:
            return Proof(name="replay", ok=False, text=replay.differences[0].text)
        if not replay.compared:  # retention has removed the beginning: no fault of the swarm's
            return Proof(name="replay", ok=None, text="; ".join(replay.notes) or "nothing could be compared")
        return Proof(name="replay", ok=replay.ok, text=f"{replay.compared} outputs, {replay.differing} of them differ")

    async def _proof(self, name: str, prove: Callable[[], Awaitable[Proof]]) -> Proof:
        try:
            return await self._steadily(prove)
        except MeshError as error:
            return Proof(name=name, ok=False, text=str(error))

    async def _steadily(self, work: Callable[[], Awaitable[T]]) -> T:
        """Begin anew where our own connection breaks under the work: that says nothing of the swarm.

        Raises:
            BusError: it broke each time, or is not there.
        """
        problem = BusError(f"not connected to {self._bus.url} within {self._patience_s:g} s")
        for _ in range(ATTEMPTS):
            try:
                async with asyncio.timeout(self._patience_s):
                    await self._bus.until_live()
            except TimeoutError:
                break
            try:
                return await work()
            except BusError as error:
                problem = error
        raise problem
