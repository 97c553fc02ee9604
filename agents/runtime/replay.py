"""Runs one agent again over its recorded inputs, and compares its outputs with the recorded ones.

The inputs go through the same InputProcessor as in a Runtime: decoding, own messages, timers, skips, handlers and
output validation. Only the output log differs: it stores outputs until they are compared. A source's own events are
produced again and compared in the same way. Nothing is published, and nothing depends on the wall clock.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass

from agents.agent import Agent
from agents.runtime.inputs import Fault, InputProcessor
from agents.runtime.output_log import output_headers
from agents.runtime.output_validation import BadOutput, OutputValidator, Prepared
from bus.durable.message_ids import is_id
from bus.durable.snapshots import Snapshot
from bus.errors import MeshError
from bus.interface import StoredMessage
from bus.messages import Event
from bus.messages import headers as h
from bus.messages.subjects import Subjects

MAX_EARLY = 4096
"""Most recorded outputs that wait for an earlier one."""
MAX_WAITING = 100_000
"""Most outputs that are kept for recorded ones still to come: an agent may have been down for long."""
PRODUCE_S = 10.0
"""How long a source is waited for in all. One that paces itself or reads from a network takes longer, and cannot be
produced again from local files."""
PAUSE_S = 0.1
"""A shorter wait for an event is not counted: other tasks run on this loop as well, such as reading the bus."""


@dataclass(frozen=True, slots=True)
class Expected:
    """An output of the replay."""

    subject: str
    data: bytes
    cause: int | None


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A difference: `recorded` or `replayed` is None where the other has no counterpart.

    `sequence` is that of the recorded output, or else of the message at which it was noticed; `number` the output
    number that the replay gives. `why` is set where there is no output at all.
    """

    sequence: int
    number: int
    recorded: StoredMessage | None
    replayed: Expected | None
    why: str = ""


class Replayed:
    """`agent`, from its empty state on: from `first` on, if it started within the stream.

    `skipped` are the inputs that it has recorded as skipped, `handled` is the last one that it has reported to be
    beyond: a failure on a later one is a difference only if the run went on after it.
    """

    def __init__(
        self,
        agent: Agent,
        subjects: Subjects,
        skipped: Iterable[int] = (),
        handled: int = 0,
        first: Snapshot | None = None,
    ) -> None:
        self.agent, self.name, self.subjects = agent, agent.name, subjects
        self.ready = asyncio.Event()
        self.ready.set()
        self.output_validator = OutputValidator(agent, subjects)
        self.input_processor = InputProcessor(self)
        first = first or Snapshot()
        agent.timers_set = first.timers_set
        self.input_processor.load(first)
        self.input_processor.skipped.update(skipped)
        self.input_processor.transition("start")
        self.output_log = self.fault_reporter = _Collector()
        self.outputs = first.outputs
        """Numbers of the recorded outputs seen."""
        self._early: dict[int, StoredMessage] = {}
        """Number -> a recorded output that came before an earlier one, whose id may have been squatted."""
        self.left_out = ""
        """Why nothing more of it is compared; empty while it is."""
        self.source_left_out = ""
        """The same of its own events, where it is a source."""
        self._failed: MeshError | None = None
        self._handled = handled
        self._unconfirmed: Mismatch | None = None
        """A failure on an input that the run may not have handled."""
        self._events: AsyncGenerator[Event, None] | None = None
        self._waited_s = 0.0

    # -- the InputContext

    def input_handled(self) -> None:
        """Nothing is done between two inputs."""

    def want_snapshot(self) -> None:
        """None is taken."""

    def wake(self) -> None:
        """`take` checks by itself."""

    def fail(self, error: MeshError) -> None:
        """The agent cannot go on."""
        self._failed = error

    # -- inputs and outputs

    @property
    def waiting(self) -> int:
        """Outputs of the replay without their recorded counterparts yet."""
        return len(self.output_log.outputs)

    async def take(self, stored: StoredMessage) -> Mismatch | None:
        """Handle the next input; a difference where its handler fails and did not in the run."""
        if (handling := self.input_processor.take(stored)) is not None:
            await handling
        fault = self.input_processor.fault
        if fault is not None or self._failed is not None:
            why = fault.why if fault is not None else str(self._failed)
            mismatch = Mismatch(stored.sequence, self.outputs + 1, None, None, why)
            if stored.sequence <= self._handled:
                self.left_out = f"from message {stored.sequence} on: {why}"
                return mismatch
            self.left_out = f"from message {stored.sequence} on, which its run had not handled: {why}"
            self._unconfirmed = mismatch
        if self.waiting > MAX_WAITING:
            self.left_out = (
                f"from message {stored.sequence} on: it had more than {MAX_WAITING:,} outputs to catch up with"
            )
        return None

    def confirm_failure(self, stored: StoredMessage) -> Mismatch | None:
        """The difference where its handler failed, if `stored`, a later output of its run, answers that input or a
        later one: the run had not failed there.
        """
        mismatch = self._unconfirmed
        if mismatch is None or (h.number(stored.headers, h.CAUSE) or 0) < mismatch.sequence:
            return None
        self._unconfirmed = None
        self.left_out = f"from message {mismatch.sequence} on: {mismatch.why}"
        return mismatch

    async def compare(self, stored: StoredMessage) -> list[Mismatch]:
        """Compare the next recorded outputs of this agent with those of the replay; what differs, and what it lacks."""
        recorded = h.number(stored.headers, h.OUTPUT)
        if recorded is not None and recorded > self.outputs + 1 and len(self._early) < MAX_EARLY:
            self._early.setdefault(recorded, stored)
            return []
        found = await self._compare_next(stored)
        while (early := self._early.pop(self.outputs + 1, None)) is not None:
            found += await self._compare_next(early)
        return found

    async def compare_rest(self) -> list[Mismatch]:
        """Compare the recorded outputs that wait for an earlier one, which has not come."""
        found: list[Mismatch] = []
        for number in sorted(self._early):
            found += await self._compare_next(self._early.pop(number))
        return found

    async def _compare_next(self, stored: StoredMessage) -> list[Mismatch]:
        number, recorded = self.outputs + 1, h.number(stored.headers, h.OUTPUT)
        self.outputs = number if recorded is None else recorded
        found: list[Mismatch] = []
        if h.CAUSE in stored.headers:
            found += [Mismatch(stored.sequence, number, None, extra) for extra in self._unrecorded(stored)]
            outputs = self.output_log.outputs
            expected = outputs.popleft() if outputs and str(outputs[0].cause) == stored.headers[h.CAUSE] else None
        else:
            expected = await self._produced()
            if self.source_left_out:
                return found
        if expected is None or not self._same(stored, expected, number):
            found.append(Mismatch(stored.sequence, number, stored, expected))
        return found

    def _same(self, stored: StoredMessage, expected: Expected, number: int) -> bool:
        headers = stored.headers
        return (
            stored.data == expected.data
            and stored.subject == expected.subject
            and all(
                is_id(headers.get(name, ""), value) if name == h.MSG_ID else headers.get(name) == value
                for name, value in output_headers(self.name, number, expected.cause).items()
            )
        )

    def _unrecorded(self, stored: StoredMessage) -> list[Expected]:
        """Outputs of the replay that answer inputs before the one that `stored` answers: they are recorded nowhere."""
        outputs, cause = self.output_log.outputs, h.number(stored.headers, h.CAUSE)
        if cause is None:
            return []
        extra = []
        while outputs and (outputs[0].cause or 0) < cause:
            extra.append(outputs.popleft())
        return extra

    # -- a source's own events

    async def _produced(self) -> Expected | None:
        if self.agent.produce is None or self.source_left_out:
            return None
        if self._events is None:
            self._events = self.agent.produce(None)
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        try:
            async with asyncio.timeout(PRODUCE_S - self._waited_s):
                return await self._next_event()
        except TimeoutError:
            self.source_left_out = (
                f"from its output {self.outputs} on: it paces itself or waits for something; "
                f"it was waited for {PRODUCE_S:.0f} s in all"
            )
            return None
        finally:
            duration_s = loop.time() - started_at
            self._waited_s += duration_s if duration_s > PAUSE_S else 0.0

    async def _next_event(self) -> Expected | None:
        assert self._events is not None
        async for event in self._events:
            try:
                [prepared] = self.output_validator.prepare((event,), "produce yielded", None)
            except BadOutput:
                continue  # as a runtime does
            return Expected(prepared.subject, prepared.data, None)
        return None

    async def close(self) -> None:
        """Release what the agent has acquired."""
        if self._events is not None:
            await self._events.aclose()
        await self.agent.teardown()


class _Collector:
    """Replaces the output log and the fault reporter."""

    def __init__(self) -> None:
        self.outputs: deque[Expected] = deque()

    def publish(self, prepared: Iterable[Prepared], cause: int | None) -> None:
        self.outputs.extend(Expected(output.subject, output.data, cause) for output in prepared)

    def send(self) -> None:
        """Nothing is sent."""

    def poison(self, subject: str, sequence: int, problem: str) -> None:
        """Nothing: the recorded run has reported it."""

    def failed(self, fault: Fault, error: BaseException, subject: str) -> None:
        """`Replayed.take` reports it."""

    def slow(self, handler: str, sequence: int, duration_s: float) -> None:
        """Nothing: no heartbeat is delayed."""
