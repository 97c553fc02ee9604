"""Reports of faults and slowness of an agent's handlers: the first in full, later ones as a count.

A handler that fails on every input would otherwise fill log and stream. What is skipped is reported by the lifecycle
events in any case, one for each: a recovery reads them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import structlog

from agents.runtime.output_validation import BadOutput
from bus.durable.events import EventPublisher

if TYPE_CHECKING:
    from agents.runtime.inputs import Fault

MAX_FULL_REPORTS = 3
"""So many faults of one sort are reported singly; later ones are counted and reported every PERIOD_S seconds."""
PERIOD_S = 10.0

log = structlog.get_logger("signalmesh.agent")


class _Rate:
    """Counts faults of one sort. A whole period without any resets it."""

    def __init__(self) -> None:
        self.reported = 0
        self.suppressed = 0

    def in_full(self) -> bool:
        if self.reported < MAX_FULL_REPORTS:
            self.reported += 1
            return True
        self.suppressed += 1
        return False

    def take_suppressed(self) -> int:
        """The number of faults not reported since the last call."""
        suppressed, self.suppressed = self.suppressed, 0
        if not suppressed:
            self.reported = 0
        return suppressed


class FaultReporter:
    """Reports faults and slowness of the handlers of `agent`, by log and by alerts."""

    def __init__(self, agent: str, reports: EventPublisher) -> None:
        self._agent, self._reports = agent, reports
        self._logged, self._alerted, self._slow = _Rate(), _Rate(), _Rate()
        self._last_fault: Fault | None = None
        self._last_slow = ""
        self._timer: asyncio.TimerHandle | None = None

    def failed(self, fault: Fault, error: BaseException, subject: str) -> None:
        """Log a fault where it happens, with its traceback, unless it lies in what the handler returned."""
        self._await_period()
        if self._logged.in_full():
            traceback = None if isinstance(error, BadOutput) else error
            log.error("handler_failed", subject=subject, sequence=fault.sequence, problem=fault.why, exc_info=traceback)

    def skipped(self, fault: Fault) -> None:
        """Alert people to a fault that cost an event."""
        self._await_period()
        self._last_fault = fault
        if not self._alerted.in_full():
            return
        if fault.sequence is None:
            self._alert(f"agent {self._agent} dropped an event of its own: {fault.why}; fix it", fault, None)
            return
        self._alert(
            f"agent {self._agent} skipped message {fault.sequence}: {fault.why}; "
            "fix the handler, the agent's log has details",
            fault,
            f"{self._agent}:skipped-alert:{fault.sequence}",
        )

    def _alert(self, message: str, fault: Fault, once: str | None) -> None:
        detail: dict[str, Any] = {} if fault.sequence is None else {"sequence": fault.sequence}
        self._reports.alert("critical", "handler_failed", message, agent=self._agent, once=once, **detail)

    def slow(self, handler: str, sequence: int, duration_s: float) -> None:
        """Warn of a handler that held up the heartbeats for `duration_s` seconds."""
        self._await_period()
        self._last_slow = f"{handler} took {duration_s * 1000:.0f} ms over message {sequence}"
        if self._slow.in_full():
            log.warning(
                "slow_handler",
                problem=f"{self._last_slow}; no heartbeat is sent meanwhile, and an agent without them for longer than "
                "the watchdog's timeout is killed: leave long work to a source, or make the handler "
                "`async def` and await",
            )

    def _await_period(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PERIOD_S, self._on_period)

    def _on_period(self) -> None:
        self._timer = None
        self.report_suppressed()
        if self._logged.reported or self._alerted.reported or self._slow.reported:
            self._await_period()

    def report_suppressed(self) -> None:
        """Report how many faults were suppressed."""
        if more := self._logged.take_suppressed():
            log.error("handler_failed_again", more=more, last=self._last_fault.why if self._last_fault else "")
        if (more := self._alerted.take_suppressed()) and self._last_fault is not None:
            fault = self._last_fault
            what = "events of its own dropped" if fault.sequence is None else f"skipped, message {fault.sequence} last"
            self._alert(f"agent {self._agent}: {more} more {what}: {fault.why}", fault, None)
        if more := self._slow.take_suppressed():
            log.warning("slow_handler", more=more, problem=self._last_slow)

    def close(self) -> None:
        """Report what was suppressed, and nothing after that."""
        self.report_suppressed()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
