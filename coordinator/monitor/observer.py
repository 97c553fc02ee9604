"""What an outside subscriber receives while faults happen, with the time of arrival on one monotonic clock.

It is a plain core subscriber, so it checks what such a one is promised: every decision once and in order, except for
what passed while its own connection was broken, where `Nats-Last-Sequence` shows the gap; nothing of a superseded
incarnation.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from bus.errors import MessageError
from bus.heartbeats import HeartbeatTable, ReceivedHeartbeat
from bus.interface import Closable, ReceivedMessage
from bus.messages import Alert, Child, Decision, Epoch, Heartbeat, Lifecycle, decode
from bus.messages import headers as h
from bus.nats.bus import NatsBus

__all__ = ["Gap", "Observer"]

T = TypeVar("T")
KEPT_EVENTS = 5000


@dataclass(frozen=True, slots=True)
class Gap:
    """Between two received messages of a subject, those after `after` up to `through` were not received."""

    subject: str
    after: int
    through: int
    broken: bool
    """Whether this observer's own connection broke in between."""


@dataclass(slots=True)
class _Followed:
    sequence: int
    generation: int


class Observer(HeartbeatTable):
    """Listens on `bus` from `start` on; `on_alert` is called with each alert. Times are time.monotonic()."""

    def __init__(self, bus: NatsBus, on_alert: Callable[[Alert], None] = lambda _: None) -> None:
        super().__init__()
        self._bus, self._on_alert = bus, on_alert
        self.claims: dict[str, tuple[int, float]] = {}
        self.events: deque[tuple[float, Lifecycle]] = deque(maxlen=KEPT_EVENTS)
        self.alerts: deque[tuple[float, Alert]] = deque(maxlen=KEPT_EVENTS)
        self.deaths: dict[str, deque[float]] = {}
        self.down_at: float | None = None
        self.up_at: float | None = None
        self.decisions = 0
        self.decided_at: float | None = None
        self.first_decision: dict[str, int] = {}
        self.last_decision: dict[str, int] = {}
        self.gaps: list[Gap] = []
        self.duplicated = 0
        self.problems: list[str] = []
        self._ids: set[str] = set()
        self._stored_alerts: set[int] = set()
        self._followed: dict[str, _Followed] = {}
        self._changed = asyncio.Event()
        self._listening: Closable | None = None
        self._generation = 0
        self._stopped = False
        bus.watch_connection(self._on_down, self._on_up)

    async def start(self) -> None:
        await self._listen()

    async def stop(self) -> None:
        """Receive nothing more; what was received stays."""
        if self._listening is not None:
            await self._listening.close()
            self._listening = None
        self._stopped = True

    async def _listen(self) -> None:
        """A subscription of its own for each connection: what waits in the queue of an older one is of that one."""
        if self._listening is not None:
            await self._listening.close()
        self._generation += 1
        on_message = functools.partial(self._on_message, self._generation)
        self._listening = await self._bus.listen(f"{self._bus.subjects.ns}.>", on_message)
        await self._bus.flush()  # what happens from now on is received

    def _on_down(self) -> None:
        self.down_at = time.monotonic()
        self._changed.set()

    async def _on_up(self) -> None:
        if not self._stopped:
            await self._listen()
        self.up_at = time.monotonic()
        self._changed.set()

    async def _on_message(self, generation: int, received: ReceivedMessage) -> None:
        at = time.monotonic()
        kind = received.subject.split(".", 2)[1]
        if kind == "control":
            return
        sequence = h.number(received.headers, h.SEQUENCE) or 0
        try:
            address = self._bus.subjects.parse(received.subject)
            if h.EPOCH in received.headers and sequence:
                self._check_fence(received, address.agent, sequence)
            if kind in ("heartbeat", "lifecycle", "alert", "epoch", "decision"):
                self._note(
                    decode(address, received.subject, received.data), received, address.agent, sequence, at, generation
                )
                self._changed.set()
        except MessageError:
            return

    def _note(
        self, message: object, received: ReceivedMessage, writer: str, sequence: int, at: float, generation: int
    ) -> None:
        if isinstance(message, Heartbeat):
            self.take(ReceivedHeartbeat(at, message))
        elif isinstance(message, Lifecycle):
            self.events.append((at, message))
            if message.event == "declared_dead":
                self.deaths.setdefault(message.agent, deque(maxlen=100)).append(at)
        elif isinstance(message, Alert):
            self._note_alert(message, sequence, at)
        elif isinstance(message, Epoch):
            self.claims[writer] = (sequence, at)
        elif isinstance(message, Decision):
            self._on_decision(message, received, sequence, at, generation)

    def _note_alert(self, alert: Alert, sequence: int, at: float) -> None:
        if sequence in self._stored_alerts:
            return
        if sequence:  # 0: it was not stored, only published
            self._stored_alerts.add(sequence)
        self.alerts.append((at, alert))
        self._on_alert(alert)

    async def read_alerts(self) -> None:
        """Add the stored alerts that were not received: from before it listened, or while its connection was broken.

        Raises:
            BusError: the bus does not answer, or has no such stream.
        """
        subjects = self._bus.subjects
        for stored in await self._bus.read_back((subjects.alert("*", "*"),), 1):
            with contextlib.suppress(MessageError):
                alert = stored.decode(subjects)
                if isinstance(alert, Alert):
                    self._note_alert(alert, stored.sequence, time.monotonic())
        self._changed.set()

    def _check_fence(self, received: ReceivedMessage, writer: str, sequence: int) -> None:
        claimed, _ = self.claims.get(writer, (0, 0.0))
        epoch = h.number(received.headers, h.EPOCH) or 0
        if sequence > claimed > epoch:
            self.problems.append(
                f"{received.subject}, message {sequence}: of {writer}'s epoch {epoch}, though {claimed} was "
                f"claimed before"
            )

    def _on_decision(
        self, decision: Decision, received: ReceivedMessage, sequence: int, at: float, generation: int
    ) -> None:
        self.decisions += 1
        self.decided_at = at
        subject = received.subject
        known = self._followed.get(subject)
        before = h.number(received.headers, h.LAST_SEQUENCE) or 0
        if known is None:
            self.first_decision[subject] = sequence
        elif sequence <= known.sequence:
            self.problems.append(f"{subject}, message {sequence}: received after message {known.sequence}")
        elif before != known.sequence:
            gap = Gap(subject, known.sequence, before, generation != known.generation)
            self.gaps.append(gap)
            if not gap.broken:
                text = f"{subject}: messages after {known.sequence} up to {before} were not received, in one connection"
                self.problems.append(text)
        if decision.decision_id is not None:
            if decision.decision_id in self._ids:
                self.duplicated += 1
                self.problems.append(f"{subject}: {decision.decision_id} was received twice")
            self._ids.add(decision.decision_id)
        self._followed[subject] = _Followed(sequence, generation)
        self.last_decision[subject] = sequence

    # -- looking

    def inventory(self, agent: str) -> Child | None:
        """The running process of `agent`, as the newest heartbeat of its host lists it."""
        heartbeat = self.agents.get(agent)
        host = self.hosts.get(heartbeat.heartbeat.sandbox) if heartbeat is not None else None
        for child in (host.heartbeat.inventory or ()) if host is not None else ():
            if (
                heartbeat is not None
                and child.agent == agent
                and child.pid == heartbeat.heartbeat.pid
                and child.exit_code is None
            ):
                return child
        return None

    def lives(self, agent: str, since: float = 0.0) -> bool:
        """Whether the newest incarnation of `agent` was seen working after `since`."""
        heartbeat = self.agents.get(agent)
        if heartbeat is None or heartbeat.at <= since or heartbeat.heartbeat.status not in ("live", "finished"):
            return False
        return heartbeat.heartbeat.epoch >= self.claims.get(agent, (0, 0.0))[0]

    def event_at(
        self, name: str, agent: str, since: float, *, epoch: int | None = None, above: int = 0
    ) -> float | None:
        """When the first lifecycle event of this name about `agent` was received after `since`."""
        for at, event in self.events:
            of = event.epoch or 0
            if at >= since and (event.event, event.agent) == (name, agent) and epoch in (None, of) and of >= above:
                return at
        return None

    def alert_at(self, code: str, since: float) -> float | None:
        """When the first alert of this code was received after `since`."""
        return next((at for at, alert in self.alerts if at >= since and alert.code == code), None)

    async def until(self, found: Callable[[], T | None], timeout_s: float) -> T:
        """Wait until `found` returns something that is true, called after each received message.

        Raises:
            TimeoutError: it did not.
        """
        async with asyncio.timeout(timeout_s):
            while not (result := found()):
                self._changed.clear()
                await self._changed.wait()
            return result
