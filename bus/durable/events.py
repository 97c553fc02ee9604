"""Lifecycle events, alerts and settings of one writer: stored in order, each once, across disconnects."""

from __future__ import annotations

import contextlib
import secrets
from typing import Any, Self

import structlog

from bus.durable.outbox import Entry, Outbox, can_pipeline
from bus.errors import Fenced, MeshError, MessageError
from bus.interface import Bus, Headers, StoredMessage
from bus.messages import Alert, Lifecycle, LifecycleEvent, Severity, VotingConfig, encode, now
from bus.messages import headers as h
from bus.utils.error_text import shorten

ID_BYTES = 8
MAX_TEXT = 4000
"""Characters of the longest text of a report."""

log = structlog.get_logger("signalmesh.bus")


class EventPublisher:
    """Publishes as `writer`, through an outbox; `fence` are headers that every message carries.

    Leaving `async with` finishes it.
    """

    def __init__(self, bus: Bus, outbox: Outbox, writer: str, fence: Headers | None = None) -> None:
        self._subjects = bus.subjects
        self._outbox = outbox
        self.writer = writer
        """The name that the subjects contain."""
        self._fence = dict(fence or {})
        self._squatters: set[str] = set()
        outbox.on_squatted = self._report_squatted

    @classmethod
    async def open(cls, bus: Bus, writer: str) -> EventPublisher:
        """Make a publisher for a process that is not fenced, with an outbox of its own."""
        written_by = (f"{bus.subjects.ns}.*.*.{writer}",)
        outbox = Outbox(bus, written_by, _ignore_fencing, pipelined=await can_pipeline(bus))
        return cls(bus, outbox, writer)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.finish()

    def check(self) -> None:
        """Resend overdue messages. Call it about twice a second."""
        self._outbox.check()

    async def flush(self) -> None:
        """Wait until everything published before this call is stored.

        Raises:
            Fenced: the outbox was closed before that.
        """
        await self._outbox.flush()

    async def finish(self) -> None:
        """Flush for at most a second, then publish nothing more."""
        await self._outbox.finish()

    def lifecycle(
        self,
        event: LifecycleEvent,
        agent: str,
        *,
        epoch: int | None = None,
        sandbox: str | None = None,
        pid: int | None = None,
        reason: str | None = None,
        traceparent: str = "",
        **detail: Any,
    ) -> None:
        """Publish an event of `agent`; `traceparent` is the trace of its handling."""
        message = Lifecycle(
            event=event,
            agent=agent,
            timestamp=now(),
            source=self.writer,
            epoch=epoch,
            sandbox=sandbox,
            pid=pid,
            reason=None if reason is None else shorten(reason, MAX_TEXT),
            detail=_bounded(detail),
        )
        write = log.debug if event == "skipped" else log.info  # an agent may skip every message that it reads
        write(event, of=agent, epoch=epoch, sandbox=sandbox, pid=pid, reason=reason, **detail)
        headers = {h.TRACEPARENT: traceparent} if traceparent else None
        self._put(self._subjects.lifecycle(agent, self.writer), encode(message), None, headers)

    def alert(
        self,
        severity: Severity,
        code: str,
        message: str,
        *,
        agent: str | None = None,
        once: str | None = None,
        about: str | None = None,
        **detail: Any,
    ) -> None:
        """Publish an alert and log it; the stream stores alerts of the same `once` a single time.

        `about` is the writer that an alert with `once` counts messages of, as its `detail` says: one of another process
        stands for it, if that writer has not published it itself.
        """
        alert = Alert(
            severity=severity,
            code=code,
            message=shorten(message, MAX_TEXT),
            timestamp=now(),
            source=self.writer,
            agent=agent,
            detail=_bounded(detail),
        )
        log.warning(code, message=message, severity=severity, of=agent)
        same = alert if once else None
        self._put(self._subjects.alert(severity, self.writer), encode(alert), once, same=same, about=about)

    def config(self, config: VotingConfig) -> None:
        """Publish the active settings, without a maximum age."""
        self._put(self._subjects.config(self.writer), encode(config), None, {h.TTL: "never"})

    def _report_squatted(self, entry: Entry, sequence: int, stored: StoredMessage | None) -> None:
        """Alert once for each squatter: the outbox has used ids that cannot be guessed from the first one on."""
        squatter, own = "an unknown writer" if stored is None else stored.subject.rpartition(".")[2], self.writer
        if squatter in self._squatters:
            return
        self._squatters.add(squatter)
        self.alert(
            "critical",
            "message_id_squatted",
            f"{squatter} has published message {sequence} with an id of {own}, so that the stream took a message of "
            f"{own} under {entry.subject} for a duplicate; it was published again. Find out what runs as {squatter}",
            agent=squatter if stored is not None else None,
            squatter=squatter,
            sequence=sequence,
            subject="" if stored is None else stored.subject,
        )

    def _put(
        self,
        subject: str,
        data: bytes,
        msg_id: str | None,
        headers: Headers | None = None,
        same: Alert | None = None,
        about: str | None = None,
    ) -> None:
        """`same` is the alert that may stand for this one if another writer has stored it under `msg_id`; `about`: so
        may another one about this writer that it has not published itself.
        """
        msg_id = msg_id or f"{self.writer}:{secrets.token_hex(ID_BYTES)}"  # cannot be guessed from those before

        def accepts(stored: StoredMessage) -> bool:
            with contextlib.suppress(MessageError):
                found = stored.decode(self._subjects)
                if same is None or not isinstance(found, Alert) or found.code != same.code:
                    return False
                by_another = about is not None and stored.subject.rpartition(".")[2] != about
                return found.message == same.message or (by_another and found.detail.get("writer") == about)
            return False

        accepted = None if same is None else accepts
        try:
            self._outbox.put(
                Entry(subject, data, {h.MSG_ID: msg_id, **self._fence, **(headers or {})}, accepts=accepted)
            )
        except Fenced:
            log.debug("report_dropped", subject=subject)
            return
        self._outbox.push()


def _bounded(value: Any) -> Any:
    """`value` with its texts shortened: a report that no server takes would hold up all that come after it."""
    if isinstance(value, str):
        return shorten(value, MAX_TEXT)
    if isinstance(value, dict):
        return {_bounded(key): _bounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_bounded(item) for item in value]
    return value


def _ignore_fencing(_: MeshError) -> None:
    """No epoch is claimed for this writer, so no successor fences it."""
