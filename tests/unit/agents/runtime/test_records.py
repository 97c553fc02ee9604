"""The memory key of an agent: its last output of the kind that the key is for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from agents.agent import Agent
from agents.runtime.records import Memory
from bus.errors import Disconnected
from bus.testing.memory_bus import MemoryBus, MemoryServer

GUARD_S = 10.0


class Voter(Agent):
    kind = "voter"
    publishes = ("signal", "market")


class World:
    def __init__(self, key: str) -> None:
        self.server = MemoryServer()
        self.broken = False
        self.bus = MemoryBus(self.server, self._gate)
        self.memory = Memory(self.bus, Voter("agent"), key, Voter.publishes, 0.0)
        self.key = self.bus.subjects.memory_key("agent", key)

    async def _gate(self, step: str) -> None:
        await asyncio.sleep(0)
        if self.broken and step == "publish":
            self.broken = False
            raise Disconnected("on purpose")

    @property
    def stored(self) -> bytes | None:
        entry = self.server.buckets.get(self.bus.subjects.memory_bucket, {}).get(self.key)
        return None if entry is None else entry.value

    async def until(self, data: bytes) -> None:
        async with asyncio.timeout(GUARD_S):
            while self.stored != data:
                await asyncio.sleep(0)


@asynccontextmanager
async def running(key: str = "signal") -> AsyncIterator[World]:
    world = World(key)
    task = asyncio.create_task(world.memory.run())
    yield world
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await world.bus.close()


async def test_the_key_follows_the_outputs_of_its_kind():
    async with running() as world:
        world.memory.take("signal", b"1")
        await world.until(b"1")
        world.memory.take("market", b"2")
        world.memory.take("signal", b"3")
        await world.until(b"3")


async def test_a_key_that_is_no_kind_follows_all_of_them():
    async with running("last") as world:
        for kind, data in (("signal", b"1"), ("market", b"2")):
            world.memory.take(kind, data)
            await world.until(data)


@pytest.mark.parametrize("fault", ["another writer", "a break"])
async def test_the_last_output_is_written_whatever_comes_between(fault):
    async with running() as world:
        world.memory.take("signal", b"1")
        await world.until(b"1")
        if fault == "a break":
            world.broken = True
        else:
            found = await world.bus.kv_get(world.bus.subjects.memory_bucket, world.key)
            assert found is not None
            await world.bus.kv_put(world.bus.subjects.memory_bucket, world.key, b"theirs", found.revision)
        world.memory.take("signal", b"2")
        await world.until(b"2")
