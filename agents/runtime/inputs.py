"""Processes the inputs of one incarnation in order: decoding, the handler, and the handling of its failures.

It owns the cursor and the counts; runtime.py returns to a snapshot. For exactness nothing is awaited after a handler
has returned until its outputs are in the outbox and the cursor has moved.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Literal, Protocol

from agents.agent import Agent, Outputs
from agents.runtime.output_validation import BadOutput, OutputValidator, Prepared
from agents.runtime.tracing import AgentTracing
from bus.durable.snapshots import Snapshot
from bus.errors import MeshError, MessageError, UsageError
from bus.interface import StoredMessage
from bus.messages import KIND_OF, Event, Timer, check_lifetime, decode
from bus.messages.subjects import Subjects
from bus.utils.aio import current_task_or_none, is_cancelled
from bus.utils.error_text import describe_error

MAX_CONSECUTIVE_SKIPS = 20
"""After so many inputs skipped in a row the agent ends: the next input would fail too."""
SLOW_HANDLER_S = 0.1
"""A synchronous handler that takes longer is reported: while it runs, no heartbeat is sent."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A failure of a handler: `why` it failed on the input at `sequence` (None: it was a source's own event)."""

    sequence: int | None
    why: str


class TooManyFailures(UsageError):
    """A handler has failed on each of its last inputs: the cause is not the input."""

    def __init__(self, agent: str, what: str, why: str) -> None:
        super().__init__(
            f"agent {agent}: {what}, so it has ended; fix it, then `signalmesh revive {agent}`; the last failure: {why}"
        )


class OutputSink(Protocol):
    """Takes the outputs: the OutputLog (agents/runtime/output_log.py), or a replay's."""

    def publish(self, prepared: Iterable[Prepared], cause: int | None) -> None: ...
    def send(self) -> Awaitable[None] | None: ...
    def poison(self, subject: str, sequence: int, problem: str) -> None: ...


class FaultSink(Protocol):
    """Takes the faults: the FaultReporter (agents/runtime/fault_reports.py), or a replay's."""

    def failed(self, fault: Fault, error: BaseException, subject: str) -> None: ...
    def slow(self, handler: str, sequence: int, duration_s: float) -> None: ...


class InputContext(Protocol):
    """What an InputProcessor needs of its owner: a Runtime, or a Replayed (agents/runtime/replay.py)."""

    agent: Agent
    name: str
    subjects: Subjects
    ready: asyncio.Event
    output_validator: OutputValidator

    @property
    def output_log(self) -> OutputSink: ...
    @property
    def fault_reporter(self) -> FaultSink: ...
    def input_handled(self) -> None: ...
    def want_snapshot(self) -> None: ...
    def wake(self) -> None: ...
    def fail(self, error: MeshError) -> None: ...


class InputState(Enum):
    """The state of an InputProcessor."""

    READING = auto()
    """Inputs are taken; no asynchronous handler runs. The agent's state, the cursor and the outputs are consistent."""
    HANDLING = auto()
    """An asynchronous handler runs: the agent's state may be half changed."""
    FAULTED = auto()
    """A handler has raised (`InputProcessor.fault`): the agent's state may be half changed, and no input is taken."""
    INTERRUPTED = auto()
    """An asynchronous handler is cancelled, or about to be: as FAULTED. Its input is not delivered again."""
    STOPPED = auto()
    """No input is taken; the agent's state and the cursor are consistent."""


InputEvent = Literal["start", "begin", "finish", "fail", "interrupt", "stop", "reset"]
"""What changes the state: reading starts; an asynchronous handler begins, finishes; any handler fails; the reader
cancels one; reading is to stop; state and cursor are set to those of a snapshot."""

TRANSITIONS: dict[tuple[InputState, InputEvent], InputState] = {
    (InputState.STOPPED, "start"): InputState.READING,
    (InputState.READING, "begin"): InputState.HANDLING,
    (InputState.HANDLING, "finish"): InputState.READING,
    (InputState.HANDLING, "interrupt"): InputState.INTERRUPTED,
    (InputState.READING, "stop"): InputState.STOPPED,
    (InputState.HANDLING, "stop"): InputState.INTERRUPTED,
    (InputState.INTERRUPTED, "finish"): InputState.STOPPED,
    **{(state, "fail"): InputState.FAULTED for state in InputState},
    **{(state, "reset"): InputState.STOPPED for state in InputState},
}
"""An event that is not listed for a state leaves it as it is."""


class InputProcessor:
    """Feeds one input after another to the handlers of the context's agent."""

    def __init__(self, context: InputContext, tracing: AgentTracing | None = None) -> None:
        self._context, self._tracing = context, tracing
        self._agent = context.agent
        self._handlers: dict[str, Any] = {
            kind: getattr(context.agent, f"on_{kind}", None) for kind in (*context.agent.listens, "timer")
        }
        self.state = InputState.STOPPED
        self.fault: Fault | None = None
        """Why it is FAULTED."""
        self.cursor = 0
        self.inputs = 0
        self.poison = 0
        self.skips = 0
        self.skips_in_a_row = 0
        self.skipped: set[int] = set()
        """Inputs beyond the cursor that failed in their handler."""
        self.lag = 0
        self.replayed = 0
        self.handling = ""
        """The handler that runs asynchronously, and its message."""

    def transition(self, event: InputEvent) -> None:
        """Change the state, and wake the owner if it has to return to a snapshot."""
        self.state = TRANSITIONS.get((self.state, event), self.state)
        if event in ("fail", "interrupt"):
            self._context.wake()

    def load(self, snapshot: Snapshot) -> None:
        """Go on after a snapshot."""
        self.transition("reset")
        self.fault = None
        self.cursor, self.inputs, self.poison = snapshot.cursor, snapshot.inputs, snapshot.poison
        self.skips, self.skips_in_a_row = snapshot.skips, snapshot.skips_in_a_row
        self.skipped.update(snapshot.skipped)
        self.replayed = 0

    def filters(self) -> tuple[str, ...]:
        """The subjects to read."""
        subjects = self._context.subjects
        filters = [subjects.all_of(kind) for kind in self._agent.listens if kind != "timer"]
        if self._handlers.get("timer") is not None:
            filters.append(f"{subjects.ns}.timer.*.{self._context.name}")
        return tuple(filters)

    def take(self, stored: StoredMessage) -> Awaitable[None] | None:
        """Handle the next message of the stream; the result is awaited before the message after it."""
        taken = self.state is InputState.READING or self.state is InputState.HANDLING
        if not taken or stored.sequence <= self.cursor:
            return None
        self.lag = stored.pending
        event = self._read(stored)
        if stored.sequence in self.skipped:
            return self._pass(stored, skipped=True)
        if event is None:
            return self._pass(stored, skipped=False)
        kind, topic, message = event
        if self._tracing is not None:
            self._tracing.begin(stored, message)
        try:
            outputs = self._call(stored, kind, message)
        except BaseException as error:  # noqa: BLE001 - whatever a handler raises is its own
            self._failed(f"on_{kind}", stored, error)
            return None
        if outputs is not None and type(outputs) not in KIND_OF and inspect.isawaitable(outputs):
            self.handling = f"on_{kind} over message {stored.sequence}"
            self.transition("begin")  # already here: the reader may await the rest in a task that begins later
            return self.handle_async(stored, kind, topic, outputs)
        return self.handle_sync(stored, kind, topic, outputs)

    def _pass(self, stored: StoredMessage, *, skipped: bool) -> Awaitable[None] | None:
        """Move the cursor over an input that no handler gets; `skipped`: one has failed on it before."""
        self.cursor = stored.sequence
        if skipped:
            self.skipped.discard(stored.sequence)
            self.skips += 1
            self.skips_in_a_row += 1
            self._context.want_snapshot()
        self._context.input_handled()
        return self._context.output_log.send()

    def handle_sync(
        self, stored: StoredMessage, kind: str, topic: str | None, outputs: Outputs
    ) -> Awaitable[None] | None:
        """The rest of `take` for what a handler has returned."""
        context = self._context
        try:
            prepared = context.output_validator.prepare(outputs, f"on_{kind} returned", topic)
        except BaseException as error:  # noqa: BLE001 - what it returned may run the agent's code
            self._failed(f"on_{kind}", stored, error)
            return None
        self._handled(stored, prepared)
        context.input_handled()
        return context.output_log.send()

    async def handle_async(
        self, stored: StoredMessage, kind: str, topic: str | None, handling: Awaitable[Outputs]
    ) -> None:
        """The rest of `take` for a handler that has returned an awaitable."""
        task = asyncio.current_task()
        try:
            outputs = await self._finish(handling)
        except BaseException as error:
            if isinstance(error, GeneratorExit) and current_task_or_none() is not task:
                raise  # this coroutine is closed: nothing waits for it any more
            if isinstance(error, asyncio.CancelledError) and is_cancelled():
                raise
            self._failed(f"on_{kind}", stored, error)
            return
        if (room := self.handle_sync(stored, kind, topic, outputs)) is not None:
            await room
        await asyncio.sleep(0)  # while inputs wait, this is the only chance for a snapshot between two of them

    def _call(self, stored: StoredMessage, kind: str, message: Event) -> Any:
        started_at = time.perf_counter()
        outputs = self._handlers[kind](message)
        duration_s = time.perf_counter() - started_at
        if duration_s > SLOW_HANDLER_S:
            self._context.fault_reporter.slow(f"on_{kind}", stored.sequence, duration_s)
        return outputs

    def _handled(self, stored: StoredMessage, prepared: list[Prepared]) -> None:
        """Outputs, cursor and state change together: nothing is awaited in between."""
        self._context.output_log.publish(prepared, stored.sequence)
        self.cursor = stored.sequence
        self.inputs += 1
        self.skips_in_a_row = 0
        if not self._context.ready.is_set():
            self.replayed += 1
        if self._tracing is not None:
            self._tracing.end()

    def _failed(self, handler: str, stored: StoredMessage, error: BaseException) -> None:
        # Nothing may escape: a reader would only log it, and the agent would wait for ever.
        if isinstance(error, MeshError) and not isinstance(error, MessageError):
            self._context.fail(error)
            return
        try:
            self._fail(handler, stored, error)
        except BaseException as another:  # noqa: BLE001 - what it is about is a user's, its traceback included
            self._context.fail(
                MeshError(
                    f"agent {self._context.name}: {handler} failed on message {stored.sequence} with "
                    f"{describe_error(error)}, and reporting that failed with {describe_error(another)}"
                )
            )

    def _fail(self, handler: str, stored: StoredMessage, error: BaseException) -> None:
        """Stop reading, and let the runtime return to the last snapshot, which this handler has not changed."""
        described = describe_error(error)
        why = described.partition(": ")[2] if isinstance(error, BadOutput) else f"{handler} raised {described}"
        self.fault = Fault(stored.sequence, why)
        self._context.fault_reporter.failed(self.fault, error, stored.subject)
        if self._tracing is not None:
            self._tracing.failed(stored, handler.partition("_")[2], why, error)
            self._tracing.end()
        self.transition("fail")

    def check_consecutive_skips(self, why: str) -> None:
        """To be called when one more input is to be skipped.

        The count is a function of the stream, and every further MAX_CONSECUTIVE_SKIPS end the agent again: after each
        revival it has as many attempts as at first.

        Raises:
            TooManyFailures: too many in a row.
        """
        skips = self.skips_in_a_row + 1
        if skips % MAX_CONSECUTIVE_SKIPS == 0:
            raise TooManyFailures(self._context.name, f"its handlers failed on {skips} inputs in a row", why)

    async def _finish(self, handling: Awaitable[Outputs]) -> Outputs:
        """Wait for an asynchronous handler."""
        try:
            outputs = await handling
        except asyncio.CancelledError:
            if is_cancelled():  # by the reader (a gap, a reconnect), unless reading has been stopped
                self.transition("interrupt")
            raise
        self.transition("finish")
        return outputs

    def _read(self, stored: StoredMessage) -> tuple[str, str | None, Event] | None:
        """Kind, topic and message of an input; None if it is not for a handler."""
        subjects = self._context.subjects
        try:
            address = subjects.parse(stored.subject)
            own = address.agent == self._context.name
            if own and address.kind != "timer" and not self._agent.receives_own_messages:
                return None
            check_lifetime(address, stored.subject, stored.headers)
            message = decode(address, stored.subject, stored.data)
        except MessageError as error:
            self.poison += 1
            self._context.output_log.poison(stored.subject, stored.sequence, error.problem)
            return None
        if isinstance(message, Timer):
            timer = self._agent.timers.get(message.name)
            if not own or timer is None or timer.number != message.number:
                return None  # cancelled or replaced before it ran out
            del self._agent.timers[message.name]
        return address.kind, address.topic, message  # type: ignore[return-value]
