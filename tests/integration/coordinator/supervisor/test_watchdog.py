"""For which sandboxes the watchdog waits before it places agents."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from bus.heartbeats import beat
from bus.interface import Heard
from bus.messages import GIVEN_UP
from bus.nats.bus import NatsBus
from bus.nats.streams import ensure_streams
from bus.server.supervisor import NatsServer
from bus.utils.aio import end_tasks
from coordinator.config.loader import load, resolve
from coordinator.supervisor import watchdog as module
from coordinator.supervisor.watchdog import Watchdog
from tests.support.collecting import GUARD_S, Collector

FAR = '[sandboxes.base]\n[sandboxes.nodejs]\n[sandboxes.python]\nprovider = "e2b"\n'
FOR_EVER_S = 1e6
BEAT_S = 0.05


@pytest.mark.parametrize("phases", [{"python": GIVEN_UP}, None], ids=["given up", "live"])
async def test_nothing_starts_before_the_last_sandbox_is_there_or_given_up(tmp_path, monkeypatch, phases):
    """Not even for a provider that gave it up before the watchdog listened: it says so as long as it is so."""
    monkeypatch.setattr(module, "FAR_GATHER_S", FOR_EVER_S)
    monkeypatch.setattr(module, "FIRST_GATHER_S", FOR_EVER_S)
    (tmp_path / "swarm.toml").write_text(FAR)
    config, classes = resolve(load(Path("swarm.toml"), tmp_path))
    claims: Collector[str] = Collector()
    accounts: Collector[str] = Collector()

    async def on_claim(heard: Heard) -> None:
        name = heard.subject.rpartition(".")[2]
        if name != "watchdog":
            claims.put(name)

    async def on_beat(heard: Heard) -> None:
        if set(orjson.loads(heard.data)["accounts"]) == {"base", "nodejs"}:
            accounts.put(heard.subject)

    async with NatsServer(tmp_path / "state", port=0) as server:
        buses = [await NatsBus.connect(server.url, "swarm", name) for name in ("watchdog", "ear", "fake")]
        bus, ear, said_by = buses
        await ensure_streams(bus)
        await ear.listen("swarm.epoch.*", on_claim)
        await ear.listen("swarm.heartbeat.watchdog", on_beat)
        await ear.bounds()  # a round trip: the subscription is in force
        watchdog = Watchdog(bus, config, set(classes), fresh=True)
        tasks = [asyncio.create_task(watchdog.run())]

        def beats(name: str, role: Any, **says: Any) -> None:
            tasks.append(asyncio.create_task(beat(said_by, name, role, BEAT_S, lambda: {"status": "live", **says})))

        try:
            for name in ("base", "nodejs"):
                beats(name, "sandbox")
            await accounts.reach(5)  # it has heard these two for a while, by its own account
            assert claims.items == []
            beats(*(("provider", "provider") if phases else ("python", "sandbox")), phases=phases)
            assert await claims.reach(1)
            assert not tasks[0].done()
        finally:
            watchdog.stop()
            await asyncio.wait(tasks[:1], timeout=GUARD_S)
            await end_tasks(tasks)
            for each in buses:
                await each.close()
