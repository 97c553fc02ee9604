"""Reads a mirror's file at rest: the same pages without a bus. What only a running swarm reports stays empty."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import AsyncIterator
from itertools import islice
from pathlib import Path
from typing import Any

import structlog

from bus.durable.registry import Record, read_record
from bus.heartbeats import HeartbeatTable
from bus.interface import StoredMessage
from bus.messages import Decision
from bus.mirror.reader import Mirrored, MirrorFile
from coordinator.audit.mirror_checks import stored_of
from coordinator.config.changes import describe_changes
from coordinator.dashboard.model import MAX_LIFECYCLE, iso_ns
from coordinator.dashboard.source import EVENTS_LOOKBACK, HISTORY, RARE_KINDS, Source
from coordinator.explain.errors import RowChanged
from coordinator.explain.file_source import FileSource
from coordinator.explain.round_history import decoded
from coordinator.explain.sources import PAGE, MessageSource
from coordinator.monitor.status import Facts, added_after
from coordinator.supervisor.config_publisher import changes_in

log = structlog.get_logger("signalmesh.dashboard")


class MirrorSource(Source):
    """A mirror's file. A mirror that still writes it may add to it; each page reads what is new."""

    def __init__(self, path: Path) -> None:
        """Open and read it.

        Raises:
            MirrorUnusable: there is no such file, it is not a mirror, or has another version.
            MirrorDamaged: the file is broken.
        """
        self._file = MirrorFile(path)
        super().__init__(self._file.subjects)
        self.path = path
        self._damaged: set[int] = set()
        self._stored = FileSource(self._file, self._damaged.add)
        self._refreshing = asyncio.Lock()
        self._facts: Facts | None = None
        self._looked_at = 0
        first, last = self._file.bounds()
        begin = max(first, last - HISTORY + 1)
        self.model.refusals.since = max(1, first, last - EVENTS_LOOKBACK)
        for kind in RARE_KINDS if begin > first else ():
            for found in self._file.messages(first=max(first, last - EVENTS_LOOKBACK), last=begin - 1, kind=kind):
                self._take(found, whole=False)
        in_order = sorted(self.model.lifecycle, key=lambda row: row["sequence"])  # it was read kind by kind
        self.model.lifecycle = deque(in_order, MAX_LIFECYCLE)
        for found in self._file.messages(first=begin):
            self._take(found)
        self._facts = self._read_facts()

    def _take(self, found: Mirrored, *, whole: bool = True) -> None:
        self._looked_at = found.row.sequence
        if found.intact:
            self.model.take(stored_of(found), whole=whole)
        else:
            self._damaged.add(found.row.sequence)

    @property
    def is_live(self) -> bool:
        return False

    def describe(self) -> dict[str, Any]:
        problem = f"{len(self._damaged)} rows of the file are damaged and left out" if self._damaged else None
        return {
            "kind": "file", "name": str(self.path), "swarm": self.subjects.ns, "connected": False,
            "since": iso_ns(self.model.newest_ns), "problem": problem, "as_of": iso_ns(self.model.newest_ns),
            "read_through": self.model.read_through, "stream_last_sequence": self.model.read_through,
            "mirror": {"file": str(self.path), "cursor": self.model.read_through, "version": self._file.version},
        }  # fmt: skip

    def facts(self) -> Facts | None:
        return self._facts

    def _read_facts(self) -> Facts:
        """What the file has of the facts: records, claims and decisions, no heartbeats."""
        file = self._file
        records: dict[str, Record] = {}
        for name, value in file.values(self.subjects.registry_bucket).items():
            if value.intact and value.row.operation == "PUT":
                try:
                    records[name] = read_record(value.row.value)
                except ValueError:
                    log.warning("record_unreadable", file=str(self.path), key=name, revision=value.row.revision)
        claims: Counter[str] = Counter()
        newest: dict[str, int] = {}
        decisions: Counter[str] = Counter()
        sql = "SELECT subject, agent, count(*), max(sequence) FROM messages WHERE kind = ? GROUP BY subject, agent"
        for _, agent, count, sequence in file.rows(sql, "epoch"):
            claims[agent] += count
            newest[agent] = max(newest.get(agent, 0), sequence)
        since = "SELECT count(*) FROM messages WHERE kind = 'epoch' AND agent = ? AND sequence > ?"
        for agent, after in added_after(self.model.config).items():
            [(claims[agent],)] = file.rows(since, agent, after)
        for subject, _, count, _ in file.rows(sql, "decision"):
            decisions[subject] += count
        newest_decision = None
        for found in file.newest(1, kind="decision"):
            message = decoded(self.subjects, stored_of(found)) if found.intact else None
            newest_decision = message if isinstance(message, Decision) else None
        return Facts(
            swarm=self.subjects.ns, nats=str(self.path), at=time.monotonic(), heartbeats=HeartbeatTable(),
            records=records, claims=claims, newest_claims=newest, config=self.model.config, decisions=decisions,
            newest_decision=newest_decision, refusals=self.model.refusals,
            differences=describe_changes(changes_in(self.model.config)),
        )  # fmt: skip

    async def refresh(self) -> None:
        async with self._refreshing:
            added = False
            while rows := await self._stored.in_thread(self._next_rows):
                added = True
                for found in rows:
                    self._take(found)
            if added:
                self._facts = await self._stored.in_thread(self._read_facts)

    def _next_rows(self) -> list[Mirrored]:
        return list(islice(self._file.messages(first=self._looked_at + 1), PAGE))

    async def message(self, sequence: int) -> StoredMessage | None:
        found = await self._stored.in_thread(lambda: self._file.message(sequence))
        if found is not None and not found.intact:
            raise RowChanged(str(self.path), sequence)
        return None if found is None else stored_of(found)

    async def bounds(self) -> tuple[int, int]:
        first, last = await self._stored.in_thread(self._file.bounds)
        return max(1, first), last

    @property
    def stored(self) -> MessageSource:
        return self._stored

    @contextlib.asynccontextmanager
    async def intact(self) -> AsyncIterator[MessageSource]:
        with MirrorFile(self.path) as file:  # of its own, so that a long computation does not hold up the pages
            yield FileSource(file)

    async def snapshot(self, agent: str) -> tuple[int, bytes] | None:
        bucket = self.subjects.state_bucket
        values = await self._stored.in_thread(lambda: self._file.value_history(bucket, agent, limit=1))
        put = [value.row for value in values if value.row.operation == "PUT" and value.intact]
        return (put[-1].revision, put[-1].value) if put else None

    def close(self) -> None:
        self._file.close()
