"""The mirror: copies the stream and the buckets of a swarm into one SQLite file, in order, each message once.

It reads from the file's cursors on, without acknowledgements: the file is the only record of its progress. It writes a
batch only after it has verified that the streams are those in the file, so two histories never mix. If a write fails,
it keeps the batch and stops reading. bus/mirror/writer.py owns the file.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import Any

import orjson
import structlog

from bus.durable.events import EventPublisher
from bus.durable.repeated_alerts import RepeatedAlerts
from bus.errors import BusError, MessageError, MirrorFailing, OtherHistory, Refused
from bus.heartbeats import send_heartbeats
from bus.mirror.batching import BATCH_ROWS, Followed, followed_streams, next_batch, pause_before
from bus.mirror.schema import MessageRow, MirrorGap, StreamIncarnation
from bus.mirror.writer import COMPLETE, PRUNE_ROWS, MirrorStore
from bus.nats.bus import NatsBus
from bus.nats.consumer import collect
from bus.nats.jetstream import STREAM_NOT_FOUND
from bus.utils.aio import end_tasks

NAME = "mirror"
HEARTBEAT_S = 0.2
FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.1, 5.0
"""Pause between two attempts at a failing write."""
PRUNE_S = 1.0
POLL_INTERVAL_S = 0.3
"""Pause between two checks for a missing stream or server, and for changes without a message."""
FINISH_S = 8.0
"""Longest time to read the rest on a stop."""
STARTED_AT = "began"
"""Key in `meta`: the stream's last sequence when the mirror was created."""

log = structlog.get_logger("signalmesh.mirror")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What the file keeps: messages by age in seconds and by number (0: all), and the newest writes of each key."""

    max_age_s: float = 0.0
    max_rows: int = 0
    revisions: int = 32


class Mirror:
    """Follows the swarm of `bus` into `store` until stopped."""

    def __init__(
        self,
        bus: NatsBus,
        store: MirrorStore,
        reports: EventPublisher,
        retention: Retention,
        notices: tuple[str, ...] = (),
    ) -> None:
        """`reports` is closed at the end; `notices` about an earlier file are published as alerts."""
        self._bus, self._store, self._reports = bus, store, reports
        self._retention, self._notices = retention, notices
        self._repeated = RepeatedAlerts(NAME, reports)
        self._followed = followed_streams(bus.subjects)
        self._events = self._followed[0]
        self._stop = asyncio.Event()
        self._bad_file = False
        self._missing: set[str] = set()
        self._status = "waiting"
        self._status_changed = asyncio.Event()
        self.written = 0

    @property
    def status(self) -> str:
        """What its heartbeats report, at once when it changes."""
        return self._status

    @status.setter
    def status(self, status: str) -> None:
        if status != self._status:
            self._status = status
            self._status_changed.set()

    def stop(self) -> None:
        """Read the rest, and end. Safe to call from a signal handler of the loop."""
        self._stop.set()
        self._events.arrived.set()
        self._events.full.set()

    async def run(self) -> None:
        """Follow until stopped.

        Raises:
            MirrorDamaged: the file's content is broken.
        """
        heartbeat_task = asyncio.create_task(
            send_heartbeats(self._bus, NAME, "mirror", HEARTBEAT_S, self._heartbeat_fields, self._status_changed),
            name="mirror-heartbeat",
        )
        for notice in self._notices:
            self._reports.alert("critical", "mirror_file_replaced", notice)
        try:
            async with self._reports:
                try:
                    await self._follow()
                finally:
                    for followed in self._followed:
                        await followed.close()
        finally:
            await end_tasks([heartbeat_task])

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()

    async def _until_arrival(self) -> None:
        """Wait for a message, at most POLL_INTERVAL_S: streams may be created again, rows expire."""
        if any(followed.waiting for followed in self._followed) or self._stop.is_set():
            return
        self._events.arrived.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_INTERVAL_S):
                await self._events.arrived.wait()

    async def _until_batch(self) -> None:
        """Wait for messages that share a transaction with those that are waiting."""
        self._events.full.clear()
        pause_s = pause_before(len(self._events.waiting), self._lag_ms() / 1000)
        if pause_s and not self._stop.is_set() and any(one.waiting for one in self._followed):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._events.full.wait()

    async def _follow(self) -> None:
        pruned_at, backoff_s = time.monotonic(), 0.0
        try:
            while not self._stop.is_set():
                try:
                    await self._start_reading()
                    await self._write()
                    if time.monotonic() - pruned_at > PRUNE_S:
                        await self._store.check_path()
                        await self._store.trim_log()
                        if await self._prune() < PRUNE_ROWS:
                            pruned_at = time.monotonic()
                except MirrorFailing as error:
                    backoff_s = min(2 * backoff_s or FIRST_BACKOFF_S, LAST_BACKOFF_S)
                    self._failing(error)
                    await self._pause(backoff_s)
                except BusError as error:
                    log.debug("mirror_paused", problem=str(error))
                    if isinstance(error, Refused) and error.code == STREAM_NOT_FOUND:
                        self._lost(error.subject.rpartition(".")[2])
                    self.status = "waiting"
                    await self._pause(POLL_INTERVAL_S)
                else:
                    backoff_s = 0.0
                    self._healthy()
                    await self._until_arrival()
                    await self._until_batch()
                self._reports.check()
                self._repeated.check()
            await self._finish()
        except OtherHistory as error:
            self.status = "diverged"
            log.warning("mirror_other_history", problem=str(error))
            self._reports.alert("critical", "mirror_other_history", str(error))
            await self._stop.wait()

    def _failing(self, error: MirrorFailing) -> None:
        self.status = "failing"
        if not self._bad_file:
            self._bad_file = True
            problem = f"{error}; it mirrors messages from this time later, if the stream still has them"
            self._reports.alert("critical", "mirror_failing", problem)

    def _lost(self, stream: str) -> None:
        if stream in self._missing or stream not in self._store.incarnations:  # otherwise it does not exist yet
            return
        self._missing.add(stream)
        problem = (
            f"stream {stream} is gone from the bus: the swarm cannot continue without it. End the swarm "
            f"(`signalmesh down`) and restart it: `signalmesh up` restores what the mirror {self._store.path} holds"
        )
        log.error("stream_lost", stream=stream)
        self._reports.alert("critical", "stream_lost", problem)

    def _healthy(self) -> None:
        self._missing.clear()
        if self._bad_file:
            self._bad_file = False
            self._reports.alert("info", "mirror_recovered", f"mirror {self._store.path}: writing works again")
        self.status = "live" if self._lag() < BATCH_ROWS else "catching-up"

    # -- verifying the streams

    async def _start_reading(self) -> None:
        for followed in self._followed:
            if followed.reader is None:
                await self._bus.wait_connected()
                await self._verify(followed)
                try:
                    await followed.start(self._bus, self._store.cursors.get(followed.stream, 0) + 1)
                except BaseException:
                    followed.reader = None
                    raise
            elif followed.unverified:  # the consumer was created again: perhaps the stream also
                await self._verify(followed)

    async def _verify(self, followed: Followed) -> None:
        """Verify that `followed` is the stream in the file, and record messages that expired before they were read.

        A consumer does not outlive its stream: the messages of a reader's generation belong to the stream that is
        found after its start.

        Raises:
            OtherHistory: it is another stream, or has lost messages that the file has.
            BusError: it cannot be checked now.
        """
        stream, cursor = followed.stream, self._store.cursors.get(followed.stream, 0)
        generation = -1 if followed.reader is None else followed.reader.generation
        info = await self._bus.api(f"STREAM.INFO.{stream}")
        created, first, last = info["created"], info["state"]["first_seq"], info["state"]["last_seq"]
        known = self._store.incarnations.get(stream)
        if known is None:
            if followed is self._events:
                await self._store.set_meta(STARTED_AT, str(last))
            await self._store.begin([StreamIncarnation(stream, created, orjson.dumps(info["config"]), 0, "first")])
        elif known.created != created:
            text = f"stream {stream} was created again at {created}, the mirrored one at {known.created}"
            raise OtherHistory(self._advice(text))
        elif last < cursor:
            raise OtherHistory(self._advice(f"stream {stream} ends at {last}, the mirror holds it up to {cursor}"))
        followed.verified = generation
        if followed is self._events and first > cursor + 1 and not followed.waiting:
            gap = MirrorGap(stream, cursor + 1, first - 1, "before" if first - 1 <= self._started_at else "retention")
            await self._store.write([], [], {stream: gap.last}, [gap])
            self._report_gap(gap)

    @property
    def _started_at(self) -> int:
        return int(self._store.meta.get(STARTED_AT, 0))

    def _advice(self, what: str) -> str:
        return (
            f"mirror {self._store.path}: {what}; it stops following, because that would mix two histories. To follow "
            "the new stream, end the mirror, move its file away and start it again; to restore the mirrored one, see "
            "docs/runbooks/restore-after-total-loss.md"
        )

    def _report_gap(self, gap: MirrorGap) -> None:
        if gap.reason == "before":
            log.info("mirror_starts_after", first=gap.first, last=gap.last)
            return
        self._reports.alert(
            "critical",
            "mirror_gap",
            f"mirror {self._store.path}: messages {gap.first} to {gap.last} were gone from the stream before they "
            "could be mirrored; keep more ([stream] max_age_s, max_bytes), and keep the mirror running",
            first_missing=gap.first,
            last_missing=gap.last,
        )

    # -- writing

    async def _write(self, *, defer: bool = True) -> None:
        """Write all received messages."""
        while True:
            batch = next_batch(self._followed, self._store.cursors, self._started_at, defer=defer)
            if not batch.taken:
                return
            for followed in self._followed:
                if followed.unverified:
                    await self._verify(followed)
            await self._store.write(batch.messages, batch.values, batch.cursors, batch.gaps)
            for followed in self._followed:
                followed.written(batch.taken.get(followed.stream, 0))
            for gap in batch.gaps:
                self._report_gap(gap)
            for row in batch.messages:
                if self._bus.subjects.is_hidden(row.subject):
                    self._report_hidden(row)
            self.written += len(batch.messages) + len(batch.values)

    def _report_hidden(self, row: MessageRow) -> None:
        """Alert about a message that nobody else reports: no agent can have read it."""
        try:
            self._bus.subjects.parse(row.subject)
        except MessageError as error:
            self._repeated.poison(row.subject, row.sequence, error.problem)

    async def _prune(self) -> int:
        keep = self._retention
        return await self._store.prune(max_age_s=keep.max_age_s, max_rows=keep.max_rows, revisions=keep.revisions)

    async def _finish(self) -> None:
        """Read the rest, and record in the file if it is complete."""
        self.status = "draining"
        try:
            async with asyncio.timeout(FINISH_S):
                await self._reports.flush()
                for followed in self._followed:
                    await followed.close()
                while await self._rest():
                    pass
                ends = {followed.stream: await self._end_of(followed) for followed in self._followed}
                if ends[self._events.stream] == self._store.cursors.get(self._events.stream, 0):
                    await self._store.set_meta(COMPLETE, orjson.dumps(ends).decode())
                    log.info("mirror_complete", **ends)
        except (TimeoutError, BusError, MirrorFailing) as error:
            log.warning("mirror_incomplete", problem=str(error) or "timed out", lag=self._lag())

    async def _rest(self) -> bool:
        """Read and write messages from after the readers were closed; whether there were any.

        Buckets first: the messages that their values reference are then read after them.
        """
        found = False
        for followed in reversed(self._followed):
            cursor = self._store.cursors.get(followed.stream, 0)
            last = followed.waiting[-1][1].sequence if followed.waiting else cursor
            for stored in await collect(self._bus.jetstream, followed.stream, followed.filters, last + 1):
                followed.put(stored)
            found = found or bool(followed.waiting)
        for followed in self._followed:
            await self._verify(followed)
        await self._write(defer=False)
        return found

    async def _end_of(self, followed: Followed) -> int:
        last: int = (await self._bus.api(f"STREAM.INFO.{followed.stream}"))["state"]["last_seq"]
        return last

    # -- progress

    def _lag(self) -> int:
        return sum(followed.lag for followed in self._followed)

    def _lag_ms(self) -> int:
        oldest = min((one.waiting[0][1].stored_ns for one in self._followed if one.waiting), default=None)
        return 0 if oldest is None else max(0, (time.time_ns() - oldest) // 1_000_000)

    def _heartbeat_fields(self) -> dict[str, Any]:
        """Fields of its heartbeats."""
        return {
            "progress": self.written,
            "status": self.status,
            "cursor": self._store.cursors.get(self._events.stream, 0),
            "lag": self._lag(),
            "file": str(self._store.path),
            "lag_ms": self._lag_ms(),
        }
