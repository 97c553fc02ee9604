"""What `up` takes over of the changes made at run time, and until when an agent that was removed may be connected."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

from bus.messages import Lifecycle, VotingConfig, encode, now
from bus.messages.subjects import WATCHDOG
from bus.testing.memory_bus import MemoryBus, MemoryServer
from coordinator.changes.follower import ChangesFollower
from coordinator.config.changes import (
    NO_CHANGES,
    AddedAgent,
    Changes,
    RemovedAgent,
    RemovedSandbox,
    encode_changes,
    read_changes_file,
)
from coordinator.config.live_swarm import LiveSwarm
from coordinator.config.loader import parse_swarm, to_config_message
from coordinator.config.settings import ResolvedSwarm

ADDED = {"new": AddedAgent(table={"kind": "momentum", "sandbox": "base"}, after=3)}


class Following:
    def __init__(self, directory: Path) -> None:
        self.bus = MemoryBus(MemoryServer())
        self.base = parse_swarm({"max_agents": 9}, "swarm.toml", "").resolve()
        self.swarm = LiveSwarm(self.base)
        self.changed = asyncio.Event()
        self.connected: set[str] = {agent.spec.name for agent in self.base.agents}
        self.follower = ChangesFollower(self.swarm, directory, self.on_change)

    async def on_change(self, connected: ResolvedSwarm) -> None:
        self.connected = {agent.spec.name for agent in connected.agents}
        self.sandboxes = {spec.name for spec in connected.sandboxes}
        assert set(connected.traits) == self.connected
        self.changed.set()

    def message(self, changes: Changes) -> VotingConfig:
        return to_config_message(self.base, self.base.voters, changes=encode_changes(changes))

    async def publish(self, subject: str, message: Any) -> None:
        self.changed.clear()
        await self.bus.publish("in." + subject, encode(message))
        await self.changed.wait()


async def test_the_newest_changes_are_followed_and_kept(tmp_path: Path):
    up = Following(tmp_path)
    first = NO_CHANGES.after("add new", "id1", agents=ADDED)
    assert not await up.follower.begin(cast(Any, up.bus), lambda changes: LiveSwarm(up.base, changes))
    await up.publish(up.bus.subjects.config(WATCHDOG), up.message(first))
    assert "new" in up.connected
    assert read_changes_file(tmp_path) == first == up.swarm.changes
    second = first.after("remove new", "id2", agents={}, removed={"new": RemovedAgent(after=9, was={"kind": "x"})})
    await up.publish(up.bus.subjects.config(WATCHDOG), up.message(second))
    # It drains until the watchdog has reported the end.
    assert "new" in up.connected
    assert "new" not in {agent.spec.name for agent in up.swarm.config.agents}
    event = Lifecycle(event="removed", agent="new", timestamp=now(), source=WATCHDOG)
    await up.publish(up.bus.subjects.lifecycle("new", WATCHDOG), event)
    assert "new" not in up.connected
    assert read_changes_file(tmp_path) == second


async def test_what_only_the_stream_has_is_taken_over_at_the_start(tmp_path: Path):
    up = Following(tmp_path)
    first = NO_CHANGES.after("add new", "id1", agents=ADDED)
    await up.bus.publish("in." + up.bus.subjects.config(WATCHDOG), encode(up.message(first)))
    assert await up.follower.begin(cast(Any, up.bus), lambda changes: LiveSwarm(up.base, changes))
    assert read_changes_file(tmp_path) == first == up.swarm.changes
    assert not up.changed.is_set()


async def test_older_changes_and_those_of_others_change_nothing(tmp_path: Path):
    up = Following(tmp_path)
    second = NO_CHANGES.after("a", "id1").after("add new", "id2", agents=ADDED)
    await up.follower.take(up.message(second))
    await up.follower.take(up.message(NO_CHANGES.after("nothing", "id3")))
    await up.follower.take(None)
    third = up.message(second.after("remove new", "id4", agents={}))
    await up.follower.take(VotingConfig(voters={}, timestamp=now(), source="stranger", changes=third.changes))
    assert up.swarm.changes == second
    assert read_changes_file(tmp_path) == second


async def test_the_host_of_a_removed_sandbox_is_kept_until_its_agents_have_gone(tmp_path: Path):
    up = Following(tmp_path)
    added = NO_CHANGES.after("add sandbox extra", "id1", sandboxes={"extra": {"provider": "local"}})
    await up.follower.take(up.message(added))
    assert up.sandboxes == {"base", "nodejs", "python", "extra"}
    gone = {"extra": RemovedSandbox(after=0, configured=False)}
    removed = up.message(added.after("remove sandbox extra", "id2", sandboxes={}, removed_sandboxes=gone))
    await up.follower.take(removed)
    await up.bus.publish("in." + up.bus.subjects.config(WATCHDOG), encode(removed))
    await up.follower.look(cast(Any, up.bus))
    assert "extra" in up.sandboxes
    assert "extra" not in {spec.name for spec in up.swarm.config.sandboxes}
    # The event is not received, but found in the stream.
    event = Lifecycle(event="removed", agent="extra", timestamp=now(), source=WATCHDOG)
    await up.bus.publish("in." + up.bus.subjects.lifecycle("extra", WATCHDOG), encode(event))
    await up.follower.look(cast(Any, up.bus))
    assert up.sandboxes == {"base", "nodejs", "python"}
