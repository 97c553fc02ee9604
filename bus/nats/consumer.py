"""Reading a stream in order over NATS: an ephemeral push consumer, created again after every gap."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import Awaitable
from typing import Any

import structlog

from bus.errors import BusError, BusTimeout, LimitReached, PermissionDenied, Refused
from bus.interface import OnStored, StoredMessage
from bus.nats.client import STATUS, LazyHeaders, parse_headers
from bus.nats.jetstream import IDLE_HEARTBEAT_S, STREAM_NOT_FOUND, JetStream
from bus.utils.aio import end_tasks

READ_BACK_TIMEOUT_S = 10.0
"""Longest time without a message while reading back; then it continues with a new consumer."""
DENIED_PAUSE_S = 1.0
"""Pause before a consumer that the server denies is tried again: only a person can allow it."""

log = structlog.get_logger("signalmesh.bus")


_Arrived = tuple[str, str, bytes, bytes]
"""Subject, reply subject, payload and header block of a message."""

_NO_NAME = re.compile(r"[^0-9A-Za-z_-]")
"""What the name of a consumer does not contain."""


class Reader:
    """Calls `on_stored` for every message of `filters` from `first` on: each once, in order, without end.

    A message is handled while its bytes are read; messages queue only behind one with an unfinished handler. A gap, a
    missed heartbeat or a reconnect ends the consumer's generation; the next begins after the last handled message. Late
    messages of an older generation go to an inbox without a subscriber.
    """

    def __init__(
        self,
        jetstream: JetStream,
        stream: str,
        filters: tuple[str, ...],
        first: int,
        on_stored: OnStored,
        newest: bool = False,
    ) -> None:
        self._jetstream, self._stream, self._filters = jetstream, stream, filters
        self._next = first
        self._on_stored = on_stored
        self._newest = newest
        self.pending = 0
        self.generation = 0
        self._consumer = ""
        self._subscription: Any = None
        self._expected = 1
        self._received_at = 0.0
        self._closed = False
        self._waiting: deque[_Arrived] = deque()
        self._worker: asyncio.Task[None] | None = None
        """Awaits an unfinished handler and then works off the queue; None if there is none."""
        self._restart_due = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Create the first consumer; a background task creates later ones."""
        self._jetstream.connection.watch(self._on_down, self._on_up)
        try:
            await self._begin()
        except BaseException:
            await self.close()  # a consumer whose creation was not answered may exist, and would deliver
            raise
        self._task = asyncio.create_task(self._supervise(), name=f"reader-{self._stream}")

    def _on_down(self) -> None:
        self._end_generation()  # the next consumer delivers the queued messages again

    async def _on_up(self) -> None:
        self._restart_due.set()

    def _end_generation(self) -> None:
        self.generation += 1
        self._waiting.clear()

    async def _begin(self) -> None:
        self._end_generation()
        generation = self.generation
        await self._end_worker()  # a long-running handler may wait for an answer that the broken connection has lost
        old_name, old = self._consumer, self._subscription
        if old is not None:
            with contextlib.suppress(Exception):
                await old.unsubscribe()
            self._jetstream.delete_consumer(self._stream, old_name)
        inbox = self._jetstream.connection.client.new_inbox()
        # Whose it is, for `nats consumer ls`. The rest is random: a consumer of the same name with another beginning
        # would be refused, and the one before may still exist.
        self._consumer = f"{_NO_NAME.sub('-', self._jetstream.connection.name)}-{inbox.rpartition('.')[2]}"
        self._expected = 1
        self._received_at = asyncio.get_running_loop().time()

        def on_message(subject: str, reply: str, data: bytes, headers: bytes) -> None:
            if generation == self.generation and not self._closed:
                self._take((subject, reply, data, headers))

        self._subscription = await self._jetstream.connection.subscribe_directly(inbox, on_message)
        pending = await self._jetstream.create_consumer(
            self._stream, self._consumer, self._filters, self._next, inbox, newest=self._newest
        )
        if self._expected == 1:  # else the first messages overtook the answer and set a newer value
            self.pending = pending

    def _take(self, arrived: _Arrived) -> None:
        self._received_at = asyncio.get_running_loop().time()
        if self._worker is not None:
            self._waiting.append(arrived)
        elif (handling := self._handle(arrived)) is not None:
            self._worker = asyncio.create_task(self._work(handling), name=f"reading-{self._stream}")

    async def _work(self, handling: Awaitable[None] | None) -> None:
        try:
            while True:
                if handling is not None:
                    try:
                        await handling
                    except Exception:
                        log.exception("reader_callback_failed", stream=self._stream, sequence=self._next - 1)
                    self._received_at = asyncio.get_running_loop().time()
                if not self._waiting:
                    return
                handling = self._handle(self._waiting.popleft())
        finally:
            self._worker = None

    async def _end_worker(self) -> None:
        if self._worker is not None:
            await asyncio.sleep(0)  # a task cancelled before its start would never report the message it was to handle
        if self._worker is not None:
            await end_tasks([self._worker])

    def _handle(self, arrived: _Arrived) -> Awaitable[None] | None:
        """Handle one message; await the result before the next one."""
        subject, reply, data, block = arrived
        try:
            if not reply.startswith("$JS.ACK."):
                self._on_control(reply, parse_headers(block))
                return None
            # $JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>, in some
            # set-ups with a domain and an account in front: so counted from the end
            tokens = reply.split(".")
            if len(tokens) >= 12:
                tokens = tokens[:-1]
            sequence, delivered, stored_ns, pending = map(int, tokens[-4:])
            if delivered != self._expected:
                self._schedule_restart(f"expected message {self._expected} of this consumer, got {delivered}")
                return None
            self._expected += 1
            self.pending = pending
            self._next = sequence + 1
            return self._on_stored(StoredMessage(subject, sequence, data, LazyHeaders(block), pending, stored_ns))
        except Exception:
            log.exception("reader_callback_failed", stream=self._stream, sequence=self._next - 1)
            return None

    def _on_control(self, reply: str, headers: dict[str, str]) -> None:
        status = headers.get(STATUS)
        if status == "100":
            if reply := reply or headers.get("Nats-Consumer-Stalled", ""):
                with contextlib.suppress(BusError):
                    self._jetstream.connection.write(reply, b"")  # all messages before it have been handled
            if int(headers.get("Nats-Last-Consumer", self._expected - 1)) >= self._expected:
                self._schedule_restart("gap before a heartbeat")
        elif status:
            self._schedule_restart(f"status {status}")

    def _schedule_restart(self, reason: str) -> None:
        log.debug("reader_restarted", stream=self._stream, reason=reason, next=self._next)
        self._end_generation()
        self._restart_due.set()

    async def _supervise(self) -> None:
        limited = False
        while not self._closed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(IDLE_HEARTBEAT_S):
                    await self._restart_due.wait()
            silent_s = asyncio.get_running_loop().time() - self._received_at
            working = self._worker is not None  # heartbeats wait in the queue behind what is being handled
            if not self._restart_due.is_set() and (working or silent_s < 3 * IDLE_HEARTBEAT_S):
                continue
            if not self._jetstream.connection.client.is_connected:
                self._restart_due.clear()  # the reconnect sets it again
                continue
            self._restart_due.clear()
            try:
                await self._begin()
            except BusError as error:
                log.debug("reader_restart_failed", stream=self._stream, error=str(error))
                if isinstance(error, LimitReached) and not limited:  # only a person can raise it
                    limited = True
                    log.warning("reader_limited", stream=self._stream, error=str(error))
                self._restart_due.set()
                await asyncio.sleep(DENIED_PAUSE_S if isinstance(error, PermissionDenied) else 0.1)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._end_generation()
        self._jetstream.connection.unwatch(self._on_down, self._on_up)
        if self._task is not None:
            await end_tasks([self._task])
        await self._end_worker()
        if self._subscription is not None:
            with contextlib.suppress(Exception):
                await self._subscription.unsubscribe()
            self._jetstream.delete_consumer(self._stream, self._consumer)


async def collect(
    jetstream: JetStream,
    stream: str,
    filters: tuple[str, ...],
    first: int,
    *,
    newest: bool = False,
    last: int | None = None,
    limit: int | None = None,
) -> list[StoredMessage]:
    """All messages of `filters` from `first` to the present end; `newest`: only each subject's last message.

    It ends before with the message `last`, or after `limit` messages.

    Raises:
        BusTimeout: the server delivers nothing more.
        Refused: there is no such stream.
    """
    found: list[StoredMessage] = []
    complete = asyncio.Event()

    def on_stored(stored: StoredMessage) -> None:
        if complete.is_set():
            return
        if last is None or stored.sequence <= last:
            found.append(stored)
        if (
            stored.pending == 0
            or (last is not None and stored.sequence >= last)
            or (limit is not None and len(found) >= limit)
        ):
            complete.set()

    reader = Reader(jetstream, stream, filters, first, on_stored, newest=newest)
    try:
        await reader.start()
    except Refused as error:
        if error.code == STREAM_NOT_FOUND:
            raise Refused(stream, error.code, "there is no such stream; `signalmesh up` creates it") from None
        raise
    try:
        while not complete.is_set() and (reader.pending or (found and found[-1].pending)):
            seen = len(found)
            try:
                async with asyncio.timeout(READ_BACK_TIMEOUT_S):
                    await complete.wait()
                    break
            except TimeoutError:
                if len(found) == seen:
                    raise BusTimeout(f"{stream}: reading back stopped after {seen} messages") from None
    finally:
        await reader.close()
    return found
