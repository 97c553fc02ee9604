"""Where the dashboard reads from: a bus, or the file of a mirror at rest. The pages know only this interface."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager
from typing import Any

from bus.errors import BusError
from bus.heartbeats import HeartbeatTable, ReceivedHeartbeat
from bus.interface import StoredMessage
from bus.messages.subjects import Subjects
from coordinator.dashboard.model import END, Row, SwarmModel, iso_ns
from coordinator.dashboard.read_back import decisions_before
from coordinator.explain.explainer import explain
from coordinator.explain.models import Explanation
from coordinator.explain.selection import SelectedDecision, Selector, select
from coordinator.explain.sources import MessageSource
from coordinator.monitor.models import Status
from coordinator.monitor.status import Facts, status_of

HISTORY = 20_000
"""Messages before the end of the stream that are read at the start."""
EVENTS_LOOKBACK = 200_000
"""The same of lifecycle events, claims, alerts and settings, of which there are few."""
RARE_KINDS = ("lifecycle", "epoch", "alert", "config")
FORGET_ROLE_S = 60.0
"""A role that was silent for longer and has a successor is no longer listed."""


class Source(ABC):
    """One swarm, as it can be read now."""

    def __init__(self, subjects: Subjects) -> None:
        self.subjects = subjects
        self.model = SwarmModel(subjects)
        self._described: tuple[Facts, Status] | None = None

    @property
    @abstractmethod
    def is_live(self) -> bool:
        """Whether agents can be acted on."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """The `source` of every answer: kind, name, connected, since, as_of, stream_last_sequence, mirror, problem."""

    def connection(self) -> dict[str, Any]:
        """The data of the event `connection`."""
        found = self.describe()
        return {"connected": found["connected"], "since": found["since"], "error": found["problem"]}

    @abstractmethod
    def facts(self) -> Facts | None:
        """What `status` is made of; None until it was read."""

    @abstractmethod
    async def refresh(self) -> None:
        """Read what has been added, where nothing reports it."""

    @abstractmethod
    async def message(self, sequence: int) -> StoredMessage | None:
        """One message of the stream; None if it is not, or no longer, there.

        Raises:
            MeshError: the source cannot be read now.
        """

    @abstractmethod
    async def bounds(self) -> tuple[int, int]:
        """First and last sequence; last = first - 1 if there are none."""

    @property
    @abstractmethod
    def stored(self) -> MessageSource:
        """The stored messages; lists lack what is damaged.

        Raises:
            BusError: they cannot be read now.
        """

    @abstractmethod
    def intact(self) -> AbstractAsyncContextManager[MessageSource]:
        """The stored messages, of which a damaged one is an error.

        Raises:
            MeshError: they cannot be read now.
        """

    async def decisions(self, limit: int, before: int | None) -> tuple[list[Row], int | None]:
        """The newest decisions (below the sequence `before`), newest first, and the `before` of the next page, if any.

        Raises:
            MeshError: they cannot be read now.
        """
        rows = list(self.model.newest_decisions(limit, before))
        end = min(END if before is None else before, self.model.decisions_from)
        try:
            if len(rows) < limit and end > (await self.bounds())[0]:
                rows += await decisions_before(self.stored, self.model.deciders, end, limit - len(rows))
        except BusError:
            if before is not None and not rows:
                raise
            return rows, rows[-1]["sequence"] if rows else None  # what is known stays while the bus is away
        return rows, rows[-1]["sequence"] if len(rows) == limit else None

    async def explain(self, selector: Selector) -> Explanation:
        """Why a decision was made; raises as `coordinator.explain.explainer.explain` does."""
        async with self.intact() as stored:
            return await explain(stored, selector)

    async def select(self, selector: Selector) -> SelectedDecision:
        """Only find the decision; raises as `explain` does."""
        async with self.intact() as stored:
            return await select(stored, selector)

    @abstractmethod
    async def snapshot(self, agent: str) -> tuple[int, bytes] | None:
        """The revision and the bytes of the agent's newest snapshot."""

    def now_ns(self) -> int:
        """The end of the windows of rates: now, or when the newest message was stored."""
        return max(time.time_ns(), self.model.newest_ns) if self.is_live else self.model.newest_ns

    def status(self) -> Status | None:
        """The status by `facts`, computed once for each."""
        facts = self.facts()
        if facts is None:
            return None
        if self._described is None or self._described[0] is not facts:
            self._described = facts, status_of(facts)
        return self._described[1]


def heartbeat_of(received: ReceivedHeartbeat | None, at: float) -> dict[str, Any] | None:
    """The source of a figure from a heartbeat: `at` is now, on the monotonic clock."""
    if received is None:
        return None
    age_s = at - received.at
    return {
        "sender": received.heartbeat.agent, "at": iso_ns(time.time_ns() - int(age_s * 1e9)),
        "age_ms": round(age_s * 1000), "sequence": received.heartbeat.sequence,
    }  # fmt: skip


def agent_rows(status: Status, facts: Facts) -> list[dict[str, Any]]:
    """AgentStatus with the heartbeat from which it is."""
    table = facts.heartbeats.agents
    rows = []
    for agent in status.agents:
        received = None if agent.heartbeat_age_ms is None else table.get(agent.name)
        fields = {name: getattr(agent, name) for name in agent.__slots__}
        memory = {} if received is None else {"rss_mb": received.heartbeat.rss_mb, "cpu_s": received.heartbeat.cpu_s}
        rows.append({**fields, **memory, "heartbeat": heartbeat_of(received, facts.at)})
    return rows


def sandbox_rows(status: Status, facts: Facts) -> list[dict[str, Any]]:
    """SandboxStatus with its heartbeat and its cost. The cost is None where no price is set: nobody knows it then."""
    rows = []
    for sandbox in status.sandboxes:
        fields = {name: getattr(sandbox, name) for name in sandbox.__slots__}
        health, received = sandbox.health, facts.heartbeats.hosts.get(sandbox.name)
        cost = None
        if health.price_per_hour is not None:
            cost = {
                "usd_per_h": health.price_per_hour, "usd": health.cost,
                "from": f"price: {health.price_source}; times {health.age_s or 0:.0f} s since it was created",
            }  # fmt: skip
        rows.append({**fields, "cost": cost, "heartbeat": heartbeat_of(received, facts.at)})
    return rows


def role_rows(heartbeats: HeartbeatTable, at: float) -> list[dict[str, Any]]:
    """The processes that are neither agents nor hosts: the newest of each name, and others heard of lately."""
    newest: dict[str, float] = {}
    for received in heartbeats.by_pid.values():
        name = received.heartbeat.agent
        newest[name] = max(newest.get(name, 0.0), received.at)
    return [
        {
            "name": received.heartbeat.agent, "kind": received.heartbeat.role, "status": received.heartbeat.status,
            "pid": received.heartbeat.pid, "machine": received.heartbeat.machine, "epoch": received.heartbeat.epoch,
            "lag": received.heartbeat.lag, "heartbeat": heartbeat_of(received, at),
        }
        for received in sorted(heartbeats.by_pid.values(), key=lambda one: (one.heartbeat.role, -one.at))
        if received.at == newest[received.heartbeat.agent] or at - received.at < FORGET_ROLE_S
    ]  # fmt: skip
