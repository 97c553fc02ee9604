"""Alerts about what others publish: a flood of messages is no flood of alerts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import orjson
import pytest

from bus.durable.events import EventPublisher
from bus.durable.repeated_alerts import RepeatedAlerts
from bus.messages import Alert, encode, now
from bus.messages import headers as h
from bus.testing.memory_bus import MemoryBus, MemoryServer
from bus.utils.attempt_counts import MAX_TOLD_APART, REPORT_S


class Readers:
    """Agents that read the same messages, with one clock."""

    def __init__(self, server: MemoryServer, publishers: dict[str, EventPublisher]) -> None:
        self.server, self._publishers = server, publishers
        self._now = 0.0
        self._alerts = {name: RepeatedAlerts(name, found, lambda: self._now) for name, found in publishers.items()}

    async def poison(self, writer: str, sequences: range) -> None:
        for alerts in self._alerts.values():
            for sequence in sequences:
                alerts.poison(f"swarm.signal.A.{writer}", sequence, "it is no JSON")
        await self._flush()

    async def pass_minute(self) -> None:
        self._now += REPORT_S
        for alerts in self._alerts.values():
            alerts.check()
        await self._flush()

    async def _flush(self) -> None:
        for publisher in self._publishers.values():
            await publisher.flush()

    def stored(self, code: str = "poison_message") -> list[dict[str, Any]]:
        found = [orjson.loads(m.data) for m in self.server.messages if m.subject.startswith("swarm.alert.")]
        return [alert["detail"] for alert in found if alert["code"] == code]


@pytest.fixture
async def readers() -> AsyncIterator[Readers]:
    server = MemoryServer()
    async with AsyncExitStack() as stack:
        publishers = {}
        for name in ("a", "b", "c"):
            bus = MemoryBus(server)
            stack.push_async_callback(bus.close)
            publishers[name] = await EventPublisher.open(bus, name)
            stack.push_async_exit(publishers[name])
        yield Readers(server, publishers)


async def test_the_first_of_each_writer_is_reported_and_then_their_number(readers):
    await readers.poison("x", range(1, 501))
    await readers.poison("y", range(501, 502))
    first = [(each["writer"], each["sequence"], each["count"]) for each in readers.stored()]
    assert first == [("x", 1, 1), ("y", 501, 1)]
    await readers.poison("x", range(502, 602))
    await readers.pass_minute()
    [more] = readers.stored()[2:]
    assert (more["writer"], more["sequence"], more["count"]) == ("x", 601, 599)
    await readers.pass_minute()
    assert len(readers.stored()) == 3
    assert readers.stored("message_id_squatted") == []


async def test_a_reader_of_fewer_messages_reports_none_of_them_again(readers):
    await readers.poison("x", range(1, 10))
    readers._alerts["c"].poison("swarm.market.A.x", 10, "it is no JSON")
    await readers.pass_minute()
    assert [each["count"] for each in readers.stored()] == [1, 8]
    assert readers.stored("message_id_squatted") == []


@pytest.mark.parametrize("field", ["writer", "code"])
async def test_a_writer_cannot_report_about_itself_in_place_of_others(readers, field, monkeypatch):
    at = now()
    monkeypatch.setattr("bus.durable.repeated_alerts.now", lambda: at)
    await readers.poison("x", range(1, 10))
    detail = {"writer": "x" if field == "writer" else "nobody", "count": 1}
    code = "poison_message" if field == "writer" else "other"
    taken = f"poison:x:{at.timestamp() // REPORT_S:.0f}"
    alert = Alert(severity="warning", code=code, message="m", timestamp=at, source="x", detail=detail)
    readers.server.store("in.swarm.alert.warning.x", encode(alert), {h.MSG_ID: taken})
    await readers.pass_minute()
    assert 8 in [each["count"] for each in readers.stored()]
    assert {each["squatter"] for each in readers.stored("message_id_squatted")} == {"x"}


async def test_invented_writers_are_not_told_apart_without_end(readers):
    for number in range(MAX_TOLD_APART + 50):
        await readers.poison(f"x{number}", range(number, number + 1))
    assert len(readers.stored()) == MAX_TOLD_APART + 1
    await readers.pass_minute()
    [rest] = readers.stored()[MAX_TOLD_APART + 1 :]
    assert (rest["writer"], rest["count"]) == ("other writers", 49)


async def test_a_report_whose_first_copy_is_gone_accuses_nobody(readers, monkeypatch):
    async def gone(*_: object) -> None:
        return None

    monkeypatch.setattr(MemoryBus, "message", gone)
    await readers.poison("x", range(1, 2))
    assert [each["sequence"] for each in readers.stored()] == [1, 1, 1], "the stream may have removed the first"
    assert readers.stored("message_id_squatted") == []
