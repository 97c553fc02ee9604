"""Ends what is left of agents that were removed: each drains, its host lists it no more, and its name is claimed.

The claim is the fence: whatever of the agent still runs anywhere cannot store anything after it. `check` looks at what
is observed and gives the next order, as for moves. The event `removed` is the last step, so that a later leader knows
what is done.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from bus.durable.events import EventPublisher
from bus.durable.fencing import claim, new_agent_id
from bus.errors import BusError, MessageError, WrongSequence
from bus.interface import Bus
from bus.messages import Lifecycle
from bus.messages.subjects import WATCHDOG
from bus.utils.aio import end_tasks
from coordinator.changes.moves import DRAIN_S, RETRY_S
from coordinator.config.changes import RemovedAgent
from coordinator.config.live_swarm import LiveSwarm
from coordinator.supervisor.host_client import HostClient
from coordinator.supervisor.policy import Policy

log = structlog.get_logger("signalmesh.watchdog")


async def is_reported(bus: Bus, name: str, after: int) -> bool:
    """Whether the watchdog has reported since message `after` that nothing is left of an agent or a sandbox.

    Raises:
        BusError: the bus does not answer.
    """
    last = await bus.last(bus.subjects.lifecycle(name, WATCHDOG))
    if last is not None and last.sequence > after:
        with contextlib.suppress(MessageError):
            event = last.decode(bus.subjects)
            return isinstance(event, Lifecycle) and event.event == "removed"
    return False


@dataclass(slots=True)
class _Leaving:
    change: RemovedAgent
    since: float = 0.0
    asked_at: float = 0.0
    work: asyncio.Task[None] | None = None
    """The last steps, once no process is left."""


class Removals:
    """The agents that are being removed. `running` has each until nothing of it is left."""

    def __init__(self, bus: Bus, swarm: LiveSwarm, policy: Policy, hosts: HostClient, reports: EventPublisher) -> None:
        self._bus, self._swarm, self._policy, self._hosts, self._reports = bus, swarm, policy, hosts, reports
        self.running: dict[str, _Leaving] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, removed: Mapping[str, RemovedAgent]) -> None:
        """End what is left of these agents, which are not in the policy any more."""
        self.running |= {name: _Leaving(change) for name, change in removed.items()}

    def describe(self, name: str) -> str:
        """How far the removal of `name` is."""
        left = self._policy.leftovers.get(name)
        return f"{name} drains in {left.sandbox}" if left is not None else f"what is left of {name} is removed"

    def check(self, now: float) -> None:
        """Give the next orders, and forget the removals that are done."""
        for name in self._policy.leftovers:  # its start may have been under way when it was removed
            if name not in self.running and name in self._swarm.changes.removed:
                self.running[name] = _Leaving(self._swarm.changes.removed[name])
        for name, leaving in list(self.running.items()):
            left = self._policy.leftovers.get(name)
            host = None if left is None else self._policy.hosts.get(left.sandbox)
            if left is not None and host is not None and host.alive:
                self._drain(now, name, leaving)
            elif leaving.work is None:
                leaving.work = self._run(self._finish(name, leaving.change))
            elif leaving.work.done():
                if leaving.work.cancelled() or leaving.work.exception() is not None:
                    leaving.work = None  # the bus did not answer
                else:
                    self._policy.leftovers.pop(name, None)
                    del self.running[name]

    def _drain(self, now: float, name: str, leaving: _Leaving) -> None:
        left = self._policy.leftovers[name]
        leaving.since = leaving.since or now
        if now - leaving.asked_at < RETRY_S:
            return
        leaving.asked_at = now
        if now - leaving.since < DRAIN_S:
            self._run(self._hosts.terminate(left.sandbox, name, left.pid))
        else:
            self._run(self._hosts.kill(left.sandbox, name, left.epoch))

    async def _finish(self, name: str, change: RemovedAgent) -> None:
        if await is_reported(self._bus, name, change.after):
            return  # by an earlier leader
        if not change.external:  # else it has no claims
            with contextlib.suppress(WrongSequence):  # it is claimed all the same
                await claim(self._bus, name, agent_id=new_agent_id(), claimed_by=WATCHDOG, sandbox="")
        await self._bus.kv_delete(self._bus.subjects.registry_bucket, name)
        if change.forget:
            await self.forget(name)
        self._reports.lifecycle("removed", name, forgotten=change.forget)
        await self._reports.flush()

    async def forget(self, name: str) -> None:
        """Delete the saved state of an agent that does not run.

        Raises:
            BusError: the bus does not answer.
        """
        await self._bus.kv_delete(self._bus.subjects.state_bucket, name)

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            if not isinstance(error, BusError):
                raise error
            log.debug("removal_retried", error=str(error))

    async def end(self) -> None:
        """Cancel the requests."""
        await end_tasks(self._tasks)
