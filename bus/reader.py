"""Reading a stream in order over NATS: a push consumer of our own that is made anew whenever order is in doubt.

Creating a consumer is one function, `create_consumer`: in a secured swarm a trusted role does it, because a consumer's
deliver subject bypasses subscribe permissions.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import structlog
from nats.aio.msg import Msg

from bus.bus import OnStored, Stored
from bus.errors import BusError, BusTimeout, Refused
from bus.tasks import end_tasks

if TYPE_CHECKING:
    from bus.nats_bus import NatsBus

IDLE_HEARTBEAT_S = 0.5
"""The server says so when there is nothing to deliver; three of them missing make the consumer suspect."""
INACTIVE_THRESHOLD_S = 5.0
"""A consumer that nobody hears is removed by the server after this long."""
READ_BACK_TIMEOUT_S = 10.0
"""Longest silence while reading back before it is tried again from where it stopped."""
NANOSECOND = 1_000_000_000

log = structlog.get_logger("signalmesh.bus")


async def create_consumer(
    bus: NatsBus, stream: str, name: str, filters: tuple[str, ...], first: int, deliver: str, *, newest: bool = False
) -> int:
    """Make an ephemeral, unacknowledged, flow-controlled push consumer; returns how many messages await it.

    `first` is the sequence to begin at; `newest` delivers only the last message of each subject.
    """
    policy: dict[str, Any] = {"deliver_policy": "all"}
    if newest:
        policy = {"deliver_policy": "last_per_subject"}
    elif first > 1:
        policy = {"deliver_policy": "by_start_sequence", "opt_start_seq": first}
    config = {
        "name": name,
        **policy,
        "filter_subjects": list(filters),
        "deliver_subject": deliver,
        "ack_policy": "none",
        "max_deliver": 1,
        "replay_policy": "instant",
        "flow_control": True,
        "idle_heartbeat": int(IDLE_HEARTBEAT_S * NANOSECOND),
        "inactive_threshold": int(INACTIVE_THRESHOLD_S * NANOSECOND),
        "mem_storage": True,
        "num_replicas": 1,
    }
    info = await bus.api(f"CONSUMER.CREATE.{stream}.{name}", {"stream_name": stream, "config": config})
    pending: int = info["num_pending"]
    return pending


async def delete_consumer(bus: NatsBus, stream: str, name: str) -> None:
    """Remove a consumer; the server would do it itself after INACTIVE_THRESHOLD_S."""
    with contextlib.suppress(BusError):
        await bus.tell(f"$JS.API.CONSUMER.DELETE.{stream}.{name}", b"")


class Reader:
    """Calls `on_stored` for every message of `filters` from `first` on: each once, in order, for ever.

    A gap, a missed heartbeat or a reconnect ends the consumer's generation; the next begins after the last message
    that was handed on. Late messages of an older generation go to an inbox that nobody hears any more.
    """

    def __init__(
        self, bus: NatsBus, stream: str, filters: tuple[str, ...], first: int, on_stored: OnStored, newest: bool = False
    ) -> None:
        self._bus, self._stream, self._filters = bus, stream, filters
        self._next = first
        self._on_stored = on_stored
        self._newest = newest
        self.pending = 0
        self.generation = 0
        self._consumer = ""
        self._subscription: Any = None
        self._expected = 1
        self._heard_at = 0.0
        self._closed = False
        self._turn = asyncio.Lock()
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Create the first consumer; later ones are made by a task of the reader's own."""
        self._bus.connection.watch(self._on_down, self._on_up)
        try:
            await self._begin()
        except BaseException:
            await self.close()  # a consumer whose creation was not answered may exist, and would deliver
            raise
        self._task = asyncio.create_task(self._supervise(), name=f"reader-{self._stream}")

    def _on_down(self) -> None:
        self.generation += 1  # whatever still sits in the old queue is delivered again by the next consumer

    async def _on_up(self) -> None:
        self._wanted.set()

    async def _begin(self) -> None:
        self.generation += 1
        generation = self.generation
        old_name, old = self._consumer, self._subscription
        if old is not None:
            with contextlib.suppress(Exception):
                await old.unsubscribe()
            await delete_consumer(self._bus, self._stream, old_name)
        inbox = self._bus.connection.client.new_inbox()
        self._consumer = inbox.rpartition(".")[2]
        self._expected = 1
        self._heard_at = asyncio.get_running_loop().time()

        async def on_msg(msg: Msg) -> None:
            if generation == self.generation and not self._closed:
                await self._on_msg(msg)

        self._subscription = await self._bus.connection.subscribe(inbox, on_msg)
        pending = await create_consumer(
            self._bus, self._stream, self._consumer, self._filters, self._next, inbox, newest=self._newest
        )
        if self._expected == 1:  # else the first messages have overtaken the answer, and know better
            self.pending = pending

    async def _on_msg(self, msg: Msg) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        if not msg.reply.startswith("$JS.ACK."):
            await self._on_control(msg.reply, msg.headers or {})
            return
        # $JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>, with a domain and
        # an account in front in some set-ups: so counted from the end
        tokens = msg.reply.split(".")
        if len(tokens) >= 12:
            tokens = tokens[:-1]
        sequence, delivered, stored_ns, pending = (int(token) for token in tokens[-4:])
        if delivered != self._expected:
            self._doubt(f"expected message {self._expected} of this consumer, got {delivered}")
            return
        self._expected += 1
        self.pending = pending
        generation = self.generation
        async with self._turn:  # a handler of the generation before may still be waiting for room in the outbox
            if generation != self.generation:
                return
            self._next = sequence + 1
            try:
                await self._on_stored(Stored(msg.subject, sequence, msg.data, msg.headers or {}, pending, stored_ns))
            except Exception:
                log.exception("reader_callback_failed", subject=msg.subject, sequence=sequence)
            self._heard_at = asyncio.get_running_loop().time()

    async def _on_control(self, reply: str, headers: dict[str, str]) -> None:
        status = headers.get("Status")
        if status == "100":
            if reply:  # flow control, reached in the queue: so all before it has been handled
                await self._bus.tell(reply, b"")
            elif stalled := headers.get("Nats-Consumer-Stalled"):
                await self._bus.tell(stalled, b"")
            if int(headers.get("Nats-Last-Consumer", self._expected - 1)) >= self._expected:
                self._doubt("gap before a heartbeat")
        elif status:
            self._doubt(f"status {status}")

    def _doubt(self, why: str) -> None:
        log.debug("reader_restarts", stream=self._stream, why=why, next=self._next)
        self.generation += 1
        self._wanted.set()

    async def _supervise(self) -> None:
        while not self._closed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(IDLE_HEARTBEAT_S):
                    await self._wanted.wait()
            silent_s = asyncio.get_running_loop().time() - self._heard_at
            working = self._turn.locked()  # heartbeats wait in the queue behind the message that is being handled
            if not self._wanted.is_set() and (working or silent_s < 3 * IDLE_HEARTBEAT_S):
                continue
            if not self._bus.connection.client.is_connected:
                self._wanted.clear()  # the reconnect sets it again
                continue
            self._wanted.clear()
            try:
                await self._begin()
            except BusError as error:
                log.debug("reader_retries", stream=self._stream, error=str(error))
                self._wanted.set()
                await asyncio.sleep(0.1)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.generation += 1
        self._bus.connection.unwatch(self._on_down, self._on_up)
        if self._task is not None:
            await end_tasks([self._task])
        if self._subscription is not None:
            with contextlib.suppress(Exception):
                await self._subscription.unsubscribe()
            await delete_consumer(self._bus, self._stream, self._consumer)


async def collect(
    bus: NatsBus, stream: str, filters: tuple[str, ...], first: int, *, newest: bool = False
) -> list[Stored]:
    """Everything of `filters` from `first` to the end as it was when asked; `newest`: only each subject's last message.

    Raises:
        BusTimeout: the server fell silent.
        Refused: there is no such stream.
    """
    found: list[Stored] = []
    complete = asyncio.Event()

    async def on_stored(stored: Stored) -> None:
        found.append(stored)
        if stored.pending == 0:
            complete.set()

    reader = Reader(bus, stream, filters, first, on_stored, newest=newest)
    try:
        await reader.start()
    except Refused as error:
        if error.code == 10059:  # stream not found
            raise Refused(stream, error.code, "there is no such stream; `signalmesh up` makes it") from None
        raise
    try:
        while reader.pending or (found and found[-1].pending):
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
