"""The spans of an agent: one for each output of a sampled trace.

A span of an output begins when its input is taken and ends when the stream has acknowledged it. Its id is derived from
the trace and the output's number, and it travels as the message's `traceparent`: answers to the message are children.
A decision has many inputs: its parent is the vote that closed its round, or else the tick; it links to the other votes.
Therefore round_traces.py stores the open rounds of agents that collect votes, outside of the agent's state.

A kill must not leave a span without its parent. The next incarnation exports again what was stored but perhaps not
exported: outputs after the snapshot while it replays them, outputs before it from a short list in the snapshot.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections import deque
from dataclasses import dataclass
from typing import Any

import structlog

from agents.agent import Agent
from agents.runtime.output_validation import Prepared
from agents.runtime.round_traces import RoundTraces, TracedRound, round_of
from bus.errors import MessageError
from bus.interface import StoredMessage
from bus.messages import Alert, Decision, Event, decode
from bus.messages import headers as h
from bus.messages.subjects import Subjects
from bus.observability.logging import TRACE_ID
from bus.observability.spans import Context, Span, Value, derived_id, read_context, read_sampled
from bus.observability.tracer import Tracer

MAX_PENDING = 64
"""Spans not yet exported that a snapshot lists at most; beyond, the oldest may be lost."""
FLUSH_S, UNANSWERED_FLUSH_S = 0.4, 0.05
"""How long an agent that ends waits for a collector, and for one that did not answer. Its successor waits."""
VOTE_KINDS = ("signal", "sentiment")
"""Kinds that are votes: an agent that listens to them collects rounds."""
SPAN_FIELDS = {
    "market": ("symbol", "sequence", "price"),
    "sentiment": ("symbol", "round", "sentiment", "confidence"),
    "signal": ("symbol", "round", "signal", "strength"),
    "decision": ("symbol", "round", "final_decision", "position_size", "consensus_level", "risk_score"),
    "alert": ("severity", "code"),
}
"""Fields of a message that its span shows."""

log = structlog.get_logger("signalmesh.tracing")


@dataclass(slots=True)
class _Input:
    """What is being handled. `context` None: it belongs to no sampled trace; a `header` is then to be passed on."""

    header: str = ""
    context: Context | None = None
    sequence: int = 0
    started_ns: int = 0
    message: Event | None = None
    """What it is, where rounds are collected: an output of another round is not counted as its child."""


class AgentTracing:
    """The spans of one incarnation. `recovery` is the span of the recovery that started it, if one did."""

    def __init__(self, tracer: Tracer, agent: Agent, subjects: Subjects, recovery: Context | None = None) -> None:
        self._tracer, self._name, self._subjects, self._recovery = tracer, agent.name, subjects, recovery
        self._rounds = RoundTraces() if any(kind in agent.listens for kind in VOTE_KINDS) else None
        self._input = _Input()
        self._unacknowledged: dict[int, Span] = {}
        self._pending: deque[tuple[int, Span]] = deque()
        self._newest_emitted = 0
        """The newest output with a span of this process."""
        self._late_through = 0
        """Inputs stored up to here had to wait for the recovery."""
        self._first_of_source = recovery is not None
        self._started_ns = self._restored_ns = time.time_ns()
        self._reemitted = 0
        self._inherited = self._unanswered = False

    @property
    def spans(self) -> dict[str, int]:
        """Numbers of spans that this process has exported and dropped."""
        return {"spans_exported": self._tracer.queue.exported, "spans_dropped": self._tracer.queue.dropped}

    # -- inputs

    def begin(self, stored: StoredMessage, message: Event) -> None:
        """This input is about to be handled, until `end`."""
        at, rounds = self._input, self._rounds
        at.sequence, at.started_ns, at.context = stored.sequence, 0, None
        if rounds is not None:
            at.message = message
            if (known := rounds.unsampled(message)) is not None:
                at.header = known
                return
        context, header = read_sampled(stored.headers.get(h.TRACEPARENT, ""))
        at.header, at.context = header, context
        if context is not None:
            at.started_ns = time.time_ns()
            TRACE_ID.set(context.trace_id)
        if rounds is not None:
            rounds.take(message, header, context, stored.sequence)

    def end(self) -> None:
        """The handler is done with this input."""
        if self._input.context is not None:
            TRACE_ID.set("")

    def failed(self, stored: StoredMessage, kind: str, why: str, error: BaseException) -> None:
        """The handler has failed on this input, which will be skipped."""
        at = self._input
        if at.context is None or at.sequence != stored.sequence:
            return
        exception: dict[str, Value] = {"exception.type": type(error).__name__, "exception.message": str(error)}
        exception["exception.stacktrace"] = "".join(traceback.format_exception(error))
        span = Span(
            name=f"process {self._subjects.ns}.{kind}",
            context=self._child(at.context, f"{self._name}:failed:{stored.sequence}"),
            parent=at.context.span_id,
            kind="consumer",
            start_ns=at.started_ns,
            end_ns=time.time_ns(),
            attributes=self._messaging("process", kind, stored.subject, len(stored.data)),
            events=[("exception", time.time_ns(), exception)],
            error=why,
        )
        span.attributes["mesh.stream_sequence"] = stored.sequence
        if msg_id := stored.headers.get(h.MSG_ID):
            span.attributes["messaging.message.id"] = msg_id
        self._tracer.emit(span)

    # -- outputs

    def sign(self, output: Prepared, number: int, cause: int | None) -> str:
        """The `traceparent` of a new output, about to be published; empty: it belongs to no trace."""
        if cause is None:
            context = self._tracer.new_trace(self._name, number)
            if context is None:
                return ""
            span = self._span(context, "", output.subject, output.data, output.message, number)
            if self._first_of_source:
                self._link_recovery(span)
            self._first_of_source = False
        elif self._rounds is None and self._input.context is None:
            return self._input.header
        else:
            opened, trace, header = self._belongs(output.message)
            if trace is None:
                return header
            context = self._child(trace, self._message_id(number))
            span = self._answer(context, trace, opened, output.subject, output.data, output.message, number)
            span.attributes["mesh.cause"] = cause
        self._unacknowledged[number] = span
        self._newest_emitted = number
        return context.header

    def acked(self, number: int, sequence: int) -> None:
        """An output of this incarnation is stored."""
        span = self._unacknowledged.pop(number, None)
        if span is not None:
            span.end_ns = time.time_ns()
            span.attributes["mesh.stream_sequence"] = sequence
            self._emit(number, span)

    def found(self, stored: StoredMessage) -> None:
        """An output that an earlier incarnation stored. That one may not have exported its span.

        To be called at the output's position in the replay.
        """
        number = int(stored.headers[h.OUTPUT])
        context = read_sampled(stored.headers.get(h.TRACEPARENT, ""))[0] if number > self._newest_emitted else None
        if context is None and self._rounds is None:
            return
        try:
            address = self._subjects.parse(stored.subject)
            message: Any = decode(address, stored.subject, stored.data)
        except MessageError:
            return
        opened, trace, _ = self._belongs(message)
        if context is None:
            return
        cause = stored.headers.get(h.CAUSE)
        if cause is None:
            span = self._span(context, "", stored.subject, stored.data, message, number)
        else:
            if trace is None or trace.trace_id != context.trace_id:
                return
            span = self._answer(context, trace, opened, stored.subject, stored.data, message, number)
            span.attributes["mesh.cause"] = int(cause)
        if stored.stored_ns:  # the time at which this process read it means nothing
            span.start_ns = span.end_ns = stored.stored_ns
        span.attributes["mesh.stream_sequence"] = stored.sequence
        self._newest_emitted = number
        self._reemit(number, span)

    def _reemit(self, number: int, span: Span) -> None:
        span.attributes["mesh.reemitted"] = True
        span.end_ns = max(span.start_ns, span.end_ns)
        self._link_recovery(span)
        self._reemitted += 1
        self._emit(number, span)

    def _emit(self, number: int, span: Span) -> None:
        self._drop_exported()
        if len(self._pending) >= MAX_PENDING:
            self._pending.popleft()
        self._pending.append((number, span))
        self._tracer.emit(span)

    def _belongs(self, message: Event | Alert) -> tuple[TracedRound | None, Context | None, str]:
        """What an output answers, its round or else its input: the open round and the context where these are sampled.

        Of what is not sampled there is at most a header to pass on, of another program. A decision ends its round.
        """
        at = self._input
        if self._rounds is not None:
            found = self._rounds.find(message, ends=type(message) is Decision)
            if isinstance(found, str):
                return None, None, found
            if found is not None:
                return found, found.context, ""
            of_round = getattr(message, "round", None) is not None
            if of_round and at.message is not None and round_of(message) != round_of(at.message):
                return None, None, ""  # of a round that we do not know: the input is another one's
        return None, at.context, at.header

    def _answer(
        self,
        context: Context,
        trace: Context,
        opened: TracedRound | None,
        subject: str,
        data: bytes,
        message: Event | Alert,
        number: int,
    ) -> Span:
        """The span of an answer: parent, links and events."""
        at = self._input
        parent = at.context if at.context is not None and at.context.trace_id == trace.trace_id else trace
        span = self._span(context, parent.span_id, subject, data, message, number)
        span.start_ns = at.started_ns or span.start_ns
        if opened is not None and isinstance(message, Decision):
            for voter, span_id in opened.votes.items():
                # votes of unknown writers do not count
                if span_id != parent.span_id and voter in message.agents_consulted:
                    span.links.append((parent._replace(span_id=span_id), {"mesh.voter": voter}))
        for voter in getattr(message, "absent", ()):
            span.events.append(("absent", span.start_ns, {"mesh.voter": voter}))
        if min(at.sequence, at.sequence if opened is None else opened.sequence) <= self._late_through:
            self._link_recovery(span)
        return span

    def _span(
        self, context: Context, parent: str, subject: str, data: bytes, message: Event | Alert, number: int
    ) -> Span:
        kind = subject.split(".", 2)[1]
        at_ns = time.time_ns()
        attributes = self._messaging("send", kind, subject, len(data))
        attributes["messaging.message.id"] = self._message_id(number)
        attributes["mesh.output"] = number
        for name in SPAN_FIELDS.get(kind, ()):
            if (value := getattr(message, name, None)) is not None:
                attributes["mesh.round" if name == "sequence" else f"mesh.{name}"] = value
        return Span(
            name=f"send {self._subjects.ns}.{kind}",
            context=context,
            parent=parent,
            kind="producer",
            start_ns=at_ns,
            end_ns=at_ns,
            attributes=attributes,
        )

    def _messaging(self, operation: str, kind: str, subject: str, size: int) -> dict[str, Value]:
        """Attributes by OpenTelemetry's semantic conventions for messaging."""
        return {
            "messaging.system": "nats",
            "messaging.operation.name": operation,
            "messaging.operation.type": operation,
            "messaging.destination.name": subject,
            "messaging.destination.template": f"{self._subjects.ns}.{kind}.{{topic}}.{{agent}}",
            "messaging.message.body.size": size,
            "messaging.client.id": self._name,
        }

    def _message_id(self, number: int) -> str:
        return f"{self._name}:{number}"

    def _child(self, trace: Context, what: str) -> Context:
        return Context(trace.trace_id, derived_id(trace.trace_id, what))

    # -- recovery

    def _link_recovery(self, span: Span) -> None:
        if self._recovery is not None and not any(linked == self._recovery for linked, _ in span.links):
            span.links.append((self._recovery, {"mesh.recovery": self._name}))

    def restored(self, last: int) -> None:
        """The snapshot is taken over and what was stored is read back; the stream ended at `last` just before."""
        if self._recovery is not None:
            self._restored_ns = time.time_ns()
            self._late_through = last
            self._phase("restore", self._started_ns, self._restored_ns, {})

    def ready(self, replayed: int) -> None:
        """The replay is over."""
        if self._recovery is not None:
            attributes: dict[str, Value] = {"mesh.replayed": replayed, "mesh.reemitted_spans": self._reemitted}
            self._phase("replay", self._restored_ns, time.time_ns(), attributes)
            self._tracer.queue.flush_soon()  # so that the recovery is visible if this process dies again at once

    def _phase(self, name: str, start_ns: int, end_ns: int, attributes: dict[str, Value]) -> None:
        assert self._recovery is not None
        context = self._child(self._recovery, f"{self._name}:{name}")
        attributes = {"mesh.agent": self._name, **attributes}
        span = Span(name=name, context=context, parent=self._recovery.span_id, attributes=attributes)
        span.start_ns, span.end_ns = start_ns, end_ns
        self._tracer.emit(span)

    # -- the end

    async def flush(self) -> None:
        """Have what there is exported, within a bounded time: what is exported need not be again."""
        self._unanswered = not await asyncio.to_thread(self._tracer.queue.flush, FLUSH_S)

    async def close(self) -> None:
        """Export the rest, within a bounded time; a short one where a collector has just not answered."""
        await asyncio.to_thread(self._tracer.queue.close, UNANSWERED_FLUSH_S if self._unanswered else FLUSH_S)

    # -- what a snapshot carries

    @property
    def has_pending(self) -> bool:
        """Whether there are spans that a snapshot would list."""
        self._drop_exported()
        return bool(self._pending)

    def _drop_exported(self) -> None:
        while self._pending and self._pending[0][1].resolved:
            self._pending.popleft()

    def save(self) -> dict[str, Any]:
        """What the next incarnation needs: spans that may not be exported yet, and the sampled rounds that are open."""
        self._drop_exported()
        pending = [*self._pending, *self._unacknowledged.items()][-MAX_PENDING:]
        saved: dict[str, Any] = {}
        if pending:
            saved["pending"] = [_abbreviate(number, span) for number, span in pending]
        if self._rounds is not None and (rounds := self._rounds.save()):
            saved["rounds"] = rounds
        return saved

    def load(self, saved: dict[str, Any]) -> None:
        """Go on after a snapshot; the first one is that of the incarnation before."""
        inherited, self._inherited = not self._inherited, True
        try:
            if self._rounds is not None:
                self._rounds.load(saved.get("rounds", []))
            if inherited:
                for entry in saved.get("pending", ()):
                    self._reemit(*self._expand(*entry))
        except (ValueError, TypeError, AttributeError, IndexError) as error:  # no reason for an agent not to start
            log.warning("tracing_snapshot_ignored", problem=str(error))

    def _expand(
        self,
        number: int,
        header: str,
        parent: str,
        subject: str,
        start_us: int,
        took_us: int,
        size: int,
        links: list[tuple[str, dict[str, Value]]],
        absent: list[str],
    ) -> tuple[int, Span]:
        context = read_context(header)
        if context is None:
            raise ValueError(f"no traceparent: {header!r}")
        span = self._span(context, parent, subject, b"", Alert.__new__(Alert), number)
        span.attributes["messaging.message.body.size"] = size
        span.start_ns = start_us * 1000
        span.end_ns = span.start_ns + took_us * 1000
        span.links = [(linked, values) for header, values in links if (linked := read_context(header)) is not None]
        span.events = [("absent", span.start_ns, {"mesh.voter": voter}) for voter in absent]
        return number, span


def _abbreviate(number: int, span: Span) -> list[Any]:
    """A span as short as a snapshot wants it; the rest follows from these."""
    attributes = span.attributes
    return [
        number,
        span.context.header,
        span.parent,
        attributes["messaging.destination.name"],
        span.start_ns // 1000,
        (span.end_ns - span.start_ns) // 1000,
        attributes["messaging.message.body.size"],
        [[linked.header, attributes] for linked, attributes in span.links],
        [event[2]["mesh.voter"] for event in span.events],
    ]
