"""Updates of `swarm://status`: the status is read again and again while somebody has subscribed to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any

import structlog

from bus.errors import MeshError
from bus.utils.aio import end_tasks
from coordinator.mcp.answers import Answer
from coordinator.mcp.arguments import NoArguments
from coordinator.mcp.readers import read_status
from coordinator.mcp.swarm import ServedSwarm
from coordinator.monitor.models import Status

PAUSE_S = 0.5
"""Between two readings, each of which listens to heartbeats for half a second."""
Notify = Callable[[], Awaitable[None]]

log = structlog.get_logger("signalmesh.mcp")


def shape_of(answer: Answer[Status]) -> Any:
    """What of a status is reported when it changes: all but ages, counters and measurements."""
    status = answer.result
    return (
        answer.read.source,
        status.swarm,
        status.watchdog_term,
        [(one.pid, one.term) for one in status.watchdogs],
        [(one.name, one.status, one.pid, one.agents, one.reason) for one in status.sandboxes],
        [(one.name, one.kind, one.status, one.epoch, one.pid, one.sandbox, one.agent_id) for one in status.agents],
        None if status.mirror is None else (status.mirror.status, status.mirror.pid),
        None if status.provider is None else (status.provider.status, status.provider.pid),
        None if status.dashboard is None else (status.dashboard.status, status.dashboard.pid),
    )


class StatusUpdates:
    """The subscribers of the status, and the task that reads it while there are any."""

    def __init__(self, swarm: ServedSwarm) -> None:
        self._swarm = swarm
        self._subscribers: dict[Hashable, Notify] = {}
        self._task: asyncio.Task[None] | None = None

    def subscribe(self, key: Hashable, notify: Notify) -> None:
        """Have `notify` called on each change from now on, until `unsubscribe` with the same key."""
        self._subscribers[key] = notify
        if self._task is None:
            self._task = asyncio.create_task(self._watch(), name="mcp-status")

    def unsubscribe(self, key: Hashable) -> None:
        self._subscribers.pop(key, None)
        if not self._subscribers and self._task is not None:
            self._task.cancel()
            self._task = None

    async def close(self) -> None:
        """End the task."""
        self._subscribers.clear()
        if self._task is not None:
            await end_tasks([self._task])

    async def _watch(self) -> None:
        before: Any = None
        while True:
            shape = await self._read_shape()
            if before is not None and shape != before:
                await self._notify_all()
            before = shape
            await asyncio.sleep(PAUSE_S)

    async def _read_shape(self) -> Any:
        try:
            return shape_of(await read_status(self._swarm, NoArguments()))
        except (MeshError, OSError) as problem:  # reading the resource says so
            return type(problem)

    async def _notify_all(self) -> None:
        for key, notify in list(self._subscribers.items()):
            try:
                await notify()
            except Exception as error:  # noqa: BLE001 - whatever a closed connection raises
                log.debug("subscriber_gone", problem=str(error))
                self.unsubscribe(key)
