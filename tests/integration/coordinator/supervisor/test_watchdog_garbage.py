"""Garbage where claims and settings are kept: it must not keep anybody from starting."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bus.durable.fencing import claim, new_agent_id
from bus.interface import ReceivedMessage
from bus.messages import Config, decode
from bus.nats.bus import NatsBus
from bus.nats.streams import ensure_streams
from bus.server.supervisor import NatsServer
from coordinator.config.loader import load, resolve
from coordinator.supervisor.watchdog import Watchdog


async def test_a_claim_succeeds_after_an_undecodable_one(tmp_path: Path) -> None:
    async with NatsServer(tmp_path, port=0) as server:
        bus = await NatsBus.connect(server.url, "swarm", "test")
        await ensure_streams(bus)
        garbage = await bus.publish("in.swarm.epoch.a", b"{")
        epoch = await claim(bus, "a", agent_id=new_agent_id(), claimed_by="test", sandbox="")
        assert epoch > garbage.sequence
        await bus.close()


@pytest.mark.slow
async def test_the_watchdog_puts_its_settings_in_place_of_garbage(tmp_path: Path) -> None:
    async with NatsServer(tmp_path, port=0) as server:
        bus = await NatsBus.connect(server.url, "swarm", "watchdog")
        subscriber = await NatsBus.connect(server.url, "swarm", "ear")
        await ensure_streams(bus)
        subject = bus.subjects.config("watchdog")
        await bus.publish("in." + subject, b"{")
        received: asyncio.Queue[ReceivedMessage] = asyncio.Queue()

        async def on_message(message: ReceivedMessage) -> None:
            received.put_nowait(message)

        await subscriber.listen(subject, on_message)
        await subscriber.bounds()  # a round trip: the subscription is in force
        config, _ = resolve(load(None, tmp_path))
        watchdog = Watchdog(bus, config, set())
        running = asyncio.create_task(watchdog.run())
        try:
            async with asyncio.timeout(20):
                data = (await received.get()).data
            assert isinstance(decode(subscriber.subjects.parse(subject), subject, data), Config)
            assert not running.done()
        finally:
            watchdog.stop()
            await asyncio.wait({running}, timeout=10)
            await bus.close()
            await subscriber.close()
