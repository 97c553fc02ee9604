"""When a standby claims the term, over a bus in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bus.durable import leader_election as module
from bus.durable.fencing import claim, last_claim
from bus.durable.leader_election import check_claim, stand_by
from bus.errors import BusTimeout, Disconnected, Fenced
from bus.heartbeats import send_heartbeats
from bus.interface import StoredMessage
from bus.testing.memory_bus import MemoryBus, MemoryServer

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


async def test_the_first_term_of_a_swarm_is_claimed_without_a_wait_and_by_one_process(bus, monkeypatch):
    monkeypatch.setattr(module, "NO_LEADER_S", 3600.0)
    monkeypatch.setattr(module, "LEADER_LOST_S", 3600.0)
    stop = asyncio.Event()
    standing = [asyncio.create_task(stand_by(MemoryBus(bus.server), "watchdog", stop)) for _ in range(3)]
    async with asyncio.timeout(GUARD_S):
        done, pending = await asyncio.wait(standing, return_when=asyncio.FIRST_COMPLETED)
        assert [task.result() for task in done] == [bus.server.last_sequence]
        stop.set()
        assert await asyncio.gather(*pending) == [None, None]
    assert claimed(bus) == 1


async def test_a_process_that_is_alone_claims_every_term_without_a_wait(bus, monkeypatch):
    monkeypatch.setattr(module, "NO_LEADER_S", 3600.0)
    async with asyncio.timeout(GUARD_S):
        first, second = [await stand_by(bus, "watchdog", asyncio.Event(), alone=True) for _ in range(2)]
    assert first is not None
    assert second is not None
    assert first < second == bus.server.last_sequence


async def test_where_the_stream_does_not_answer_a_new_process_waits_for_a_leader(bus, monkeypatch):
    asked = 0

    async def answer(*args: Any) -> StoredMessage | None:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise BusTimeout("on purpose")
        return await last_claim(*args)

    monkeypatch.setattr(module, "last_claim", answer)
    began = asyncio.get_running_loop().time()
    async with asyncio.timeout(GUARD_S):
        assert await stand_by(bus, "watchdog", asyncio.Event()) == bus.server.last_sequence
    assert asyncio.get_running_loop().time() - began >= 0.05


async def test_a_standby_waits_longer_for_a_first_leader(bus):
    loop = asyncio.get_running_loop()
    await claim(bus, "watchdog", agent_id="ended", claimed_by="watchdog", sandbox="")
    for standby, least_s in ((False, 0.05), (True, 0.2)):
        began = loop.time()
        async with asyncio.timeout(GUARD_S):
            await stand_by(bus, "watchdog", asyncio.Event(), standby=standby)
        assert loop.time() - began >= least_s


async def test_nothing_is_claimed_while_a_leader_sends_heartbeats_or_after_a_stop(bus):
    await claim(bus, "watchdog", agent_id="leader", claimed_by="watchdog", sandbox="")
    leader = asyncio.create_task(
        send_heartbeats(bus, "watchdog", "watchdog", 0.01, lambda: {"epoch": 1, "status": "live"})
    )
    stop = asyncio.Event()
    standing = asyncio.create_task(stand_by(bus, "watchdog", stop))
    await asyncio.sleep(0.3)
    assert claimed(bus) == 1
    leader.cancel()
    await asyncio.gather(leader, return_exceptions=True)
    async with asyncio.timeout(GUARD_S):
        assert await standing is not None
    assert claimed(bus) == 2
    stop.set()
    assert await stand_by(bus, "watchdog", stop) is None
    assert claimed(bus) == 2


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
