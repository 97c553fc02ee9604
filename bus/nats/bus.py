"""The bus over NATS JetStream: publishing with acknowledgements, reading back, key-value, core messages.

bus/nats/jetstream.py sends requests to JetStream, bus/nats/consumer.py follows the stream, bus/nats/streams.py creates
the streams.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog
from nats.aio.msg import Msg

from bus.errors import BusError, BusTimeout, Disconnected, Refused, WrongSequence
from bus.interface import (
    Ack,
    Bounds,
    Closable,
    Done,
    Headers,
    KvEntry,
    OnMessage,
    OnReceived,
    OnRequest,
    OnStored,
    ReceivedMessage,
    StoredMessage,
)
from bus.messages import headers as h
from bus.messages.subjects import Subjects
from bus.nats.client import LazyHeaders, parse_headers
from bus.nats.connection import Connection
from bus.nats.consumer import Reader, collect
from bus.nats.credentials import Credentials
from bus.nats.jetstream import API_TIMEOUT_S, IN_PROCESS, NANOSECOND, NO_MESSAGE, JetStream
from bus.nats.urls import redacted_url

IN_PROCESS_RETRY_S = 0.02
BEHIND_RETRY_S = 0.05

log = structlog.get_logger("signalmesh.bus")


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer to a request that is refused: headers of the services API. An empty message after it ends a stream."""

    code: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceEndpoint:
    """A subject of a service. Services whose endpoints have the same subject and `queue` share its requests."""

    name: str
    subject: str
    on_request: Callable[[ReceivedMessage], Awaitable[bytes | Refusal]]
    queue: str = "q"
    metadata: dict[str, str] | None = None

    async def handle(self, request: Any) -> None:
        """Answer a request as nats.micro passes it on."""
        answer = await self.on_request(ReceivedMessage(request.subject, request.data, request.headers or {}, ""))
        if isinstance(answer, Refusal):
            await request.respond_error(answer.code, answer.text)
            await request.respond()
        else:
            await request.respond(answer)


class NatsBus:
    """A `bus.interface.Bus` over one NATS connection. Create it with `await NatsBus.connect(...)`."""

    def __init__(self, subjects: Subjects, connection: Connection) -> None:
        self.subjects = subjects
        self.connection = connection
        self.jetstream = JetStream(connection)
        self._replicas: int | None = None

    @classmethod
    async def connect(
        cls, url: str, swarm: str, name: str, wait_s: float | None = 5.0, credentials: Credentials | None = None
    ) -> NatsBus:
        """Connect to the server at `url`; `wait_s` None waits without limit, `credentials` None are the environment's.

        Raises:
            BusUnreachable: no server answers there.
            UsageError: the URL or the swarm's name is malformed.
        """
        subjects = Subjects(swarm)
        connection = Connection(url, name, credentials)
        await connection.open(wait_s)
        bus = cls(subjects, connection)
        await bus.jetstream.open()
        return bus

    @property
    def is_ready(self) -> bool:
        return self.connection.is_ready

    async def wait_connected(self) -> None:
        await self.connection.wait_connected()

    @property
    def url(self) -> str:
        return redacted_url(self.connection.url)

    def watch_connection(self, down: Any, up: Any) -> None:
        self.connection.watch(down, up)

    # -- publishing

    def send(self, subject: str, data: bytes, headers: Headers, done: Done) -> None:
        self.jetstream.send(subject, data, headers, done)

    async def pipelines(self) -> bool:
        if self._replicas is None:
            self._replicas = (await self.api(f"STREAM.INFO.{self.subjects.stream}"))["config"]["num_replicas"]
        return self._replicas == 1

    async def publish(self, subject: str, data: bytes, headers: Headers | None = None, timeout_s: float = 5.0) -> Ack:
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            try:
                return await self._publish(subject, data, headers, timeout_s)
            except Refused as error:
                if error.code != IN_PROCESS or asyncio.get_running_loop().time() > deadline:
                    raise
            await asyncio.sleep(IN_PROCESS_RETRY_S)

    async def _publish(self, subject: str, data: bytes, headers: Headers | None, timeout_s: float) -> Ack:
        answer: asyncio.Future[Ack] = asyncio.get_running_loop().create_future()

        def done(result: Ack | BusError) -> None:
            if answer.done():
                return
            if isinstance(result, Ack):
                answer.set_result(result)
            else:
                answer.set_exception(result)

        token = self.jetstream.send(subject, data, headers or {}, done)
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            raise BusTimeout(f"{subject}: no acknowledgement within {timeout_s} s") from None
        finally:
            self.jetstream.forget(token)

    # -- the stream

    async def api(self, command: str, body: object = None, timeout_s: float = API_TIMEOUT_S) -> dict[str, Any]:
        """One request to JetStream's API; see `JetStream.api`."""
        return await self.jetstream.api(command, body, timeout_s)

    async def last(self, subject: str) -> StoredMessage | None:
        return await self._newest(self.subjects.stream, subject)

    async def first_from(self, subject: str, sequence: int) -> StoredMessage | None:
        """The first message of a read-side subject (which may have wildcards) from `sequence` on."""
        return await self._get(self.subjects.stream, {"seq": sequence, "next_by_subj": subject})

    async def message(self, sequence: int) -> StoredMessage | None:
        return await self._get(self.subjects.stream, {"seq": sequence})

    async def _newest(self, stream: str, subject: str) -> StoredMessage | None:
        """The newest message, from the stream's leader: a direct get may be answered by a replica that lags behind."""
        return await self._get(stream, {"last_by_subj": subject})

    async def _get(self, stream: str, which: dict[str, Any]) -> StoredMessage | None:
        try:
            found = (await self.api(f"STREAM.MSG.GET.{stream}", which))["message"]
        except Refused as error:
            if error.code == NO_MESSAGE:
                return None
            raise
        headers = parse_headers(base64.b64decode(found.get("hdrs", "")))
        headers[h.STORED_AT] = found["time"]
        data = base64.b64decode(found.get("data", ""))
        return StoredMessage(found["subject"], found["seq"], data, headers, stored_ns=_nanoseconds(found["time"]))

    async def read_back(self, filters: tuple[str, ...], first: int) -> list[StoredMessage]:
        if await self.pipelines():
            return await collect(self.jetstream, self.subjects.stream, filters, first)
        while True:
            # A consumer on a replica that lags behind would end too early: only the leader has the newest message.
            newest = [one.sequence for one in [await self.last(each) for each in filters] if one is not None]
            found = await collect(self.jetstream, self.subjects.stream, filters, first)
            reached = found[-1].sequence if found else first - 1
            if reached >= max(newest, default=0):
                return found
            await asyncio.sleep(BEHIND_RETRY_S)

    async def read_range(
        self, filters: tuple[str, ...], first: int, last: int, limit: int | None = None
    ) -> list[StoredMessage]:
        """The messages of `filters` with a sequence from `first` to `last`, the first `limit` of them."""
        return await collect(self.jetstream, self.subjects.stream, filters, first, last=last, limit=limit)

    async def follow(self, filters: tuple[str, ...], first: int, on_stored: OnStored) -> Closable:
        reader = Reader(self.jetstream, self.subjects.stream, filters, first, on_stored)
        await reader.start()
        return reader

    async def bounds(self) -> Bounds:
        info = await self.api(f"STREAM.INFO.{self.subjects.stream}")
        self._replicas, state = info["config"]["num_replicas"], info["state"]
        return Bounds(max(1, state["first_seq"]), state["last_seq"])  # a stream that was always empty reports 0, 0

    async def subject_counts(self, filter_subject: str) -> dict[str, int]:
        """How many messages the stream holds of each subject that matches `filter_subject`."""
        body = {"subjects_filter": filter_subject}
        state = (await self.api(f"STREAM.INFO.{self.subjects.stream}", body))["state"]
        return dict(state.get("subjects") or {})

    # -- key-value

    async def kv_get(self, bucket: str, key: str) -> KvEntry | None:
        stored = await self._newest(f"KV_{bucket}", f"$KV.{bucket}.{key}")
        if stored is None or h.KV_OPERATION in stored.headers:
            return None
        return KvEntry(stored.data, stored.sequence)

    async def kv_put(self, bucket: str, key: str, value: bytes, expect: int) -> int:
        subject = f"$KV.{bucket}.{key}"
        try:
            return (await self.publish(subject, value, {h.EXPECTED_LAST_SUBJECT_SEQUENCE: str(expect)})).sequence
        except WrongSequence:
            deleted = None if expect else await self._newest(f"KV_{bucket}", subject)
            if deleted is None or h.KV_OPERATION not in deleted.headers:
                raise
        # What the stream holds of a deleted key is the message that deletes it.
        return (await self.publish(subject, value, {h.EXPECTED_LAST_SUBJECT_SEQUENCE: str(deleted.sequence)})).sequence

    async def kv_delete(self, bucket: str, key: str) -> None:
        while (found := await self.kv_get(bucket, key)) is not None:
            headers = {h.KV_OPERATION: "DEL", h.EXPECTED_LAST_SUBJECT_SEQUENCE: str(found.revision)}
            with contextlib.suppress(WrongSequence):  # it was written again
                await self.publish(f"$KV.{bucket}.{key}", b"", headers)

    async def kv_all(self, bucket: str) -> dict[str, KvEntry]:
        prefix = f"$KV.{bucket}."
        found = await collect(self.jetstream, f"KV_{bucket}", (prefix + ">",), 1, newest=True)
        return {
            stored.subject[len(prefix) :]: KvEntry(stored.data, stored.sequence)
            for stored in found
            if h.KV_OPERATION not in stored.headers
        }

    # -- core messages

    async def notify(self, subject: str, data: bytes) -> None:
        self.connection.write(subject, data)

    async def listen(self, subject: str, on_message: OnMessage) -> Closable:
        async def on_msg(msg: Msg) -> None:
            try:
                reply = msg.reply if self.connection.may_answer(msg.reply) else ""
                await on_message(ReceivedMessage(msg.subject, msg.data, msg.headers or {}, reply))
            except Exception:
                log.exception("listener_failed", subject=msg.subject)

        return _Subscription(await self.connection.subscribe(subject, on_msg))

    async def listen_directly(self, subject: str, on_received: OnReceived) -> Closable:
        def on_direct(actual: str, reply: str, data: bytes, headers: bytes) -> None:
            try:
                on_received(ReceivedMessage(actual, data, LazyHeaders(headers), reply))
            except Exception:  # an exception here would end the connection
                log.exception("listener_failed", subject=actual)

        return _Subscription(await self.connection.subscribe_directly(subject, on_direct))

    async def flush(self) -> None:
        await self.connection.flush()

    async def answer(self, subject: str, on_request: OnRequest) -> Closable:
        async def on_message(received: ReceivedMessage) -> None:
            data = await on_request(received)
            if received.reply:
                with contextlib.suppress(Disconnected):
                    await self.notify(received.reply, data)

        return await self.listen(subject, on_message)

    async def request(self, subject: str, data: bytes, timeout_s: float = 2.0) -> bytes:
        return await self.jetstream.request(subject, data, timeout_s, self.subjects.controlled(subject))

    async def serve(
        self,
        *,
        name: str,
        version: str,
        description: str,
        metadata: dict[str, str],
        endpoints: Iterable[ServiceEndpoint],
    ) -> str:
        """Register a service with NATS service discovery; returns the id of this instance."""
        from nats import micro

        service = await micro.add_service(
            self.connection.client, name=name, version=version, description=description, metadata=metadata
        )
        for endpoint in endpoints:
            await service.add_endpoint(
                name=endpoint.name,
                subject=endpoint.subject,
                queue_group=endpoint.queue,
                metadata=endpoint.metadata,
                handler=endpoint.handle,
            )
        return service.id

    async def close(self) -> None:
        await self.connection.close()


def _nanoseconds(time: str) -> int:
    """Since 1970, of the server's `2026-11-30T02:00:00.123456789Z`."""
    whole, _, fraction = time.removesuffix("Z").partition(".")
    return int(datetime.fromisoformat(whole + "Z").timestamp()) * NANOSECOND + int(fraction[:9].ljust(9, "0"))


class _Subscription:
    def __init__(self, subscription: Any) -> None:
        self._subscription = subscription

    async def close(self) -> None:
        with contextlib.suppress(Exception):
            await self._subscription.unsubscribe()
