"""Follows the bus: one reader of the stream and one subscription to heartbeats, however many viewers there are."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import structlog

from bus.errors import BusError, Disconnected, Refused
from bus.heartbeats import HeartbeatListener
from bus.interface import EVERYTHING, StoredMessage
from bus.messages.subjects import DASHBOARD, Subjects
from bus.mirror.loss_check import half_done
from bus.nats.bus import NatsBus
from bus.nats.consumer import Reader
from bus.nats.jetstream import STREAM_NOT_FOUND
from bus.nats.urls import redacted_url
from bus.utils.aio import end_tasks
from coordinator.dashboard.hub import Hub
from coordinator.dashboard.model import SwarmModel, iso_ns
from coordinator.dashboard.source import (
    EVENTS_LOOKBACK,
    HISTORY,
    RARE_KINDS,
    Source,
    agent_rows,
    role_rows,
    sandbox_rows,
)
from coordinator.explain.sources import BusSource, MessageSource
from coordinator.monitor.models import Status
from coordinator.monitor.run_files import RunFiles
from coordinator.monitor.status import NO_FILES, Facts, read_facts
from coordinator.monitor.status_table import refused_text

POLL_INTERVAL_S = 1.0
"""Between two checks of the stream's state, and between two events `rates`."""
STATUS_INTERVAL_S = 0.5
"""Between two events `agents`."""
FACTS_INTERVAL_S = 5.0
"""Between two reads of what `status` needs beside heartbeats; a lifecycle event causes one too."""
FRESH_S = 0.1
"""How long a status is used again: viewers that ask at the same time share it."""
ROWS = 100
"""Agents in an event `agents` whose figures only move on; those with a new state are all in it."""
MOVING = frozenset({"heartbeat", "heartbeat_age_ms", "cursor", "lag", "outputs", "rss_mb", "cpu_s"})
"""Fields of an agent that change without a change of its state."""

log = structlog.get_logger("signalmesh.dashboard")


class LiveSource(Source):
    """Reads one swarm over the bus and publishes what is new to `hub`. `run` it; it waits for a lost bus."""

    def __init__(self, url: str, swarm: str, hub: Hub, files: RunFiles = NO_FILES) -> None:
        super().__init__(Subjects(swarm))
        self._url, self._hub, self._files = url, hub, files
        self.bus: NatsBus | None = None
        self._reader: Reader | None = None
        self._heartbeats: HeartbeatListener | None = None
        self._stored_facts: Facts | None = None
        self._facts_now: Facts | None = None
        self._facts_read_at = 0.0
        self._facts_due = True
        self._created = ""
        self._history_end = 0
        self._last_sequence = 0
        self._connected = False
        self._changed_ns = time.time_ns()
        """When the connection was lost or made."""
        self._problem: str | None = "the bus has not answered yet"
        self._shown: dict[str, dict[str, Any]] = {}
        self._shown_sandboxes: dict[str, dict[str, Any]] = {}
        self._next_row = 0
        self._wake = asyncio.Event()

    @property
    def is_live(self) -> bool:
        return True

    def connected_bus(self) -> NatsBus:
        """The bus, for a request.

        Raises:
            Disconnected: it is away.
        """
        if self.bus is None or not self.bus.is_ready:
            raise Disconnected(f"the bus at {redacted_url(self._url)} is away; the page comes back with it")
        return self.bus

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "bus", "name": redacted_url(self._url), "swarm": self.subjects.ns, "connected": self._connected,
            "since": iso_ns(self._changed_ns), "problem": self._problem, "as_of": iso_ns(time.time_ns()),
            "read_through": self.model.read_through,
            "stream_last_sequence": max(self._last_sequence, self.model.read_through), "mirror": self._mirror(),
        }  # fmt: skip

    def _mirror(self) -> dict[str, Any] | None:
        status = self.status()
        return None if status is None or status.mirror is None else {
            name: getattr(status.mirror, name) for name in status.mirror.__slots__
        }  # fmt: skip

    def facts(self) -> Facts | None:
        if self._stored_facts is None or self._heartbeats is None:
            return None
        at = time.monotonic()
        if self._facts_now is None or at - self._facts_now.at > FRESH_S:
            heard, refusals = self._heartbeats, self.model.refusals
            self._facts_now = replace(self._stored_facts, heartbeats=heard, at=at, refusals=refusals)
        return self._facts_now

    async def refresh(self) -> None:
        """Nothing to do: the bus reports what is new."""

    # -- following

    async def run(self) -> None:
        """Follow the bus without end.

        Raises:
            UsageError: the URL is malformed.
        """
        self.bus = bus = await NatsBus.connect(self._url, self.subjects.ns, DASHBOARD, wait_s=None)
        bus.watch_connection(self._on_down, self._on_up)
        self._heartbeats = HeartbeatListener(bus)
        ticking = asyncio.create_task(self._tick(), name="dashboard-status")
        try:
            while True:
                await self._poll(bus)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_INTERVAL_S):
                        await self._wake.wait()
                self._wake.clear()
        finally:
            await end_tasks([ticking])
            await self._end_reading()
            await self._heartbeats.close()
            await bus.close()

    async def _poll(self, bus: NatsBus) -> None:
        """Check the stream's state: start to read it, or read it anew if it is another one."""
        assert self._heartbeats is not None
        read = self.model.read_through
        try:
            await bus.wait_connected()
            info = await bus.api(f"STREAM.INFO.{self.subjects.stream}")
            self._last_sequence = info["state"]["last_seq"]
            other = info["created"] != self._created or info["state"]["last_seq"] < read
            if other and not half_done(bus, info):
                await self._read(bus, info)
            if self._facts_due or time.monotonic() - self._facts_read_at > FACTS_INTERVAL_S:
                self._facts_due = False
                self._stored_facts = await read_facts(bus, self._heartbeats, self._files)
                self._facts_read_at = time.monotonic()
        except Refused as error:
            missing = error.code == STREAM_NOT_FOUND
            text = f"{bus.url} has no swarm {self.subjects.ns!r} yet; `signalmesh up` starts one"
            self._set_connected(text if missing else str(error))
        except BusError as error:
            self._set_connected(str(error))
        else:
            self._set_connected(None)

    async def _read(self, bus: NatsBus, info: dict[str, Any]) -> None:
        assert self._heartbeats is not None
        again = bool(self._created)
        await self._end_reading()
        await self._heartbeats.close()
        await self._heartbeats.start()
        state, subjects = info["state"], self.subjects
        last, first = state["last_seq"], max(1, state["first_seq"])
        model = SwarmModel(subjects)
        begin = max(first, last - HISTORY + 1)
        model.refusals.since = max(first, last - EVENTS_LOOKBACK)
        if begin > first:
            rare = tuple(f"{subjects.ns}.{kind}.>" for kind in RARE_KINDS)
            for stored in await bus.read_back(rare, max(first, last - EVENTS_LOOKBACK)):
                if stored.sequence < begin:
                    model.take(stored, whole=False)
        self.model, self._history_end, self._facts_due = model, last, True
        reader = Reader(bus.jetstream, subjects.stream, EVERYTHING, begin, self._on_stored)
        await reader.start()
        self._reader, self._created = reader, info["created"]
        if again:
            log.warning("stream_replaced", last=last)
            self._hub.forget()

    async def _end_reading(self) -> None:
        if self._reader is not None:
            await self._reader.close()
            self._reader = None

    def _on_stored(self, stored: StoredMessage) -> None:
        events = self.model.take(stored)
        if stored.sequence > self._history_end:
            for name, data in events:
                self._facts_due = self._facts_due or name == "lifecycle"
                self._hub.publish(name, data)
        elif stored.sequence == self._history_end and self._hub.viewers:
            self._hub.forget()  # pages that were opened meanwhile have a part of the history only

    def _on_down(self) -> None:
        self._set_connected("the connection to the bus is lost")

    async def _on_up(self) -> None:
        self._wake.set()

    def _set_connected(self, problem: str | None) -> None:
        connected, before = problem is None, self._connected
        self._connected, self._problem = connected, problem
        if connected != before:
            self._changed_ns = time.time_ns()
            self._hub.publish("connection", self.connection())

    def heartbeat_fields(self) -> dict[str, Any]:
        """The fields of this process's heartbeats."""
        read = self.model.read_through
        lag = max(0, self._last_sequence - read)
        return {"progress": read, "status": "live" if self._connected else "waiting", "cursor": read, "lag": lag}

    # -- events about processes

    async def _tick(self) -> None:
        rates_at = 0.0
        while True:
            started = time.monotonic()
            if self._hub.viewers and self._connected:
                self._publish_status()
                if started - rates_at >= POLL_INTERVAL_S - 0.1:
                    rates_at = started
                    self._hub.publish("rates", self.model.rates(self.now_ns()))
            # A swarm of thousands of agents takes longer to describe: that may cost a tenth of a processor.
            await asyncio.sleep(max(STATUS_INTERVAL_S, 9 * (time.monotonic() - started)))

    def _publish_status(self) -> None:
        facts = self.facts()
        status = None if facts is None else self.status()
        if facts is None or status is None:
            return
        agents = {row["name"]: row for row in agent_rows(status, facts)}
        changed = {name: row for name, row in agents.items() if _state_of(row) != _state_of(self._shown.get(name, {}))}
        names = list(agents)
        for offset in range(min(ROWS, len(names))):  # in turn, so that each one's heartbeat moves on
            name = names[(self._next_row + offset) % len(names)]
            changed[name] = agents[name]
        self._next_row = (self._next_row + ROWS) % max(1, len(names))
        gone = [name for name in self._shown if name not in agents]
        self._shown = agents
        sandboxes = {row["name"]: row for row in sandbox_rows(status, facts)}
        gone_sandboxes = [name for name in self._shown_sandboxes if name not in sandboxes]
        self._shown_sandboxes = sandboxes
        data = {
            "as_of": iso_ns(time.time_ns()), "agents": list(changed.values()), "agents_gone": gone,
            "sandboxes": list(sandboxes.values())[:ROWS], "sandboxes_gone": gone_sandboxes,
            "roles": role_rows(facts.heartbeats, facts.at), "totals": totals(status, self.model),
            "source": self.describe(),
        }  # fmt: skip
        self._hub.publish("agents", data)

    # -- reading what is asked for

    async def message(self, sequence: int) -> StoredMessage | None:
        return await self.connected_bus().message(sequence)

    async def bounds(self) -> tuple[int, int]:
        found = await self.connected_bus().bounds()
        return found.first, found.last

    @property
    def stored(self) -> MessageSource:
        return BusSource(self.connected_bus())

    @contextlib.asynccontextmanager
    async def intact(self) -> AsyncIterator[MessageSource]:
        yield self.stored

    async def snapshot(self, agent: str) -> tuple[int, bytes] | None:
        entry = await self.connected_bus().kv_get(self.subjects.state_bucket, agent)
        return None if entry is None else (entry.revision, entry.value)


def totals(status: Status, model: SwarmModel) -> dict[str, Any]:
    """The figures at the head of the overview."""
    return {
        "decisions": status.decisions.count,
        "decisions_from": "messages of decisions in the stream, counted by its server",
        "last_decision_at": status.decisions.last_at,
        "agents": len(status.agents),
        "active_agents": status.active_agents,
        "processes": status.processes,
        "sandboxes": len(status.sandboxes),
        "refused": None if status.refused is None else status.refused.count,
        "refused_from": "" if status.refused is None else refused_text(status.refused),
        "unreadable": model.unreadable,
        "symbols_left_off": model.symbols_left_off,
    }


def _state_of(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in MOVING}
