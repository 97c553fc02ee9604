"""The life of one incarnation: claim, restore, replay, live, drain. Input handling is here, duties around it are in
agents/duties.py (heartbeats, memory, registry); outputs, their numbering and suppression in agents/journal.py.

The order that makes it exact: nothing is awaited between a handler's return and the moment when its outputs are in
the outbox and the cursor has moved; a snapshot is taken only at such a moment, and written only when every output up
to it is stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec
import orjson
import structlog

from agents.agent import Agent, Outputs, TimerSet, published_kinds
from agents.checkpoint import SNAPSHOT_INPUTS, Checkpoints
from agents.journal import Journal
from agents.timers import Timers
from bus import headers as h
from bus.bus import Bus, Closable, Stored
from bus.claims import claim, last_claim, new_agent_id
from bus.errors import BusError, BusTimeout, Disconnected, Fenced, MeshError, MessageError
from bus.messages import KIND_OF, Event, LifecycleEvent, Timer, decode
from bus.snapshots import Snapshot, SnapshotStore
from bus.tasks import end_tasks

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
        self.publishes = published_kinds(type(agent))
        self.cursor = 0
        self.inputs = 0
        self.poison = 0
        self.lag = 0
        self.replayed = 0
        self.ready = asyncio.Event()
        self._cited = 0
        self.skipped: set[int] = set()
        self._skip: tuple[int, str] | None = None
        self._broken_off = False
        self._reading = False
        self._busy = False
        self._fenced: MeshError | None = None
        self._wake = asyncio.Event()
        self._draining = False
        self._reader: Closable | None = None
        self.last_produced: dict[str, Any] | None = None
        self._handlers: dict[str, Any] = {}
        self.on_stored: Callable[[str, bytes], None] | None = None
        self.journal: Journal
        self.timers: Timers
        self._store: SnapshotStore
        self._checkpoints: Checkpoints

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
        self.journal = Journal(self.bus, self.name, self.epoch, self._on_fenced)
        self.journal.on_stored = self.on_stored
        self.timers = Timers(self.bus.subjects, self.name, self.journal)
        self._store = SnapshotStore(self.bus, self.name, self.epoch)
        self._checkpoints = Checkpoints(self, self._store, self._snapshot_inputs, self._on_fenced)
        self.bus.watch_connection(lambda: None, self._check_claim)
        epoch_watch = await self.bus.listen(self.bus.subjects.epoch(self.name), self._on_epoch)
        tasks: list[asyncio.Task[None]] = []
        try:
            self.status = "restoring"
            await self._restore()
            tasks.append(self._task(self._checkpoints.run(), "snapshots"))
            if self.agent.produce is not None:
                tasks.append(self._task(self._produce(), "produce"))
            await self._main(tasks)
        finally:
            self._reading = False
            await end_tasks(tasks)
            await self.agent.teardown()
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
            if self._fenced is not None:
                raise self._fenced
            for task in tasks:
                if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                    raise error
            if self._skip is not None or self._broken_off:
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
        self._report("drained", cursor=self.cursor, outputs=self.journal.outputs)
        try:
            async with asyncio.timeout(DRAIN_S):
                await self.journal.flush()
                if not self._busy:  # else the state may be half changed: the last snapshot holds
                    await self._checkpoints.save(self._checkpoints.take())
        except (TimeoutError, BusError) as error:
            log.warning("drain_incomplete", error=str(error) or "no acknowledgement in time", left=len(self.journal))

    def _on_fenced(self, error: MeshError) -> None:
        self._fenced = error
        self._reading = False
        self._wake.set()

    async def _on_epoch(self, heard: Any) -> None:
        if int(heard.headers.get(h.SEQUENCE, 0)) > self.epoch:
            self._on_fenced(Fenced(self.name, f"claimed anew, ours was epoch {self.epoch}"))

    async def _check_claim(self) -> None:
        last = await last_claim(self.bus, self.name)
        if last is not None and last.sequence > self.epoch:
            self._on_fenced(Fenced(self.name, f"claimed anew as epoch {last.sequence}, ours was {self.epoch}"))

    async def check_claim(self) -> None:
        """Look whether this incarnation is still the newest: after having been stopped it cannot know otherwise."""
        with contextlib.suppress(BusError):
            await self._check_claim()

    @property
    def between_inputs(self) -> bool:
        """Whether state, cursor and outputs belong together right now, and the replay is over."""
        return self._reading and not self._busy and self.ready.is_set()

    # -- restore and replay

    async def _restore(self) -> None:
        """Take the snapshot over and begin after it; begun anew when the bus goes away meanwhile."""
        while True:
            try:
                await self.bus.until_live()
                self._load(await self._store.take_over())
                await self._begin(restored=True)
                return
            except (Disconnected, BusTimeout) as error:
                log.debug("restore_retried", error=str(error))
                await self._stop_reading()

    def _load(self, snapshot: Snapshot) -> None:
        agent = self.agent
        agent.state = agent.State()
        self._busy = False
        if snapshot.state is not None:
            try:
                agent.state = msgspec.convert(snapshot.state, type(agent).State)
            except msgspec.ValidationError as error:
                raise MeshError(
                    f"agent {self.name}: its saved state does not fit its class any more ({error}): "
                    "give the new fields defaults, or start with an empty --state-dir"
                ) from None
        agent.timers = {name: TimerSet(**timer) for name, timer in snapshot.timers.items()}
        agent.timers_set = snapshot.timers_set
        self._handlers = {kind: getattr(agent, f"on_{kind}", None) for kind in (*agent.listens, "timer")}
        self.cursor, self.inputs, self.poison = snapshot.cursor, snapshot.inputs, snapshot.poison
        self.skipped.update(snapshot.skipped)
        self.last_produced = snapshot.last_produced
        self.journal.begin(snapshot.outputs, snapshot.output_sequence)

    async def _begin(self, *, restored: bool = False) -> None:
        """Read back what is stored since the snapshot, then follow the inputs from its cursor on."""
        bounds = await self.bus.bounds()
        if self.cursor > 0 and self.cursor + 1 < bounds.first:
            self.journal.reports.alert(
                "critical",
                "retention_gap",
                f"agent {self.name} had read up to message {self.cursor}, but the stream begins at {bounds.first}: "
                "what it should have seen in between is gone; keep more ([stream] max_age_s, max_bytes)",
                agent=self.name,
                first_missing=self.cursor + 1,
                last_missing=bounds.first - 1,
            )
        found = await self.journal.read_back()
        self.skipped.update(sequence for sequence in found.skipped if sequence > self.cursor)
        if found.last_produced is not None:
            self.last_produced = found.last_produced
        self._cited = found.cited
        if restored:
            self._report("restored", cursor=self.cursor, outputs=self.journal.outputs)
        self.replayed = 0
        self.ready.clear()
        self._reading = True
        self._reader = None
        self._check_ready()
        filters = self._filters()
        if filters:
            self._reader = await self.bus.follow(filters, self.cursor + 1, self._on_input)

    def _filters(self) -> tuple[str, ...]:
        subjects = self.bus.subjects
        filters = [subjects.all_of(kind) for kind in self.agent.listens if kind != "timer"]
        if self._handlers.get("timer") is not None:
            filters.append(f"{subjects.ns}.timer.*.{self.name}")
        return tuple(filters)

    def _check_ready(self) -> None:
        if self.ready.is_set() or self.cursor < self._cited:
            return
        self.journal.caught_up()
        self.status = "live"
        self._report("ready", replayed=self.replayed, outputs=self.journal.outputs)
        self.timers.go_live(self.agent.timers)
        self.ready.set()

    # -- inputs

    async def _on_input(self, stored: Stored) -> None:
        if not self._reading or stored.sequence <= self.cursor:
            return
        self.lag = stored.pending
        sequence, asynchronous = stored.sequence, False
        try:
            event = self._read(stored)
        except MessageError as error:
            self.poison += 1
            log.warning("poison_message", subject=stored.subject, sequence=sequence, problem=error.problem)
            self.journal.poison(stored.subject, sequence, error.problem)
            event = None
        if event is None or sequence in self.skipped:
            if sequence in self.skipped:
                self.skipped.discard(sequence)
                self._checkpoints.want()
            self.cursor = sequence
        else:
            kind, topic, message = event
            try:
                outputs = self._handlers[kind](message)
                asynchronous = outputs is not None and type(outputs) not in KIND_OF and inspect.isawaitable(outputs)
                if asynchronous:
                    outputs = await self._finish(outputs)
                prepared = self.journal.prepare(outputs, sequence, topic)
            except Exception as error:
                if isinstance(error, MeshError) and not isinstance(error, MessageError):
                    self._on_fenced(error)  # ends the run; a reader would only log it, and go on with the next input
                    return
                log.exception("handler_raised", subject=stored.subject, sequence=sequence)
                self._reading = False
                self._skip = (sequence, f"on_{kind} raised {type(error).__name__}: {error}")
                self._wake.set()
                return
            # From here to the next await: outputs, cursor and state belong together.
            self.journal.publish(prepared, sequence)
            self.cursor = sequence
            self.inputs += 1
            if self.ready.is_set():
                self.timers.arm(self.agent.timers, self.agent.timers_set)
            else:
                self.replayed += 1
        self._check_ready()
        self._checkpoints.input_handled()
        await self.journal.send()
        if asynchronous:
            await asyncio.sleep(0)  # with inputs waiting there would be no other moment for a snapshot between two

    async def _finish(self, handling: Awaitable[Outputs]) -> Outputs:
        """Wait for an asynchronous handler. If it raises or is broken off, its half-changed state leaves us busy."""
        self._busy = True
        try:
            outputs = await handling
        except asyncio.CancelledError:
            if self._reading:  # by the reader (a gap, a reconnect), which will not deliver this input again
                self._reading, self._broken_off = False, True
                self._wake.set()
            raise
        self._busy = False
        return outputs

    def _read(self, stored: Stored) -> tuple[str, str | None, Event] | None:
        address = self.bus.subjects.parse(stored.subject)
        own = address.agent == self.name
        if own and address.kind != "timer" and not self.agent.hears_itself:
            return None
        message = decode(address, stored.subject, stored.data)
        if isinstance(message, Timer):
            timer = self.agent.timers.get(message.name)
            if not own or timer is None or timer.number != message.number:
                return None  # cancelled or replaced before it ran out
            del self.agent.timers[message.name]
        return address.kind, address.topic, message  # type: ignore[return-value]

    async def _stop_reading(self) -> None:
        self._reading = False
        if self._reader is not None:
            await self._reader.close()
            self._reader = None

    async def _read_again(self) -> None:
        """Go back to the last snapshot and replay, without the input whose handler raised, if one did."""
        await self._stop_reading()
        if self._skip is not None:
            sequence, why = self._skip
            self._report("skipped", reason=why, sequence=sequence)
            self.journal.reports.alert(
                "critical",
                "handler_raised",
                f"agent {self.name} skipped message {sequence}: {why}; mend the handler, its log has the traceback",
                agent=self.name,
                once=f"{self.name}:skipped-alert:{sequence}",
                sequence=sequence,
            )
            self.skipped.add(sequence)
        self._skip, self._broken_off = None, False
        await self.journal.flush()
        while True:
            self._load(self._store.read(self._store.saved))
            try:
                await self._begin()
                return
            except (Disconnected, BusTimeout) as error:
                log.debug("restore_retried", error=str(error))
                await self._stop_reading()
                await self.bus.until_live()

    # -- sources

    async def _produce(self) -> None:
        await self.ready.wait()
        last: Event | None = None
        if self.last_produced is not None:
            subject, data = self.last_produced["subject"], orjson.dumps(self.last_produced["payload"])
            last = decode(self.bus.subjects.parse(subject), subject, data)  # type: ignore[assignment]
        async for event in self.agent.produce(last):
            [prepared] = self.journal.prepare(event, None, None)
            self.journal.publish([prepared], None)
            self.last_produced = {"subject": prepared.subject, "payload": orjson.Fragment(prepared.data)}
            await self.journal.send()
        if self.status == "live":
            self.status = "finished"
            log.info("source_finished", outputs=self.journal.outputs)
