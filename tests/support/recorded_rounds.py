"""A stream in memory as a coordinator would have left it, and a source of `explain` over it."""

from __future__ import annotations

from collections.abc import Iterable

from bus.durable.snapshots import Snapshot
from bus.interface import StoredMessage
from bus.messages import (
    KIND_OF,
    Decision,
    Epoch,
    Event,
    Lifecycle,
    MarketData,
    Sentiment,
    Signal,
    Timer,
    VotingConfig,
    encode,
)
from bus.messages import headers as h
from bus.messages.subjects import Subjects
from bus.testing.memory_bus import matches
from coordinator.decisions.agent import CoordinatorAgent
from coordinator.explain.sources import Filter
from tests.support.coordinator_rounds import handle

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
MILLISECOND = 1_000_000


class RecordedRounds:
    """Stores messages, and gives them to a real coordinator, whose decisions are stored by `flush`.

    It is a MessageSource. Each message is stored 1 ms after the one before it.
    """

    elsewhere = "look elsewhere"
    name = "memory"

    def __init__(self) -> None:
        self.subjects = Subjects("swarm")
        self.coordinator = CoordinatorAgent("coordinator")
        self.messages: list[StoredMessage] = []
        self.removed = 0
        self.reads = 0
        self._waiting: list[tuple[Decision, int]] = []
        self._sequence = 0

    # -- writing

    def add(self, event: Event | Lifecycle | Epoch, *, skip: bool = False, cause: int | None = None) -> StoredMessage:
        """Store an event and let the coordinator handle it, unless it is to `skip` it."""
        stored = self._store(event, {} if cause is None else {h.CAUSE: str(cause)})
        if not skip and not isinstance(event, (Lifecycle, Epoch)):
            message = stored.decode(self.subjects)
            assert isinstance(message, (MarketData, Sentiment, Signal, Timer, VotingConfig))
            self._waiting += [(decision, stored.sequence) for decision in handle(self.coordinator, message)]
        return stored

    def play(self, events: Iterable[Event]) -> None:
        """Store events, each followed by the decisions that it causes."""
        for event in events:
            self.add(event)
            self.flush()

    def flush(self) -> list[StoredMessage]:
        """Store the decisions that the coordinator has made."""
        waiting, self._waiting = self._waiting, []
        return [
            self._store(decision, {h.CAUSE: str(cause), h.OUTPUT: "1", h.EPOCH: "2", h.TRACEPARENT: TRACEPARENT})
            for decision, cause in waiting
        ]

    def _store(self, message: Event | Lifecycle | Epoch, headers: dict[str, str]) -> StoredMessage:
        self._sequence += 1
        stored = StoredMessage(
            self._subject(message), self._sequence, encode(message), headers, stored_ns=self._sequence * MILLISECOND
        )
        self.messages.append(stored)
        return stored

    def _subject(self, message: Event | Lifecycle | Epoch) -> str:
        subjects = self.subjects
        match message:
            case VotingConfig():
                return subjects.config(message.source)
            case Timer():
                return subjects.event("timer", message.name.rsplit(":", 2)[0], message.source)
            case Lifecycle():
                return subjects.lifecycle(message.agent, message.source)
            case Epoch():
                return subjects.epoch(message.agent)
            case MarketData() | Sentiment() | Signal() | Decision():
                return subjects.event(KIND_OF[type(message)], message.symbol or "", message.source)
        raise AssertionError(message)

    def replace(self, sequence: int, message: Event) -> None:
        """Change a stored message, as nobody may."""
        at = next(at for at, stored in enumerate(self.messages) if stored.sequence == sequence)
        old = self.messages[at]
        self.messages[at] = StoredMessage(old.subject, sequence, encode(message), old.headers, stored_ns=old.stored_ns)

    def remove(self, until: int) -> None:
        """Remove the messages up to `until`, as retention does."""
        self.removed = until
        self.messages = [stored for stored in self.messages if stored.sequence > until or ".config." in stored.subject]

    @property
    def decisions(self) -> list[StoredMessage]:
        """The stored decisions."""
        return [stored for stored in self.messages if stored.subject.startswith("swarm.decision.")]

    # -- the source

    def _matching(self, wanted: Iterable[Filter]) -> list[StoredMessage]:
        patterns = [one.subject(self.subjects) for one in wanted]
        return [stored for stored in self.messages if any(matches(one, stored.subject) for one in patterns)]

    async def last_sequence(self) -> int:
        return self._sequence

    async def newest(self, wanted: Filter) -> StoredMessage | None:
        return next(reversed(self._matching((wanted,))), None)

    async def first_from(self, wanted: Filter, sequence: int) -> StoredMessage | None:
        return next((stored for stored in self._matching((wanted,)) if stored.sequence >= sequence), None)

    async def read(
        self, wanted: Iterable[Filter], first: int, last: int, limit: int | None = None
    ) -> list[StoredMessage]:
        found = [stored for stored in self._matching(wanted) if first <= stored.sequence <= last][:limit]
        self.reads += len(found)
        return found

    async def read_before(self, wanted: Iterable[Filter], before: int, limit: int) -> list[StoredMessage]:
        return [stored for stored in self._matching(wanted) if stored.sequence < before][-limit:]

    async def missing(self, first: int, last: int) -> str | None:
        return f"messages up to {self.removed} are gone" if first <= min(last, self.removed) else None

    async def writers(self, kind: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for stored in self._matching((Filter(kind),)):
            found[stored.subject] = found.get(stored.subject, 0) + 1
        return found

    async def snapshot(self, agent: str) -> Snapshot | None:
        import orjson

        return Snapshot(state=orjson.loads(orjson.dumps(self.coordinator.state))) if agent == "coordinator" else None
