"""The active settings: published once, again after another writer's, and read back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from bus.durable.events import EventPublisher
from bus.messages import VotingConfig, encode
from bus.testing.memory_bus import MemoryServer
from coordinator.config.live_swarm import LiveSwarm
from coordinator.config.loader import load_swarm
from coordinator.supervisor import config_publisher as module
from coordinator.supervisor.config_publisher import ConfigPublisher, read_config
from tests.support.counting_bus import CountingBus

GUARD_S = 10.0


class World:
    def __init__(self, tmp_path: Path, bus: Any, reports: EventPublisher) -> None:
        self.bus, self.reports = bus, reports
        self.config = load_swarm(directory=tmp_path).resolve()
        self.voters = dict(self.config.voters)
        self.subject = bus.subjects.config("watchdog")
        self.swarm = LiveSwarm(self.config)
        self.publisher = ConfigPublisher(bus, self.swarm, reports, lambda _: self.voters)

    @property
    def stored(self) -> list[dict[str, Any]]:
        return [orjson.loads(message.data) for message in self.bus.server.of((self.subject,), 0)]

    def alerts(self) -> list[dict[str, Any]]:
        alerts = [orjson.loads(message.data) for message in self.bus.server.of(("swarm.alert.>",), 0)]
        return [alert for alert in alerts if alert["code"] == "config_overridden"]

    def other(self, data: bytes | None = None, writer: str = "stranger") -> str:
        """Another process publishes settings."""
        subject: str = self.bus.subjects.config(writer)
        own = VotingConfig(voters={"x": 1.0}, timestamp=datetime(2020, 1, 1, tzinfo=UTC), source=writer)
        self.bus.server.store(f"in.{subject}", data or encode(own), {})
        return subject


@asynccontextmanager
async def world(tmp_path: Path) -> AsyncIterator[World]:
    bus: Any = CountingBus(MemoryServer())
    async with await EventPublisher.open(bus, "watchdog") as reports:
        yield World(tmp_path, bus, reports)
    await bus.close()


async def test_the_settings_are_published_once_until_they_change(tmp_path):
    async with world(tmp_path) as at:
        for _ in range(2):
            await at.publisher.publish()
            assert [config["voters"] for config in at.stored] == [at.config.voters]
        gone = at.voters.popitem()[0]
        await at.publisher.publish()
        assert len(at.stored) == 2
        assert gone not in at.stored[-1]["voters"]
        assert at.alerts() == []


async def test_a_new_leader_takes_over_what_is_stored(tmp_path):
    async with world(tmp_path) as at:
        await at.publisher.publish()
        await ConfigPublisher(at.bus, at.swarm, at.reports, lambda _: at.voters).publish()
        assert len(at.stored) == 1


async def test_settings_of_another_writer_are_replaced_with_an_alert(tmp_path):
    async with world(tmp_path) as at:
        await at.publisher.publish()
        subject = at.other()
        await at.publisher.publish()
        await at.reports.flush()
        assert len(at.stored) == 2
        [alert] = at.alerts()
        assert alert["detail"] == {"subjects": [subject]}
        await at.publisher.publish()  # its own are the newest again
        assert len(at.stored) == 2


async def test_settings_in_its_own_name_that_it_did_not_publish_are_replaced_with_an_alert(tmp_path):
    async with world(tmp_path) as at:
        await at.publisher.publish()
        own = await read_config(at.bus)
        assert own is not None
        at.other(encode(replace(own, voters={"x": 1.0})), "watchdog")
        await at.publisher.publish()
        await at.reports.flush()
        assert at.stored[-1]["voters"] == at.voters
        assert [alert["detail"]["subjects"] for alert in at.alerts()] == [[at.subject]]


async def test_garbage_is_replaced_without_an_alert(tmp_path):
    async with world(tmp_path) as at:
        at.other(b"{", "watchdog")
        at.other(b"{")
        await at.publisher.publish()
        await at.reports.flush()
        assert at.alerts() == []
        found = await read_config(at.bus)
        assert found is not None
        assert dict(found.voters) == at.voters


async def test_the_active_settings_are_read_back_if_there_are_any(tmp_path):
    async with world(tmp_path) as at:
        assert await read_config(at.bus) is None
        at.other(b"{", "watchdog")
        assert await read_config(at.bus) is None
        await at.publisher.publish()
        found = await read_config(at.bus)
        assert isinstance(found, VotingConfig)


async def test_settings_that_arrive_are_checked_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHECK_S", 0.0)
    async with world(tmp_path) as at:
        task = asyncio.create_task(at.publisher.run())
        await at.publisher.publish()
        async with asyncio.timeout(GUARD_S):
            while not at.bus.server.has_listener(at.subject):
                await asyncio.sleep(0)
            at.other()
            while len(at.stored) < 2:
                await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
