"""The outputs of an incarnation: their numbers, ids and fence, and during a replay which of them are already stored.

Output numbers are contiguous per agent. On recovery the outputs stored since the snapshot are read back. During the
replay each handler output is matched with the stored one of the same cause and position; only missing outputs are sent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson
import structlog

from agents.runtime.output_rate import MAX_OUTPUTS_PER_S, OutputRate
from agents.runtime.output_validation import Prepared
from agents.runtime.tracing import AgentTracing
from bus.durable.events import EventPublisher
from bus.durable.fencing import fence
from bus.durable.message_ids import is_id, substitute
from bus.durable.outbox import Entry, Outbox
from bus.durable.repeated_alerts import RepeatedAlerts
from bus.durable.snapshots import Produced
from bus.errors import MeshError, MessageError
from bus.interface import Bus, StoredMessage
from bus.messages import Lifecycle
from bus.messages import headers as h

log = structlog.get_logger("signalmesh.agent")


@dataclass(slots=True)
class StoredOutputs:
    """What reading back found beyond the snapshot: the highest cause cited, skipped inputs, a source's position."""

    cited: int = 0
    skipped: list[int] = field(default_factory=list)
    last_produced: Produced | None = None


def output_headers(agent: str, number: int, cause: int | None) -> dict[str, str]:
    """The headers of an agent's output `number` that do not depend on its incarnation: the same in every replay."""
    headers = {h.MSG_ID: f"{agent}:{number}", h.OUTPUT: str(number)}
    if cause is not None:
        headers[h.CAUSE] = str(cause)
    return headers


class OutputLog:
    """Numbers and publishes the outputs of `agent` in its incarnation `epoch`."""

    def __init__(
        self,
        bus: Bus,
        agent: str,
        epoch: int,
        on_fenced: Callable[[MeshError], None],
        on_output_stored: Callable[[str, bytes], None] | None = None,
        tracing: AgentTracing | None = None,
        *,
        max_per_s: int = MAX_OUTPUTS_PER_S,
    ) -> None:
        self._bus, self._agent, self._epoch = bus, agent, epoch
        self._subjects = bus.subjects
        self._fence = fence(bus, agent, epoch)
        self._written_by = (f"{bus.subjects.ns}.*.*.{agent}",)
        self._outbox = Outbox(bus, self._written_by, on_fenced, self._on_acked, pipelined=False)  # until `read_back`
        self._outbox.stored_through = epoch
        self._rate = OutputRate(agent, max_per_s, on_fenced)
        self.outputs = 0
        self.stored_sequence = 0
        self._on_output_stored, self._tracing = on_output_stored, tracing
        self._stored: deque[StoredMessage] = deque()
        self._in_order = True
        """Whether the stored outputs are contiguous, and in the order of their numbers."""
        self.reports = EventPublisher(bus, self._outbox, agent, self._fence)
        self.repeated = RepeatedAlerts(agent, self.reports)

    def __len__(self) -> int:
        return len(self._outbox)

    # -- restore

    def begin(self, outputs: int, stored_sequence: int) -> None:
        """Continue after a snapshot: `outputs` published by then, none later than `stored_sequence` counted in it."""
        self.outputs = outputs
        self.stored_sequence = stored_sequence
        self._stored.clear()

    async def read_back(self) -> StoredOutputs:
        """Find what this agent has stored beyond the snapshot."""
        await self._outbox.find_pipelining()
        found = StoredOutputs()
        numbered: dict[int, StoredMessage] = {}
        for stored in await self._bus.read_back(self._written_by, self.stored_sequence + 1):
            number = self._number_of(stored)
            if number is None:
                found.skipped += self._skipped_of(stored)
            elif number > self.outputs:
                numbered.setdefault(number, stored)
        expected = self.outputs + 1
        for number, stored in sorted(numbered.items()):  # one whose id was squatted is stored after later ones
            self._stored.append(stored)
            cause = h.number(stored.headers, h.CAUSE)
            if cause is not None:
                found.cited = max(found.cited, cause)
            elif number == expected:  # a source goes on before the first output that is missing
                found.last_produced = {"subject": stored.subject, "payload": orjson.Fragment(stored.data)}
            expected += number == expected
        sequences = [stored.sequence for stored in self._stored]
        self._in_order = expected == self.outputs + len(sequences) + 1 and sequences == sorted(sequences)
        return found

    def _number_of(self, stored: StoredMessage) -> int | None:
        """The number of an output of this agent; None for anything else under its subjects, also of other writers."""
        if h.OUTPUT not in stored.headers:
            return None
        number, cause = h.number(stored.headers, h.OUTPUT), h.number(stored.headers, h.CAUSE)
        given = {name: stored.headers[name] for name in (h.MSG_ID, h.OUTPUT, h.CAUSE) if name in stored.headers}
        try:
            stored.decode(self._subjects)
        except MessageError as error:
            problem = error.problem
        else:
            if number is not None and self._is_own(given, output_headers(self._agent, number, cause)):
                return number
            problem = f"its headers are {given}"
        self.repeated.unknown_writer(stored, problem)
        return None

    @staticmethod
    def _is_own(given: dict[str, str], ordinary: dict[str, str]) -> bool:
        return given.keys() == ordinary.keys() and all(
            is_id(value, ordinary[name]) if name == h.MSG_ID else value == ordinary[name]
            for name, value in given.items()
        )

    def _skipped_of(self, stored: StoredMessage) -> list[int]:
        """The skipped input, if this is the report of a skip."""
        try:
            report = stored.decode(self._subjects)
        except MessageError:
            return []
        if not isinstance(report, Lifecycle) or (report.event, report.agent) != ("skipped", self._agent):
            return []
        sequence = (report.detail or {}).get("sequence")
        return [sequence] if isinstance(sequence, int) else []

    def caught_up(self) -> None:
        """The replay has passed all cited inputs: the stored outputs that are left were produced by a source."""
        self._pass_produced()
        if self._stored and h.CAUSE in self._stored[0].headers:
            self._diverged(self._stored[0], b"")
            while self._stored:
                self._take()

    def _pass_produced(self) -> None:
        while self._stored and h.CAUSE not in self._stored[0].headers and not self._is_next_missing():
            self._take()

    def _is_next_missing(self) -> bool:
        """Whether later outputs are stored, but not the next one: its id was squatted, and this agent ended then."""
        return bool(self._stored) and int(self._stored[0].headers[h.OUTPUT]) > self.outputs + 1

    def _pass_until(self, cause: int) -> None:
        """Pass what was produced, and report what answered an earlier input that has no such answer now."""
        self._pass_produced()
        while self._stored and (h.number(self._stored[0].headers, h.CAUSE) or cause) < cause:
            self._diverged(self._take(), b"")
            self._pass_produced()

    def _take(self) -> StoredMessage:
        is_gap = self._is_next_missing()
        stored = self._stored.popleft()
        number = int(stored.headers[h.OUTPUT])
        if is_gap:
            self.reports.alert(
                "critical",
                "output_gap",
                f"agent {self._agent}: expected its output {self.outputs + 1}, the stream has {number} "
                f"at message {stored.sequence}",
                agent=self._agent,
            )
        self.outputs = number
        if self._tracing is not None:
            self._tracing.found(stored)
        self._note(stored.sequence, self._subjects.parse(stored.subject).kind, stored.data)
        return stored

    # -- publishing

    def publish(self, prepared: Iterable[Prepared], cause: int | None) -> None:
        """Number the outputs of one input (or of a source) and publish those that are missing.

        Raises:
            Fenced: this incarnation has been superseded.
        """
        if self._stored and cause is not None:
            self._pass_until(cause)
        for output in prepared:
            if self._stored and self._is_stored(output, cause):
                continue
            self.outputs += 1
            headers = {**output_headers(self._agent, self.outputs, cause), **self._fence}
            if self._stored:  # it is missing between stored ones: readers know it by such an id
                headers[h.MSG_ID] = substitute(headers[h.MSG_ID])
            if self._tracing is not None and (traceparent := self._tracing.sign(output, self.outputs, cause)):
                headers[h.TRACEPARENT] = traceparent
            self._outbox.put(Entry(output.subject, output.data, headers, self.outputs))
            self._rate.count(output.subject, len(output.data))

    def _is_stored(self, output: Prepared, cause: int | None) -> bool:
        """Whether this output, or what stands in its place, is the next one that is stored; that one is then passed."""
        stored = self._stored[0]
        is_same = stored.data == output.data and stored.subject == output.subject
        if cause is None:
            if not is_same and self._is_next_missing() and self._is_before(output, stored):
                return False
            while self._stored and not is_same:  # the source goes on after all of them
                self._take()
            if is_same:
                self._take()
            return is_same
        is_answer = h.number(stored.headers, h.CAUSE) == cause
        if self._is_next_missing() and not (is_same and is_answer):
            return False
        # The stored output is the valid one: if a replay differs, the replay is wrong.
        if is_answer:
            self._take()
            self._pass_produced()
        if not is_same or not is_answer:
            self._diverged(stored, output.data)
        return True

    def _is_before(self, output: Prepared, stored: StoredMessage) -> bool:
        """Whether a source's event is older than a stored one, so that the source produces from before the gap on."""
        message: Any = stored.decode(self._subjects)
        return bool(output.message.timestamp <= message.timestamp)

    def _diverged(self, stored: StoredMessage, data: bytes) -> None:
        log.error("replay_diverged", sequence=stored.sequence, stored=stored.data.decode(), replayed=data.decode())
        self.repeated.diverged(stored.sequence)

    def timer(self, subject: str, data: bytes, number: int) -> None:
        """Publish a Timer event; `number` deduplicates it."""
        self._outbox.put(Entry(subject, data, {h.MSG_ID: f"{self._agent}:timer:{number}", **self._fence}))
        self._rate.count(subject, len(data))

    def poison(self, subject: str, sequence: int, problem: str) -> None:
        """Report a poison message, together with the other agents that read it."""
        self.repeated.poison(subject, sequence, problem)

    def push(self) -> None:
        """Send what was published."""
        self._outbox.push()

    def send(self) -> Awaitable[None] | None:
        """Send what was published; the result is to be awaited, if any: too much is unacknowledged, or came at once."""
        room, pause_s = self._outbox.send(), self._rate.pause_s()
        return self._slow_down(room, pause_s) if pause_s else room

    async def _slow_down(self, room: Awaitable[None] | None, pause_s: float) -> None:
        if room is not None:
            await room
        await self._rate.wait(pause_s)

    async def flush(self) -> None:
        """Wait until everything published before this call is stored: outputs, reports and timers.

        Raises:
            Fenced: it never will be.
        """
        await self._outbox.flush()

    def check(self) -> None:
        """To be called at intervals: sends the alerts that are due, and detects overdue acknowledgements."""
        self.repeated.check()
        self._outbox.check()

    def _on_acked(self, entry: Entry) -> None:
        if entry.number is not None:
            if self._tracing is not None:
                self._tracing.acked(entry.number, entry.sequence)
            kind = entry.subject.split(".", 2)[1]
            self._note(entry.sequence, kind, entry.data)

    def _note(self, sequence: int, kind: str, data: bytes) -> None:
        if self._stored and not self._in_order:  # stored outputs that are not counted yet must be read back again
            sequence = min(sequence, *(stored.sequence - 1 for stored in self._stored))
        self.stored_sequence = max(sequence, self.stored_sequence)
        if self._on_output_stored is not None:
            self._on_output_stored(kind, data)

    def close(self) -> None:
        self._outbox.close()
