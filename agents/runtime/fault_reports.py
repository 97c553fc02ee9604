"""What an incarnation tells people about its own handlers: the first faults in full, then how many more there were.

A handler that fails on every input would otherwise fill log and stream. What is skipped is told by the lifecycle
events in any case, one for each: a recovery reads them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from agents.runtime.output_validation import BadOutput
from bus.durable.events import EventPublisher

if TYPE_CHECKING:
    from agents.runtime.inputs import Fault

IN_FULL = 3
"""So many complaints of one sort are told one by one; those after them are summed up every PERIOD_S seconds."""
PERIOD_S = 10.0

log = structlog.get_logger("signalmesh.agent")


class _Rate:
    """Counts complaints of one sort. A whole period without any makes it forget."""

    def __init__(self) -> None:
        self.told = 0
        self.untold = 0

    def in_full(self) -> bool:
        if self.told < IN_FULL:
            self.told += 1
            return True
        self.untold += 1
        return False

    def sum_up(self) -> int:
        """How many were not told since last time."""
        untold, self.untold = self.untold, 0
        if not untold:
            self.told = 0
        return untold


class Complaints:
    """Tells of faults and slowness of the handlers of `agent`, by log and by alerts."""

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
            self._alert(f"agent {self._agent} dropped an event of its own: {fault.why}; mend it", fault, None)
            return
        self._alert(
            f"agent {self._agent} skipped message {fault.sequence}: {fault.why}; mend the handler, its log says more",
            fault,
            f"{self._agent}:skipped-alert:{fault.sequence}",
        )

    def _alert(self, message: str, fault: Fault, once: str | None) -> None:
        detail = {} if fault.sequence is None else {"sequence": fault.sequence}
        self._reports.alert("critical", "handler_failed", message, agent=self._agent, once=once, **detail)

    def slow(self, handler: str, sequence: int, duration_s: float) -> None:
        """Warn of a handler that held up the heartbeats for `duration_s` seconds."""
        self._await_period()
        self._last_slow = f"{handler} took {duration_s * 1000:.0f} ms over message {sequence}"
        if self._slow.in_full():
            log.warning(
                "slow_handler",
                problem=f"{self._last_slow}; meanwhile no heartbeat is sent, and one that takes longer than the "
                "watchdog's patience is killed: leave long work to a source, or make the handler `async def` and await",
            )

    def _await_period(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PERIOD_S, self._on_period)

    def _on_period(self) -> None:
        self._timer = None
        self.sum_up()
        if self._logged.told or self._alerted.told or self._slow.told:
            self._await_period()

    def sum_up(self) -> None:
        """Tell what was left untold."""
        if more := self._logged.sum_up():
            log.error("handler_failed_again", more=more, last=self._last_fault.why if self._last_fault else "")
        if (more := self._alerted.sum_up()) and self._last_fault is not None:
            fault = self._last_fault
            what = "events of its own dropped" if fault.sequence is None else f"skipped, message {fault.sequence} last"
            self._alert(f"agent {self._agent}: {more} more {what}: {fault.why}", fault, None)
        if more := self._slow.sum_up():
            log.warning("slow_handler", more=more, problem=self._last_slow)

    def close(self) -> None:
        """Sum up, and tell nothing more."""
        self.sum_up()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
