"""Lifecycle events and alerts of one writer, through an outbox: kept in order over a disconnect, each stored once."""

from __future__ import annotations

import secrets
from typing import Any

import structlog

from bus.durable.outbox import Entry, Outbox
from bus.errors import Fenced
from bus.interface import Bus, Headers
from bus.messages import Alert, Config, Lifecycle, LifecycleEvent, Severity, encode, now
from bus.messages import headers as h

log = structlog.get_logger("signalmesh.bus")


class EventPublisher:
    """Reports as `writer`; `fence` are headers that every report carries."""

    def __init__(self, bus: Bus, outbox: Outbox, writer: str, fence: Headers | None = None) -> None:
        self._subjects = bus.subjects
        self._outbox = outbox
        self.writer = writer
        """Whose name stands in the subjects."""
        self._fence = dict(fence or {})
        self._boot = secrets.token_hex(4)
        self._count = 0

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
        """Tell what happened to `agent`; `traceparent` is the trace of what is done about it."""
        message = Lifecycle(
            event=event,
            agent=agent,
            timestamp=now(),
            source=self.writer,
            epoch=epoch,
            sandbox=sandbox,
            pid=pid,
            reason=reason,
            detail=detail,
        )
        tell = log.debug if event == "skipped" else log.info  # the alerts about these are bounded, they are not
        tell(event, of=agent, epoch=epoch, sandbox=sandbox, pid=pid, reason=reason, **detail)
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
        **detail: Any,
    ) -> None:
        """Tell people; `once` is an id by which the stream recognises a repetition of the same alert."""
        alert = Alert(
            severity=severity,
            code=code,
            message=message,
            timestamp=now(),
            source=self.writer,
            agent=agent,
            detail=detail,
        )
        log.warning(code, message=message, severity=severity, of=agent)
        self._put(self._subjects.alert(severity, self.writer), encode(alert), once)

    def config(self, config: Config) -> None:
        """Put a Config in force; it outlives the stream's maximal age."""
        self._put(self._subjects.config(self.writer), encode(config), None, {h.TTL: "never"})

    def _put(self, subject: str, data: bytes, msg_id: str | None, headers: Headers | None = None) -> None:
        self._count += 1
        msg_id = msg_id or f"{self.writer}:{self._boot}:{self._count}"
        try:
            self._outbox.put(Entry(subject, data, {h.MSG_ID: msg_id, **self._fence, **(headers or {})}))
        except Fenced:
            log.debug("report_dropped", subject=subject)
            return
        self._outbox.push()
