"""The start of the watchdog: which sandboxes it waits for, and settings that it cannot decode."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from bus.heartbeats import send_heartbeats
from bus.interface import ReceivedMessage
from bus.messages import FAILED, VotingConfig, decode
from bus.nats.bus import NatsBus
from bus.nats.streams import ensure_streams
from bus.server.supervisor import NatsServer
from bus.utils.aio import end_tasks
from coordinator.config.loader import load_swarm
from coordinator.supervisor import watchdog as module
from coordinator.supervisor.watchdog import Watchdog
from tests.support.collecting import GUARD_S, Collector

REMOTE = '[sandboxes.base]\n[sandboxes.nodejs]\n[sandboxes.python]\nprovider = "e2b"\n'
UNLIMITED_S = 1e6
HEARTBEAT_S = 0.05


@pytest.mark.parametrize("phases", [{"python": FAILED}, None], ids=["failed", "live"])
async def test_nothing_starts_before_the_last_sandbox_is_there_or_has_failed(tmp_path, monkeypatch, phases):
    """The provider reports a failed sandbox in every heartbeat, so also to a watchdog that starts later."""
    monkeypatch.setattr(module, "REMOTE_DISCOVERY_S", UNLIMITED_S)
    monkeypatch.setattr(module, "FIRST_DISCOVERY_S", UNLIMITED_S)
    (tmp_path / "swarm.toml").write_text(REMOTE)
    config = load_swarm(Path("swarm.toml"), directory=tmp_path).resolve()
    claims: Collector[str] = Collector()
    accounts: Collector[str] = Collector()

    async def on_claim(received: ReceivedMessage) -> None:
        name = received.subject.rpartition(".")[2]
        if name != "watchdog":
            claims.put(name)

    async def on_heartbeat(received: ReceivedMessage) -> None:
        if set(orjson.loads(received.data)["accounts"]) == {"base", "nodejs"}:
            accounts.put(received.subject)

    async with NatsServer(tmp_path / "state", port=0) as server:
        buses = [await NatsBus.connect(server.url, "swarm", name) for name in ("watchdog", "subscriber", "fake")]
        bus, subscriber, publisher = buses
        await ensure_streams(bus)
        await subscriber.listen("swarm.epoch.*", on_claim)
        await subscriber.listen("swarm.heartbeat.watchdog", on_heartbeat)
        await subscriber.bounds()  # a round trip: the subscription is active
        watchdog = Watchdog(bus, config, clear_quarantine=True)
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(watchdog.run())]

        def heartbeats(name: str, role: Any, **fields: Any) -> None:
            tasks.append(
                asyncio.create_task(
                    send_heartbeats(publisher, name, role, HEARTBEAT_S, lambda: {"status": "live", **fields})
                )
            )

        try:
            for name in ("base", "nodejs"):
                heartbeats(name, "sandbox")
            await accounts.reach(5)  # it has received these two for a while
            assert claims.items == []
            heartbeats(*(("provider", "provider") if phases else ("python", "sandbox")), phases=phases)
            assert await claims.reach(1)
            assert not tasks[0].done()
        finally:
            watchdog.stop()
            await asyncio.wait(tasks[:1], timeout=GUARD_S)
            await end_tasks(tasks)
            for each in buses:
                await each.close()


@pytest.mark.slow
async def test_the_watchdog_puts_its_settings_in_place_of_garbage(tmp_path: Path) -> None:
    async with NatsServer(tmp_path, port=0) as server:
        bus = await NatsBus.connect(server.url, "swarm", "watchdog")
        subscriber = await NatsBus.connect(server.url, "swarm", "subscriber")
        await ensure_streams(bus)
        subject = bus.subjects.config("watchdog")
        await bus.publish("in." + subject, b"{")
        received: asyncio.Queue[ReceivedMessage] = asyncio.Queue()

        async def on_message(message: ReceivedMessage) -> None:
            received.put_nowait(message)

        await subscriber.listen(subject, on_message)
        await subscriber.bounds()  # a round trip: the subscription is active
        config = load_swarm(directory=tmp_path).resolve()
        watchdog = Watchdog(bus, config)
        running = asyncio.create_task(watchdog.run())
        try:
            async with asyncio.timeout(20):
                data = (await received.get()).data
            assert isinstance(decode(subscriber.subjects.parse(subject), subject, data), VotingConfig)
            assert not running.done()
        finally:
            watchdog.stop()
            await asyncio.wait({running}, timeout=10)
            await bus.close()
            await subscriber.close()
