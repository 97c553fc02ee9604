"""What a bus can do: the interface that the NATS bus and the in-memory bus share, held by one contract suite.

It owns no policy: order, retries and recovery are the outbox's and the runtime's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from bus.errors import BusError
from bus.messages import Message, decode
from bus.messages.subjects import Subjects

Headers = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Ack:
    """The stream's answer to a publish: where it stands; `duplicate` if it stood there already."""

    sequence: int
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message as the stream holds it. `pending`: how many more of the same filter follow at that moment.

    `stored_ns`: the server's clock when it was stored, nanoseconds since 1970; 0 where the bus does not tell.
    """

    subject: str
    sequence: int
    data: bytes
    headers: Headers = field(default_factory=dict)
    pending: int = 0
    stored_ns: int = 0

    def decode(self, subjects: Subjects) -> Message:
        """The payload by its kind.

        Raises:
            MessageError: the subject is none of this swarm's, or the payload is malformed.
        """
        return decode(subjects.parse(self.subject), self.subject, self.data)


@dataclass(frozen=True, slots=True)
class ReceivedMessage:
    """A message as a core subscriber receives it; of a request, `reply` is the subject of the answer."""

    subject: str
    data: bytes
    headers: Headers = field(default_factory=dict)
    reply: str = ""

    def decode(self, subjects: Subjects) -> Message:
        """The payload by its kind.

        Raises:
            MessageError: the subject is none of this swarm's, or the payload is malformed.
        """
        return decode(subjects.parse(self.subject), self.subject, self.data)


@dataclass(frozen=True, slots=True)
class KvEntry:
    """A value of a key-value bucket and the revision to compare-and-set it by."""

    value: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """First and last sequence of the stream; an empty one has last = first - 1."""

    first: int
    last: int


Done = Callable[[Ack | BusError], None]
OnStored = Callable[[StoredMessage], Awaitable[None] | None]
"""Handles a message of the stream. What it returns is awaited before the next one; None: it is done."""
OnMessage = Callable[[ReceivedMessage], Awaitable[None]]
OnRequest = Callable[[ReceivedMessage], Awaitable[bytes]]


class Closable(Protocol):
    """A subscription or reader."""

    async def close(self) -> None: ...


class Bus(Protocol):
    """A connection to the bus of one swarm.

    Methods raise Disconnected when the connection is down, BusTimeout when no answer came (a write may have landed),
    Refused when the server said no, WrongSequence when a compare-and-set lost.
    """

    subjects: Subjects

    @property
    def live(self) -> bool:
        """Whether the connection is up and everything that `on_up` does after a reconnect is done."""

    @property
    def url(self) -> str:
        """Where it is connected to, without credentials."""

    def watch_connection(self, down: Callable[[], None], up: Callable[[], Awaitable[None]]) -> None:
        """Call `down` when the connection breaks, `up` when it is back, before `live` is true again."""

    async def until_live(self) -> None:
        """Wait until the connection is live."""

    async def publish(self, subject: str, data: bytes, headers: Headers | None = None, timeout_s: float = 5.0) -> Ack:
        """Store one message and wait for the stream's answer."""

    async def pipelines(self) -> bool:
        """Whether a message with an expectation may be sent before the one before it is answered.

        A stream that is kept by several servers refuses it: one that follows is stored then, and order is lost.
        """

    def send(self, subject: str, data: bytes, headers: Headers, done: Done) -> None:
        """Publish without waiting; `done` is called with the answer, or with an error if the connection breaks."""

    async def last(self, subject: str) -> StoredMessage | None:
        """The newest message of a read-side subject."""

    async def read_back(self, filters: tuple[str, ...], first: int) -> list[StoredMessage]:
        """Everything of `filters` from sequence `first` to the present end."""

    async def follow(self, filters: tuple[str, ...], first: int, on_stored: OnStored) -> Closable:
        """Call `on_stored` for everything of `filters` from sequence `first` on, in order, for ever, without gaps."""

    async def bounds(self) -> Bounds:
        """What the stream holds."""

    async def kv_get(self, bucket: str, key: str) -> KvEntry | None:
        """A key's value."""

    async def kv_put(self, bucket: str, key: str, value: bytes, expect: int) -> int:
        """Write a key if its revision is still `expect` (0: not there); returns the new revision."""

    async def kv_all(self, bucket: str) -> dict[str, KvEntry]:
        """All keys of a bucket."""

    async def tell(self, subject: str, data: bytes) -> None:
        """Core publish: heard by who listens now, kept by nobody."""

    async def listen(self, subject: str, on_message: OnMessage) -> Closable:
        """Core subscription."""

    async def answer(self, subject: str, on_request: OnRequest) -> Closable:
        """Serve requests on `subject`."""

    async def request(self, subject: str, data: bytes, timeout_s: float = 2.0) -> bytes:
        """Core request; BusTimeout when nobody answers."""

    async def close(self) -> None:
        """Leave the bus; nothing is sent after it."""
