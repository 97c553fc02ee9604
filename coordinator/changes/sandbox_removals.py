"""Ends what runs in sandboxes that were removed: their agents are moved, then `up` is told that it may end the host.

The event `removed` tells it, so that a later leader knows what is done. `check` looks at what is observed and gives the
next order, as for moves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from bus.durable.events import EventPublisher
from bus.errors import BusError
from bus.interface import Bus
from bus.utils.aio import end_tasks
from coordinator.changes.moves import Moves
from coordinator.changes.removals import is_reported
from coordinator.config.changes import RemovedSandbox
from coordinator.supervisor.policy import Policy

log = structlog.get_logger("signalmesh.watchdog")


@dataclass(slots=True)
class _Leaving:
    change: RemovedSandbox
    report: asyncio.Task[bool] | None = None
    """The event, once no agent is left; whether the bus has taken it."""


class SandboxRemovals:
    """The sandboxes that are being removed. `running` has each until it has no host any more."""

    def __init__(self, bus: Bus, policy: Policy, moves: Moves, reports: EventPublisher) -> None:
        self._bus, self._policy, self._moves, self._reports = bus, policy, moves, reports
        self.running: dict[str, _Leaving] = {}

    def begin(self, removed: Mapping[str, RemovedSandbox]) -> None:
        """End what is left in these sandboxes, which are closed."""
        self.running |= {name: _Leaving(change) for name, change in removed.items()}

    def describe(self, name: str) -> str:
        """How far the removal of `name` is."""
        if there := self._agents_in(name):
            return f"{', '.join(there)} in {name}"
        return f"the host of {name} is ended"

    def check(self) -> None:
        """Give the next orders, and forget the removals that are done."""
        for name, leaving in list(self.running.items()):
            if there := self._agents_in(name):
                self._send_home(there)
            elif leaving.report is None:
                leaving.report = asyncio.create_task(self._report(name, leaving.change))
            elif leaving.report.done():
                if not leaving.report.result():
                    leaving.report = None
                elif not self._policy.runs_host(name):
                    self._policy.forget_sandbox(name)
                    del self.running[name]

    def _agents_in(self, sandbox: str) -> list[str]:
        """The agents with a process there, those that start there, and those that were removed and still drain."""
        policy = self._policy
        active = [name for name, state in policy.agents.items() if state.phase in ("starting", "running", "restarting")]
        there = [name for name in active if policy.serves(policy.agents[name].sandbox, sandbox)]
        return [*there, *(name for name, left in policy.leftovers.items() if policy.serves(left.sandbox, sandbox))]

    def _send_home(self, agents: list[str]) -> None:
        """Move those that can be moved: an agent may run there because its own sandbox was lost."""
        for name in agents:
            state = self._policy.agents.get(name)
            if state is not None and name not in self._moves.running and self._policy.is_live(state.preferred):
                self._moves.begin(name, state.preferred)

    async def _report(self, name: str, change: RemovedSandbox) -> bool:
        try:
            if not await is_reported(self._bus, name, change.after):  # by an earlier leader
                self._reports.lifecycle("removed", name, sandbox=name)
                await self._reports.flush()
        except BusError as error:
            log.debug("removal_retried", error=str(error))
            return False
        return True

    async def end(self) -> None:
        """Cancel the reports."""
        await end_tasks(leaving.report for leaving in self.running.values() if leaving.report is not None)
