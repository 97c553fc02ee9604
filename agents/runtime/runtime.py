"""The life of one incarnation: claim, restore, replay, live, drain. Its inputs are handled in agents/runtime/inputs.py,
its outputs checked in agents/runtime/output_validation.py and numbered or suppressed in agents/runtime/output_log.py;
snapshots are scheduled in agents/runtime/checkpointer.py. Beside it run agents/runtime/heartbeat.py and
agents/runtime/records.py (memory key, registry record).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import msgspec
import orjson
import structlog

from agents.agent import Agent, TimerSet
from agents.runtime.checkpointer import SNAPSHOT_INPUTS, Checkpointer
from agents.runtime.fault_reports import Complaints
from agents.runtime.inputs import HOPELESS_SKIPS, Fault, HopelessHandler, Intake
from agents.runtime.output_log import Journal
from agents.runtime.output_validation import BadOutput, Outgoing
from agents.runtime.timers import Timers
from agents.runtime.tracing import AgentTracing
from bus.durable.fencing import claim, last_claim, new_agent_id
from bus.durable.snapshots import MAX_SNAPSHOT_BYTES, Snapshot, SnapshotStore
from bus.errors import BusError, BusTimeout, Disconnected, Fenced, MeshError, UsageError
from bus.interface import Bounds, Bus, Closable
from bus.messages import Event, LifecycleEvent, decode
from bus.messages import headers as h
from bus.utils.aio import both, end_tasks

DRAIN_S = 5.0
"""How long a drain waits for acknowledgements before it gives up and leaves the rest to recovery."""

log = structlog.get_logger("signalmesh.agent")


class Runtime:
    """Runs `agent` over `bus` as one incarnation, until it is drained, fenced or broken."""

    def __init__(
        self,
        agent: Agent,
        bus: Bus,
        *,
        sandbox: str = "",
        epoch: int | None = None,
        agent_id: str | None = None,
        snapshot_inputs: int = SNAPSHOT_INPUTS,
    ) -> None:
        self.agent = agent
        self.bus = bus
        self.name = agent.name
        self.sandbox = sandbox
        self.epoch = epoch or 0
        self.agent_id = agent_id or new_agent_id()
        self.pid = os.getpid()
        self._snapshot_inputs = snapshot_inputs
        self.status = "starting"
        self.subjects = bus.subjects
        self.intake = Intake(self)
        self.outgoing = Outgoing(agent, bus.subjects)
        self.ready = asyncio.Event()
        """Whether the replay is over: of the beginning, or after an input was skipped."""
        self._introduced = False
        self._dropped = 0
        self._cited = 0
        self._failed: MeshError | None = None
        self._wake = asyncio.Event()
        self._draining = False
        self._reader: Closable | None = None
        self.last_produced: dict[str, Any] | None = None
        self._captured: tuple[int, int, int, int, bool] | None = None
        """What the newest snapshot was taken of (`_mark`)."""
        self.on_stored: Callable[[str, bytes], None] | None = None
        self.tracing: AgentTracing | None = None
        self.journal: Journal
        self.complaints: Complaints
        self.timers: Timers
        self._store: SnapshotStore
        self._checkpointer: Checkpointer

    # -- the whole life

    async def run(self) -> None:
        """Live until drained.

        Raises:
            Fenced: a successor has claimed this agent.
            MeshError: what the agent cannot live with (a broken data file, an unreadable snapshot).
        """
        while not self.epoch:
            with contextlib.suppress(Disconnected, BusTimeout):
                await self.bus.until_live()
                self.epoch = await claim(
                    self.bus, self.name, agent_id=self.agent_id, claimed_by=self.name, sandbox=self.sandbox
                )
        structlog.contextvars.bind_contextvars(agent=self.name, epoch=self.epoch)
        self.journal = Journal(self.bus, self.name, self.epoch, self.fail)
        self.journal.on_stored = self.on_stored
        self.journal.tracing = self.intake.tracing = self.tracing
        self.complaints = Complaints(self.name, self.journal.reports)
        self.timers = Timers(self.bus.subjects, self.name, self.journal)
        self._store = SnapshotStore(self.bus, self.name, self.epoch)
        self._checkpointer = Checkpointer(
            self.capture_snapshot,
            self.journal.flush,
            self._store,
            self._report_too_large,
            self.fail,
            self._snapshot_inputs,
        )
        self.bus.watch_connection(lambda: None, self._check_claim)
        epoch_watch = await self.bus.listen(self.bus.subjects.epoch(self.name), self._on_epoch)
        tasks: list[asyncio.Task[None]] = []
        try:
            self.status = "restoring"
            await self._restore()
            tasks.append(self._task(self._checkpointer.run(), "snapshots"))
            if self.agent.produce is not None:
                tasks.append(self._task(self._produce(), "produce"))
            await self._main(tasks)
        finally:
            self.intake.reading = False
            await end_tasks(tasks)
            self.complaints.close()
            await self._tear_down()
            with contextlib.suppress(BusError):
                await epoch_watch.close()
            self.journal.close()
            self.timers.close()

    def _task(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=f"{self.name}-{name}")
        task.add_done_callback(lambda _: self._wake.set())
        return task

    async def _main(self, tasks: list[asyncio.Task[None]]) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._failed is not None:
                raise self._failed
            for task in tasks:
                if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                    raise error
            if self.intake.fault is not None or self.intake.broken_off:
                await self._read_again()
            if self._draining:
                await self._drain(tasks)
                return

    def _report(self, event: LifecycleEvent, reason: str | None = None, **detail: Any) -> None:
        self.journal.reports.lifecycle(
            event, self.name, epoch=self.epoch, sandbox=self.sandbox, pid=self.pid, reason=reason, **detail
        )

    def drain(self) -> None:
        """Finish what is under way, snapshot and end; safe to call from a signal handler of the loop."""
        self._draining = True
        self._wake.set()

    async def _drain(self, tasks: list[asyncio.Task[None]]) -> None:
        self.status = "draining"
        await end_tasks(tasks)
        await self._stop_reading()
        self.complaints.sum_up()
        self._report("drained", cursor=self.intake.cursor, outputs=self.journal.outputs)
        try:
            async with asyncio.timeout(DRAIN_S):
                await self.journal.flush()
                if self.tracing is not None:
                    await self.tracing.flush()
                if not self.intake.busy:  # else the state may be half changed: the last snapshot holds
                    await self._checkpointer.save(self._snapshot())
        except (TimeoutError, BusError) as error:
            log.warning("drain_incomplete", error=str(error) or "no acknowledgement in time", left=len(self.journal))

    def wake(self) -> None:
        """Have the main task look what has happened."""
        self._wake.set()

    def fail(self, error: MeshError) -> None:
        """End this incarnation with `error`: it was fenced, or met what it cannot live with."""
        self._failed = error
        self.intake.reading = False
        self._wake.set()

    async def _tear_down(self) -> None:
        try:
            await self.agent.teardown()
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException:
            log.exception("teardown_failed")

    async def _on_epoch(self, received: Any) -> None:
        if (h.number(received.headers, h.SEQUENCE) or 0) > self.epoch:
            self.fail(Fenced(self.name, f"claimed anew, ours was epoch {self.epoch}"))

    async def _check_claim(self) -> None:
        last = await last_claim(self.bus, self.name)
        if last is not None and last.sequence > self.epoch:
            self.fail(Fenced(self.name, f"claimed anew as epoch {last.sequence}, ours was {self.epoch}"))

    async def check_claim(self) -> None:
        """Look whether this incarnation is still the newest: after having been stopped it cannot know otherwise."""
        with contextlib.suppress(BusError):
            await self._check_claim()

    # -- snapshots

    @property
    def snapshot_ms(self) -> float | None:
        """Time from the capture of the newest snapshot to its storage."""
        checkpointer = getattr(self, "_checkpointer", None)
        return None if checkpointer is None else checkpointer.duration_ms

    @property
    def between_inputs(self) -> bool:
        """Whether state, cursor and outputs belong together right now, and the replay is over."""
        return self.intake.reading and not self.intake.busy and self.ready.is_set()

    def capture_snapshot(self) -> Snapshot | None:
        """The state as it is now; None between two inputs of which nothing has changed, and while one is handled.

        Raises:
            UsageError: the state cannot be saved.
        """
        if self._mark() == self._captured or not self.between_inputs:
            return None
        return self._snapshot()

    def _snapshot(self) -> Snapshot:
        self._captured = self._mark()
        agent, journal, intake = self.agent, self.journal, self.intake
        # Whatever a handler publishes later answers an input beyond the cursor, so it is stored beyond it as well;
        # what a source publishes has no such bound but its last acknowledgement.
        stored = journal.stored_sequence
        return Snapshot(
            epoch=self.epoch,
            cursor=intake.cursor,
            outputs=journal.outputs,
            output_sequence=stored if agent.produce is not None else max(stored, intake.cursor),
            inputs=intake.inputs,
            poison=intake.poison,
            skips=intake.skips,
            skips_in_a_row=intake.skips_in_a_row,
            timers_set=agent.timers_set,
            timers={
                name: {"number": timer.number, "topic": timer.topic, "after_ms": timer.after_ms}
                for name, timer in agent.timers.items()
            },
            skipped=sorted(sequence for sequence in intake.skipped if sequence > intake.cursor),
            last_produced=self.last_produced,
            tracing={} if self.tracing is None else self.tracing.save(),
            state=orjson.Fragment(_encode_state(agent)),
        )

    def _mark(self) -> tuple[int, int, int, int, bool]:
        """Changes whenever a snapshot would."""
        pending_spans = self.tracing is not None and self.tracing.owes
        intake = self.intake
        return intake.cursor, intake.inputs, self.journal.outputs, intake.skips, pending_spans

    def _report_too_large(self, size: int) -> None:
        self.journal.reports.alert(
            "critical",
            "state_too_large",
            f"agent {self.name}: its snapshot has {size} bytes, expected at most {MAX_SNAPSHOT_BYTES}: keep a "
            "bounded window; until then a restart replays from the last snapshot that fitted",
            agent=self.name,
            once=f"{self.name}:{self.epoch}:state-too-large",
        )

    # -- restore and replay

    async def _restore(self) -> None:
        """Take the snapshot over and begin after it; begun anew when the bus goes away meanwhile."""
        while True:
            try:
                await self.bus.until_live()
                snapshot, bounds = await both(self._store.take_over(), self.bus.bounds())
                if self._store.unreadable:
                    self._tell_unreadable(bounds)
                self._load(snapshot)
                await self._begin(bounds, restored=True)
                return
            except (Disconnected, BusTimeout) as error:
                log.debug("restore_retried", error=str(error))
                await self._undo_begin()

    def _tell_unreadable(self, bounds: Bounds) -> None:
        self.journal.reports.alert(
            "critical",
            "snapshot_unreadable",
            f"{self._store.unreadable}: agent {self.name} makes its state anew from message {bounds.first} of the "
            f"stream on; look who else writes to the bucket {self.subjects.state_bucket}",
            agent=self.name,
            first=bounds.first,
        )

    def _load(self, snapshot: Snapshot) -> None:
        agent = self.agent
        agent.state = agent.State()
        self.ready.clear()
        if snapshot.state is not None:
            try:
                agent.state = msgspec.convert(snapshot.state, type(agent).State)
            except msgspec.ValidationError as error:
                raise UsageError(
                    f"agent {self.name}: its saved state does not fit its class any more ({error}): "
                    "give the new fields defaults, or start with an empty --state-dir"
                ) from None
        agent.timers = {name: TimerSet(**timer) for name, timer in snapshot.timers.items()}
        agent.timers_set = snapshot.timers_set
        self.intake.load(snapshot)
        self.last_produced = snapshot.last_produced
        if self.tracing is not None:
            self.tracing.load(snapshot.tracing)
        self.journal.begin(snapshot.outputs, snapshot.output_sequence)

    async def _begin(self, bounds: Bounds, *, restored: bool = False) -> None:
        """Read back what is stored since the snapshot, then follow the inputs from its cursor on."""
        intake = self.intake
        if intake.cursor > 0 and intake.cursor + 1 < bounds.first:
            self.journal.reports.alert(
                "critical",
                "retention_gap",
                f"agent {self.name} had read up to message {intake.cursor}, but the stream begins at {bounds.first}: "
                "what it should have seen in between is gone; keep more ([stream] max_age_s, max_bytes)",
                agent=self.name,
                first_missing=intake.cursor + 1,
                last_missing=bounds.first - 1,
            )
        found = await self.journal.read_back()
        intake.skipped.update(sequence for sequence in found.skipped if sequence > intake.cursor)
        if found.last_produced is not None:
            self.last_produced = found.last_produced
        self._cited = found.cited
        if restored:
            self._report("restored", cursor=self.intake.cursor, outputs=self.journal.outputs)
            if self.tracing is not None:
                self.tracing.restored(bounds.last)
        intake.reading = True
        self._reader = None
        self._check_ready()
        filters = intake.filters()
        if filters:
            self._reader = await self.bus.follow(filters, intake.cursor + 1, intake.take)

    async def _undo_begin(self) -> None:
        """Stop what a `_begin` that failed has started, and wait until what it published is stored.

        The bus may go away after the replay is over and before the inputs are followed: a source has produced by then.
        What is not stored is not read back either, and its numbers would be given again to other outputs.
        """
        self.ready.clear()
        await self._stop_reading()
        await self.journal.flush()

    def _check_ready(self) -> None:
        if self.ready.is_set() or self.intake.cursor < self._cited:
            return
        self.journal.caught_up()
        if not self._introduced:
            self._introduced = True
            self.status = "live"
            self._report("ready", replayed=self.intake.replayed, outputs=self.journal.outputs)
            if self.tracing is not None:
                self.tracing.ready(self.intake.replayed)
        self.timers.go_live(self.agent.timers)
        self.ready.set()

    def input_handled(self) -> None:
        """To be called after each input, whatever became of it."""
        if self.ready.is_set():
            self.timers.arm(self.agent.timers, self.agent.timers_set)
        else:
            self._check_ready()
        self._checkpointer.input_handled(self.intake.inputs)

    def want_snapshot(self) -> None:
        """Have one taken soon."""
        self._checkpointer.request()

    async def _stop_reading(self) -> None:
        self.intake.reading = False
        if self._reader is not None:
            await self._reader.close()
            self._reader = None

    async def _read_again(self) -> None:
        """Go back to the last snapshot and replay, without the input whose handler failed, if one did.

        Raises:
            HopelessHandler: this was one too many.
        """
        self.ready.clear()  # nothing is produced until the outputs are numbered again
        await self._stop_reading()
        fault = self.intake.fault
        if fault is not None and fault.sequence is not None:
            self._report("skipped", reason=fault.why, sequence=fault.sequence)
            self.complaints.skipped(fault)
            self.intake.skipped.add(fault.sequence)
        self.intake.fault, self.intake.broken_off = None, False
        await self.journal.flush()
        if fault is not None:
            self.intake.check_hope(fault.why)
        while True:
            self._load(self._store.read(self._store.saved))
            try:
                await self._begin(await self.bus.bounds())
                return
            except (Disconnected, BusTimeout) as error:
                log.debug("restore_retried", error=str(error))
                await self._undo_begin()
                await self.bus.until_live()

    # -- sources

    async def _produce(self) -> None:
        await self.ready.wait()
        last: Event | None = None
        if self.last_produced is not None:
            subject, data = self.last_produced["subject"], orjson.dumps(self.last_produced["payload"])
            last = decode(self.bus.subjects.parse(subject), subject, data)  # type: ignore[assignment]
        async for event in self._events(last):
            try:
                prepared = self.outgoing.prepare((event,), "produce yielded", None)
            except BadOutput as error:
                self._drop(error)
                continue
            while not self.ready.is_set():  # it may have been cleared again before this task runs
                await self.ready.wait()
            for output in prepared:
                self.journal.publish([output], None)
                self.last_produced = {"subject": output.subject, "payload": orjson.Fragment(output.data)}
            self._dropped = 0
            if (room := self.journal.send()) is not None:
                await room
        if self.status == "live":
            self.status = "finished"
            log.info("source_finished", outputs=self.journal.outputs)

    def _drop(self, error: BadOutput) -> None:
        """A source has yielded what nobody could read: told and left out, as it is of no use to anybody.

        Raises:
            HopelessHandler: it was one too many in a row.
        """
        fault = Fault(None, str(error))
        self.complaints.failed(fault, error, "")
        self.complaints.skipped(fault)
        self.intake.skips += 1
        self._dropped += 1
        if self._dropped >= HOPELESS_SKIPS:
            raise HopelessHandler(self.name, f"{self._dropped} events in a row were unreadable", fault.why)

    async def _events(self, last: Event | None) -> AsyncIterator[Any]:
        try:
            async for event in self.agent.produce(last):
                yield event
        except (SystemExit, KeyboardInterrupt) as error:  # would end the loop, and look like an orderly end
            raise MeshError(f"agent {self.name}: produce raised {type(error).__name__}: {error}") from error


def _encode_state(agent: Agent) -> bytes:
    """The JSON of the agent's state.

    Raises:
        UsageError: there is none, or it could not be read again.
    """
    try:
        data = orjson.dumps(agent.state)
        if b"null" in data:  # what a number that is not finite becomes
            msgspec.convert(orjson.loads(data), type(agent).State)
    except (orjson.JSONEncodeError, msgspec.ValidationError) as error:
        raise UsageError(
            f"agent {agent.name}: its state cannot be saved: {_unencodable(agent.state)}{error}; State may hold "
            "JSON-like values only: finite numbers, strings, lists, dicts with string keys, dataclasses of these"
        ) from None
    return data


def _unencodable(state: Any) -> str:
    """The field of `state` that JSON has no form for, with a colon."""
    for field in getattr(state, "__dataclass_fields__", ()):
        try:
            orjson.dumps(getattr(state, field))
        except orjson.JSONEncodeError:
            return f"{field}: "
    return ""
