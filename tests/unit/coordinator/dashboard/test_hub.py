"""Events are joined, kept for reconnects within bounds, and never wait for a viewer that stops reading."""

from __future__ import annotations

import asyncio

from coordinator.dashboard.hub import QUEUE, QUEUE_BYTES, RING, RING_BYTES, WRITE_BYTES, Hub, Viewer

HELLO = {"connected": True}


def viewer() -> tuple[Viewer, list[str]]:
    dropped: list[str] = []
    return Viewer(lambda: dropped.append("dropped")), dropped


async def read(one: Viewer) -> bytes:
    """All that is queued."""
    found = b""
    async for chunk in one.chunks():
        assert len(chunk) <= WRITE_BYTES
        found += chunk
        if not one._queue:
            break
    return found


async def test_events_of_one_moment_are_one_chunk_with_a_number_each():
    hub = Hub()
    one, _ = viewer()
    hub.join(one, None, HELLO)
    await read(one)
    hub.publish("a", {"n": 1})
    hub.publish("b", {"n": 2})
    chunk = await read(one)
    assert chunk.count(b"\n\n") == 2
    assert f'id: {hub.newest_id}\nevent: b\ndata: {{"n":2}}'.encode() in chunk


async def test_a_reconnect_gets_exactly_what_it_has_missed():
    hub = Hub()
    hub.publish("a", 1)
    known = hub.newest_id
    hub.publish("b", 2)
    hub.publish("c", 3)
    one, _ = viewer()
    hub.join(one, known, HELLO)
    text = await read(one)
    assert b"event: b" in text
    assert b"event: c" in text
    assert b"event: a" not in text
    assert b"resync" not in text


async def test_what_the_ring_no_longer_has_needs_a_resync():
    hub = Hub()
    hub.publish("first", 0)
    known = hub.newest_id
    for number in range(RING + 1):
        hub.publish("n", number)
    for last in (known, "other-5", "x", f"{known.partition('-')[0]}-99999999", "-1"):
        one, _ = viewer()
        hub.join(one, last, HELLO)
        assert b"event: resync" in await read(one), last


async def test_the_ring_is_bounded_in_bytes_too():
    hub = Hub()
    text = "x" * (RING_BYTES // 4)
    for _ in range(20):
        hub.publish("large", text)
    assert sum(map(len, hub._ring)) <= RING_BYTES


async def test_a_viewer_that_reads_nothing_is_dropped_by_count_and_by_bytes():
    for size, most in ((1, QUEUE + 2), (QUEUE_BYTES // 4, 8)):
        hub = Hub()
        (stalled, dropped), (reading, kept) = viewer(), viewer()
        hub.join(stalled, None, HELLO)
        hub.join(reading, None, HELLO)
        for _ in range(most):
            hub.publish("n", "x" * size)
            hub._flush()
            await read(reading)
        assert (dropped, kept) == (["dropped"], [])
        assert (hub.dropped, hub.viewers) == (1, 1)
        assert stalled.ended


async def test_a_large_event_is_handed_over_in_parts_and_waits_in_the_queue_meanwhile():
    hub = Hub()
    one, _ = viewer()
    hub.join(one, None, HELLO)
    await read(one)
    for letter in "ab":
        hub.publish(letter, letter * 3 * WRITE_BYTES)
    hub._flush()
    waiting = one._bytes
    parts = one.chunks()
    first = await anext(parts)
    assert one._bytes == waiting - len(first)
    text = first + await read(one)
    assert one._bytes == 0
    assert len(text) == waiting
    assert text.index(b"event: a") < text.index(b"event: b")
    assert text.count(b"a" * 3 * WRITE_BYTES) == 1


async def test_one_that_reconnects_can_read_the_whole_ring():
    hub = Hub()
    hub.publish("first", 0)
    known = hub.newest_id
    for _ in range(RING_BYTES // 10_000 - 10):
        hub.publish("n", "x" * 9_900)
    one, dropped = viewer()
    hub.join(one, known, HELLO)
    hub.publish("last", "x" * 100)
    hub._flush()
    assert dropped == []
    assert b"event: last" in await read(one)


async def test_forgetting_sends_a_resync_and_makes_old_numbers_unknown():
    hub = Hub()
    one, _ = viewer()
    hub.join(one, None, HELLO)
    hub.publish("a", 1)
    known = hub.newest_id
    hub.forget()
    await asyncio.sleep(0)
    hub._flush()
    assert b"event: resync" in await read(one)
    two, _ = viewer()
    hub.join(two, known, HELLO)
    assert b"event: resync" in await read(two)


async def test_closing_ends_every_stream():
    hub = Hub()
    one, dropped = viewer()
    hub.join(one, None, HELLO)
    hub.close()
    assert [chunk async for chunk in one.chunks()] == []
    assert (dropped, hub.viewers) == ([], 0)
