"""A sandbox that is removed: its agents go first, then the event tells `up`, and no agent starts there meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from bus.durable.events import EventPublisher
from bus.durable.outbox import Outbox
from bus.errors import BusError
from bus.messages.subjects import WATCHDOG
from bus.testing.memory_bus import MemoryBus, MemoryServer
from coordinator.changes.moves import Moves
from coordinator.changes.sandbox_removals import SandboxRemovals
from coordinator.config.changes import RemovedSandbox
from coordinator.supervisor.model import AgentState, SandboxLost
from tests.support.policy_world import World
from tests.unit.coordinator.changes.test_moves import Hosts


class Closing(World):
    """Agent `a` runs in `base`, `b` in `python`; `base` is removed, and the new home of `a` is `python`."""

    def __init__(self) -> None:
        super().__init__(AgentState("a", "base"), AgentState("b", "python"))
        self.bus = MemoryBus(MemoryServer())
        self.hosts = Hosts()
        self.host("base")
        self.host("python", pid=2)
        self.run(0.2)
        self.begin()

    def begin(self) -> None:
        """As the leader that stored the change, or a later one."""
        self.moves = Moves(self.policy, cast(Any, self.hosts))
        reports = EventPublisher(self.bus, Outbox(self.bus, (), lambda _: None, pipelined=True), WATCHDOG, {})
        self.removals = SandboxRemovals(self.bus, self.policy, self.moves, reports)
        self.policy.close_sandbox("base")
        self.policy.agents["a"].preferred = "python"
        self.removals.begin({"base": RemovedSandbox(after=0)})

    async def check(self) -> None:
        for _ in range(3):  # an order, its work, and the end of that
            self.removals.check()
            self.moves.check(self.now)
            works = [leaving.report for leaving in self.removals.running.values() if leaving.report is not None]
            await asyncio.gather(*works, *self.moves._tasks, return_exceptions=True)

    def end(self, name: str) -> None:
        """It has drained, as requested."""
        state = self.policy.agents[name]
        self.sending.discard(name)
        self.policy.drained(self.now, name, state.epoch)
        self.policy.exited(self.now, name, state.epoch, 0)

    def events(self) -> list[str]:
        return [m.subject for m in self.bus.server.messages if ".lifecycle." in m.subject]


async def test_its_agents_are_moved_before_up_is_told():
    world = Closing()
    await world.check()
    assert world.hosts.orders == [("drain", "base", "a")]
    assert (world.events(), world.removals.describe("base")) == ([], "a in base")
    world.end("a")
    world.run(0.3)
    assert world.policy.agents["a"].sandbox == "python"
    await world.check()
    assert world.events() == ["swarm.lifecycle.base.watchdog"]
    # The host is live until `up` ends it; that is no loss.
    assert set(world.removals.running) == {"base"}
    world.host("base", status="draining")
    del world.sandboxes["base"]
    assert not any(isinstance(action, SandboxLost) for action in world.run(0.1))
    await world.check()
    assert world.removals.running == {}
    assert "base" not in world.policy.hosts


async def test_no_agent_starts_there_again_even_if_its_process_dies_there_or_its_home_is_lost():
    world = Closing()
    state = world.policy.agents["a"]
    world.policy.hosts["python"].alive = False
    await world.check()
    assert world.hosts.orders == []  # it can go nowhere yet
    world.sending.discard("a")
    world.policy.exited(world.now, "a", state.epoch, -9)
    del world.sandboxes["python"]
    world.run(0.5)
    assert state.phase in ("waiting", "backoff")
    world.host("python", pid=3)
    world.run(0.5)
    assert (state.phase, state.sandbox) == ("running", "python")
    assert not world.policy.is_live("base")
    assert world.policy.runs_host("base")


async def test_a_later_leader_repeats_nothing_and_a_sandbox_that_is_added_again_is_open():
    world = Closing()
    await world.check()
    world.end("a")
    world.run(0.3)
    await world.check()
    world.begin()
    await world.check()
    assert len(world.events()) == 1
    world.host("base", status="draining")
    await world.check()
    world.policy.open_sandbox("base")
    assert not world.policy.is_live("base")
    world.host("base", pid=7)
    assert world.policy.is_live("base")


async def test_a_report_that_the_bus_does_not_take_is_repeated():
    world = Closing()
    world.end("a")
    world.run(0.3)
    last, failures = world.bus.last, [BusError("no answer")]

    async def failing(subject: str) -> Any:
        if failures:
            raise failures.pop()
        return await last(subject)

    world.bus.last = failing  # type: ignore[method-assign]
    await world.check()
    await world.check()
    assert (failures, len(world.events())) == ([], 1)
