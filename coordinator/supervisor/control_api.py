"""Requests to the watchdog about single agents, of commands and of `up`: it alone decides when an agent runs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import orjson

from agents.spec import AgentSpec
from bus.durable.events import EventPublisher
from bus.errors import BusError, MeshError, UsageError
from bus.interface import Bus, ReceivedMessage
from bus.utils.aio import end_tasks

if TYPE_CHECKING:
    from coordinator.supervisor.config_publisher import ConfigPublisher
    from coordinator.supervisor.host_client import HostClient
    from coordinator.supervisor.model import AgentState
from coordinator.supervisor.policy import Policy

__all__ = ["ControlApi"]

DRAIN_S = 10.0
READY_S = 10.0
"""Seconds in which an agent must drain, and its successor become ready."""


@dataclass(slots=True)
class _Restart:
    """A running restart of the incarnation `epoch`; `check_restarts` sets `done`."""

    epoch: int
    done: asyncio.Event = field(default_factory=asyncio.Event)


class ControlApi:
    """Handles requests to the leading watchdog. Call `check_restarts` whenever the policy may have changed."""

    def __init__(
        self,
        bus: Bus,
        *,
        policy: Policy,
        hosts: HostClient,
        reports: EventPublisher,
        config_publisher: ConfigPublisher,
        specs: Mapping[str, AgentSpec],
        on_change: Callable[[], None],
    ) -> None:
        self._bus, self._policy, self._hosts, self._reports = bus, policy, hosts, reports
        self._config_publisher, self._specs, self._on_change = config_publisher, specs, on_change
        self._restarts: dict[str, _Restart] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, name: str) -> None:
        """Handle requests to the watchdog `name` from now on."""
        await self._listen(name, "restart", self._restart)
        await self._listen(name, "revive", self._revive)
        await self._listen(name, "quarantine", self._quarantine)

    async def _listen(self, name: str, command: str, handle: Callable[[str], Awaitable[dict[str, Any]]]) -> None:
        async def on_message(received: ReceivedMessage) -> None:
            if not received.reply:
                return
            # A task each: a restart takes a while, and other requests must not wait for it.
            task = asyncio.create_task(self._answer(received, handle))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        await self._bus.listen(self._bus.subjects.control(name, command), on_message)

    async def end(self) -> None:
        """Cancel the running requests."""
        await end_tasks(self._tasks)

    async def _answer(self, received: ReceivedMessage, handle: Callable[[str], Awaitable[dict[str, Any]]]) -> None:
        try:
            name = _agent_in(received.data)
            if name not in self._policy.agents:
                raise UsageError(f"no agent {name!r} in this swarm; it has: {', '.join(self._policy.agents)}")
            if name not in self._specs:
                raise UsageError(
                    f"agent {name!r} is external: it runs outside the supervisor; restart it where it runs"
                )
            reply = await handle(name)
        except MeshError as error:
            reply = {"error": str(error), "usage": isinstance(error, UsageError)}
        with contextlib.suppress(BusError):  # without a reply the client reports a timeout
            await self._bus.notify(received.reply, orjson.dumps(reply))

    # -- called by the loop of the leader

    def check_restarts(self) -> None:
        """Complete the restarts whose agent is running again or quarantined."""
        for name, restart in self._restarts.items():
            state = self._policy.agents.get(name)
            is_new = state is not None and state.phase == "running" and state.epoch > restart.epoch
            if state is None or state.phase == "quarantined" or is_new:
                restart.done.set()

    # -- requests

    async def _revive(self, name: str) -> dict[str, Any]:
        before = self._policy.agents[name].phase
        if not self._policy.revive(time.monotonic(), name):
            raise MeshError(f"agent {name} is {before}; only a quarantined or drained agent can be revived")
        self._reports.lifecycle("revived", name, reason=f"was {before}")
        await self._config_publisher.publish()
        self._on_change()
        return {"agent": name, "was": before}

    async def _quarantine(self, name: str) -> dict[str, Any]:
        """Asked by `up`, which sees what each key sends."""
        self._policy.quarantine(time.monotonic(), name, "it flooded the bus: the alert client_floods has how much")
        self._on_change()
        return {"agent": name, "phase": self._policy.agents[name].phase}

    async def _restart(self, name: str) -> dict[str, Any]:
        state = self._policy.agents[name]
        if name in self._restarts or state.phase not in ("quarantined", "drained", "starting", "running"):
            raise MeshError(f"agent {name} is already being restarted")
        since = time.monotonic()
        restart = self._restarts[name] = _Restart(state.epoch)
        answer: dict[str, Any] = {"agent": name}
        try:
            if state.phase in ("quarantined", "drained"):
                answer["was"] = (await self._revive(name))["was"]
            else:
                answer["epoch_before"] = state.epoch
                self._policy.restart(name)
                try:
                    await self._hosts.terminate(state.sandbox, name, state.pid)
                except BusError as error:
                    raise MeshError(f"agent {name} could not be requested to drain: {error}") from None
            try:
                async with asyncio.timeout(DRAIN_S + READY_S):
                    await restart.done.wait()
            except TimeoutError:
                raise MeshError(self._timeout_problem(state, restart.epoch)) from None
        finally:
            del self._restarts[name]
        if self._policy.agents.get(name) is not state:
            raise MeshError(f"agent {name} was removed meanwhile")
        if state.phase != "running":
            raise MeshError(f"agent {name} is {state.phase}: {state.reason}")
        return {**answer, "epoch_after": state.epoch, "ready_ms": round((time.monotonic() - since) * 1000, 1)}

    @staticmethod
    def _timeout_problem(state: AgentState, epoch: int) -> str:
        name = state.name
        if state.epoch == epoch and state.phase in ("starting", "running"):
            return (
                f"agent {name} was requested to drain, but has not ended within {DRAIN_S + READY_S:.0f} s. It will be "
                f"started again when it ends; `signalmesh kill {name}` replaces it at once"
            )
        return (
            f"agent {name} has drained, but is {state.phase} and not ready after {DRAIN_S + READY_S:.0f} s; "
            "check `signalmesh status` and the log of its sandbox"
        )


def _agent_in(data: bytes) -> str:
    """The agent that a request names.

    Raises:
        MeshError: it names none.
    """
    try:
        return msgspec.json.decode(data, type=dict[str, str]).get("agent", "")
    except ValueError as error:  # no UTF-8 is not among msgspec's errors
        raise MeshError(f"expected a JSON object with the name of an agent: {error}") from None
