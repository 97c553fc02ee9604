"""Children of `up` that send no heartbeats: a new one gets longer than one that has sent some."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from bus.messages import Heartbeat, encode
from bus.messages.subjects import PROVIDER, WATCHDOG
from bus.testing.memory_bus import MemoryBus, MemoryServer
from bus.utils.processes import MACHINE
from coordinator.runner import liveness


@dataclass
class Child:
    name: str
    pid: int | None
    started_at: float


async def test_a_child_before_its_first_heartbeat_gets_longer(monkeypatch):
    monkeypatch.setattr(liveness, "SILENT_S", 0.3)
    monkeypatch.setattr(liveness, "START_S", 1.2)
    monkeypatch.setattr(liveness, "POLL_INTERVAL_S", 0.02)
    bus = MemoryBus(MemoryServer())
    now = time.monotonic()
    new, known, none = Child(PROVIDER, 1, now), Child(WATCHDOG, 2, now), Child("mirror", None, now)
    found: list[tuple[str, float]] = []
    both = asyncio.Event()

    def on_unresponsive(child: Child, silent_s: float) -> None:
        if child.name not in [name for name, _ in found]:
            found.append((child.name, silent_s))
        if len(found) == 2:
            both.set()

    task = asyncio.create_task(liveness.find_unresponsive(bus, [new, known, none], on_unresponsive))
    await asyncio.sleep(0)  # it has subscribed
    heartbeat = Heartbeat(
        agent=WATCHDOG, agent_id="watchdog_2", epoch=1, sequence=1, progress=1, status="live", interval_ms=100,
        sandbox="", pid=2, role="watchdog", machine=MACHINE,
    )  # fmt: skip
    await bus.notify(bus.subjects.heartbeat(WATCHDOG), encode(heartbeat))
    try:
        await both.wait()
    finally:
        task.cancel()
    assert [name for name, _ in found] == [WATCHDOG, PROVIDER]
    assert found[0][1] > 0.3
    assert found[1][1] > 1.2
