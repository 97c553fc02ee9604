"""A trace for each recovery: what the watchdog did about a death (detect, claim, spawn); the new process adds its part.

The root is the watchdog's part, from the first sign of the death to the start of the new process, and is told of then.
Its context goes to the new process with the order that starts it (agents/runtime/tracing.py: restore, replay), and the
trace as a whole lasts as long as the recovery. It is stored with the declaration of the death as well: should the
watchdog die before its spans are exported, its successor makes the root again from what the stream holds, so no parent
is missing.
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
"""So many messages of the stream before its own term a watchdog reads for what its predecessor did last."""
UNEXPORTED_S = 10.0
"""Spans of an older recovery were exported, or given up, before its watchdog ended."""


def watchdog_tracer(swarm: str, term: int) -> Tracer | None:
    """The tracer of a leading watchdog, if the environment asks for traces."""
    return open_tracer(os.environ, WATCHDOG, lambda: {**describe_process(swarm), "mesh.epoch": term})


@dataclass(slots=True)
class _Recovery:
    """One that is under way; `whole` is its root, `steps` are its children so far."""

    whole: Span
    steps: list[Span] = field(default_factory=list)


class RecoveryTraces:
    """The spans of the recoveries that one watchdog leads; does nothing without a tracer."""

    def __init__(self, tracer: Tracer | None = None) -> None:
        self._tracer = tracer
        self._under_way: dict[str, _Recovery] = {}
        self._exits: dict[str, tuple[int, int]] = {}
        """Of each agent the newest incarnation whose end was reported, and when that was (ns since 1970)."""

    def close(self) -> None:
        """Export what is queued and end; blocks."""
        if self._tracer is not None:
            self._tracer.queue.close()

    def exited(self, agent: str, epoch: int, at: datetime) -> None:
        """A host (`at`, by its clock) has reported the end of this incarnation."""
        if self._tracer is not None:
            self._exits[agent] = epoch, int(at.timestamp() * 1e9)

    def died(self, dead: Dead, silent_s: float) -> None:
        """An agent was declared dead, `silent_s` after its last sign of life."""
        context = None if self._tracer is None else self._tracer.new_event(f"recovery:{dead.agent}:{dead.epoch}")
        if context is None:
            return
        at_ns = time.time_ns()
        started_ns = at_ns - max(0, int(silent_s * 1e9))
        epoch, exited_ns = self._exits.pop(dead.agent, (0, 0))
        if epoch == dead.epoch:  # another machine's clock may be wrong: it ended after its last heartbeat, and by now
            started_ns = min(max(started_ns, exited_ns), at_ns)
        attributes = _attributes(dead.agent, dead.epoch, dead.sandbox, dead.reason)
        whole = Span(name=f"respawn {dead.agent}", context=context, start_ns=started_ns, attributes=attributes)
        recovery = self._under_way[dead.agent] = _Recovery(whole)
        self._step(recovery, "detect", started_ns, {"mesh.reason": dead.reason})

    def _step(self, recovery: _Recovery, name: str, start_ns: int, details: dict[str, Value], error: str = "") -> None:
        whole = recovery.whole.context
        context = Context(whole.trace_id, derived_id(whole.trace_id, f"{name}:{len(recovery.steps)}"))
        attributes = {"mesh.agent": recovery.whole.attributes["mesh.agent"], **details}
        recovery.steps.append(
            Span(
                name=name,
                context=context,
                parent=whole.span_id,
                start_ns=start_ns,
                end_ns=time.time_ns(),
                attributes=attributes,
                error=error,
            )
        )

    @contextlib.contextmanager
    def step(self, agent: str, name: str) -> Iterator[None]:
        """What is done within it is the step `name` of the agent's recovery, if one is under way."""
        recovery = self._under_way.get(agent)
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
        """What the new process is to be told; empty if no recovery is under way."""
        recovery = self._under_way.get(agent)
        return "" if recovery is None else recovery.whole.context.header

    def over(self, agent: str, error: str = "", details: Mapping[str, Value] | None = None) -> None:
        """The agent was started, or (`error`) will not be."""
        recovery = self._under_way.pop(agent, None)
        if recovery is None or self._tracer is None:
            return
        recovery.whole.end_ns, recovery.whole.error = time.time_ns(), error
        recovery.whole.attributes.update(details or {})
        for span in (recovery.whole, *recovery.steps):
            self._tracer.emit(span)
        self._tracer.queue.flush_soon()  # the new process will tell of its part

    async def take_up(self, bus: Bus, term: int) -> None:
        """Make the roots again of the recoveries that the watchdog before `term` led last, if it may have died since.

        Raises:
            BusError: the bus does not answer.
        """
        if self._tracer is None or not self._tracer.records_rare_events:
            return
        events: list[tuple[StoredMessage, Lifecycle]] = []
        for stored in await bus.read_back((bus.subjects.lifecycle("*", "*"),), max(1, term - LOOKBACK)):
            with contextlib.suppress(MessageError):  # a stranger's garbage tells nothing
                event = stored.decode(bus.subjects)
                if isinstance(event, Lifecycle):
                    events.append((stored, event))
        since = now() - timedelta(seconds=UNEXPORTED_S)
        for stored, event in events:
            context = read_context(stored.headers.get(TRACEPARENT))
            declared = event.event == "declared_dead" and event.source == WATCHDOG and stored.sequence < term
            if declared and event.timestamp > since and context is not None:
                self._tracer.emit(_again(context, event, [event for _, event in events]))


def _again(context: Context, dead: Lifecycle, events: list[Lifecycle]) -> Span:
    """The root of the recovery from `dead`, as far as the stream tells of it."""
    epoch = dead.epoch or 0
    of_agent = [event for event in events if event.agent == dead.agent and event.epoch is not None]
    ends = [event for event in of_agent if event.event == "exited" and event.epoch == epoch]
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
        error="" if started is not None else "the watchdog that declared the death ended before it was answered",
    )


def _attributes(agent: str, epoch: int, sandbox: str, reason: str) -> dict[str, Value]:
    return {"mesh.agent": agent, "mesh.epoch_before": epoch, "mesh.sandbox": sandbox, "mesh.reason": reason}
