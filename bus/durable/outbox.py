"""What an incarnation has published but not yet seen acknowledged: in order, pipelined, resent after a break.

Order is the point: nothing new is sent before everything older is stored or sent again; where a cluster keeps the
stream, before everything older is stored. After a break, or when the server refuses or forgets a message inside an
unbroken connection, it stops, reads back which of its messages are stored, and resends the rest in order. It owns no
numbering: the runtime does.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from bus.errors import BusError, Fenced, MeshError, WrongSequence
from bus.interface import Ack, Bus, Headers
from bus.messages import headers as h

WINDOW = 512
"""Messages that may be unacknowledged before `send` has its caller wait."""
ACK_TIMEOUT_S = 2.0
"""An unacknowledged message older than this on a live connection is read back and resent."""
RETRY_S = 0.1

log = structlog.get_logger("signalmesh.bus")


@dataclass(slots=True)
class Entry:
    """One message on its way. `number` is its Mesh-Output, None for what is not counted (timers, reports)."""

    subject: str
    data: bytes
    headers: Headers
    number: int | None = None
    sequence: int = 0
    refused: int = 0


class Outbox:
    """Messages of one writer on their way into the stream. `put` takes one, `push` or `send` puts it on the wire.

    `written_by` filters what this writer may have stored (for reading back); `on_fenced` is called when a successor
    has claimed this writer's epoch; `on_acked` after every acknowledged message.
    """

    def __init__(
        self,
        bus: Bus,
        written_by: tuple[str, ...],
        on_fenced: Callable[[MeshError], None],
        on_acked: Callable[[Entry], None] | None = None,
        window: int = WINDOW,
    ) -> None:
        self._bus = bus
        self._written_by = written_by
        self._on_fenced = on_fenced
        self._on_acked = on_acked
        self._window = window
        self._entries: deque[Entry] = deque()
        self._unsent: deque[Entry] = deque()
        self._one_by_one: bool | None = None
        self._learning: asyncio.Task[None] | None = None
        self._out_of_sync = False
        self._recovering: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._accepted = 0
        """Messages that `put` has taken so far."""
        self._epoch = 0
        self._oldest_at = 0.0
        self.stored_through = 0
        """Stream sequence up to which everything of this writer is known to be stored."""
        self.closed = False
        bus.watch_connection(self._on_down, self._on_up)

    def __len__(self) -> int:
        return len(self._entries)

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
            raise Fenced(entry.subject, "this process has been superseded")
        if not self._entries:
            self._oldest_at = asyncio.get_running_loop().time()
        self._accepted += 1
        self._entries.append(entry)
        self._unsent.append(entry)

    def send(self) -> Awaitable[None] | None:
        """Send what `put` took; what comes back, while the window is full, is awaited by who can wait for room."""
        self.push()
        return self._room() if len(self._entries) >= self._window and not self.closed else None

    async def _room(self) -> None:
        while len(self._entries) >= self._window and not self.closed:
            self._changed.clear()
            await self._changed.wait()

    def push(self) -> None:
        """Send what `put` took."""
        if self._one_by_one is None:
            self._learning = self._learning or asyncio.create_task(self._learn(), name="outbox-learn")
            return
        try:
            while self._unsent and not self._out_of_sync and not self.closed and not self._must_wait():
                self._send(self._unsent[0])
                self._unsent.popleft()
        except BusError as error:  # it is sent when the connection is up again, or at the next check
            log.debug("publish_deferred", error=str(error))

    async def _learn(self) -> None:
        try:
            self._one_by_one = not await self._bus.pipelines()
        except BusError as error:
            log.debug("publish_deferred", error=str(error))
            return
        finally:
            self._learning = None
        self.push()

    def _must_wait(self) -> bool:
        """Whether the stream takes one message of ours at a time only, and has one that it has not answered."""
        return bool(self._one_by_one) and len(self._entries) > len(self._unsent)

    def _send(self, entry: Entry) -> None:
        epoch = self._epoch

        def done(result: Ack | BusError) -> None:
            self._on_done(entry, result, epoch)

        self._bus.send("in." + entry.subject, entry.data, entry.headers, done)

    def _on_done(self, entry: Entry, result: Ack | BusError, epoch: int) -> None:
        if self.closed:
            return
        if isinstance(result, Ack):
            entry.sequence = result.sequence
            self._settle()
        elif isinstance(result, WrongSequence):
            self._fence(Fenced(result.subject, result.description))
        elif epoch == self._epoch and self._bus.live:
            entry.refused += 1
            log.warning("publish_refused", subject=entry.subject, error=str(result), times=entry.refused)
            self._doubt()

    def _settle(self) -> None:
        if not self._entries or not self._entries[0].sequence:
            return  # the oldest one still waits, however many younger ones are acknowledged
        while self._entries and self._entries[0].sequence:
            entry = self._entries.popleft()
            self.stored_through = max(self.stored_through, entry.sequence)
            if self._on_acked is not None:
                self._on_acked(entry)
        self._oldest_at = asyncio.get_running_loop().time()
        self._changed.set()
        if self._one_by_one:
            self.push()

    def _fence(self, error: Fenced) -> None:
        self.closed = True
        self._changed.set()
        self._on_fenced(error)

    def _on_down(self) -> None:
        self._epoch += 1
        self._out_of_sync = True

    async def _on_up(self) -> None:
        await self._recover()

    def check(self) -> None:
        """To be called now and then: a message that stays unacknowledged on a live connection starts a recovery."""
        if not self._entries or self._out_of_sync or not self._bus.live:
            return
        if self._unsent and not self._must_wait():
            self.push()
        elif asyncio.get_running_loop().time() - self._oldest_at > ACK_TIMEOUT_S:
            log.warning("acknowledgement_overdue", subject=self._entries[0].subject, waiting=len(self._entries))
            self._doubt()

    def _doubt(self) -> None:
        if self._out_of_sync:
            return
        self._out_of_sync = True
        self._epoch += 1
        self._recovering = asyncio.create_task(self._recover_later(), name="outbox-recover")

    async def _recover_later(self) -> None:
        while self._out_of_sync and not self.closed and self._bus.live:
            await asyncio.sleep(RETRY_S)
            try:
                await self._recover()
            except BusError as error:
                log.debug("outbox_recovery_retried", error=str(error))

    async def _recover(self) -> None:
        """Read back what is stored, resend the rest in order, and only then let new messages out."""
        if self.closed:
            return
        epoch = self._epoch
        self._one_by_one = not await self._bus.pipelines()
        if self._entries:
            stored = await self._bus.read_back(self._written_by, self.stored_through + 1)
            known = {m.headers[h.MSG_ID]: m.sequence for m in stored if h.MSG_ID in m.headers}
            for entry in self._entries:
                entry.sequence = entry.sequence or known.get(entry.headers.get(h.MSG_ID, ""), 0)
            self._settle()
            if epoch != self._epoch:
                return  # the connection broke meanwhile: what was sent again since is the next recovery's business
        self._unsent = deque(entry for entry in self._entries if not entry.sequence)
        self._out_of_sync = False
        self._oldest_at = asyncio.get_running_loop().time()
        self.push()

    async def settled(self) -> None:
        """Wait until something more is acknowledged.

        Raises:
            Fenced: nothing ever will be.
        """
        if not self.closed:
            self._changed.clear()
            await self._changed.wait()
        if self.closed:
            raise Fenced("outbox", "this process has been superseded")

    async def flush(self) -> None:
        """Wait until every message taken before this call is stored; later ones are not waited for.

        Raises:
            Fenced: it never will be.
        """
        self.push()
        accepted = self._accepted
        while self._accepted - len(self._entries) < accepted:
            await self.settled()

    def close(self) -> None:
        """Send nothing more."""
        self.closed = True
        self._changed.set()
        for task in (self._recovering, self._learning):
            if task is not None:
                task.cancel()
