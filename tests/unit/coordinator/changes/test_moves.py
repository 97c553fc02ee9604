"""Moves: what is ordered next, whatever happens to the agent, its process or the sandboxes meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from bus.errors import BusError
from coordinator.changes.moves import DRAIN_S, RETRY_S, Moves
from coordinator.supervisor.model import AgentState, Spawn
from tests.support.policy_world import World


class Hosts:
    """In place of a HostClient: what it was to do."""

    def __init__(self) -> None:
        self.orders: list[tuple[str, str, str]] = []
        self.fails = False

    async def terminate(self, sandbox: str, agent: str, _: int) -> None:
        self.orders.append(("drain", sandbox, agent))
        if self.fails:
            raise BusError("no answer")

    async def kill(self, sandbox: str, agent: str, _: int) -> None:
        self.orders.append(("kill", sandbox, agent))


class Moving(World):
    """Agent `a` runs in `base`, and is to go to `python`."""

    def __init__(self) -> None:
        super().__init__(AgentState("a", "base"))
        self.hosts = Hosts()
        self.moves = Moves(self.policy, cast(Any, self.hosts))
        self.host("base")
        self.host("python", pid=2)
        self.run(0.2)
        self.state = self.policy.agents["a"]
        assert (self.state.phase, self.state.sandbox) == ("running", "base")
        self.moves.begin("a", "python")

    async def check(self, seconds: float = 0.0) -> None:
        self.run(seconds)
        self.moves.check(self.now)
        await asyncio.gather(*self.moves._tasks)

    def drain(self) -> None:
        """The process ends as requested."""
        self.sending.discard("a")
        self.policy.exited(self.now, "a", self.state.epoch, 0)


async def test_an_agent_drains_and_starts_in_its_new_sandbox():
    world = Moving()
    await world.check()
    assert world.hosts.orders == [("drain", "base", "a")]
    world.drain()
    [spawn] = [action for action in world.run(0.2) if isinstance(action, Spawn)]
    assert (spawn.sandbox, spawn.moved_from) == ("python", "base")
    await world.check(0.3)
    assert (world.state.phase, world.state.sandbox, world.moves.running) == ("running", "python", {})
    world.policy.exited(world.now, "a", world.state.epoch, 1)
    world.run(0.3)
    assert world.state.sandbox == "python"


async def test_a_crash_before_it_drains_moves_it_as_well():
    world = Moving()
    await world.check()
    world.policy.exited(world.now, "a", world.state.epoch, -9)
    world.run(0.3)
    await world.check()
    assert (world.state.sandbox, world.moves.running) == ("python", {})


async def test_a_request_to_drain_is_repeated_and_in_the_end_it_is_killed():
    world = Moving()
    world.hosts.fails = True
    await world.check()
    await world.check(RETRY_S / 2)
    assert len(world.hosts.orders) == 1
    await world.check(RETRY_S)
    assert len(world.hosts.orders) == 2
    await world.check(DRAIN_S)
    assert world.hosts.orders[-1] == ("kill", "base", "a")


async def test_a_successor_that_started_in_the_old_sandbox_moves_too():
    world = Moving()
    await world.check()
    world.policy.spawned(world.now, "a", "base", 77, world.state.epoch + 5, "id")
    await world.check()
    assert world.hosts.orders == [("drain", "base", "a")] * 2


@pytest.mark.parametrize("phase", ["quarantined", "drained"])
async def test_a_stopped_agent_starts_there_when_it_is_revived(phase):
    world = Moving()
    world.state.phase = phase
    await world.check()
    assert (world.hosts.orders, world.moves.running) == ([], {})
    world.policy.revive(world.now, "a")
    [spawn] = [action for action in world.run(0.1) if isinstance(action, Spawn)]
    assert spawn.sandbox == "python"


async def test_a_move_to_a_sandbox_that_dies_is_given_up():
    world = Moving()
    await world.check()
    world.policy.host_gone(world.now, "python", "gone")
    world.sandboxes.pop("python")
    await world.check()
    assert world.moves.running == {}
    world.drain()
    world.run(0.3)
    assert world.state.sandbox == "base"


async def test_an_agent_that_was_removed_is_not_moved():
    world = Moving()
    del world.policy.agents["a"]
    await world.check()
    assert (world.hosts.orders, world.moves.running) == ([], {})


def test_only_agents_whose_sandbox_is_back_for_long_enough_are_away():
    world = World(AgentState("a", "base"))
    moves = Moves(world.policy, cast(Any, Hosts()))
    world.host("python", pid=2)
    world.run(0.2)
    assert world.policy.agents["a"].sandbox == "python"
    assert moves.away() == []
    world.host("base")
    world.run(1.0)
    assert moves.away() == ["a"]
    assert moves.away(since=world.now - 10.0) == []
    world.run(10.0)
    assert moves.away(since=world.now - 10.0) == ["a"]
