"""What of the mirror's buffers is written next, and what waits for the messages that it references."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from bus.interface import EVERYTHING, StoredMessage
from bus.messages.subjects import Subjects
from bus.mirror import batching
from bus.mirror.batching import BATCH_ROWS, Batch, Followed, followed_streams, next_batch, pause_before, references
from bus.mirror.schema import MirrorGap

EVENTS, STATE = "swarm_events", "KV_swarm_state"


def streams() -> tuple[Followed, ...]:
    return followed_streams(Subjects("swarm"))


def event(sequence: int, pending: int = 0) -> StoredMessage:
    return StoredMessage(f"swarm.signal.A.a{sequence}", sequence, b"{}", {"Nats-Msg-Id": "x"}, pending, 1000 + sequence)


def value(revision: int, *, bucket: str = "swarm_state", cursor: int = 0, **headers: str) -> StoredMessage:
    data = orjson.dumps({"epoch": 1, "cursor": cursor, "outputs": 99})
    return StoredMessage(f"$KV.{bucket}.agent.x", revision, data, headers, 0, 2000 + revision)


def reading(pending: int = 0, generation: int = 0) -> Any:
    return SimpleNamespace(pending=pending, generation=generation)


def sequences(batch: Batch) -> list[int]:
    return [row.sequence for row in batch.messages]


def revisions(batch: Batch) -> list[int]:
    return [row.revision for row in batch.values]


def test_the_streams_that_are_followed_are_the_events_and_three_buckets():
    events, *buckets = streams()
    assert (events.stream, events.filters, events.bucket) == (EVENTS, EVERYTHING, "")
    assert [(one.stream, one.references_events) for one in buckets] == [
        (STATE, True), ("KV_swarm_agents", True), ("KV_swarm_memory", False),
    ]  # fmt: skip
    assert {id(one.arrived) for one in buckets} == {id(events.arrived)}


def test_rows_and_cursors_are_those_of_the_messages():
    followed = streams()
    followed[0].put(event(4))
    followed[1].put(value(7))
    followed[3].put(value(2, bucket="swarm_memory"))
    batch = next_batch(followed, {EVENTS: 3}, 3)
    [row] = batch.messages
    assert (row.sequence, row.stored_ns, row.subject, row.headers, row.payload) == (
        4, 1004, "swarm.signal.A.a4", {"Nats-Msg-Id": "x"}, b"{}",
    )  # fmt: skip
    assert [(row.bucket, row.key, row.revision, row.operation, row.stored_ns) for row in batch.values] == [
        ("swarm_state", "agent.x", 7, "PUT", 2007), ("swarm_memory", "agent.x", 2, "PUT", 2002),
    ]  # fmt: skip
    assert batch.cursors == {EVENTS: 4, STATE: 7, "KV_swarm_memory": 2}
    assert batch.taken == {EVENTS: 1, STATE: 1, "KV_swarm_memory": 1}
    assert batch.gaps == []


def test_what_is_read_again_is_taken_from_the_buffer_and_not_written_again():
    followed = streams()
    for sequence in (2, 3, 3, 4):
        followed[0].put(event(sequence))
    for revision in (1, 2, 2, 3):
        followed[3].put(value(revision, bucket="swarm_memory"))
    batch = next_batch(followed, {EVENTS: 3, "KV_swarm_memory": 2}, 3)
    assert (sequences(batch), revisions(batch)) == ([4], [3])
    assert batch.taken == {EVENTS: 4, "KV_swarm_memory": 4}
    nothing = next_batch(followed, {EVENTS: 4, "KV_swarm_memory": 3}, 3)
    assert (nothing.messages, nothing.values, nothing.cursors) == ([], [], {})


def test_a_new_file_takes_everything_from_the_first_on():
    followed = streams()
    followed[0].put(event(1))
    followed[1].put(value(1, cursor=1))
    batch = next_batch(followed, {}, 0)
    assert (sequences(batch), revisions(batch), batch.gaps) == ([1], [1], [])


@pytest.mark.parametrize(("started_at", "reason"), [(9, "before"), (8, "before"), (7, "retention")])
def test_missing_messages_are_a_gap_with_a_reason(started_at, reason):
    followed = streams()
    followed[0].put(event(4))
    followed[0].put(event(8))
    batch = next_batch(followed, {EVENTS: 3}, started_at)
    assert batch.gaps == [MirrorGap(EVENTS, 5, 7, reason)]
    assert batch.cursors == {EVENTS: 8}


def test_a_batch_has_a_limit_for_each_stream(monkeypatch):
    monkeypatch.setattr(batching, "BATCH_ROWS", 2)
    followed = streams()
    for number in range(1, 5):
        followed[0].put(event(number))
        followed[3].put(value(number, bucket="swarm_memory"))
    batch = next_batch(followed, {}, 0)
    assert (sequences(batch), revisions(batch)) == ([1, 2], [1, 2])


def test_a_snapshot_waits_with_all_later_values_for_the_messages_that_it_references():
    followed = streams()
    followed[0].put(event(4))
    for revision, cursor in ((6, 4), (7, 5), (8, 1)):
        followed[1].put(value(revision, cursor=cursor))
    followed[3].put(value(1, bucket="swarm_memory", cursor=5))  # of a bucket that references none
    batch = next_batch(followed, {EVENTS: 3, STATE: 5}, 3)
    assert revisions(batch) == [6, 1]
    assert (batch.cursors[STATE], batch.taken[STATE]) == (6, 1)
    assert revisions(next_batch(followed, {EVENTS: 3, STATE: 5}, 3, defer=False)) == [6, 7, 8, 1]
    assert revisions(next_batch(followed, {EVENTS: 5, STATE: 5}, 3)) == [6, 7, 8, 1]


@pytest.mark.parametrize("header", [{"KV-Operation": "DEL"}, {"Nats-Marker-Reason": "MaxAge"}])
def test_a_deletion_references_nothing(header):
    followed = streams()
    followed[1].put(value(6, cursor=50, **header))
    [row] = next_batch(followed, {EVENTS: 3}, 3).values
    assert row.operation == next(iter(header.values()))


@pytest.mark.parametrize(
    ("arrived_s_ago", "pending", "events", "written"),
    [
        pytest.param(0.0, 0, 0, False, id="just arrived"),
        pytest.param(60.0, 0, 0, True, id="overdue, and no message is to come"),
        pytest.param(60.0, 1, 0, False, id="overdue, and the server has more"),
        pytest.param(60.0, 0, 1, False, id="overdue, and messages arrive"),
    ],
)
def test_a_snapshot_whose_messages_never_come_is_written_in_the_end(arrived_s_ago, pending, events, written):
    followed = streams()
    followed[0].reader = reading(pending)
    for number in range(events):
        followed[0].put(event(4 + number))
    followed[1].waiting.append((time.monotonic() - arrived_s_ago, value(6, cursor=50)))
    assert revisions(next_batch(followed, {EVENTS: 3}, 3)) == ([6] if written else [])


@pytest.mark.parametrize(
    ("data", "highest"),
    [
        (b'{"epoch": 3, "cursor": 9, "output_sequence": 7, "outputs": 70}', 9),
        (b'{"epoch": 3}', 3),
        (b'{"cursor": "9", "epoch": null}', 0),
        (b'{"outputs": 9}', 0),
        (b"5", 0),
        (b"no json", 0),
    ],
)
def test_a_value_references_the_highest_of_its_positions(data, highest):
    assert references(data) == highest


async def test_a_full_buffer_holds_its_reader_until_rows_are_written(monkeypatch):
    monkeypatch.setattr(batching, "BUFFER_ROWS", 2)
    [followed, *_] = streams()
    assert followed.take(event(1)) is None
    room = followed.take(event(2))
    assert room is not None
    held = asyncio.ensure_future(room)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not held.done()
    followed.written(1)
    async with asyncio.timeout(10):
        await held
    assert [stored.sequence for _, stored in followed.waiting] == [2]
    assert followed.arrived.is_set()


def test_the_lag_is_what_is_buffered_and_what_the_server_has():
    [followed, *_] = streams()
    followed.put(event(1))
    assert (followed.lag, followed.unverified) == (1, False)
    followed.reader = reading(pending=5, generation=1)
    assert (followed.lag, followed.unverified) == (6, True)
    followed.verified = 1
    assert not followed.unverified


@pytest.mark.parametrize(
    ("rows", "lag_s", "pause_s"),
    [(1, 0.0, 0.1), (999, 0.06, 0.04), (1, 0.095, 0.02), (1, 30.0, 0.02), (1000, 0.0, 0.0), (5000, 30.0, 0.0)],
)
def test_a_message_waits_for_others_until_it_is_a_tenth_of_a_second_old(rows, lag_s, pause_s):
    assert pause_before(rows, lag_s) == pytest.approx(pause_s)


def test_a_whole_batch_is_announced():
    [followed, *_] = streams()
    for sequence in range(1, BATCH_ROWS):
        followed.put(event(sequence))
    assert not followed.full.is_set()
    followed.put(event(BATCH_ROWS))
    assert followed.full.is_set()
