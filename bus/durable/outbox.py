"""The messages of one writer that are not acknowledged yet: stored in order, each once, across disconnects.

States of an outbox:

    SENDING ----- connection lost, message refused, acknowledgement overdue ----> RESYNCING
    RESYNCING --- stored messages read back, the others resent in order --------> SENDING
    SENDING, RESYNCING --- `close`, a fenced writer, an output of impossible size -> CLOSED

Nothing new is sent before everything older is stored or resent. The outbox assigns no numbers: the runtime does.

A message that the stream calls a duplicate may be one of another writer with the same id. Then it is sent again under
an id that nobody could have used before, after those that were on their way meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Self

import structlog

from bus.durable.message_ids import substitute
from bus.errors import MESSAGE_TOO_LARGE, BusError, Fenced, MeshError, Refused, WrongSequence
from bus.interface import Ack, Bus, Headers, StoredMessage
from bus.messages import headers as h

WINDOW = 512
"""Unacknowledged messages from which on `send` makes its caller wait."""
ACK_TIMEOUT_S = 2.0
"""An unacknowledged message older than this on a ready connection starts a resync."""
RETRY_S = 0.1
MAX_JUDGING = 32
"""Messages at a time that are read because the stream has called one of this writer a duplicate of them."""
TOO_LARGE_S = 30.0
"""How long a message is sent again that is larger than the stream allows."""
NO_CLAIM = "wrong last sequence: 0"
"""The server's answer to a fence for which the stream has no claim."""
FLUSH_TIMEOUT_S = 1.0
"""Seconds that `finish` waits for acknowledgements."""

log = structlog.get_logger("signalmesh.bus")


@dataclass(slots=True)
class Entry:
    """One message to store. `number` is its Mesh-Output, None for messages without one (timers, reports)."""

    subject: str
    data: bytes
    headers: Headers
    number: int | None = None
    sequence: int = 0
    refused: int = 0
    too_large_since: float | None = None
    """Since when the stream refuses its size, seconds of the event loop's clock."""
    was_sent: bool = False
    accepts: Callable[[StoredMessage], bool] | None = None
    """Whether a message that another writer has stored under this id stands for it; None: no such message does."""

    def is_stored_as(self, stored: StoredMessage) -> bool:
        """Whether `stored`, which has this one's id, is this one, or stands for it."""
        if self.accepts is not None and self.accepts(stored):
            return True
        if stored.subject.rpartition(".")[2] != self.subject.rpartition(".")[2]:
            return False
        return stored.headers.get(h.OUTPUT) == self.headers.get(h.OUTPUT)


def _why_fenced(description: str) -> str:
    """The server's description, and what it means if the stream holds no claim at all."""
    if description != NO_CLAIM:
        return description
    return f"the stream has removed its claim with the oldest messages ([stream] max_bytes): {description}"


class OutboxState(enum.Enum):
    """State of an outbox; the module's docstring shows the transitions."""

    SENDING = enum.auto()
    RESYNCING = enum.auto()
    CLOSED = enum.auto()


async def can_pipeline(bus: Bus) -> bool:
    """`bus.pipelines()`, False if the stream does not answer: one message at a time is correct for every stream."""
    try:
        return await bus.pipelines()
    except BusError as error:
        log.debug("stream_unavailable", error=str(error))
        return False


class Outbox:
    """Unacknowledged messages of one writer. `put` takes one, `push` or `send` sends it.

    Leaving `async with` finishes it.
    """

    def __init__(
        self,
        bus: Bus,
        written_by: tuple[str, ...],
        on_fenced: Callable[[MeshError], None],
        on_acked: Callable[[Entry], None] | None = None,
        *,
        pipelined: bool,
        window: int = WINDOW,
    ) -> None:
        """Make an outbox in state SENDING.

        Args:
            bus: Where to publish.
            written_by: Subject filters of everything that this writer may have stored, for reading back.
            on_fenced: Called once when a successor has claimed this writer's epoch, or an output is too large for the
                stream.
            on_acked: Called after every acknowledged message, in order.
            pipelined: Whether a message may be sent before the one before it is acknowledged (`can_pipeline`); every
                resync requests it again.
            window: Unacknowledged messages from which on `send` makes its caller wait.
        """
        self._bus = bus
        self._written_by = written_by
        self._on_fenced = on_fenced
        self._on_acked = on_acked
        self._pipelined = pipelined
        self._window = window
        self._state = OutboxState.SENDING
        self._entries: deque[Entry] = deque()
        self._unsent: deque[Entry] = deque()
        self._resync_task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._accepted = 0
        """Messages that `put` has taken so far."""
        self._connection_generation = 0
        """Counts events that invalidate earlier answers: lost connections, resyncs and `close`."""
        self._oldest_at = 0.0
        self._squatted = False
        """Whether another writer has used one of these ids: from then on new messages get ids that nobody can guess."""
        self._why_closed = "this process has been superseded"
        self._judging: set[asyncio.Task[None]] = set()
        self._judging_at_once = asyncio.Semaphore(MAX_JUDGING)
        self.on_squatted: Callable[[Entry, int, StoredMessage | None], None] | None = None
        """Called with a message, the sequence of the one that has taken its id, and that one unless it is gone."""
        self.lost = 0
        """Reports that were too large for the stream."""
        self.stored_through = 0
        """Stream sequence up to which everything of this writer is known to be stored."""
        bus.watch_connection(self._on_down, self._on_up)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.finish()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def closed(self) -> bool:
        """Whether the outbox is closed."""
        return self._state is OutboxState.CLOSED

    @property
    def oldest_number(self) -> int | None:
        """Number of the oldest output that is not acknowledged."""
        return next((entry.number for entry in self._entries if entry.number is not None), None)

    def put(self, entry: Entry) -> None:
        """Take a message.

        Raises:
            Fenced: this writer has been superseded.
        """
        if self.closed:
            raise Fenced(entry.subject, self._why_closed)
        if not self._entries:
            self._oldest_at = asyncio.get_running_loop().time()
        self._accepted += 1
        self._entries.append(entry)
        self._unsent.append(entry)

    def send(self) -> Awaitable[None] | None:
        """Send what `put` took. Returns None, or while the window is full an awaitable that waits for room."""
        self.push()
        return self._room() if len(self._entries) >= self._window and not self.closed else None

    async def _room(self) -> None:
        while len(self._entries) >= self._window and not self.closed:
            self._changed.clear()
            await self._changed.wait()

    def push(self) -> None:
        """Send what `put` took."""
        try:
            while self._unsent and self._state is OutboxState.SENDING and not self._must_wait():
                self._send(self._unsent[0])
                self._unsent.popleft()
        except BusError as error:  # sent when the connection is up again, or at the next check
            log.debug("publish_deferred", error=str(error))

    def _must_wait(self) -> bool:
        """Whether the stream takes one message at a time, and has not answered the last one."""
        return not self._pipelined and len(self._entries) > len(self._unsent)

    def _send(self, entry: Entry) -> None:
        generation = self._connection_generation
        if self._squatted and not entry.was_sent:
            _rename(entry)
        entry.was_sent = True
        headers = entry.headers

        def done(result: Ack | BusError) -> None:
            if isinstance(result, Ack) and result.duplicate and not self.closed:
                self._on_duplicate(entry, result, headers)
            else:
                self._on_done(entry, result, generation)

        self._bus.send("in." + entry.subject, entry.data, entry.headers, done)

    def _on_done(self, entry: Entry, result: Ack | BusError, generation: int) -> None:
        if self.closed:
            return
        if isinstance(result, Ack):
            entry.sequence = result.sequence
            self._remove_acknowledged()
        elif isinstance(result, WrongSequence):
            self._fail(Fenced(result.subject, _why_fenced(result.description)))
        elif generation == self._connection_generation and self._bus.is_ready:
            entry.refused += 1
            if isinstance(result, Refused) and result.code == MESSAGE_TOO_LARGE:
                self._on_too_large(entry, result)
                return
            self._retry_refused(entry, result)

    def _on_duplicate(self, entry: Entry, result: Ack, headers: Headers) -> None:
        """The stream has a message with this id already: usually this one, whose first acknowledgement was lost."""
        if entry.sequence or headers is not entry.headers:  # it was sent again under another id
            return
        task = asyncio.create_task(self._judge_duplicate(entry, result.sequence), name="outbox-duplicate")
        self._judging.add(task)
        task.add_done_callback(self._judging.discard)

    async def _judge_duplicate(self, entry: Entry, sequence: int) -> None:
        generation = self._connection_generation
        stored: StoredMessage | None = None
        try:
            async with self._judging_at_once:  # a squatter may have taken many
                stored = await self._bus.message(sequence)
        except Refused as error:  # what has taken an id of its own can be read
            log.warning("duplicate_unreadable", subject=entry.subject, sequence=sequence, error=str(error))
        except BusError as error:
            if generation == self._connection_generation and self._bus.is_ready:
                self._retry_refused(entry, error)
            return
        if self.closed or entry.sequence:
            return
        if stored is not None and entry.is_stored_as(stored):
            entry.sequence = sequence
            self._remove_acknowledged()
            return
        # An id that several writers use for the same report is taken by one of them: what has it may be gone since.
        is_squatted = stored is not None or entry.accepts is None
        if is_squatted:
            log.warning("message_id_squatted", subject=entry.subject, id=entry.headers.get(h.MSG_ID), sequence=sequence)
        _rename(entry)
        self._squatted |= is_squatted
        if self._state is OutboxState.SENDING and not any(waiting is entry for waiting in self._unsent):
            with contextlib.suppress(BusError):  # sent by the next resync
                self._send(entry)
        if self.on_squatted is not None and is_squatted:
            self.on_squatted(entry, sequence, stored)

    def _retry_refused(self, entry: Entry, refusal: BusError) -> None:
        log.warning("publish_refused", subject=entry.subject, error=str(refusal), times=entry.refused)
        self._start_resync()

    def _on_too_large(self, entry: Entry, refusal: Refused) -> None:
        """Retry for TOO_LARGE_S: a limit may be raised again. Then a report is lost and counted, and a writer ends: the
        outputs after one that is missing have no place.
        """
        now = asyncio.get_running_loop().time()
        if entry.too_large_since is None:
            entry.too_large_since = now
        if now - entry.too_large_since < TOO_LARGE_S:
            self._retry_refused(entry, refusal)
            return
        if entry not in self._entries:
            return
        size = len(entry.data)
        if entry.number is not None:
            limit = "raise the stream's max_msg_size (`signalmesh doctor` compares it), or publish less"
            self._fail(MeshError(f"{entry.subject}: the server takes no message of {size} bytes ({refusal}): {limit}"))
            return
        self.lost += 1
        log.error("message_dropped", subject=entry.subject, size=size, error=str(refusal), lost=self.lost)
        self._entries.remove(entry)
        self._remove_acknowledged()
        self._changed.set()
        if not self._pipelined:
            self.push()

    def _remove_acknowledged(self) -> None:
        if not self._entries or not self._entries[0].sequence:
            return  # the oldest one still waits, however many younger ones are acknowledged
        while self._entries and self._entries[0].sequence:
            entry = self._entries.popleft()
            self.stored_through = max(self.stored_through, entry.sequence)
            if self._on_acked is not None:
                self._on_acked(entry)
        self._oldest_at = asyncio.get_running_loop().time()
        self._changed.set()
        if not self._pipelined:
            self.push()

    def _fail(self, error: MeshError) -> None:
        self._state = OutboxState.CLOSED
        self._connection_generation += 1
        self._changed.set()
        if isinstance(error, Fenced):
            self._why_closed = error.description
        self._on_fenced(error)

    def _on_down(self) -> None:
        self._connection_generation += 1
        if not self.closed:
            self._state = OutboxState.RESYNCING

    async def _on_up(self) -> None:
        await self._resync()

    def check(self) -> None:
        """Start a resync if a message stays unacknowledged on a ready connection. Call it about twice a second."""
        if not self._entries or self._state is not OutboxState.SENDING or not self._bus.is_ready:
            return
        if self._unsent and not self._must_wait():
            self.push()
        elif asyncio.get_running_loop().time() - self._oldest_at > ACK_TIMEOUT_S:
            log.warning("acknowledgement_overdue", subject=self._entries[0].subject, waiting=len(self._entries))
            self._start_resync()

    def _start_resync(self) -> None:
        if self._state is not OutboxState.SENDING:
            return
        self._state = OutboxState.RESYNCING
        self._connection_generation += 1
        self._resync_task = asyncio.create_task(self._resync_until_done(), name="outbox-resync")

    async def _resync_until_done(self) -> None:
        while self._state is OutboxState.RESYNCING and self._bus.is_ready:
            await asyncio.sleep(RETRY_S)
            try:
                await self._resync()
            except BusError as error:
                log.debug("outbox_resync_retried", error=str(error))

    async def find_pipelining(self) -> None:
        """Look whether the stream takes a message before the one before it is acknowledged."""
        self._pipelined = await self._bus.pipelines()

    async def _resync(self) -> None:
        """Read back which messages are stored, resend the rest in order, and only then send new ones."""
        if self.closed:
            return
        generation = self._connection_generation
        await self.find_pipelining()
        if self._entries:
            stored = await self._bus.read_back(self._written_by, self.stored_through + 1)
            known = {m.headers[h.MSG_ID]: m.sequence for m in stored if h.MSG_ID in m.headers}
            for entry in self._entries:
                entry.sequence = entry.sequence or known.get(entry.headers.get(h.MSG_ID, ""), 0)
            self._remove_acknowledged()
        if generation != self._connection_generation:
            return  # closed, or the connection broke: the next resync may have resent everything already
        self._unsent = deque(entry for entry in self._entries if not entry.sequence)
        self._state = OutboxState.SENDING
        self._oldest_at = asyncio.get_running_loop().time()
        self.push()

    async def wait_acknowledged(self) -> None:
        """Wait until at least one more message is acknowledged.

        Raises:
            Fenced: the outbox was closed.
        """
        if not self.closed:
            self._changed.clear()
            await self._changed.wait()
        if self.closed:
            raise Fenced("outbox", self._why_closed)

    async def flush(self) -> None:
        """Wait until every message taken before this call is stored.

        Raises:
            Fenced: the outbox was closed before that.
        """
        self.push()
        accepted = self._accepted
        while self._accepted - len(self._entries) < accepted:
            await self.wait_acknowledged()

    async def finish(self) -> None:
        """Flush for at most FLUSH_TIMEOUT_S, then close."""
        with contextlib.suppress(TimeoutError, BusError):
            async with asyncio.timeout(FLUSH_TIMEOUT_S):
                await self.flush()
        self.close()

    def close(self) -> None:
        """Close the outbox: it sends nothing more."""
        self._state = OutboxState.CLOSED
        self._connection_generation += 1
        self._changed.set()
        for task in (*self._judging, *([self._resync_task] if self._resync_task is not None else [])):
            task.cancel()


def _rename(entry: Entry) -> None:
    if (message_id := entry.headers.get(h.MSG_ID)) is not None:
        entry.headers = {**entry.headers, h.MSG_ID: substitute(message_id)}
