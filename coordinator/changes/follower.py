"""What `up` follows of the changes made at run time: their copy in the state directory, hosts, and keys.

An agent that was removed keeps its key until the watchdog reports that nothing of it is left: it drains until then. So
does the host of a sandbox that was removed, and `up` keeps it as long.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import structlog

from bus.errors import ConfigError, MessageError, UsageError
from bus.interface import ReceivedMessage
from bus.messages import Lifecycle, VotingConfig
from bus.messages.subjects import WATCHDOG
from bus.nats.bus import NatsBus
from coordinator.changes.removals import is_reported
from coordinator.config.changes import (
    CHANGES_FILE,
    SAVED_FILE,
    Changes,
    forget_saved_changes,
    write_changes_file,
)
from coordinator.config.live_swarm import LiveSwarm
from coordinator.config.settings import ResolvedSwarm, SandboxSpec
from coordinator.supervisor.config_publisher import changes_in, read_config

log = structlog.get_logger("signalmesh.up")


class ChangesFollower:
    """Keeps `swarm` and the copy in `state_dir` at the newest changes.

    `on_change` gets the swarm together with the agents that still drain, and the sandboxes that still have agents:
    those that may be connected.
    """

    def __init__(
        self, swarm: LiveSwarm, state_dir: Path, on_change: Callable[[ResolvedSwarm], Awaitable[None]]
    ) -> None:
        self._swarm, self._state_dir, self._on_change = swarm, state_dir, on_change
        self._draining: dict[str, ResolvedSwarm] = {}
        """Agent that was removed -> the last swarm that had it."""
        self._leaving: dict[str, SandboxSpec] = {}
        """Sandboxes that were removed and still have agents."""
        self._writing = asyncio.Lock()

    async def begin(self, bus: NatsBus, check: Callable[[Changes], LiveSwarm]) -> bool:
        """Take over what the stream has and the state directory has not, and receive what is to come.

        `check` returns the swarm with changes; the result is whether there were any.

        Raises:
            UsageError: `check` does; BusError: the bus does not answer.
        """
        stored = changes_in(await read_config(bus))
        is_newer = stored.revision > self._swarm.changes.revision
        if is_newer:
            found = await asyncio.to_thread(check, stored)
            self._swarm.take(found.changes, found.config)
        if self._swarm.changes.revision and await self._save():
            await asyncio.to_thread(self._forget_saved)
        await self._listen(bus)
        return is_newer

    async def _listen(self, bus: NatsBus) -> None:

        async def on_config(received: ReceivedMessage) -> None:
            with contextlib.suppress(MessageError):
                message = received.decode(bus.subjects)
                await self.take(message if isinstance(message, VotingConfig) else None)

        async def on_lifecycle(received: ReceivedMessage) -> None:
            with contextlib.suppress(MessageError):
                event = received.decode(bus.subjects)
                if isinstance(event, Lifecycle) and event.event == "removed":
                    await self._forget(event.agent)

        await bus.listen(bus.subjects.config(WATCHDOG), on_config)
        await bus.listen(bus.subjects.lifecycle("*", WATCHDOG), on_lifecycle)

    async def look(self, bus: NatsBus) -> None:
        """Read the newest changes: a message may have been missed while the connection was down.

        Raises:
            BusError: the bus does not answer.
        """
        await self.take(await read_config(bus))
        changes = self._swarm.changes
        removed = {name: change.after for name, change in changes.removed.items()}
        removed |= {name: change.after for name, change in changes.removed_sandboxes.items()}
        for name in (*self._draining, *self._leaving):
            if name in removed and await is_reported(bus, name, removed[name]):
                await self._forget(name)

    async def take(self, config: VotingConfig | None) -> None:
        """Take over the changes of the watchdog's newest VotingConfig, if they are newer."""
        swarm, changes = self._swarm, changes_in(config)
        if changes.revision <= swarm.changes.revision:
            return
        try:
            after = swarm.with_changes(changes)
        except ConfigError as error:
            log.error("changes_not_possible", problem=str(error))  # noqa: TRY400 - the watchdog has accepted them
            return
        before = swarm.config
        swarm.take(changes, after)
        present = {agent.spec.name for agent in after.agents}
        gone = [agent.spec.name for agent in before.agents if agent.spec.name not in present]
        self._draining = {name: last for name, last in self._draining.items() if name not in present}
        self._draining |= dict.fromkeys(gone, before)
        sandboxes = {spec.name for spec in after.sandboxes}
        leaving = {**self._leaving, **{spec.name: spec for spec in before.sandboxes}}
        self._leaving = {name: spec for name, spec in leaving.items() if name not in sandboxes}
        await self._save()
        await self._on_change(self._connected())

    async def _save(self) -> bool:
        """Write the copy; whether it is written."""
        async with self._writing:
            try:
                await asyncio.to_thread(write_changes_file, self._state_dir, self._swarm.changes)
            except OSError as error:
                log.warning("changes_not_written", file=str(self._state_dir / CHANGES_FILE), problem=str(error))
                return False
        return True

    def _forget_saved(self) -> None:
        """What was saved into swarm.toml is not among the changes any more."""
        try:
            forget_saved_changes(self._state_dir, self._swarm.base)
        except (OSError, UsageError) as error:
            log.warning("saved_changes_not_removed", file=str(self._state_dir / SAVED_FILE), problem=str(error))

    async def _forget(self, name: str) -> None:
        """Nothing is left of this agent, or in this sandbox."""
        if self._draining.pop(name, None) is not None or self._leaving.pop(name, None) is not None:
            await self._on_change(self._connected())

    def _connected(self) -> ResolvedSwarm:
        """The swarm with the agents that still drain, and the sandboxes that still have agents."""
        config = self._swarm.config
        agents, traits = list(config.agents), dict(config.traits)
        for name, last in self._draining.items():
            agents += [agent for agent in last.agents if agent.spec.name == name]
            traits |= {name: last.traits[name]} if name in last.traits else {}
        sandboxes = (*config.sandboxes, *self._leaving.values())
        return replace(config, agents=tuple(agents), sandboxes=sandboxes, traits=traits)
