"""A mirror in this process: what it copies, what it reports, and when it stops following."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import orjson
import pytest

from bus.errors import BusTimeout, MirrorFailing
from bus.mirror import batching
from bus.mirror import follower as module
from bus.mirror.follower import Mirror, Retention
from bus.mirror.reader import MirrorFile
from bus.mirror.writer import COMPLETE, MirrorStore
from tests.support.collecting import Collector
from tests.support.memory_streams import MemoryStreams

GUARD_S = 20.0
EVENTS, STATE = "swarm_events", "KV_swarm_state"
SUBJECT = "swarm.signal.A.one"
EVERYTHING = Retention()


class Reports:
    """In place of an EventPublisher."""

    def __init__(self) -> None:
        self.alerts: list[tuple[str, str, dict[str, Any]]] = []

    def alert(self, severity: str, code: str, message: str, **detail: Any) -> None:
        self.alerts.append((code, message, detail))

    def check(self) -> None: ...
    async def flush(self) -> None: ...
    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    @property
    def codes(self) -> list[str]:
        return [code for code, _, _ in self.alerts]


class Following:
    def __init__(self, streams: MemoryStreams, store: MirrorStore, retention: Retention, notices: tuple[str, ...]):
        self.streams, self.store, self.reports = streams, store, Reports()
        bus: Any = streams
        reports: Any = self.reports
        self.mirror = Mirror(bus, store, reports, retention, notices)
        self.task = asyncio.create_task(self.mirror.run())

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(GUARD_S):
            while not condition():
                assert not self.task.done(), self.task
                await asyncio.sleep(0.002)

    async def reached(self, cursor: int, stream: str = EVENTS) -> None:
        await self.until(lambda: self.store.cursors.get(stream, 0) >= cursor)

    async def stopped(self) -> None:
        self.mirror.stop()
        async with asyncio.timeout(GUARD_S):
            await self.task


@asynccontextmanager
async def following(
    path: Path, streams: MemoryStreams, retention: Retention = EVERYTHING, notices: tuple[str, ...] = ()
) -> AsyncIterator[Following]:
    store = await MirrorStore.open(path, "swarm")
    at = Following(streams, store, retention, notices)
    try:
        yield at
    finally:
        at.task.cancel()
        await asyncio.gather(at.task, return_exceptions=True)
        await store.close()


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    for name in ("BATCH_S", "PAUSE_S"):
        monkeypatch.setattr(batching, name, 0.0)
    for name, seconds in {"POLL_INTERVAL_S": 0.01, "PRUNE_S": 0.01, "HEARTBEAT_S": 0.01}.items():
        monkeypatch.setattr(module, name, seconds)
    for name in ("FIRST_BACKOFF_S", "LAST_BACKOFF_S"):
        monkeypatch.setattr(module, name, 0.005)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "m.sqlite"


def sequences(path: Path) -> list[int]:
    with MirrorFile(path) as file:
        return [found.row.sequence for found in file.messages()]


def complete(path: Path) -> Any:
    with MirrorFile(path) as file:
        value = file.meta(COMPLETE)
        return None if value is None else orjson.loads(value)


async def test_what_was_and_what_comes_is_copied_and_an_orderly_end_is_recorded(path):
    streams = MemoryStreams()
    for _ in range(3):
        streams.put(EVENTS, SUBJECT)
    async with following(path, streams, notices=("an earlier file is in the way",)) as at:
        await at.reached(3)
        streams.put(STATE, "$KV.swarm_state.one", b'{"cursor": 4}')
        streams.put(EVENTS, SUBJECT)
        await at.reached(4)
        await at.reached(1, STATE)
        await at.until(lambda: at.mirror.status == "live" and at.mirror.written == 5)
        assert at.reports.alerts == [("mirror_file_replaced", "an earlier file is in the way", {})]
        await at.stopped()
        assert at.mirror.status == "draining"
    assert sequences(path) == [1, 2, 3, 4]
    assert complete(path) == {EVENTS: 4, STATE: 1, "KV_swarm_agents": 0, "KV_swarm_memory": 0}


async def test_what_arrives_after_the_readers_are_closed_is_copied_too(path):
    streams = MemoryStreams()
    async with following(path, streams) as at:
        await at.until(lambda: at.mirror.status == "live")
        at.mirror.stop()
        streams.streams[EVENTS].messages += [(n, SUBJECT, b"{}", b"") for n in (1, 2)]  # undelivered
        async with asyncio.timeout(GUARD_S):
            await at.task
    assert sequences(path) == [1, 2]
    assert complete(path)[EVENTS] == 2


async def test_an_orderly_end_of_a_swarm_without_messages_is_complete_as_well(path):
    async with following(path, MemoryStreams()) as at:
        await at.until(lambda: at.mirror.status == "live")
        await at.stopped()
    assert set(complete(path).values()) == {0}


async def test_a_changed_status_is_reported_at_once(path, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT_S", 3600.0)
    streams = MemoryStreams()
    sent: Collector[bytes] = Collector()

    async def notify(_: str, data: bytes) -> None:
        await sent(data)

    monkeypatch.setattr(streams, "notify", notify)
    async with following(path, streams) as at:
        beats = await sent.reach(2)
        assert [orjson.loads(beat)["status"] for beat in beats] == ["waiting", "live"]
        await at.stopped()


async def test_the_next_process_goes_on_after_its_cursor(path):
    streams = MemoryStreams()
    for _ in range(3):
        streams.put(EVENTS, SUBJECT)
    async with following(path, streams) as at:
        await at.reached(3)
    assert complete(path) is None  # it was ended by force
    streams.put(EVENTS, SUBJECT)
    async with following(path, streams) as at:
        await at.reached(4)
        await at.until(lambda: at.mirror.written == 1)
        await at.stopped()
    assert sequences(path) == [1, 2, 3, 4]


async def test_its_heartbeats_say_how_far_it_is(path):
    streams = MemoryStreams()
    streams.put(EVENTS, SUBJECT)
    async with following(path, streams) as at:
        await at.reached(1)
        await at.until(lambda: at.mirror.status == "live")
        assert at.mirror._heartbeat_fields() == {
            "progress": 1, "status": "live", "cursor": 1, "lag": 0, "file": str(path), "lag_ms": 0,
        }  # fmt: skip
        await at.until(lambda: any(orjson.loads(data)["cursor"] == 1 for data in streams.heartbeats))


async def test_the_lag_is_the_age_of_the_oldest_message_that_is_not_written(path, monkeypatch):
    streams = MemoryStreams()
    async with following(path, streams) as at:
        await at.until(lambda: at.mirror.status == "live")
        at.task.cancel()
        await asyncio.gather(at.task, return_exceptions=True)
        monkeypatch.setattr("time.time_ns", lambda: 5_000_000_000)
        assert at.mirror._lag_ms() == 0
        events, state, *_ = at.mirror._followed
        for followed, stored_ns in ((state, 3_000_000_000), (events, 2_000_000_000), (events, 4_000_000_000)):
            message: Any = type("Stored", (), {"stored_ns": stored_ns})
            followed.put(message)
        assert at.mirror._lag_ms() == 3000
        monkeypatch.setattr("time.time_ns", lambda: 1_000_000_000)
        assert at.mirror._lag_ms() == 0  # a clock that was set back


async def test_a_write_that_fails_is_reported_once_and_made_up_for(path, monkeypatch):
    streams = MemoryStreams()
    async with following(path, streams) as at:
        await at.until(lambda: at.mirror.status == "live")
        write, failures = at.store.write, 0

        async def failing(*args: Any) -> None:
            nonlocal failures
            if failures < 3:
                failures += 1
                raise MirrorFailing(str(path), "database or disk is full")
            await write(*args)

        monkeypatch.setattr(at.store, "write", failing)
        streams.put(EVENTS, SUBJECT)
        await at.until(lambda: at.mirror.status == "failing")
        await at.reached(1)
        await at.until(lambda: at.mirror.status == "live")
        assert failures == 3
        assert at.reports.codes == ["mirror_failing", "mirror_recovered"]
        assert "disk is full" in at.reports.alerts[0][1]
        await at.stopped()
    assert sequences(path) == [1]


@pytest.mark.parametrize("change", ["created again", "shorter"])
async def test_another_history_is_not_mixed_in(path, change):
    streams = MemoryStreams()
    for _ in range(3):
        streams.put(EVENTS, SUBJECT)
    async with following(path, streams) as at:
        await at.reached(3)
    if change == "created again":
        streams.create(EVENTS, "2026-02-02T00:00:00Z")
        for _ in range(5):
            streams.put(EVENTS, SUBJECT)
    else:
        streams.streams[EVENTS].messages.pop()
    async with following(path, streams) as at:
        await at.until(lambda: at.mirror.status == "diverged")
        [(code, message, _)] = at.reports.alerts
        assert code == "mirror_other_history"
        assert change in message or "ends at 2, the mirror holds it up to 3" in message
        await at.stopped()
    assert sequences(path) == [1, 2, 3]
    assert complete(path) is None


async def test_what_expired_before_it_was_copied_is_recorded_and_only_later_losses_are_reported(path):
    streams = MemoryStreams()
    streams.create(EVENTS, first=4)
    streams.put(EVENTS, SUBJECT)
    async with following(path, streams) as at:
        await at.reached(4)
        streams.put(EVENTS, SUBJECT, sequence=7)
        await at.reached(7)
        await at.until(lambda: at.reports.codes == ["mirror_gap"])
        assert at.reports.alerts[0][2] == {"first_missing": 5, "last_missing": 6}
    streams.create(EVENTS, first=10)
    async with following(path, streams) as at:
        await at.reached(9)
        await at.until(lambda: at.reports.codes == ["mirror_gap"])
        assert at.reports.alerts[0][2] == {"first_missing": 8, "last_missing": 9}
    with MirrorFile(path) as file:
        assert [(gap.first, gap.last, gap.reason) for gap in file.gaps()] == [
            (1, 3, "before"), (5, 6, "retention"), (8, 9, "retention"),
        ]  # fmt: skip


async def test_the_first_message_after_its_start_that_expires_is_a_loss(path):
    streams = MemoryStreams()
    for _ in range(5):
        streams.put(EVENTS, SUBJECT)
    async with following(path, streams) as at:
        await at.reached(5)
        assert at.reports.alerts == []
    streams.streams[EVENTS].first = 7
    streams.put(EVENTS, SUBJECT, sequence=7)
    async with following(path, streams) as at:
        await at.reached(7)
        assert at.reports.codes == ["mirror_gap"]
        assert at.reports.alerts[0][2] == {"first_missing": 6, "last_missing": 6}
    with MirrorFile(path) as file:
        assert [(gap.first, gap.last, gap.reason) for gap in file.gaps()] == [(6, 6, "retention")]


async def test_a_reader_that_could_not_start_is_started_again(path, monkeypatch):
    streams = MemoryStreams()
    streams.put(EVENTS, SUBJECT)
    create = streams.create_consumer
    failed: list[str] = []

    async def failing_once(stream: str, *args: Any, **more: Any) -> int:
        if stream == EVENTS and not failed:
            failed.append(stream)
            raise BusTimeout("no answer")
        return await create(stream, *args, **more)

    monkeypatch.setattr(streams, "create_consumer", failing_once)
    async with following(path, streams) as at:
        await at.reached(1)
        await at.until(lambda: at.mirror.status == "live")
        assert (failed, at.reports.alerts) == ([EVENTS], [])
        await at.stopped()
    assert sequences(path) == [1]


async def test_a_stream_that_is_not_made_yet_is_waited_for_and_one_that_is_gone_is_reported_once(path):
    streams = MemoryStreams()
    made = streams.streams.pop(EVENTS)
    async with following(path, streams) as at:
        await at.until(lambda: at.mirror.status == "waiting" and bool(streams.heartbeats))
        streams.streams[EVENTS] = made
        streams.put(EVENTS, SUBJECT)
        await at.reached(1)
        assert at.reports.alerts == []
    del streams.streams[EVENTS]
    async with following(path, streams) as at:
        await at.until(lambda: at.reports.codes == ["stream_lost"])
        checks = len(streams.heartbeats)
        await at.until(lambda: len(streams.heartbeats) > checks + 3)
        assert at.reports.codes == ["stream_lost"]
        streams.streams[EVENTS] = made
        await at.until(lambda: at.mirror.status == "live")


async def test_the_file_is_pruned_to_its_limits(path):
    streams = MemoryStreams()
    for _ in range(5):
        streams.put(EVENTS, SUBJECT)
    async with following(path, streams, Retention(max_rows=2)) as at:
        await at.reached(5)
        with MirrorFile(path) as file:
            await at.until(lambda: file.bounds() == (4, 5))
