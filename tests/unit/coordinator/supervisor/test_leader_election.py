"""When a standby claims the term, over a bus in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from bus.durable.fencing import claim
from bus.errors import Disconnected, Fenced
from bus.heartbeats import send_heartbeats
from bus.testing.memory_bus import MemoryBus, MemoryServer
from coordinator.supervisor import leader_election as module
from coordinator.supervisor.leader_election import check_claim, stand_by

GUARD_S = 20.0
HEARTBEATS = "swarm.heartbeat.watchdog"


@pytest.fixture
async def bus(monkeypatch) -> AsyncIterator[MemoryBus]:
    for name, seconds in {"NO_LEADER_S": 0.05, "NO_LEADER_STANDBY_S": 0.2, "LEADER_LOST_S": 0.1}.items():
        monkeypatch.setattr(module, name, seconds)
    monkeypatch.setattr(module, "POLL_INTERVAL_S", 0.01)
    monkeypatch.setattr(module, "PAUSE_S", 60.0)  # a busy machine is no pause here
    bus = MemoryBus(MemoryServer())
    yield bus
    await bus.close()


def claimed(bus: MemoryBus) -> int:
    return len(bus.server.of((bus.subjects.epoch("watchdog"),), 0))


@pytest.mark.parametrize("standby", [False, True])
async def test_without_a_leader_the_term_is_claimed_and_nothing_is_left_listening(bus, standby):
    async with asyncio.timeout(GUARD_S):
        term = await stand_by(bus, "watchdog", asyncio.Event(), standby=standby)
    assert term == bus.server.last_sequence
    assert claimed(bus) == 1
    assert not bus.server.has_listener(HEARTBEATS)


async def test_a_standby_waits_longer_for_a_first_leader(bus):
    loop = asyncio.get_running_loop()
    for standby, least_s in ((False, 0.05), (True, 0.2)):
        began = loop.time()
        async with asyncio.timeout(GUARD_S):
            await stand_by(bus, "watchdog", asyncio.Event(), standby=standby)
        assert loop.time() - began >= least_s


async def test_nothing_is_claimed_while_a_leader_sends_heartbeats_or_after_a_stop(bus):
    leader = asyncio.create_task(
        send_heartbeats(bus, "watchdog", "watchdog", 0.01, lambda: {"epoch": 1, "status": "live"})
    )
    stop = asyncio.Event()
    standing = asyncio.create_task(stand_by(bus, "watchdog", stop))
    await asyncio.sleep(0.3)
    assert claimed(bus) == 0
    leader.cancel()
    await asyncio.gather(leader, return_exceptions=True)
    async with asyncio.timeout(GUARD_S):
        assert await standing is not None
    assert claimed(bus) == 1
    stop.set()
    assert await stand_by(bus, "watchdog", stop) is None
    assert claimed(bus) == 1


async def test_a_claim_is_tried_again_after_a_break_and_lost_to_another(bus):
    tries = 0

    async def gate(step: str) -> None:
        nonlocal tries
        if step == "publish":
            tries += 1
            if tries == 1:
                raise Disconnected("on purpose")
            if tries == 2:
                other = MemoryBus(bus.server)
                await claim(other, "watchdog", agent_id="other", claimed_by="watchdog", sandbox="")

    bus._gate = gate
    async with asyncio.timeout(GUARD_S):
        term = await stand_by(bus, "watchdog", asyncio.Event())
    assert tries == 3
    assert (term, claimed(bus)) == (bus.server.last_sequence, 2)


async def test_a_newer_claim_fences(bus):
    first = await claim(bus, "watchdog", agent_id="one", claimed_by="watchdog", sandbox="")
    await check_claim(bus, "watchdog", first)
    second = await claim(bus, "watchdog", agent_id="two", claimed_by="watchdog", sandbox="")
    await check_claim(bus, "watchdog", second)
    with pytest.raises(Fenced, match=f"leads with term {second}, this process had {first}"):
        await check_claim(bus, "watchdog", first)
