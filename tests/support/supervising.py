"""A leading watchdog's parts over a bus in memory, with a sandbox host that the test plays."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import orjson

from agents.spec import AgentSpec
from bus.durable.events import EventPublisher
from bus.errors import MeshError
from bus.interface import ReceivedMessage
from bus.testing.memory_bus import MemoryBus, MemoryServer
from coordinator.supervisor.agent_keys import AgentKeys
from coordinator.supervisor.control_api import ControlApi
from coordinator.supervisor.executor import ActionExecutor
from coordinator.supervisor.host_client import HostClient
from coordinator.supervisor.model import AgentState, HostState
from coordinator.supervisor.recovery_traces import RecoveryTraces
from tests.support.policy_world import World

TERM = 77
GUARD_S = 10.0


class Publications:
    """In place of a ConfigPublisher: how often it was to publish."""

    def __init__(self) -> None:
        self.count = 0

    async def publish(self) -> None:
        self.count += 1


class Supervising:
    """The executor and the control API of one leader; `replies` of the host `base`, `requests` to it."""

    def __init__(self, *agents: AgentState, external: tuple[str, ...] = (), keys: Path | None = None) -> None:
        self.server = MemoryServer()
        self.bus = MemoryBus(self.server)
        self.policy = World(*agents).policy
        self.policy.hosts = {"base": HostState("base", "base", "h1", time.monotonic(), alive=True)}
        self.configs = Publications()
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.replies: dict[str, dict[str, Any]] = {"spawn": {"pid": 1234}}
        self.failures: list[MeshError] = []
        self.changes = 0
        self.changed = asyncio.Event()
        self.keys = keys
        self.specs = {
            agent.name: AgentSpec(name=agent.name, kind="momentum") for agent in agents if agent.name not in external
        }

    async def __aenter__(self) -> Self:
        self.reports = await EventPublisher.open(self.bus, "watchdog")
        hosts = HostClient(self.bus, TERM, 0.1, 5.0, 20_000)
        configs: Any = self.configs
        parts: Any = {
            "policy": self.policy,
            "hosts": hosts,
            "reports": self.reports,
            "config_publisher": configs,
            "specs": self.specs,
            "on_change": self._on_change,
        }
        keys = None if self.keys is None else AgentKeys(self.keys)
        self.executor = ActionExecutor(
            self.bus,
            **parts,
            recoveries=RecoveryTraces(),
            keys=keys,
            on_failure=self.failures.append,
        )
        self.control = ControlApi(self.bus, **parts)
        for command in ("spawn", "kill", "check", "signal"):
            await self.bus.answer(self.bus.subjects.control("base", command), self._answer(command))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.executor.end()
        await self.control.end()
        await self.reports.finish()
        await self.bus.close()

    def _on_change(self) -> None:
        self.changes += 1
        self.changed.set()

    def _answer(self, command: str) -> Callable[[ReceivedMessage], Any]:
        async def on_request(received: ReceivedMessage) -> bytes:
            self.requests.append((command, orjson.loads(received.data)))
            return orjson.dumps(self.replies.get(command, {}))

        return on_request

    async def execute(self, action: Any) -> None:
        """Execute an action, and wait until everything that it started is done and stored."""
        self.executor.execute(action)
        async with asyncio.timeout(GUARD_S):
            while self.executor._tasks:
                await asyncio.gather(*self.executor._tasks)
            await self.reports.flush()

    def events(self, kind: str = "lifecycle") -> list[dict[str, Any]]:
        """The stored events of the watchdog."""
        stored = [message for message in self.server.messages if message.subject.startswith(f"swarm.{kind}.")]
        return [orjson.loads(message.data) for message in stored if message.subject.endswith(".watchdog")]

    def records(self) -> dict[str, dict[str, Any]]:
        """The registry."""
        bucket = self.server.buckets.get(self.bus.subjects.registry_bucket, {})
        return {key: orjson.loads(entry.value) for key, entry in bucket.items()}
