"""A bounded queue of finished spans, and a thread that exports them. It never blocks its caller.

Spans are dropped if a collector is down, slow or refuses them; they are counted and logged.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import structlog

from bus.observability.otel_env import Settings
from bus.observability.spans import Span

CLOSE_S = 1.0
"""How long an ending process waits for the export of the remaining spans."""
LOG_INTERVAL_S = 60.0
"""Shortest interval between two log lines about dropped spans."""

log = structlog.get_logger("signalmesh.tracing")


class Export(Protocol):
    """Sends spans, from one thread."""

    @property
    def reason(self) -> str:
        """Why the newest spans were lost; empty if unknown."""

    def send(self, spans: list[Span]) -> bool:
        """Export them and wait for the answer; False if they are lost."""

    def shutdown(self) -> None:
        """Interrupt a running export; called from another thread."""


class SpanQueue:
    """Takes spans from the event loop's thread and exports them in its own thread, which starts with the first span."""

    def __init__(
        self,
        settings: Settings,
        resource: Callable[[], dict[str, Any]],
        make_export: Callable[[Settings, dict[str, Any]], Export],
    ) -> None:
        self._settings, self._resource, self._make_export = settings, resource, make_export
        self._queue: deque[Span] = deque()
        self._pending = threading.Event()
        self._urgent = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._export: Export | None = None
        self._overflowed = 0
        self._lost = 0
        self._logged = 0
        self._logged_at = -LOG_INTERVAL_S
        self.exported = 0

    @property
    def dropped(self) -> int:
        """Spans dropped so far: the queue was full, or the collector did not accept them."""
        return self._overflowed + self._lost

    def put(self, span: Span) -> None:
        """Take a span; drop it if the queue is full."""
        if self._stopping or len(self._queue) >= self._settings.queue_spans:
            span.resolved = True
            self._overflowed += 1
            self._log_dropped("the queue is full" if not self._stopping else "this process is ending")
            return
        self._queue.append(span)
        self._idle.clear()  # after the append: the thread may just have found the queue empty
        if self._thread is None:
            context = contextvars.copy_context()  # for the context of its log lines
            self._thread = threading.Thread(target=context.run, args=(self._run,), name="spans", daemon=True)
            self._thread.start()
        if not self._pending.is_set():
            self._pending.set()
        elif len(self._queue) >= self._settings.batch_spans and not self._urgent.is_set():
            self._urgent.set()

    def _run(self) -> None:
        try:
            self._export = self._make_export(self._settings, self._resource())
        except Exception as error:  # noqa: BLE001 - no error may cost more than the spans
            log.error("tracing_failed", problem=f"{type(error).__name__}: {error}", lost="all spans of this process")  # noqa: TRY400
        while True:
            self._pending.wait()
            if not self._stopping:
                self._urgent.wait(self._settings.delay_s)
            self._urgent.clear()
            self._pending.clear()  # before the queue is emptied: a later span sets it again
            while self._queue:
                count = min(len(self._queue), self._settings.batch_spans)
                self._send([self._queue.popleft() for _ in range(count)])
            if not self._pending.is_set():
                self._idle.set()
            if self._stopping:
                return

    def _send(self, spans: list[Span]) -> None:
        done, reason = False, "there is no exporter"
        try:
            if self._export is not None:
                done = self._export.send(spans)
                reason = self._export.reason or "the collector did not accept them"
        except Exception as error:  # noqa: BLE001 - as above
            reason = f"{type(error).__name__}: {error}"
        for span in spans:
            span.resolved = True
        if done:
            self.exported += len(spans)
        else:
            self._lost += len(spans)
            self._log_dropped(reason)

    def _log_dropped(self, reason: str) -> None:
        at = time.monotonic()
        if at - self._logged_at >= LOG_INTERVAL_S:
            more, self._logged, self._logged_at = self.dropped - self._logged, self.dropped, at
            log.warning("spans_dropped", dropped=more, total=self.dropped, reason=reason)

    def flush_soon(self) -> None:
        """Export the queued spans without waiting for more."""
        self._urgent.set()

    def flush(self, timeout_s: float = CLOSE_S) -> bool:
        """Block until all spans taken so far are exported or lost; False after a timeout. Not for the event loop."""
        if not self._idle.is_set():
            self.flush_soon()
        return self._idle.wait(timeout_s)

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Export the rest for at most `timeout_s` seconds, then drop it."""
        self._stopping = True
        if self._thread is None:
            return
        self._pending.set()
        self._urgent.set()
        self._thread.join(timeout_s)
        left = len(self._queue)
        if self._thread.is_alive():
            if self._export is not None:
                self._export.shutdown()
            self._overflowed += left
        if self.dropped > self._logged:
            log.warning(
                "spans_dropped", dropped=self.dropped - self._logged, total=self.dropped, reason="the process ended"
            )
