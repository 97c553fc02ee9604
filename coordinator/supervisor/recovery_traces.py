"""One trace for each recovery: the steps of the watchdog (detect, claim, spawn) and of the new process.

The root span is the watchdog's part, from the first sign of the death to the start of the new process, and is exported
then. The start order carries its context to the new process (agents/runtime/tracing.py), which adds restore and replay.
The `declared_dead` event stores the context too: if the watchdog dies before it exports the spans, the next leader
creates the root again from the stream, so that no parent span is missing.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from bus.errors import MessageError
from bus.interface import Bus, StoredMessage
from bus.messages import Lifecycle, now
from bus.messages.headers import TRACEPARENT
from bus.messages.subjects import WATCHDOG
from bus.observability.otel_env import describe_process
from bus.observability.spans import Context, Span, Value, derived_id, read_context
from bus.observability.tracer import Tracer, open_tracer
from coordinator.supervisor.model import Dead

LOOKBACK = 20_000
"""Messages before its own term that a new leader reads to find the last recoveries of its predecessor."""
UNEXPORTED_S = 10.0
"""Spans of an older recovery were exported, or dropped, before its watchdog ended."""


def watchdog_tracer(swarm: str, term: int) -> Tracer | None:
    """The tracer of a leading watchdog, if the environment enables traces."""
    return open_tracer(os.environ, WATCHDOG, lambda: {**describe_process(swarm), "mesh.epoch": term})


@dataclass(slots=True)
class _Recovery:
    """A running recovery: the root span, and its child spans so far."""

    root: Span
    steps: list[Span] = field(default_factory=list)


class RecoveryTraces:
    """The spans of the recoveries that one watchdog leads; does nothing without a tracer."""

    def __init__(self, tracer: Tracer | None = None) -> None:
        self._tracer = tracer
        self._running: dict[str, _Recovery] = {}
        self._exits: dict[str, tuple[int, int]] = {}
        """For each agent the newest incarnation with an exit report, and the time of the report (ns since 1970)."""

    def close(self) -> None:
        """Export what is queued and end; blocks."""
        if self._tracer is not None:
            self._tracer.queue.close()

    def exited(self, agent: str, epoch: int, at: datetime) -> None:
        """A host has reported the end of this incarnation; `at` is of the host's clock."""
        if self._tracer is not None:
            self._exits[agent] = epoch, int(at.timestamp() * 1e9)

    def died(self, dead: Dead, silent_s: float) -> None:
        """An agent was declared dead, `silent_s` after its last heartbeat."""
        context = None if self._tracer is None else self._tracer.new_event(f"recovery:{dead.agent}:{dead.epoch}")
        if context is None:
            return
        at_ns = time.time_ns()
        started_ns = at_ns - max(0, int(silent_s * 1e9))
        epoch, exited_ns = self._exits.pop(dead.agent, (0, 0))
        if epoch == dead.epoch:  # the host's clock may be wrong: clip to after the last heartbeat and before now
            started_ns = min(max(started_ns, exited_ns), at_ns)
        attributes = _attributes(dead.agent, dead.epoch, dead.sandbox, dead.reason)
        root = Span(name=f"respawn {dead.agent}", context=context, start_ns=started_ns, attributes=attributes)
        recovery = self._running[dead.agent] = _Recovery(root)
        self._step(recovery, "detect", started_ns, {"mesh.reason": dead.reason})

    def _step(self, recovery: _Recovery, name: str, start_ns: int, details: dict[str, Value], error: str = "") -> None:
        parent = recovery.root.context
        context = Context(parent.trace_id, derived_id(parent.trace_id, f"{name}:{len(recovery.steps)}"))
        attributes = {"mesh.agent": recovery.root.attributes["mesh.agent"], **details}
        recovery.steps.append(
            Span(
                name=name,
                context=context,
                parent=parent.span_id,
                start_ns=start_ns,
                end_ns=time.time_ns(),
                attributes=attributes,
                error=error,
            )
        )

    @contextlib.contextmanager
    def step(self, agent: str, name: str) -> Iterator[None]:
        """Record the block as the step `name` of the agent's recovery, if one is running."""
        recovery = self._running.get(agent)
        started_ns = time.time_ns()
        try:
            yield
        except Exception as error:
            if recovery is not None:
                self._step(recovery, name, started_ns, {}, f"{type(error).__name__}: {error}")
            raise
        if recovery is not None:
            self._step(recovery, name, started_ns, {})

    def traceparent(self, agent: str) -> str:
        """The traceparent for the new process; empty if no recovery is running."""
        recovery = self._running.get(agent)
        return "" if recovery is None else recovery.root.context.header

    def finish(self, agent: str, error: str = "", details: Mapping[str, Value] | None = None) -> None:
        """Export the agent's recovery: it was started, or it will not be (`error`)."""
        recovery = self._running.pop(agent, None)
        if recovery is None or self._tracer is None:
            return
        recovery.root.end_ns, recovery.root.error = time.time_ns(), error
        recovery.root.attributes.update(details or {})
        for span in (recovery.root, *recovery.steps):
            self._tracer.emit(span)
        self._tracer.queue.flush_soon()  # the new process exports its part soon

    async def resume(self, bus: Bus, term: int) -> None:
        """Export again the roots of the last recoveries before `term`: their watchdog may have died before it did.

        Raises:
            BusError: the bus does not answer.
        """
        if self._tracer is None or not self._tracer.records_rare_events:
            return
        events: list[tuple[StoredMessage, Lifecycle]] = []
        for stored in await bus.read_back((bus.subjects.lifecycle("*", "*"),), max(1, term - LOOKBACK)):
            with contextlib.suppress(MessageError):  # a malformed message of an unknown writer is ignored
                event = stored.decode(bus.subjects)
                if isinstance(event, Lifecycle):
                    events.append((stored, event))
        since = now() - timedelta(seconds=UNEXPORTED_S)
        for stored, event in events:
            context = read_context(stored.headers.get(TRACEPARENT))
            declared = event.event == "declared_dead" and event.source == WATCHDOG and stored.sequence < term
            if declared and event.timestamp > since and context is not None:
                self._tracer.emit(_rebuilt_root(context, event, [event for _, event in events]))


def _rebuilt_root(context: Context, dead: Lifecycle, events: list[Lifecycle]) -> Span:
    """The root span of the recovery from `dead`, from the events in the stream."""
    epoch = dead.epoch or 0
    of_agent = [event for event in events if event.agent == dead.agent and event.epoch is not None]
    ends = [event for event in of_agent if (event.event, event.epoch, event.source) == ("exited", epoch, dead.sandbox)]
    started_at = min((dead.timestamp, *(event.timestamp for event in ends)))
    started = next((event for event in of_agent if event.event == "spawned" and (event.epoch or 0) > epoch), None)
    attributes = _attributes(dead.agent, epoch, dead.sandbox or "", dead.reason or "")
    attributes["mesh.reemitted"] = True
    if started is not None:
        attributes |= {"mesh.epoch": started.epoch or 0, "process.pid": started.pid or 0}
    return Span(
        name=f"respawn {dead.agent}",
        context=context,
        start_ns=int(started_at.timestamp() * 1e9),
        end_ns=int((started or dead).timestamp.timestamp() * 1e9),
        attributes=attributes,
        error="" if started is not None else "the watchdog ended before it started a new process",
    )


def _attributes(agent: str, epoch: int, sandbox: str, reason: str) -> dict[str, Value]:
    return {"mesh.agent": agent, "mesh.epoch_before": epoch, "mesh.sandbox": sandbox, "mesh.reason": reason}
