"""Posts alerts to a webhook: each as JSON, in the stream's order, until the receiver has accepted it.

A durable consumer keeps the position: a message is acknowledged when the receiver has answered with 2xx, so a restart
neither loses nor repeats an alert. One exception: a process that is killed between the answer and the acknowledgement
posts the alert again after its restart, with the same `id` (also sent as `Idempotency-Key`).

The URL is a secret: it must not get into a log, an argument or an error message.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, NoReturn

import httpx
import orjson
import stamina
import stamina.instrumentation
import structlog
from nats.aio.msg import Msg

from bus import __version__
from bus.durable.events import EventPublisher
from bus.errors import BusError, BusTimeout, MessageError, Refused
from bus.messages import Alert, Severity, decode
from bus.messages.headers import MSG_ID
from bus.nats.bus import NatsBus
from bus.utils.aio import end_tasks
from bus.utils.proxies import proxy_note
from coordinator.telemetry.stream_metrics import StreamMetrics

CONSUMER = "webhook"
"""The durable consumer that remembers which alerts have been posted."""
ACK_WAIT_S = 5.0
"""Without an answer for this time the server delivers the alert again."""
PULL_S = 5.0
POST_S = 10.0
"""Longest time that the receiver may take to answer."""
FIRST_WAIT_S, LAST_WAIT_S = 0.5, 30.0
"""Between two attempts to post an alert."""
MAX_ATTEMPTS = 12
"""Attempts before the wait starts again at its shortest."""
NO_CONSUMER = 10014
FAILING: tuple[Severity, str] = ("warning", "webhook_failing")
RECOVERED: tuple[Severity, str] = ("info", "webhook_recovered")
FINAL = frozenset({400, 413, 415, 422})
"""Answers that refuse this one alert: it would be refused forever and block all others."""

log = structlog.get_logger("signalmesh.metrics")


class _NotAccepted(Exception):
    """The receiver has not accepted the alert. The text must not contain the URL."""


class Webhook:
    """Posts the alerts of one swarm to `url`. `notices` publishes when the receiver fails and recovers."""

    def __init__(self, bus: NatsBus, url: str, metrics: StreamMetrics, notices: EventPublisher) -> None:
        self._bus, self._url, self._metrics, self._notices = bus, url, metrics, notices
        self._stream = bus.subjects.stream
        self._inbox = bus.connection.client.new_inbox()
        self._pulled: asyncio.Queue[Msg] = asyncio.Queue()  # at most one alert: max_ack_pending
        self._done = 0
        self._turn = asyncio.Lock()
        """Held from the sending of an alert until its answer is acknowledged."""
        self._unhealthy: bool | None = None
        """Whether a failure of the receiver was published; None: the alerts of the predecessor are not read yet."""
        stamina.instrumentation.set_on_retry_hooks([])  # they would log each attempt

    async def run(self) -> None:
        """Post until cancelled."""
        timeout = httpx.Timeout(POST_S)
        headers = {"User-Agent": f"signalmesh/{__version__}", "Content-Type": "application/json"}
        async with httpx.AsyncClient(timeout=timeout, headers=headers) as client:
            await self._bus.connection.subscribe(self._inbox, self._pulled.put)
            while True:
                try:
                    await self._bus.wait_connected()
                    await self._ensure_consumer()
                    if self._unhealthy is None:
                        self._unhealthy = await self._was_unhealthy()
                    while True:
                        if (msg := await self._next()) is not None:
                            await self._handle(client, msg)
                except BusError as error:
                    log.debug("webhook_paused", problem=str(error))
                    await asyncio.sleep(0.5)

    async def finish(self) -> None:
        """Return when no alert is being posted; after that `run` may be cancelled, and no alert is repeated."""
        await self._turn.acquire()

    async def waiting(self) -> int:
        """How many alerts have not been posted yet.

        Raises:
            BusError: the bus does not answer, or nothing was ever posted.
        """
        info = await self._bus.api(f"CONSUMER.INFO.{self._stream}.{CONSUMER}")
        return int(info["num_pending"]) + int(info["num_ack_pending"])

    async def _was_unhealthy(self) -> bool:
        """Whether the predecessor published a failure of the receiver and no recovery.

        Raises:
            BusError: the bus does not answer.
        """
        failing, recovered = [await self._newest_of(*alert) for alert in (FAILING, RECOVERED)]
        return failing > recovered

    async def _newest_of(self, severity: Severity, code: str) -> int:
        """Sequence of the newest alert of ours with this severity, if it has this code; 0 for none."""
        subjects = self._bus.subjects
        stored = await self._bus.last(subjects.alert(severity, self._notices.writer))
        if stored is None:
            return 0
        try:
            alert = stored.decode(subjects)
        except MessageError:
            return 0
        return stored.sequence if isinstance(alert, Alert) and alert.code == code else 0

    async def _ensure_consumer(self) -> None:
        """Create the consumer if there is none: it starts at the end of the stream, or after the last posted alert."""
        try:
            await self._bus.api(f"CONSUMER.INFO.{self._stream}.{CONSUMER}")
            return
        except Refused as error:
            if error.code != NO_CONSUMER:
                raise
        start: dict[str, Any] = {"deliver_policy": "new"}
        if self._done:
            start = {"deliver_policy": "by_start_sequence", "opt_start_seq": self._done + 1}
        config = {
            **start,
            "durable_name": CONSUMER,
            "name": CONSUMER,
            "filter_subject": self._bus.subjects.all_of("alert"),
            "ack_policy": "explicit",
            "ack_wait": int(ACK_WAIT_S * 1e9),
            "max_ack_pending": 1,
            "max_deliver": -1,
        }
        await self._bus.api(
            f"CONSUMER.CREATE.{self._stream}.{CONSUMER}", {"stream_name": self._stream, "config": config}
        )

    async def _next(self) -> Msg | None:
        """The next alert; None when there was none for PULL_S.

        Raises:
            BusError: the bus does not answer, or the consumer is gone.
        """
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{CONSUMER}"
        if self._pulled.empty():
            request = orjson.dumps({"batch": 1, "expires": int(PULL_S * 1e9)})
            self._bus.connection.write(subject, request, self._inbox, None)
        try:
            async with asyncio.timeout(PULL_S + 2):
                msg = await self._pulled.get()
        except TimeoutError:
            raise BusTimeout(f"{subject}: no answer") from None
        headers = msg.headers or {}
        status = headers.get("Status")
        if status is None:
            return msg
        if status in ("404", "408"):
            return None
        raise Refused(subject, int(status), headers.get("Description", ""))

    async def _handle(self, client: httpx.AsyncClient, msg: Msg) -> None:
        sequence = msg.metadata.sequence.stream
        if sequence <= self._done:  # only its acknowledgement was lost
            await self._done_with(msg, sequence)
            return
        extending = asyncio.create_task(self._extend_ack(msg.reply), name="webhook-ack")
        try:
            await self._deliver(client, msg, sequence)
        except asyncio.CancelledError:
            with contextlib.suppress(BusError):
                await self._bus.notify(msg.reply, b"-NAK")  # else the next process has to wait for ACK_WAIT_S
            raise
        finally:
            await end_tasks([extending])

    async def _done_with(self, msg: Msg, sequence: int) -> None:
        self._done = sequence
        await self._bus.request(msg.reply, b"+ACK")

    async def _extend_ack(self, reply: str) -> None:
        """Extend the acknowledgement deadline, or the server would deliver the alert again."""
        while True:
            await asyncio.sleep(ACK_WAIT_S / 3)
            with contextlib.suppress(BusError):
                await self._bus.notify(reply, b"+WPI")

    async def _deliver(self, client: httpx.AsyncClient, msg: Msg, sequence: int) -> None:
        subjects = self._bus.subjects
        try:
            alert = decode(subjects.parse(msg.subject), msg.subject, msg.data)
        except MessageError:
            self._metrics.webhook.labels("unreadable").inc()
            await self._done_with(msg, sequence)
            return
        assert isinstance(alert, Alert)
        key = (msg.headers or {}).get(MSG_ID) or f"{subjects.ns}:{sequence}"
        body = orjson.dumps(
            {
                "id": key,
                "swarm": subjects.ns,
                "sequence": sequence,
                "text": f"[{alert.severity}] {subjects.ns}: {alert.message}",
                **{name: getattr(alert, name) for name in Alert.__slots__},
            },
            option=orjson.OPT_UTC_Z,
        )
        while self._done < sequence:
            with contextlib.suppress(_NotAccepted):  # after MAX_ATTEMPTS
                async for attempt in stamina.retry_context(
                    on=_NotAccepted,
                    attempts=MAX_ATTEMPTS,
                    timeout=None,
                    wait_initial=FIRST_WAIT_S,
                    wait_max=LAST_WAIT_S,
                ):
                    with attempt:
                        async with self._turn:
                            await self._post(client, body, key)
                            await self._done_with(msg, sequence)

    async def _post(self, client: httpx.AsyncClient, body: bytes, key: str) -> None:
        # A header cannot hold everything that an id can.
        headers = {"Idempotency-Key": key} if key.isascii() and key.isprintable() else {}
        try:
            async with (
                asyncio.timeout(POST_S),  # the client's own restarts with every byte
                client.stream("POST", self._url, content=body, headers=headers) as answer,
            ):
                status = answer.status_code
        except (httpx.HTTPError, TimeoutError, OSError) as error:
            self._failed(f"it could not be reached ({type(error).__name__})")
        if 200 <= status < 300:
            self._metrics.webhook.labels("delivered").inc()
            if self._unhealthy:
                self._unhealthy = False
                log.info("webhook_recovered")
                self._notices.alert(
                    *RECOVERED,
                    "the webhook accepts alerts again: the waiting ones are posted, except any that it refuses",
                )
        elif status in FINAL:
            self._metrics.webhook.labels("refused").inc()
            log.warning("webhook_refused", status=status, id=key)
        else:
            self._failed(f"it answered with {status}")

    def _failed(self, problem: str) -> NoReturn:
        """Count a failure, and publish the first one of a row.

        Raises:
            _NotAccepted: always.
        """
        self._metrics.webhook.labels("failed").inc()
        if not self._unhealthy:
            self._unhealthy = True
            through = proxy_note(self._url)
            text = f"the webhook does not accept alerts: {problem}{through}; they stay in the stream and are retried"
            self._notices.alert(*FAILING, text)
        raise _NotAccepted(problem)
