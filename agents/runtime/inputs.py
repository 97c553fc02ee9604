"""The inputs of one incarnation, one after another: decoding, the handler, and what becomes of an input whose handler
raised. It owns the cursor and the counts; the way back to a snapshot is agents/runtime/runtime.py's.

The order that makes it exact: nothing is awaited between a handler's return and the moment when its outputs are in
the outbox and the cursor has moved.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from agents.agent import Agent, Outputs
from agents.runtime.output_validation import BadOutput, Outgoing, Prepared
from agents.runtime.tracing import AgentTracing
from bus.durable.snapshots import Snapshot
from bus.errors import MeshError, MessageError, UsageError
from bus.interface import StoredMessage
from bus.messages import KIND_OF, Event, Timer, decode
from bus.messages.subjects import Subjects
from bus.utils.aio import is_cancelled

HOPELESS_SKIPS = 20
"""After so many inputs skipped in a row the agent ends: whatever is wrong with its handlers, the next will fail too."""
SLOW_HANDLER_S = 0.1
"""A handler that takes longer is told of: while it runs no heartbeat is sent."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A handler's: `why` says what it did with the input at `sequence` (None: it was a source's own event)."""

    sequence: int | None
    why: str


class HopelessHandler(UsageError):
    """A handler has failed on every one of its last inputs: what is wrong with it is no matter of the input."""

    def __init__(self, agent: str, what: str, why: str) -> None:
        super().__init__(
            f"agent {agent}: {what}, so it is given up; mend it, then `signalmesh revive {agent}`; the last one: {why}"
        )


class TakesOutputs(Protocol):
    """Where outputs go: agents/runtime/output_log.py's Journal, or a replay's."""

    def publish(self, prepared: Iterable[Prepared], cause: int | None) -> None: ...
    def send(self) -> Awaitable[None] | None: ...
    def poison(self, subject: str, sequence: int, problem: str) -> None: ...


class TakesComplaints(Protocol):
    """Where faults are told: agents/runtime/fault_reports.py's Complaints, or a replay's."""

    def failed(self, fault: Fault, error: BaseException, subject: str) -> None: ...
    def slow(self, handler: str, sequence: int, duration_s: float) -> None: ...


class Life(Protocol):
    """Whose inputs they are: a Runtime's, or a replay's (agents/runtime/replay.py). All its names are as in Runtime."""

    agent: Agent
    name: str
    subjects: Subjects
    ready: asyncio.Event
    outgoing: Outgoing

    @property
    def journal(self) -> TakesOutputs: ...
    @property
    def complaints(self) -> TakesComplaints: ...
    def input_handled(self) -> None: ...
    def want_snapshot(self) -> None: ...
    def wake(self) -> None: ...
    def fail(self, error: MeshError) -> None: ...


class Intake:
    """Feeds one input after another to the handlers of a life's agent."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._agent = life.agent
        self._handlers: dict[str, Any] = {
            kind: getattr(life.agent, f"on_{kind}", None) for kind in (*life.agent.listens, "timer")
        }
        self.cursor = 0
        self.inputs = 0
        self.poison = 0
        self.skips = 0
        self.skips_in_a_row = 0
        self.skipped: set[int] = set()
        """Inputs beyond the cursor whose handler has raised."""
        self.lag = 0
        self.replayed = 0
        self.reading = False
        self.busy = False
        """An asynchronous handler is under way, or has left the state half changed."""
        self.fault: Fault | None = None
        self.broken_off = False
        """A handler was cancelled by the reader, which will not deliver its input again."""
        self.tracing: AgentTracing | None = None

    def load(self, snapshot: Snapshot) -> None:
        """Go on after a snapshot."""
        self.busy = False
        self.cursor, self.inputs, self.poison = snapshot.cursor, snapshot.inputs, snapshot.poison
        self.skips, self.skips_in_a_row = snapshot.skips, snapshot.skips_in_a_row
        self.skipped.update(snapshot.skipped)
        self.replayed = 0

    def filters(self) -> tuple[str, ...]:
        """The subjects to read."""
        subjects = self._life.subjects
        filters = [subjects.all_of(kind) for kind in self._agent.listens if kind != "timer"]
        if self._handlers.get("timer") is not None:
            filters.append(f"{subjects.ns}.timer.*.{self._life.name}")
        return tuple(filters)

    def take(self, stored: StoredMessage) -> Awaitable[None] | None:
        """Handle the next message of the stream; what comes back is to be awaited before the one after it."""
        if not self.reading or stored.sequence <= self.cursor:
            return None
        life, sequence = self._life, stored.sequence
        self.lag = stored.pending
        event = self._read(stored)
        if sequence in self.skipped:
            self.skipped.discard(sequence)
            self.skips += 1
            self.skips_in_a_row += 1
            self.cursor = sequence
            life.want_snapshot()
        elif event is None:
            self.cursor = sequence
        else:
            if self.tracing is not None:
                self.tracing.begin(stored, event[2])
            kind, topic, message = event
            try:
                outputs = self._call(stored, kind, message)
                if outputs is not None and type(outputs) not in KIND_OF and inspect.isawaitable(outputs):
                    return self._take_slowly(stored, kind, topic, outputs)
                prepared = life.outgoing.prepare(outputs, f"on_{kind} returned", topic)
            except BaseException as error:  # noqa: BLE001 - whatever a handler raises is its own
                self._failed(f"on_{kind}", stored, error)
                return None
            self._handled(stored, prepared)
        life.input_handled()
        return life.journal.send()

    async def _take_slowly(
        self, stored: StoredMessage, kind: str, topic: str | None, handling: Awaitable[Outputs]
    ) -> None:
        """The rest of `take` for an asynchronous handler."""
        life = self._life
        try:
            prepared = life.outgoing.prepare(await self._finish(handling), f"on_{kind} returned", topic)
        except GeneratorExit:
            raise  # nobody waits for this coroutine any more
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and is_cancelled():
                raise
            self._failed(f"on_{kind}", stored, error)
            return
        self._handled(stored, prepared)
        life.input_handled()
        if (room := life.journal.send()) is not None:
            await room
        await asyncio.sleep(0)  # with inputs waiting there would be no other moment for a snapshot between two

    def _call(self, stored: StoredMessage, kind: str, message: Event) -> Any:
        started_at = time.perf_counter()
        outputs = self._handlers[kind](message)
        duration_s = time.perf_counter() - started_at
        if duration_s > SLOW_HANDLER_S:
            self._life.complaints.slow(f"on_{kind}", stored.sequence, duration_s)
        return outputs

    def _handled(self, stored: StoredMessage, prepared: list[Prepared]) -> None:
        """Outputs, cursor and state belong together: nothing waits in between."""
        self._life.journal.publish(prepared, stored.sequence)
        self.cursor = stored.sequence
        self.inputs += 1
        self.skips_in_a_row = 0
        if not self._life.ready.is_set():
            self.replayed += 1
        if self.tracing is not None:
            self.tracing.end()

    def _failed(self, handler: str, stored: StoredMessage, error: BaseException) -> None:
        if isinstance(error, MeshError) and not isinstance(error, MessageError):
            self._life.fail(error)  # ends the run; a reader would only log it, and go on with the next input
        else:
            self._fail(handler, stored, error)

    def _fail(self, handler: str, stored: StoredMessage, error: BaseException) -> None:
        """Stop reading, and have the runtime go back to the last snapshot, which this handler has not spoilt."""
        self.reading = False
        why = str(error) if isinstance(error, BadOutput) else f"{handler} raised {type(error).__name__}: {error}"
        self.fault = Fault(stored.sequence, why)
        self._life.complaints.failed(self.fault, error, stored.subject)
        if self.tracing is not None:
            self.tracing.failed(stored, handler.partition("_")[2], why, error)
            self.tracing.end()
        self._life.wake()

    def check_hope(self, why: str) -> None:
        """To be called when one more input is to be skipped.

        The count is a function of the stream, and every further HOPELESS_SKIPS end the agent again: so who revives it
        gives it a chance as long as the first one.

        Raises:
            HopelessHandler: too many in a row.
        """
        skips = self.skips_in_a_row + 1
        if skips % HOPELESS_SKIPS == 0:
            raise HopelessHandler(self._life.name, f"its handlers failed on {skips} inputs in a row", why)

    async def _finish(self, handling: Awaitable[Outputs]) -> Outputs:
        """Wait for an asynchronous handler. If it raises or is broken off, its half-changed state leaves us busy."""
        self.busy = True
        try:
            outputs = await handling
        except asyncio.CancelledError:
            if self.reading and is_cancelled():  # by the reader (a gap, a reconnect)
                self.reading, self.broken_off = False, True
                self._life.wake()
            raise
        self.busy = False
        return outputs

    def _read(self, stored: StoredMessage) -> tuple[str, str | None, Event] | None:
        """Kind, topic and message of an input; None if it is not for a handler."""
        subjects = self._life.subjects
        try:
            address = subjects.parse(stored.subject)
            own = address.agent == self._life.name
            if own and address.kind != "timer" and not self._agent.receives_own_messages:
                return None
            message = decode(address, stored.subject, stored.data)
        except MessageError as error:
            self.poison += 1
            self._life.journal.poison(stored.subject, stored.sequence, error.problem)
            return None
        if isinstance(message, Timer):
            timer = self._agent.timers.get(message.name)
            if not own or timer is None or timer.number != message.number:
                return None  # cancelled or replaced before it ran out
            del self._agent.timers[message.name]
        return address.kind, address.topic, message  # type: ignore[return-value]
