"""Moves agents that run to another sandbox: each drains, which saves its state, and starts again there.

`check` looks at what is observed and gives the next order. So a crash meanwhile, a start that is under way, or a host
that does not answer, only changes which order is next.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from bus.errors import BusError
from bus.utils.aio import end_tasks
from coordinator.supervisor.host_client import HostClient
from coordinator.supervisor.model import AgentState
from coordinator.supervisor.policy import Policy

DRAIN_S = 10.0
"""An agent that has not drained after so many seconds is killed: its successor replays what it had not saved."""
RETRY_S = 1.0
"""A request to drain is repeated after so many seconds: its answer may have been lost."""


@dataclass(slots=True)
class _Moving:
    target: str
    epoch: int = 0
    """The incarnation that was requested to drain."""
    since: float = 0.0
    asked_at: float = 0.0


class Moves:
    """The agents that are being moved. `running` maps each to its move."""

    def __init__(self, policy: Policy, hosts: HostClient) -> None:
        self._policy, self._hosts = policy, hosts
        self.running: dict[str, _Moving] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, name: str, target: str) -> None:
        """Move the agent to the sandbox `target`."""
        self._policy.move(name, target)
        self.running[name] = _Moving(target)

    def away(self, since: float = math.inf) -> list[str]:
        """The agents that run elsewhere than in their sandbox, although that is live, and has been since then."""
        policy = self._policy
        return [
            name
            for name, state in policy.agents.items()
            if state.phase == "running"
            and state.sandbox in policy.hosts
            and not policy.serves(state.sandbox, state.preferred)
            and policy.is_live(state.preferred, since)
        ]

    def describe(self, name: str) -> str:
        """How far the move of `name` is."""
        state = self._policy.agents.get(name)
        return "it is removed" if state is None else f"{name} is {state.phase} in {state.sandbox or 'no sandbox'}"

    def check(self, now: float) -> None:
        """Give the next orders, and forget the moves that are done."""
        for name, moving in list(self.running.items()):
            state = self._policy.agents.get(name)
            if state is None or state.phase in ("quarantined", "drained", "external"):
                del self.running[name]  # it starts there when it is revived
            elif self._policy.serves(state.sandbox, moving.target):
                if state.phase == "running":
                    state.moving = False
                    del self.running[name]
            elif not self._policy.is_live(moving.target):
                state.moving = False
                del self.running[name]
            elif state.phase in ("starting", "running"):
                self._drain(now, name, state, moving)

    def _drain(self, now: float, name: str, state: AgentState, moving: _Moving) -> None:
        if moving.epoch != state.epoch:
            moving.epoch, moving.since, moving.asked_at = state.epoch, now, 0.0
            state.moving = True
        if now - moving.asked_at < RETRY_S:
            return
        moving.asked_at = now
        self._policy.restart(name)
        if now - moving.since < DRAIN_S:
            self._run(self._hosts.terminate(state.sandbox, name, state.pid))
        else:
            self._run(self._hosts.kill(state.sandbox, name, state.epoch))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        async def guarded() -> None:
            with contextlib.suppress(BusError):  # `check` repeats it
                await work

        task = asyncio.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def end(self) -> None:
        """Cancel the requests to hosts."""
        await end_tasks(self._tasks)
