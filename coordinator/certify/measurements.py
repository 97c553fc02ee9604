"""What `certify` reads back from the bus and the mirror: hops, throughput, values and their digests."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bus.durable.stream_scan import scan
from bus.errors import BusError, MeshError, MessageError
from bus.interface import EVERYTHING, KvEntry
from bus.messages import Decision, Epoch, Lifecycle, MarketData, decode
from bus.messages import headers as h
from bus.messages.subjects import AGENT_KINDS
from bus.mirror.reader import MirrorFile
from bus.nats.bus import NatsBus
from coordinator.certify.models import Flow, Hop, LastValues, MemoryKey, SnapshotRow, Throughput
from coordinator.reporting.percentiles import percentiles_of

__all__ = [
    "RunRecording",
    "Value",
    "check_snapshots",
    "digest",
    "match_by_digest",
    "read_last_values",
    "read_memory",
    "record",
]

READS = 20
"""Reads of each value, to measure their duration."""
MIRROR_S = 5.0
"""How long the mirror may take to write what was just stored."""
POLL_INTERVAL_S = 0.05
MS = 1e-6
"""Milliseconds in a nanosecond."""
KNOWN_KINDS = frozenset(AGENT_KINDS)


def digest(data: bytes) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True, slots=True)
class RecordedMessage:
    """A message of the stream, without its content."""

    subject: str
    kind: str
    writer: str
    stored_ns: int
    cause: int | None
    epoch: int
    sha256: str


@dataclass(slots=True)
class RunRecording:
    """All messages of the stream, read in one pass."""

    messages: dict[int, RecordedMessage] = field(default_factory=dict)
    ticks: dict[tuple[str, int], int] = field(default_factory=dict)
    """(symbol and source, round) -> sequence of the tick."""
    decisions: dict[int, tuple[str, int, tuple[str, ...]]] = field(default_factory=dict)
    """Sequence -> (symbol and source of the tick, round, voters)."""
    claims: dict[str, list[int]] = field(default_factory=dict)
    """Agent -> its epochs, which are the sequences of its claims."""
    events: dict[tuple[str, str, int], tuple[int, dict[str, Any]]] = field(default_factory=dict)
    """(event, agent, epoch) -> when the lifecycle event was stored, and its detail."""

    def outputs(self, writer: str) -> dict[int, RecordedMessage]:
        """Sequence -> output, of all outputs of `writer`."""
        return {at: one for at, one in self.messages.items() if one.writer == writer and one.kind in KNOWN_KINDS}

    def since_claim_ms(self, event: str, agent: str, epoch: int) -> float | None:
        """From storing a claim to storing the event; None if one of the two is not stored."""
        claim, found = self.messages.get(epoch), self.events.get((event, agent, epoch))
        return None if claim is None or found is None else (found[0] - claim.stored_ns) * MS

    def flow(self, at_once: int, warmup: int, awaited: int) -> Flow:
        """Hops and rounds, without the first `at_once` and the next `warmup` rounds of each source."""
        after_round = at_once + warmup
        numbers = [number for _, number, _ in self.decisions.values()]
        early = sum(number <= at_once for number in numbers)
        late = sum(number > after_round for number in numbers)
        flow = Flow(rounds_at_once=early, rounds_warmup=len(numbers) - early - late, rounds_awaited=awaited)
        started_at = min((at for (_, number), at in self.ticks.items() if number > after_round), default=None)
        if started_at is None:
            return flow
        hops: dict[tuple[str, str, str], list[float]] = {}
        for at, output in self.messages.items():
            cause = self.messages.get(output.cause or 0)
            if (
                at >= started_at
                and cause is not None
                and (output.cause or 0) >= started_at
                and output.kind in KNOWN_KINDS
            ):
                hops.setdefault((cause.writer, output.writer, output.kind), []).append(
                    (output.stored_ns - cause.stored_ns) * MS
                )
        rounds, votes = [], dict[str, int]()
        for at, (source, number, voters) in self.decisions.items():
            tick = self.ticks.get((source, number))
            if tick is not None and number > after_round:
                rounds.append((self.messages[at].stored_ns - self.messages[tick].stored_ns) * MS)
                for voter in voters:
                    votes[voter] = votes.get(voter, 0) + 1
        return replace(
            flow,
            hops=[Hop(source=a, to=b, kind=kind, ms=percentiles_of(ms)) for (a, b, kind), ms in sorted(hops.items())],
            tick_to_decision_ms=percentiles_of(rounds),
            votes=dict(sorted(votes.items())),
        )

    def throughput(self, rounds: int) -> Throughput:
        """Over the first `rounds` rounds, which come without a pause."""
        found = sorted(at for at, (_, number, _) in self.decisions.items() if number <= rounds)
        if len(found) < 2:
            return Throughput(
                rounds=len(found), seconds=None, decisions_per_s=None, messages_per_s=None,
                why=f"the stream holds {len(found)} decisions of the first {rounds} rounds",
            )  # fmt: skip
        first, last = found[0], found[-1]
        seconds = (self.messages[last].stored_ns - self.messages[first].stored_ns) * 1e-9
        if seconds <= 0:
            return Throughput(
                rounds=len(found), seconds=seconds, decisions_per_s=None, messages_per_s=None,
                why="the server's clock did not advance between the first and the last of them",
            )  # fmt: skip
        between = sum(first < at <= last for at in self.messages)
        ticks = [at for (_, number), at in self.ticks.items() if number <= rounds]
        started_ns = min((self.messages[at].stored_ns for at in ticks), default=None)
        return Throughput(
            rounds=len(found),
            seconds=seconds,
            decisions_per_s=(len(found) - 1) / seconds,
            messages_per_s=between / seconds,
            whole_s=None if started_ns is None else (self.messages[last].stored_ns - started_ns) * 1e-9,
        )


async def record(bus: NatsBus) -> RunRecording:
    """Read the stream up to its current end.

    Raises:
        BusError: the bus does not answer.
    """
    found, subjects = RunRecording(), bus.subjects
    bounds = await bus.bounds()
    async with aclosing(scan(bus, EVERYTHING, bounds.first, bounds.last)) as messages:
        async for stored in messages:
            try:
                address = subjects.parse(stored.subject)
                message = decode(address, stored.subject, stored.data)
            except MessageError:
                continue  # the audit reports it
            found.messages[stored.sequence] = RecordedMessage(
                stored.subject,
                address.kind,
                address.agent,
                stored.stored_ns,
                h.number(stored.headers, h.CAUSE) or None,
                h.number(stored.headers, h.EPOCH) or 0,
                digest(stored.data),
            )
            if isinstance(message, MarketData) and message.sequence is not None:
                found.ticks[f"{message.symbol} {address.agent}", message.sequence] = stored.sequence
            elif isinstance(message, Decision) and message.decision_id and message.round is not None:
                source = message.decision_id.rsplit(":", 2)[1].partition("=")[0]
                found.decisions[stored.sequence] = (
                    f"{message.symbol} {source}",
                    message.round,
                    message.agents_consulted,
                )
            elif isinstance(message, Epoch):
                found.claims.setdefault(address.agent, []).append(stored.sequence)
            elif isinstance(message, Lifecycle) and message.epoch is not None:
                found.events[message.event, message.agent, message.epoch] = (stored.stored_ns, message.detail)
    return found


# -- values


@dataclass(frozen=True, slots=True)
class Value:
    """An agent's memory key with the value read, and the duration of each read, ms."""

    agent: str
    key: str
    entry: KvEntry | None
    durations_ms: tuple[float, ...]


async def read_memory(bus: NatsBus, keys: Mapping[str, str]) -> list[Value]:
    """Each agent's memory key, read READS times; the value is that of the last read. `keys`: agent -> key.

    Raises:
        BusError: the bus does not answer.
    """
    found = []
    for agent, key in keys.items():
        durations_ms, entry = [], None
        for _ in range(READS):
            started_at = time.perf_counter()
            entry = await bus.kv_get(bus.subjects.memory_bucket, key)
            durations_ms.append((time.perf_counter() - started_at) * 1000)
        found.append(Value(agent, key, entry, tuple(durations_ms)))
    return found


def match_by_digest(values: list[Value], recording: RunRecording, mirror: Path) -> list[MemoryKey]:
    """Find each value, by its digest, among the agent's messages in the stream and in the mirror's file."""
    rows = []
    for value in values:
        if value.entry is None:
            rows.append(MemoryKey(agent=value.agent, key=value.key, why="the bucket has no such key"))
            continue
        sha256 = digest(value.entry.value)
        outputs = recording.outputs(value.agent)
        sequence = max((at for at, output in outputs.items() if output.sha256 == sha256), default=None)
        mirrored, why = None, ""
        if sequence is None:
            why = f"none of its {len(outputs)} messages in the stream has this digest"
        else:
            try:
                with MirrorFile(mirror) as file:
                    row = file.message(sequence)
                mirrored = row is not None and row.intact and digest(row.row.payload) == sha256
            except MeshError as error:
                why = f"the mirror cannot be read: {error}"
        rows.append(
            MemoryKey(
                agent=value.agent,
                key=value.key,
                bytes=len(value.entry.value),
                revision=value.entry.revision,
                sha256=sha256,
                read_ms=percentiles_of(value.durations_ms),
                sequence=sequence,
                mirrored=mirrored,
                why=why,
            )
        )
    return rows


async def check_snapshots(bus: NatsBus, mirror: Path) -> list[SnapshotRow]:
    """Every agent's snapshot in the bus, and the same revision in the mirror, which may lag by MIRROR_S.

    Raises:
        BusError: the bus does not answer.
    """
    bucket = bus.subjects.state_bucket
    rows = []
    for agent, entry in sorted((await bus.kv_all(bucket)).items()):
        sha256, same, why = digest(entry.value), None, f"the mirror has no row of revision {entry.revision}"
        until = time.monotonic() + MIRROR_S
        while same is None and time.monotonic() < until:
            try:
                same = await asyncio.to_thread(_is_mirrored, mirror, bucket, agent, entry.revision, sha256)
            except MeshError as error:
                why = f"the mirror cannot be read: {error}"
            if same is None:
                await asyncio.sleep(POLL_INTERVAL_S)
        rows.append(
            SnapshotRow(
                agent=agent,
                bytes=len(entry.value),
                revision=entry.revision,
                sha256=sha256,
                mirrored=same,
                why="" if same is not None else why,
            )
        )
    return rows


def _is_mirrored(mirror: Path, bucket: str, key: str, revision: int, sha256: str) -> bool | None:
    with MirrorFile(mirror) as file:
        rows = [found for found in file.value_history(bucket, key) if found.row.revision == revision]
    return rows[0].intact and digest(rows[0].row.value) == sha256 if rows else None


async def read_last_values(bus: NatsBus) -> LastValues:
    """Read the newest message of every subject, as a late subscriber does.

    Raises:
        BusError: the bus does not answer.
    """
    durations_ms, size = [], 0
    subjects = sorted(await bus.subject_counts(f"{bus.subjects.ns}.>"))
    for subject in subjects:
        started_at = time.perf_counter()
        stored = await bus.last(subject)
        durations_ms.append((time.perf_counter() - started_at) * 1000)
        if stored is None:
            raise BusError(f"{subject}: counted by the stream, but it has no newest message")
        size += len(stored.data)
    return LastValues(subjects=len(subjects), bytes=size, read_ms=percentiles_of(durations_ms))
