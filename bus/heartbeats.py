"""Heartbeats: published by every process, received by one listener that keeps the newest of each.

coordinator/supervisor/failure_detector.py decides what missing heartbeats mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

from bus.errors import BusError, MessageError
from bus.interface import Bus, Closable, ReceivedMessage
from bus.messages import Heartbeat, encode
from bus.utils.processes import MACHINE

__all__ = ["LISTEN_S", "HeartbeatListener", "HeartbeatTable", "ReceivedHeartbeat", "send_heartbeats"]

LISTEN_S = 0.5
"""Long enough for two heartbeats of every host and five of every agent."""

Role = Literal["watchdog", "mirror", "metrics", "provider", "dashboard"]


class ReceivedHeartbeat(NamedTuple):
    """A heartbeat and the time of its arrival, seconds of the monotonic clock."""

    at: float
    heartbeat: Heartbeat


class HeartbeatTable:
    """The newest heartbeat of each process, by role.

    Of an agent and of the leading watchdog, a heartbeat of an older epoch never replaces one of a newer epoch.
    """

    def __init__(self) -> None:
        self.agents: dict[str, ReceivedHeartbeat] = {}
        self.hosts: dict[str, ReceivedHeartbeat] = {}
        self.leader: ReceivedHeartbeat | None = None
        """The watchdog that leads."""
        self.standbys: dict[str, ReceivedHeartbeat] = {}
        """Standby watchdogs, by machine and pid."""
        self.mirror: ReceivedHeartbeat | None = None
        self.provider: ReceivedHeartbeat | None = None
        self.dashboard: ReceivedHeartbeat | None = None
        self.by_pid: dict[int, ReceivedHeartbeat] = {}
        """Watchdogs, mirrors, metrics, providers and dashboards."""

    @property
    def phases(self) -> dict[str, str]:
        """Agent -> phase, as the leading watchdog reports it of agents that do not run or that it does not run."""
        return (self.leader.heartbeat.phases if self.leader else None) or {}

    def take(self, received: ReceivedHeartbeat) -> None:
        """Keep `received` if it is newer than the present heartbeat of its process."""
        heartbeat = received.heartbeat
        if heartbeat.role == "agent":
            known = self.agents.get(heartbeat.agent)
            if known is None or heartbeat.epoch >= known.heartbeat.epoch:
                self.agents[heartbeat.agent] = received
            return
        if heartbeat.role == "sandbox":
            self.hosts[heartbeat.agent] = received
            return
        self.by_pid[heartbeat.pid] = received
        if heartbeat.role == "watchdog" and heartbeat.status == "standby":
            self.standbys[f"{heartbeat.machine} {heartbeat.pid}"] = received
        elif heartbeat.role == "watchdog":
            if self.leader is None or heartbeat.epoch >= self.leader.heartbeat.epoch:
                self.leader = received
        elif heartbeat.role == "mirror":
            self.mirror = received
        elif heartbeat.role == "provider":
            self.provider = received
        elif heartbeat.role == "dashboard":
            self.dashboard = received


class HeartbeatListener(HeartbeatTable):
    """Subscribes to the heartbeats of `bus`: of all processes, or of those of the given `names`.

    `on_heartbeat` is called with each heartbeat after it was added to the table, `on_malformed` with each message on
    a heartbeat's subject that is not a heartbeat. Use it as `async with`, or `start` and `close` it.
    """

    def __init__(
        self,
        bus: Bus,
        names: Sequence[str] = (),
        *,
        on_heartbeat: Callable[[ReceivedHeartbeat], None] | None = None,
        on_malformed: Callable[[str, MessageError], None] | None = None,
    ) -> None:
        super().__init__()
        self._bus, self._names = bus, names
        self._on_heartbeat, self._on_malformed = on_heartbeat, on_malformed
        self._received = asyncio.Event()
        self._subscriptions: list[Closable] = []

    async def start(self) -> None:
        """Subscribe.

        Raises:
            Disconnected: the connection is down.
        """
        subjects = self._bus.subjects
        for subject in [subjects.heartbeat(name) for name in self._names] or [f"{subjects.ns}.heartbeat.*"]:
            self._subscriptions.append(await self._bus.listen_directly(subject, self._on_received))

    async def close(self) -> None:
        """Stop receiving; the table stays."""
        while self._subscriptions:
            await self._subscriptions.pop().close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def connected(self) -> bool:
        """Whether the connection is up: without it, missing heartbeats prove nothing."""
        return self._bus.is_ready

    def silent_s(self, host: str) -> float:
        """Seconds since the last heartbeat of a sandbox's host; infinite without one."""
        received = self.hosts.get(host)
        return float("inf") if received is None else time.monotonic() - received.at

    async def wait(self, enough: Callable[[Self], bool], timeout_s: float) -> bool:
        """Wait until `enough` returns true for the table, checked after each heartbeat; False after a timeout."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not enough(self):
                    self._received.clear()
                    await self._received.wait()
                return True
        return False

    def _on_received(self, message: ReceivedMessage) -> None:
        at = time.monotonic()
        try:
            heartbeat = message.decode(self._bus.subjects)
        except MessageError as error:
            if self._on_malformed is not None:
                self._on_malformed(message.subject, error)
            return
        assert isinstance(heartbeat, Heartbeat)
        received = ReceivedHeartbeat(at, heartbeat)
        self.take(received)
        if self._on_heartbeat is not None:
            self._on_heartbeat(received)
        self._received.set()


async def send_heartbeats(
    bus: Bus,
    name: str,
    role: Role,
    interval_s: float,
    fields: Callable[[], dict[str, Any]],
    changed: asyncio.Event | None = None,
) -> None:
    """Publish a heartbeat of `name` every `interval_s` seconds, without end; skip those that cannot be published.

    For processes that are neither agents nor hosts. `fields` returns the process's other fields of the
    Heartbeat, for example `status`. When `changed` is set, the next heartbeat is sent at once.
    """
    subject, sequence = bus.subjects.heartbeat(name), 0
    changed = asyncio.Event() if changed is None else changed
    while True:
        changed.clear()
        sequence += 1
        all_fields = {"agent_id": f"{name}_{os.getpid()}", "epoch": 0, "progress": sequence, **fields()}
        heartbeat = Heartbeat(
            agent=name,
            sequence=sequence,
            interval_ms=int(interval_s * 1000),
            sandbox="",
            pid=os.getpid(),
            role=role,
            machine=MACHINE,
            **all_fields,
        )
        with contextlib.suppress(BusError):
            await bus.notify(subject, encode(heartbeat))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(interval_s):
                await changed.wait()
