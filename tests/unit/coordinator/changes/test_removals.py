"""What is left of an agent that was removed: in which order it is ended, whatever its process and its host do."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from bus.durable.events import EventPublisher
from bus.durable.fencing import claim, last_claim
from bus.durable.outbox import Outbox
from bus.messages import Child, now
from bus.messages.subjects import WATCHDOG
from bus.testing.memory_bus import MemoryBus, MemoryServer
from coordinator.changes.moves import DRAIN_S, RETRY_S
from coordinator.changes.removals import Removals
from coordinator.config.changes import NO_CHANGES, Changes, RemovedAgent
from coordinator.supervisor.model import AgentState, Leftover
from tests.support.policy_world import World, a, ready
from tests.unit.coordinator.changes.test_moves import Hosts

WAS = {"kind": "momentum"}


class Swarm:
    changes: Changes = NO_CHANGES


class Removing(World):
    """Agent `a` runs in `base`, and is removed; `b` stays."""

    def __init__(self) -> None:
        super().__init__(AgentState("a", "base"), AgentState("b", "python"))
        self.bus = MemoryBus(MemoryServer())
        self.hosts = Hosts()
        outbox = Outbox(self.bus, (), lambda _: None, pipelined=True)
        self.reports = EventPublisher(self.bus, outbox, WATCHDOG, {})
        self.removals = self.leader()
        self.host("base")
        self.host("python", pid=2)
        self.run(0.2)
        self.state = self.policy.agents["a"]

    def leader(self) -> Removals:
        return Removals(self.bus, cast(Any, Swarm), self.policy, cast(Any, self.hosts), self.reports)

    def child(self, exit_code: int | None = None) -> Child:
        state = self.state
        return Child(agent="a", epoch=state.epoch, pid=state.pid, agent_id="id", exit_code=exit_code, spawned_at=now())

    async def remove(self, *, forget: bool = False) -> None:
        self.epoch = await claim(self.bus, "a", agent_id="id", claimed_by=WATCHDOG, sandbox="base")
        for bucket in (self.bus.subjects.state_bucket, self.bus.subjects.registry_bucket):
            await self.bus.kv_put(bucket, "a", b"{}", 0)
        removed = {"a": RemovedAgent(after=self.epoch, forget=forget, was=WAS)}
        Swarm.changes = Changes(revision=1, removed=removed)
        self.sending.discard("a")
        self.policy.remove("a")
        self.removals.begin(removed)

    async def check(self, seconds: float = 0.0) -> None:
        self.now += seconds
        for _ in range(3):  # an order, its work, and the end of that
            self.removals.check(self.now)
            await asyncio.gather(*self.removals._tasks)

    async def kept(self) -> list[str]:
        buckets = self.bus.subjects.state_bucket, self.bus.subjects.registry_bucket
        return [bucket for bucket in buckets if await self.bus.kv_get(bucket, "a") is not None]

    def events(self) -> list[str]:
        return [m.subject for m in self.bus.server.messages if ".lifecycle." in m.subject]


async def test_an_agent_drains_and_only_then_its_name_is_claimed_and_its_record_removed():
    world = Removing()
    await world.remove()
    await world.check()
    assert world.hosts.orders == [("drain", "base", "a")]
    world.host("base", world.child())
    await world.check()
    assert (await last_claim(world.bus, "a")).sequence == world.epoch  # type: ignore[union-attr]
    world.host("base", world.child(exit_code=0))
    await world.check()
    assert (await last_claim(world.bus, "a")).sequence > world.epoch  # type: ignore[union-attr]
    assert await world.kept() == [world.bus.subjects.state_bucket]
    assert world.events() == ["swarm.lifecycle.a.watchdog"]
    assert world.removals.running == {}
    assert "a" not in world.policy.agents


async def test_an_agent_that_does_not_drain_is_killed():
    world = Removing()
    await world.remove()
    await world.check()
    await world.check(RETRY_S)
    await world.check(DRAIN_S)
    assert [order for order, *_ in world.hosts.orders] == ["drain", "drain", "kill"]


async def test_the_process_of_a_lost_host_is_fenced_by_the_claim():
    world = Removing()
    world.policy.hosts["base"].alive = False
    await world.remove(forget=True)
    await world.check()
    assert (world.hosts.orders, world.removals.running) == ([], {})
    assert (await last_claim(world.bus, "a")).sequence > world.epoch  # type: ignore[union-attr]
    assert await world.kept() == []


async def test_a_later_leader_ends_what_is_left_and_repeats_nothing_that_is_done():
    world = Removing()
    await world.remove()
    world.removals = world.leader()
    world.host("base", world.child())
    await world.check()
    assert world.hosts.orders == [("drain", "base", "a")]
    world.host("base")
    await world.check()
    claimed = (await last_claim(world.bus, "a")).sequence  # type: ignore[union-attr]
    world.removals = world.leader()
    world.removals.begin(Swarm.changes.removed)
    await world.check()
    assert (await last_claim(world.bus, "a")).sequence == claimed  # type: ignore[union-attr]
    assert len(world.events()) == 1


async def test_an_external_agent_has_no_claims():
    world = Removing()
    removed = {"theirs": RemovedAgent(after=0, external=True)}
    world.removals.begin(removed)
    await world.check()
    assert await last_claim(world.bus, "theirs") is None
    assert world.events() == ["swarm.lifecycle.theirs.watchdog"]


def test_of_an_agent_that_was_removed_only_its_process_is_left_until_its_host_lists_it_no_more():
    world = ready(a("a"), a("b", "python"))
    state = world.policy.agents["a"]
    world.policy.exited(world.now, "a", state.epoch, 1)
    world.policy.remove("a")  # its death was not acted upon yet
    world.sending.discard("a")
    assert world.run(0.05) == []
    process = Child(agent="a", agent_id="id", epoch=state.epoch, pid=state.pid, spawned_at=now())
    world.host("base", process)
    assert world.policy.leftovers == {"a": Leftover("base", state.pid, state.epoch)}
    world.host("python", pid=2)
    assert "a" in world.policy.leftovers
    world.host("base")
    assert world.policy.leftovers == {}
