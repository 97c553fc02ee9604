"""The keys that the leading watchdog gives to the agents it starts."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import structlog

from bus.errors import UsageError
from bus.nats.credentials import jwt_beside
from bus.nats.key_files import (
    INCARNATIONS,
    KEY_SUFFIX,
    agent_key_file,
    forget_seed,
    new_seed,
    read_seed,
    record,
    take,
    voter_key_file,
)

PAUSE_S = 0.02
TRIES = 50
"""A start waits a second for a prepared key: `up` prepares the next one within half a second."""

log = structlog.get_logger("signalmesh.watchdog")


class AgentKeys:
    """The keys in `directory`: one for each incarnation if `up` prepares them there, else one for each agent."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._prepared = directory, directory / INCARNATIONS
        self._last: dict[str, str] = {}
        """Agent -> the seed of its last incarnation that got one of this watchdog."""
        self._taken: dict[str, tuple[int, str]] = {}
        """Agent -> epoch and seed of a prepared key whose seed is still in a file."""

    def has_key(self, agent: str) -> bool:
        """Whether this agent has a key, or `up` prepares one as soon as the agent is in the swarm."""
        return self._prepared.is_dir() or agent_key_file(self._directory, agent).exists()

    def voters_like_hosts(self, sandbox: str) -> list[str]:
        """The identities of voters that have the name of a host of this sandbox."""
        files = [voter_key_file(self._directory, sandbox), *self._directory.glob(f"voter-{sandbox}-*{KEY_SUFFIX}")]
        return [file.name.removesuffix(KEY_SUFFIX) for file in files if os.path.lexists(file)]

    def voter_file(self, name: str) -> Path | None:
        """The key file of a voter of this name, a program outside the swarm, if there is one."""
        file = voter_key_file(self._directory, name)
        return file if os.path.lexists(file) else None

    def has_host_key(self, sandbox: str) -> bool:
        """The same of the host of a sandbox."""
        return self._prepared.is_dir() or (self._directory / f"sandbox-{sandbox}{KEY_SUFFIX}").exists()

    async def seed(self, agent: str, epoch: int) -> str:
        """The key for the incarnation `epoch`.

        If `up` prepares none in time, it is that of the incarnation before, which the server still knows: a recovery
        does not depend on `up`. Only the fence tells the two apart then. Without one before it is a new key, which the
        server knows once `up` runs again; the agent waits for that.

        Raises:
            UsageError: it cannot be used.
        """
        if not self._prepared.is_dir():
            return await asyncio.to_thread(read_seed, agent_key_file(self._directory, agent))
        seed = await self._take(agent, epoch)
        if seed is not None:
            self._taken[agent] = epoch, seed
        else:
            log.warning("no_key_prepared", of=agent, epoch=epoch, reused=agent in self._last)
            seed = self._last.get(agent) or new_seed()
            await asyncio.to_thread(record, self._prepared, agent, epoch, seed)
        self._last[agent] = seed
        return seed

    async def jwt(self, agent: str) -> str:
        """The JWT of this agent's user, where the server wants one. Keys that `up` prepares are for its own server.

        Raises:
            UsageError: it is none of this agent's key.
        """
        if self._prepared.is_dir():
            return ""
        return await asyncio.to_thread(jwt_beside, agent_key_file(self._directory, agent))

    async def _take(self, agent: str, epoch: int) -> str | None:
        for _ in range(TRIES):
            if (seed := await asyncio.to_thread(take, self._prepared, agent, epoch)) is not None:
                return seed
            await asyncio.sleep(PAUSE_S)
        return None

    async def forget(self, agent: str) -> None:
        """Remove the seed of this agent's last key from the disk; its public key stays."""
        if (taken := self._taken.pop(agent, None)) is None:
            return
        try:
            await asyncio.to_thread(forget_seed, self._prepared, agent, *taken)
        except (OSError, UsageError) as error:
            log.warning("key_not_forgotten", of=agent, problem=str(error))
