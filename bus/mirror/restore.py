"""Restores lost streams from the mirror's file: messages at their sequences, buckets at new revisions.

It runs while no other process of the swarm runs. The stream is created under a private write prefix and without
republishing: restored messages are not delivered as new ones, and no other process can publish in between. Sequences
that the file does not have are filled with placeholders and purged. The stream gets its real configuration only after
everything is restored and the file has recorded the new incarnation. An interrupted restore starts from scratch.

docs/adr/0010-mirror-and-rebuild.md gives the reasons.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import orjson
import structlog

from bus.durable.fencing import claim_parts, new_agent_id
from bus.errors import OtherHistory, Refused, UsageError
from bus.messages import Lifecycle, encode, now
from bus.messages import headers as h
from bus.mirror.batching import references
from bus.mirror.loss_check import Adoptable, Diverged, LossCheck, Lost, stream_info
from bus.mirror.reader import PAGE, Mirrored, MirrorFile
from bus.mirror.schema import MirrorGap, StreamIncarnation
from bus.mirror.sequenced_publisher import SequencedPublisher
from bus.mirror.writer import COMPLETE, MirrorStore
from bus.nats.bus import NatsBus
from bus.nats.permissions import is_guarded
from bus.nats.streams import MEMORY_TTL_S, StreamLimits, expected_streams

MAX_PLACEHOLDERS = 1_000_000
"""Most sequences that are filled and purged, some 25 s of work; messages before more of them are not restored."""
MARGIN = 10_000
"""Sequences and revisions left free after the file's last ones, if the file may be incomplete: a lost message or claim
must never share its number with a new one."""
SHORTEST_WINDOW_NS = 100_000_000
"""The server's smallest window for duplicates; the same id may occur twice in a stream, minutes apart."""
RECENT_IDS = 100_000
PLACEHOLDER = "hole"
LISTED, MAX_LISTED = ("damaged", "foreign"), 100
"""Fields of the result of which the event of a restore has the first sequences."""

log = structlog.get_logger("signalmesh.restore")


@dataclass(slots=True, kw_only=True)
class RestoreResult:
    """The result. `clean`: the file was complete; otherwise messages after `last` may be missing. Rows that are
    `damaged` or under a subject that none of the swarm's processes uses (`foreign`), and rows before `first`, were not
    restored; `unfenced` were stored without their fence.
    """

    stream: str
    first: int = 0
    last: int = 0
    messages: int = 0
    holes: int = 0
    left_out: int = 0
    damaged: list[int] = field(default_factory=list)
    foreign: list[int] = field(default_factory=list)
    unfenced: int = 0
    clean: bool = False
    buckets: dict[str, int] = field(default_factory=dict)
    values_left_out: list[str] = field(default_factory=list)

    @property
    def missing_from(self) -> int | None:
        return None if self.clean or not self.messages else self.last + 1

    def __str__(self) -> str:
        parts = []
        if self.messages:
            parts.append(f"{self.messages} messages ({self.first} to {self.last})")
        parts += [f"{count} values of {bucket}" for bucket, count in self.buckets.items()]
        text = f"restored from the mirror: {', '.join(parts)}"
        if self.left_out:
            text += f"; {self.left_out} older messages are in the mirror's file only"
        if self.damaged:
            text += f"; {len(self.damaged)} damaged rows were left out"
        if self.foreign:
            text += f"; {len(self.foreign)} messages under subjects that no process of the swarm uses were left out"
        if self.values_left_out:
            text += f"; no value that fits: {', '.join(self.values_left_out)}"
        if self.missing_from is not None:
            text += f"; at least the messages from {self.missing_from} on, if there were any, are lost"
        return text


async def restore_lost(bus: NatsBus, store: MirrorStore, limits: StreamLimits, writer: str) -> RestoreResult | None:
    """Restore the streams of `store` that the server has lost; None if none is lost. `writer` reports the result.

    Raises:
        OtherHistory: the server's streams diverge from the file; nothing was changed.
        UsageError: the server refused to create a stream.
        BusError: the server refused, or disconnected; the next call starts from scratch.
    """
    with MirrorFile(store.path) as file:
        configs = expected_streams(bus, limits, is_guarded=await is_guarded(bus))
        return await _Restore(bus, store, file, limits, configs, writer).run()


class _Restore:
    def __init__(
        self,
        bus: NatsBus,
        store: MirrorStore,
        file: MirrorFile,
        limits: StreamLimits,
        configs: list[dict[str, Any]],
        writer: str,
    ) -> None:
        self._bus, self._store, self._file, self._limits, self._writer = bus, store, file, limits, writer
        self._prefix = bus.subjects.restore_prefix
        self._configs = {config["name"]: config for config in configs}
        self._events = bus.subjects.stream
        self._result = RestoreResult(stream=self._events)
        self._last_of: dict[str, int] = {}
        self._ids: OrderedDict[str, None] = OrderedDict()
        self._pipe = SequencedPublisher(bus)
        self._last_in_file = self._find_last()

    async def run(self) -> RestoreResult | None:
        events, *buckets = self._configs
        if self._store.cursors.get(events, 0) == 0:
            return None
        infos = {stream: await stream_info(self._bus, stream) for stream in self._configs}
        lost = await self._find_lost(infos)
        if not lost:
            return None
        if events in lost:
            lost.update(buckets)  # state must fit the messages
        self._result.clean = self._is_clean()
        log.warning("restore_started", lost=sorted(lost), clean=self._result.clean)
        incarnations: list[StreamIncarnation] = []
        cursors: dict[str, int] = {}
        gaps: list[MirrorGap] = []
        if events in lost:
            await self._put_messages(infos[events], incarnations, cursors, gaps)
        for bucket in (stream for stream in buckets if stream in lost):
            await self._put_values(bucket, infos[bucket], incarnations, cursors)
        await self._raise_epochs(self._prefix if events in lost else self._bus.subjects.write_prefix)
        await self._report(self._prefix if events in lost else self._bus.subjects.write_prefix)
        await self._store.begin(incarnations, cursors, gaps)
        if events in lost:
            config = (await self._bus.api(f"STREAM.INFO.{events}"))["config"]
            await self._bus.api(f"STREAM.UPDATE.{events}", {**config, **self._configs[events]})
        log.warning("restore_finished", text=str(self._result))
        return self._result

    async def _find_lost(self, infos: dict[str, dict[str, Any] | None]) -> set[str]:
        """The streams to restore; those that continue the mirror are recorded in its file as its own.

        Raises:
            OtherHistory: a stream has diverged; nothing is recorded then.
        """
        check = LossCheck(self._bus, self._store, self._file)
        results = {stream: await check.classify(stream, info) for stream, info in infos.items()}
        adopted = []
        for stream, result in results.items():
            if isinstance(result, Diverged):
                raise OtherHistory(result.problem)
            if isinstance(result, Adoptable):
                config = orjson.dumps(result.config)
                adopted.append(StreamIncarnation(stream, result.created, config, result.cursor, "restored"))
        if adopted:
            await self._store.begin(adopted)
        return {stream for stream, result in results.items() if isinstance(result, Lost)}

    def _find_last(self) -> int:
        """The last sequence of the stream in the file: its cursor, less what an earlier restore left free."""
        cursor = self._store.cursors.get(self._events, 0)
        free = [gap.first for gap in self._file.gaps() if gap.reason == "lost" and gap.last == cursor]
        return min(free, default=cursor + 1) - 1

    def _is_clean(self) -> bool:
        complete = orjson.loads(self._store.meta.get(COMPLETE, "{}"))
        return bool(complete.get(self._events) == self._store.cursors[self._events])

    async def _create_stream(self, config: dict[str, Any], present: dict[str, Any] | None) -> str:
        """Create a stream in place of the present one; returns the creation time that the server reports."""
        name = config["name"]
        if present is not None:
            await self._bus.api(f"STREAM.DELETE.{name}")
        try:
            return str((await self._bus.api(f"STREAM.CREATE.{name}", config))["created"])
        except Refused as error:
            raise UsageError(f"the server at {self._bus.url} refused to create {name}: {error.description}") from None

    # -- messages

    async def _put_messages(
        self,
        present: dict[str, Any] | None,
        incarnations: list[StreamIncarnation],
        cursors: dict[str, int],
        gaps: list[MirrorGap],
    ) -> None:
        cursor = self._store.cursors[self._events]
        oldest_ns = time.time_ns() - int(self._limits.max_age_s * 1e9)
        first = await asyncio.to_thread(self._first_to_put, oldest_ns, cursor)
        expected = self._configs[self._events]
        config = {key: expected[key] for key in expected if key not in ("republish", "deny_delete", "deny_purge")}
        config |= {
            "subjects": [self._prefix + ">"],
            "subject_transform": {"src": self._prefix + ">", "dest": f"{self._bus.subjects.ns}.>"},
            "first_seq": first,
            "duplicate_window": SHORTEST_WINDOW_NS,
            "max_age": 0,  # restored messages are new for the server; none may expire before the restore ends
            "max_bytes": -1,
        }
        created = await self._create_stream(config, present)
        reached = first - 1
        rows = self._file.messages(first=first, last=cursor)
        while page := await asyncio.to_thread(lambda: list(itertools.islice(rows, PAGE))):
            for found in page:
                row = found.row
                if not found.intact:
                    self._result.damaged.append(row.sequence)
                elif not self._may_be_put(row.subject):
                    self._result.foreign.append(row.sequence)
                elif row.stored_ns >= oldest_ns or row.headers.get(h.TTL) == "never":
                    await self._fill(reached + 1, row.sequence - 1)
                    await self._put(found)
                    reached = row.sequence
        end = cursor if self._result.clean else cursor + MARGIN
        await self._fill(reached + 1, end)
        await self._pipe.flush()
        if self._result.holes:
            await self._bus.api(f"STREAM.PURGE.{self._events}", {"filter": f"{self._bus.subjects.ns}.{PLACEHOLDER}"})
        self._result.last = self._last_in_file
        incarnations.append(StreamIncarnation(self._events, created, orjson.dumps(expected), end, "rebuilt"))
        cursors[self._events] = end
        if end > cursor:
            gaps.append(MirrorGap(self._events, cursor + 1, end, "lost"))

    def _may_be_put(self, subject: str) -> bool:
        """Whether a message under this subject can be published again: the client takes no blanks, of Unicode too."""
        return subject.startswith(f"{self._bus.subjects.ns}.") and subject.split() == [subject]

    def _first_to_put(self, oldest_ns: int, cursor: int) -> int:
        """The first sequence within the stream's limits with at most MAX_PLACEHOLDERS missing sequences after it."""
        kept = '(stored_ns >= ? OR instr(CAST(headers AS TEXT), \'"Nats-TTL":"never"\') > 0)'
        pairs = f"SELECT sequence, lag(sequence) OVER (ORDER BY sequence) AS before FROM messages WHERE {kept}"  # noqa: S608 - constants, and columns of our own
        beginnings = "before IS NULL OR sequence - before > 1"
        sql = f"SELECT sequence, before FROM ({pairs}) WHERE {beginnings} ORDER BY sequence DESC"  # noqa: S608 - constants, and columns of our own
        runs = self._file.rows(sql, oldest_ns)
        placeholders, first = 0, cursor + 1
        for sequence, before in runs:
            first = sequence
            placeholders += 0 if before is None else sequence - before - 1
            if placeholders > MAX_PLACEHOLDERS:
                break
        [(older,)] = self._file.rows("SELECT count(*) FROM messages WHERE sequence < ?", first)
        self._result.left_out = older
        return int(first)

    async def _fill(self, first: int, last: int) -> None:
        for sequence in range(first, last + 1):
            await self._pipe.send(self._prefix + PLACEHOLDER, b"", {}, sequence)
            self._result.holes += 1

    async def _put(self, found: Mirrored) -> None:
        row = found.row
        subject = row.subject.partition(".")[2]
        headers = self._checked(row.subject, row.sequence, dict(row.headers))
        message_id = headers.get(h.MSG_ID)
        if message_id is not None and message_id in self._ids:
            await self._pipe.flush()
            await self._pipe.until_new(self._prefix + subject, row.payload, headers, row.sequence)
        else:
            await self._pipe.send(self._prefix + subject, row.payload, headers, row.sequence)
        if message_id is not None:
            self._ids[message_id] = None
            self._ids.move_to_end(message_id)
            if len(self._ids) > RECENT_IDS:
                self._ids.popitem(last=False)
        self._last_of[row.subject] = row.sequence
        self._result.first = self._result.first or row.sequence
        self._result.messages += 1

    def _checked(self, subject: str, sequence: int, headers: dict[str, str]) -> dict[str, str]:
        """The headers, without conditions that no longer hold (the fence of a claim that was not restored)."""
        holds = True
        for name, value in headers.items():
            if name == h.EXPECTED_LAST_SUBJECT_SEQUENCE:
                about = headers.get(h.EXPECTED_LAST_SUBJECT, subject)
                holds = holds and str(self._last_of.get(about, 0)) == value
            elif name == "Nats-Expected-Last-Sequence":
                holds = holds and str(sequence - 1) == value
            elif name == "Nats-Expected-Last-Msg-Id":
                holds = False
        if holds:
            return headers
        self._result.unfenced += 1
        return {name: value for name, value in headers.items() if not name.startswith("Nats-Expected-Last-")}

    # -- buckets

    async def _put_values(
        self,
        stream: str,
        present: dict[str, Any] | None,
        incarnations: list[StreamIncarnation],
        cursors: dict[str, int],
    ) -> None:
        bucket = stream.removeprefix("KV_")
        highest = max(self._store.cursors.get(stream, 0), present["state"]["last_seq"] if present else 0)
        base = highest + (0 if self._result.clean else MARGIN)
        config = {**self._configs[stream], "first_seq": base + 1}
        created = await self._create_stream(config, present)
        count = 0
        for key, value in (await asyncio.to_thread(self._fitting_values, bucket)).items():
            await self._bus.kv_put(bucket, key, value, 0)
            count += 1
        self._result.buckets[bucket] = count
        incarnations.append(StreamIncarnation(stream, created, orjson.dumps(config), base, "rebuilt"))
        cursors[stream] = base

    def _fitting_values(self, bucket: str) -> dict[str, bytes]:
        """The newest intact value of each key that references only messages in the file."""
        memory = bucket == self._bus.subjects.memory_bucket
        found: dict[str, bytes] = {}
        for key, newest in self._file.values(bucket).items():
            if newest.intact and newest.row.operation != "PUT":
                continue
            if memory and newest.row.stored_ns < time.time_ns() - MEMORY_TTL_S * 10**9:
                continue
            for value in reversed(self._file.value_history(bucket, key)):
                row = value.row
                if value.intact and row.operation == "PUT" and (memory or references(row.value) <= self._last_in_file):
                    found[key] = row.value
                    break
            else:
                self._result.values_left_out.append(f"{bucket} {key}")
        return found

    # -- after the restore

    async def _raise_epochs(self, prefix: str) -> None:
        """Claim the next epoch of every agent: the stream then refuses surviving processes with an older one."""
        agents = [row[0] for row in self._file.rows("SELECT DISTINCT agent FROM messages WHERE kind = 'epoch'")]
        for agent in agents:
            subject = self._bus.subjects.epoch(agent)
            last = await self._bus.last(subject)
            data, headers = claim_parts(
                self._bus, agent, agent_id=new_agent_id(), claimed_by=self._writer, sandbox="",
                expect=last.sequence if last else 0,
            )  # fmt: skip
            await self._bus.publish(prefix + subject.partition(".")[2], data, headers)

    async def _report(self, prefix: str) -> None:
        result = self._result
        detail = {name: getattr(result, name) for name in RestoreResult.__slots__ if name not in LISTED}
        event = Lifecycle(
            event="rebuilt",
            agent="swarm",
            timestamp=now(),
            source=self._writer,
            reason=str(result),
            detail={
                **detail,
                **{name: getattr(result, name)[:MAX_LISTED] for name in LISTED},
                "missing_from": result.missing_from,
            },
        )
        subject = self._bus.subjects.lifecycle("swarm", self._writer)
        await self._bus.publish(prefix + subject.partition(".")[2], encode(event))
