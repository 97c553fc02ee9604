"""One incarnation of an agent: restore, replay, run, drain.

Inputs are handled in inputs.py; outputs are checked in output_validation.py and numbered or suppressed in
output_log.py; snapshots are scheduled in checkpointer.py. The process (process.py) claims the epoch, and runs the
heartbeats and the records concurrently.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import orjson
import structlog

from agents.agent import Agent, TimerSet
from agents.runtime.checkpointer import SNAPSHOT_INPUTS, Checkpointer
from agents.runtime.fault_reports import FaultReporter
from agents.runtime.inputs import (
    MAX_CONSECUTIVE_SKIPS,
    Fault,
    InputProcessor,
    InputState,
    TooManyFailures,
)
from agents.runtime.output_log import OutputLog
from agents.runtime.output_rate import MAX_OUTPUTS_PER_S
from agents.runtime.output_validation import BadOutput, OutputValidator
from agents.runtime.timers import Timers
from agents.runtime.tracing import AgentTracing
from agents.state.codec import StateCodec
from agents.state.values import StateMismatch
from bus.durable.fencing import last_claim
from bus.durable.snapshots import MAX_SNAPSHOT_BYTES, Produced, Snapshot, SnapshotStore
from bus.errors import BusError, BusTimeout, Disconnected, Fenced, MeshError, UsageError
from bus.interface import Bounds, Bus, Closable
from bus.messages import Event, LifecycleEvent, decode
from bus.messages import headers as h
from bus.utils.aio import both, end_tasks
from bus.utils.error_text import MAX_ERROR_TEXT, describe_error, shorten

VERIFIED_FIRST = 3
"""The first snapshots are compared with the state in any case: most classes that do not come back fail at once."""
VERIFY_SHARE = 0.01
"""Later ones are compared as long as this takes no larger share of the time."""
DRAIN_S = 5.0
"""How long a drain waits for acknowledgements; later ones are left to the recovery."""

log = structlog.get_logger("signalmesh.agent")


@dataclass(frozen=True, slots=True)
class RuntimeHooks:
    """The callbacks of a runtime."""

    on_output_stored: Callable[[str, bytes], None] | None = None
    """Called with the kind and the payload of each output that is stored, also of one that a replay finds."""
    tracing: AgentTracing | None = None
    """Creates the spans; None: no tracing."""


NO_HOOKS = RuntimeHooks()


class Runtime:
    """Runs `agent` over `bus` as the incarnation `epoch`, until it is drained, is fenced or fails.

    Args:
        agent: a new instance, with an empty state.
        bus: a connection of its own.
        epoch: the epoch that was claimed for this incarnation.
        agent_id: the id that the claim names.
        sandbox: where it runs; for reports only.
        snapshot_inputs: a snapshot is taken after so many inputs at the latest.
        max_outputs_per_s: what it may publish; a faster agent waits, and ends if it never slows down.
        first: where it starts if it has no saved state.
        hooks: called on its events.
    """

    def __init__(
        self,
        agent: Agent,
        bus: Bus,
        epoch: int,
        *,
        agent_id: str,
        sandbox: str = "",
        snapshot_inputs: int = SNAPSHOT_INPUTS,
        max_outputs_per_s: int = MAX_OUTPUTS_PER_S,
        first: Snapshot | None = None,
        hooks: RuntimeHooks = NO_HOOKS,
    ) -> None:
        self.agent, self.bus = agent, bus
        self.name, self.subjects = agent.name, bus.subjects
        self.epoch, self.agent_id, self.sandbox = epoch, agent_id, sandbox
        self.pid = os.getpid()
        self.status = "starting"
        self.ready = asyncio.Event()
        """Whether the replay is over: of the beginning, or after an input was skipped."""
        self.last_produced: Produced | None = None
        self._introduced = False
        self._dropped = 0
        self._cited = 0
        self._captured: tuple[int, int, int, int, bool] | None = None
        """What the newest snapshot was taken of (`_mark`)."""
        self.failure: MeshError | None = None
        """Why this incarnation ends, if it is not drained."""
        self._wake = asyncio.Event()
        self._draining = False
        self._reader: Closable | None = None
        self.tracing = hooks.tracing
        self.output_log = OutputLog(
            bus,
            agent.name,
            epoch,
            self.fail,
            hooks.on_output_stored,
            hooks.tracing,
            max_per_s=max_outputs_per_s,
        )
        self.fault_reporter = FaultReporter(agent.name, self.output_log.reports)
        self.output_validator = OutputValidator(agent, bus.subjects)
        self.timers = Timers(bus.subjects, agent.name, self.output_log)
        self.input_processor = InputProcessor(self, hooks.tracing)
        self._store = SnapshotStore(bus, agent.name, epoch, first)
        self._state_codec = StateCodec.checked(type(agent).State)
        self._created = time.monotonic()
        self._verified, self._verify_s = 0, 0.0
        self._checkpointer = Checkpointer(
            self.capture_snapshot,
            self.output_log.flush,
            self._store,
            self._report_too_large,
            self.fail,
            snapshot_inputs,
        )

    # -- running

    async def run(self) -> None:
        """Run until drained.

        Raises:
            Fenced: a successor has claimed this agent.
            MeshError: the agent cannot run (a broken data file, a state that does not fit its class).
        """
        structlog.contextvars.bind_contextvars(agent=self.name, epoch=self.epoch)
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
            self.input_processor.transition("stop")
            await end_tasks(tasks)
            self.fault_reporter.close()
            await self._tear_down()
            with contextlib.suppress(BusError):
                await epoch_watch.close()
            self.output_log.close()
            self.timers.close()

    def _task(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=f"{self.name}-{name}")
        task.add_done_callback(lambda _: self._wake.set())
        return task

    async def _main(self, tasks: list[asyncio.Task[None]]) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self.failure is not None:
                raise self.failure
            for task in tasks:
                if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                    raise error
            if self.input_processor.state in (InputState.FAULTED, InputState.INTERRUPTED):
                await self._read_again()
            if self._draining:
                await self._drain(tasks)
                return

    def _report(self, event: LifecycleEvent, reason: str | None = None, **detail: Any) -> None:
        self.output_log.reports.lifecycle(
            event, self.name, epoch=self.epoch, sandbox=self.sandbox, pid=self.pid, reason=reason, **detail
        )

    def drain(self) -> None:
        """Finish the current input, snapshot and end. May be called from a signal handler of the loop."""
        self._draining = True
        self._wake.set()

    async def _drain(self, tasks: list[asyncio.Task[None]]) -> None:
        self.status = "draining"
        await end_tasks(tasks)
        await self._stop_reading()
        self.fault_reporter.report_suppressed()
        self._report("drained", cursor=self.input_processor.cursor, outputs=self.output_log.outputs)
        try:
            async with asyncio.timeout(DRAIN_S):
                await self.output_log.flush()
                if self.tracing is not None:
                    await self.tracing.flush()
                if self.input_processor.state is InputState.STOPPED:  # else the state may be half changed
                    await self._checkpointer.save(self._snapshot())
        except (TimeoutError, BusError) as error:
            log.warning("drain_incomplete", error=str(error) or "no acknowledgement in time", left=len(self.output_log))

    def wake(self) -> None:
        """Wake the main task to check the state."""
        self._wake.set()

    def fail(self, error: MeshError) -> None:
        """End this incarnation with `error`: it was fenced, or cannot continue."""
        self.failure = error
        self.input_processor.transition("stop")
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
            self.fail(Fenced(self.name, f"claimed again, ours was epoch {self.epoch}"))

    async def _check_claim(self) -> None:
        last = await last_claim(self.bus, self.name)
        if last is not None and last.sequence > self.epoch:
            self.fail(Fenced(self.name, f"claimed again as epoch {last.sequence}, ours was {self.epoch}"))

    async def check_claim(self) -> None:
        """Check whether this incarnation is still the newest: after a pause there may be a successor."""
        with contextlib.suppress(BusError):
            await self._check_claim()

    # -- snapshots

    @property
    def snapshot_ms(self) -> float | None:
        """Time from the capture of the newest snapshot to its storage."""
        return self._checkpointer.duration_ms

    @property
    def between_inputs(self) -> bool:
        """Whether state, cursor and outputs are consistent now, and the replay is over."""
        return self.input_processor.state is InputState.READING and self.ready.is_set()

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
        agent, output_log, processor = self.agent, self.output_log, self.input_processor
        # Whatever a handler publishes later answers an input beyond the cursor, so it is stored beyond it as well;
        # what a source publishes has no such bound but its last acknowledgement.
        stored = output_log.stored_sequence
        return Snapshot(
            epoch=self.epoch,
            cursor=processor.cursor,
            outputs=output_log.outputs,
            output_sequence=stored if agent.produce is not None else max(stored, processor.cursor),
            inputs=processor.inputs,
            poison=processor.poison,
            skips=processor.skips,
            skips_in_a_row=processor.skips_in_a_row,
            timers_set=agent.timers_set,
            timers={
                name: {"number": timer.number, "topic": timer.topic, "after_ms": timer.after_ms}
                for name, timer in agent.timers.items()
            },
            skipped=sorted(sequence for sequence in processor.skipped if sequence > processor.cursor),
            last_produced=self.last_produced,
            tracing={} if self.tracing is None else self.tracing.save(),
            state=orjson.Fragment(self._encode_state()),
        )

    def _encode_state(self) -> bytes:
        """The JSON of the agent's state, compared with it as far as VERIFY_SHARE allows.

        Raises:
            UsageError: it would not be restored as it is.
        """
        state = self.agent.state
        started = time.monotonic()
        try:
            data = self._state_codec.encode(state)
            if self._verified < VERIFIED_FIRST or self._verify_s < VERIFY_SHARE * (started - self._created):
                self._state_codec.verify(state, data)
                self._verified += 1
                self._verify_s += time.monotonic() - started
        except StateMismatch as error:
            raise UsageError(f"agent {self.name}: its state cannot be saved: State{error}") from None
        return data

    def _mark(self) -> tuple[int, int, int, int, bool]:
        """Changes whenever a snapshot would."""
        pending_spans = self.tracing is not None and self.tracing.has_pending
        processor = self.input_processor
        return processor.cursor, processor.inputs, self.output_log.outputs, processor.skips, pending_spans

    def _report_too_large(self, size: int) -> None:
        self.output_log.reports.alert(
            "critical",
            "state_too_large",
            f"agent {self.name}: its snapshot has {size} bytes, expected at most {MAX_SNAPSHOT_BYTES}: keep a "
            "bounded window; until then a restart replays from the last snapshot that was small enough",
            agent=self.name,
            once=f"{self.name}:{self.epoch}:state-too-large",
        )

    # -- restore and replay

    async def _restore(self) -> None:
        """Take over the snapshot and start after it; again from scratch if the bus disconnects meanwhile."""
        while True:
            try:
                await self.bus.wait_connected()
                snapshot, bounds = await both(self._store.take_over(), self.bus.bounds())
                if self._store.unreadable:
                    self._report_unreadable(bounds)
                self._load(snapshot)
                await self._begin(bounds, restored=True)
                return
            except (Disconnected, BusTimeout) as error:
                log.debug("restore_retried", error=str(error))
                await self._undo_begin()

    def _report_unreadable(self, bounds: Bounds) -> None:
        self.output_log.reports.alert(
            "critical",
            "snapshot_unreadable",
            f"{self._store.unreadable}: agent {self.name} builds its state again from message {bounds.first} of the "
            f"stream on; find out what else writes to the bucket {self.subjects.state_bucket}",
            agent=self.name,
            first=bounds.first,
        )

    def _load(self, snapshot: Snapshot) -> None:
        agent = self.agent
        agent.state = agent.State()
        self.ready.clear()
        if snapshot.state is not None:
            try:
                agent.state = self._state_codec.decode(snapshot.state)
            except StateMismatch as error:
                raise UsageError(
                    f"agent {self.name}: its saved state does not fit its class any more (State{error}): "
                    "give the new fields defaults, or start with an empty --state-dir"
                ) from None
        agent.timers = {name: TimerSet(**timer) for name, timer in snapshot.timers.items()}
        agent.timers_set = snapshot.timers_set
        self.input_processor.load(snapshot)
        self.last_produced = snapshot.last_produced
        if self.tracing is not None:
            self.tracing.load(snapshot.tracing)
        self.output_log.begin(snapshot.outputs, snapshot.output_sequence)

    async def _begin(self, bounds: Bounds, *, restored: bool = False) -> None:
        """Read back what is stored since the snapshot, then follow the inputs from its cursor on."""
        processor = self.input_processor
        if processor.cursor > 0 and processor.cursor + 1 < bounds.first:
            self.output_log.reports.alert(
                "critical",
                "retention_gap",
                f"agent {self.name} had read up to message {processor.cursor}, but the stream begins at "
                f"{bounds.first}: the messages in between are gone; keep more ([stream] max_age_s, max_bytes)",
                agent=self.name,
                first_missing=processor.cursor + 1,
                last_missing=bounds.first - 1,
            )
        found = await self.output_log.read_back()
        processor.skipped.update(sequence for sequence in found.skipped if sequence > processor.cursor)
        if found.last_produced is not None:
            self.last_produced = found.last_produced
        self._cited = found.cited
        if restored:
            self._report("restored", cursor=self.input_processor.cursor, outputs=self.output_log.outputs)
            if self.tracing is not None:
                self.tracing.restored(bounds.last)
        processor.transition("start")
        self._reader = None
        self._check_ready()
        filters = processor.filters()
        if filters:
            self._reader = await self.bus.follow(filters, processor.cursor + 1, processor.take)

    async def _undo_begin(self) -> None:
        """Stop what a `_begin` that failed has started, and wait until what it published is stored.

        The bus may go away after the replay is over and before the inputs are followed: a source has produced by then.
        What is not stored is not read back either, and its numbers would be given again to other outputs.
        """
        self.ready.clear()
        await self._stop_reading()
        await self.output_log.flush()

    def _check_ready(self) -> None:
        if self.ready.is_set() or self.input_processor.cursor < self._cited:
            return
        self.output_log.caught_up()
        if not self._introduced:
            self._introduced = True
            self.status = "live"
            self._report("ready", replayed=self.input_processor.replayed, outputs=self.output_log.outputs)
            if self.tracing is not None:
                self.tracing.ready(self.input_processor.replayed)
        self.timers.start_pending(self.agent.timers)
        self.ready.set()

    def input_handled(self) -> None:
        """To be called after each input, with any result."""
        if self.ready.is_set():
            self.timers.arm(self.agent.timers, self.agent.timers_set)
        else:
            self._check_ready()
        self._checkpointer.input_handled(self.input_processor.inputs)

    def want_snapshot(self) -> None:
        """Schedule a snapshot soon."""
        self._checkpointer.request()

    async def _stop_reading(self) -> None:
        self.input_processor.transition("stop")
        if self._reader is not None:
            await self._reader.close()
            self._reader = None

    async def _read_again(self) -> None:
        """Return to the last snapshot and replay, without the input of the handler that failed, if one did.

        Raises:
            TooManyFailures: the limit of failures is reached.
        """
        self.ready.clear()  # nothing is produced until the outputs are numbered again
        await self._stop_reading()
        fault = self.input_processor.fault
        if fault is not None and fault.sequence is not None:
            self._report("skipped", reason=fault.why, sequence=fault.sequence)
            self.fault_reporter.skipped(fault)
            self.input_processor.skipped.add(fault.sequence)
        await self.output_log.flush()
        if fault is not None:
            self.input_processor.check_consecutive_skips(fault.why)
        while True:
            self._load(self._store.read(self._store.saved))
            try:
                await self._begin(await self.bus.bounds())
                return
            except (Disconnected, BusTimeout) as error:
                log.debug("restore_retried", error=str(error))
                await self._undo_begin()
                await self.bus.wait_connected()

    # -- sources

    async def _produce(self) -> None:
        await self.ready.wait()
        last: Event | None = None
        if self.last_produced is not None:
            subject, data = self.last_produced["subject"], orjson.dumps(self.last_produced["payload"])
            last = decode(self.bus.subjects.parse(subject), subject, data)  # type: ignore[assignment]
        async for event in self._events(last):
            try:
                prepared = self.output_validator.prepare((event,), "produce yielded", None)
            except BadOutput as error:
                self._drop(error)
                continue
            while not self.ready.is_set():  # it may have been cleared again before this task runs
                await self.ready.wait()
            for output in prepared:
                self.output_log.publish([output], None)
                self.last_produced = {"subject": output.subject, "payload": orjson.Fragment(output.data)}
            self._dropped = 0
            if (room := self.output_log.send()) is not None:
                await room
        if self.status == "live":
            self.status = "finished"
            log.info("source_finished", outputs=self.output_log.outputs)

    def _drop(self, error: BadOutput) -> None:
        """Report and leave out an event of a source that readers could not decode.

        Raises:
            TooManyFailures: it was one too many in a row.
        """
        fault = Fault(None, shorten(str(error), MAX_ERROR_TEXT))
        self.fault_reporter.failed(fault, error, "")
        self.fault_reporter.skipped(fault)
        self.input_processor.skips += 1
        self._dropped += 1
        if self._dropped >= MAX_CONSECUTIVE_SKIPS:
            raise TooManyFailures(self.name, f"{self._dropped} events in a row were unreadable", fault.why)

    async def _events(self, last: Event | None) -> AsyncIterator[Any]:
        try:
            async for event in self.agent.produce(last):
                yield event
        except (SystemExit, KeyboardInterrupt) as error:  # would end the loop like an orderly end
            raise MeshError(f"agent {self.name}: produce raised {describe_error(error)}") from error
