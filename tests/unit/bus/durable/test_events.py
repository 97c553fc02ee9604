"""Reports of one writer: each stored once, and never too large for a server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from bus.durable.events import MAX_TEXT, EventPublisher
from bus.messages import headers as h
from bus.testing.memory_bus import MemoryBus, MemoryServer

LONG = "x" * (2 * MAX_TEXT)


@pytest.fixture
async def bus() -> AsyncIterator[MemoryBus]:
    bus = MemoryBus(MemoryServer())
    yield bus
    await bus.close()


async def stored(bus: MemoryBus, reports: EventPublisher) -> list[dict[str, Any]]:
    await reports.flush()
    return [orjson.loads(message.data) for message in bus.server.messages]


async def test_long_texts_are_shortened_wherever_they_are(bus):
    async with await EventPublisher.open(bus, "me") as reports:
        reports.alert("info", "code", LONG, agent="a", detail={LONG: [LONG, {"in": (LONG, 5, None)}]})
        reports.lifecycle("exited", "a", reason=LONG, exit_code=1, error=LONG)
        alert, event = await stored(bus, reports)
        [(key, [text, inner])] = alert["detail"]["detail"].items()
        texts = (alert["message"], key, text, inner["in"][0], event["reason"], event["detail"]["error"])
        assert all(len(text) < MAX_TEXT + 100 for text in texts)
        assert inner["in"][1:] == [5, None]
        assert event["detail"]["exit_code"] == 1


async def test_alerts_of_one_fault_are_stored_once_and_others_each(bus):
    async with await EventPublisher.open(bus, "me") as reports:
        for _ in range(2):
            reports.alert("warning", "same", "text", once="fault:1")
            reports.alert("warning", "each", "text")
        codes = [alert["code"] for alert in await stored(bus, reports)]
        assert sorted(codes) == ["each", "each", "same"]


async def test_two_writers_of_a_name_store_their_own(bus):
    async with await EventPublisher.open(bus, "me") as one, await EventPublisher.open(bus, "me") as two:
        for reports in (one, two):
            reports.lifecycle("ready", "me")
        await one.flush()
        assert len(await stored(bus, two)) == 2


async def test_the_trace_of_an_event_is_in_its_headers(bus):
    async with await EventPublisher.open(bus, "me") as reports:
        reports.lifecycle("declared_dead", "a", traceparent="00-trace")
        reports.lifecycle("ready", "a")
        await reports.flush()
        assert [message.headers.get(h.TRACEPARENT) for message in bus.server.messages] == ["00-trace", None]


async def test_nothing_is_published_after_the_end(bus):
    async with await EventPublisher.open(bus, "me") as reports:
        reports.lifecycle("ready", "a")
    reports.lifecycle("exited", "a")
    assert len(bus.server.messages) == 1
