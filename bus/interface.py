"""The interface that the NATS bus and the in-memory bus implement; one contract suite tests both.

It owns no policy: order, retries and recovery are the outbox's and the runtime's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from bus.errors import BusError
from bus.messages import Message, check_lifetime, decode
from bus.messages.subjects import Subjects

Headers = Mapping[str, str]
EVERYTHING = (">",)
"""The filters of whoever reads the whole stream. A filter for the subjects of the swarm would leave out what a client
has stored under a subject that the server does not map (a token `*` or `>`) or does not find (the byte 0x7F).
"""


# Ack and StoredMessage are not frozen: creating a frozen one takes five times as long, and there is one per message.
@dataclass(slots=True)
class Ack:
    """The stream's answer to a publish: the sequence of the message; `duplicate` if it was stored before."""

    sequence: int
    duplicate: bool = False


@dataclass(slots=True)
class StoredMessage:
    """A message as the stream holds it. `pending`: how many more messages of the same filter followed when it was read.

    `stored_ns`: the server's clock when it was stored, nanoseconds since 1970; 0 if the bus does not report it.
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
            MessageError: the subject is none of this swarm's, the payload is malformed, or the message has a lifetime.
        """
        address = subjects.parse(self.subject)
        check_lifetime(address, self.subject, self.headers)
        return decode(address, self.subject, self.data)


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
"""Handles a message of the stream. Its return value is awaited before the next message; None: it is done."""
OnMessage = Callable[[ReceivedMessage], Awaitable[None]]
OnReceived = Callable[[ReceivedMessage], None]
OnRequest = Callable[[ReceivedMessage], Awaitable[bytes]]


class Closable(Protocol):
    """A subscription or reader."""

    async def close(self) -> None: ...


class Bus(Protocol):
    """A connection to the bus of one swarm.

    Methods raise Disconnected when the connection is down, BusTimeout when no answer came (a write may have landed),
    Refused when the server refused, WrongSequence when a compare-and-set lost.
    """

    subjects: Subjects

    @property
    def is_ready(self) -> bool:
        """Whether the connection is up and all `on_up` callbacks of a reconnect have ended."""

    @property
    def url(self) -> str:
        """The URL of the server, without credentials."""

    def watch_connection(self, down: Callable[[], None], up: Callable[[], Awaitable[None]]) -> None:
        """Call `down` when the connection breaks, `up` when it is back, before `is_ready` is true again."""

    async def wait_connected(self) -> None:
        """Wait until the connection is ready."""

    async def publish(self, subject: str, data: bytes, headers: Headers | None = None, timeout_s: float = 5.0) -> Ack:
        """Store one message and wait for the stream's answer."""

    async def pipelines(self) -> bool:
        """Whether a message with an expectation may be sent before the one before it is answered.

        A replicated stream refuses such a message: a later one would be stored before it, and order would be lost.
        """

    def send(self, subject: str, data: bytes, headers: Headers, done: Done) -> None:
        """Publish without waiting; `done` is called with the answer, or with an error if the connection breaks."""

    async def last(self, subject: str) -> StoredMessage | None:
        """The newest message of a read-side subject."""

    async def message(self, sequence: int) -> StoredMessage | None:
        """The message at `sequence`; None if the stream has none there, or no longer."""

    async def read_back(self, filters: tuple[str, ...], first: int) -> list[StoredMessage]:
        """Everything of `filters` from sequence `first` to the present end."""

    async def follow(self, filters: tuple[str, ...], first: int, on_stored: OnStored) -> Closable:
        """Call `on_stored` for everything of `filters` from sequence `first` on, in order and without gaps."""

    async def bounds(self) -> Bounds:
        """What the stream holds."""

    async def kv_get(self, bucket: str, key: str) -> KvEntry | None:
        """A key's value."""

    async def kv_put(self, bucket: str, key: str, value: bytes, expect: int) -> int:
        """Write a key if its revision is still `expect` (0: the key does not exist); returns the new revision."""

    async def kv_delete(self, bucket: str, key: str) -> None:
        """Delete a key, whatever is written to it meanwhile; a later write of it expects 0 again."""

    async def kv_all(self, bucket: str) -> dict[str, KvEntry]:
        """All keys of a bucket."""

    async def notify(self, subject: str, data: bytes) -> None:
        """Core publish: delivered to the present subscribers, not stored."""

    async def listen(self, subject: str, on_message: OnMessage) -> Closable:
        """Core subscription."""

    async def listen_directly(self, subject: str, on_received: OnReceived) -> Closable:
        """Core subscription for a function that does not wait: cheaper, it may be called while bytes are read."""

    async def flush(self) -> None:
        """Return when the server has processed what was sent before, subscriptions among it."""

    async def answer(self, subject: str, on_request: OnRequest) -> Closable:
        """Serve requests on `subject`."""

    async def request(self, subject: str, data: bytes, timeout_s: float = 2.0) -> bytes:
        """Core request; BusTimeout without an answer."""

    async def close(self) -> None:
        """Close the connection; nothing is sent afterwards."""
