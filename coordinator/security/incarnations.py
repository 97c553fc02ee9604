"""The keys of agents on the server of `up`: one for each incarnation, and one prepared for the next."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import structlog

from bus.errors import UsageError
from bus.nats.credentials import public_key_of
from bus.nats.key_files import prepare, prepared_file, public_key_taken, read_seed, remove_taken, taken_keys
from coordinator.security.permissions import Permissions

__all__ = ["IncarnationKeys", "remove_incarnations"]

DEAD_S = 30.0
"""How long attempts with the key of a dead incarnation are those of a process that is about to end."""
MAX_FORMER = 4096
"""Keys of dead incarnations that are told from unknown ones."""

FileIdentity = tuple[int, int] | None

log = structlog.get_logger("signalmesh.up")


def remove_incarnations(directory: Path) -> None:
    """Remove the keys of an earlier run, whose agents have ended."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(directory)


class IncarnationKeys:
    """The keys in `directory`, which is made anew. Its files are what counts: a removed one is a revoked key."""

    def __init__(self, directory: Path, agents: Mapping[str, Permissions]) -> None:
        """`agents`: what each agent may do.

        Raises:
            OSError: the directory cannot be written.
        """
        self._directory, self._agents = directory, agents
        remove_incarnations(directory)
        directory.mkdir(mode=0o700)
        self._next = {agent: self._prepare(agent) for agent in agents}
        """Agent -> public key of its next incarnation, and the identity of the file that holds it."""
        self._taken: dict[tuple[str, int], str] = {}
        self._claimed: dict[str, int] = {}
        """Agent -> the newest epoch that is known to be claimed."""
        self._ended: dict[str, int] = {}
        """Agent -> the newest epoch that is known to have ended."""
        self._former: dict[str, tuple[str, float]] = {}
        """Public key -> whose it was, and from when on attempts with it are reported (monotonic seconds)."""
        self._served = self._keys()

    def take(self, agents: Mapping[str, Permissions]) -> None:
        """Have keys for these agents from now on: the others have ended for good.

        Raises:
            OSError: a key cannot be written.
        """
        for agent in self._next.keys() - agents.keys():
            epochs = [epoch for name, epoch in taken_keys(self._directory) if name == agent]
            self._ended[agent] = max(epochs, default=self._ended.get(agent, 0))
            del self._next[agent]
            prepared_file(self._directory, agent).unlink(missing_ok=True)
            for epoch in epochs:
                remove_taken(self._directory, agent, epoch)
        self._agents = agents
        for agent in agents.keys() - self._next.keys():
            self._next[agent] = self._prepare(agent)

    def claimed(self, agent: str, epoch: int) -> None:
        """Every incarnation before `epoch` has ended."""
        self._claimed[agent] = max(epoch, self._claimed.get(agent, 0))
        self.ended(agent, epoch - 1)

    def ended(self, agent: str, epoch: int) -> None:
        """This incarnation has ended, and every one before. An epoch that nobody has claimed cannot have ended."""
        if agent in self._agents and self._claimed.get(agent, 0) >= epoch > self._ended.get(agent, 0):
            self._ended[agent] = epoch

    def users(self) -> dict[str, tuple[str, Permissions]]:
        """Name of a user -> public key and permissions."""
        found = {f"agent-{agent}, next": (key, self._agents[agent]) for agent, (key, _) in self._next.items()}
        keys = {key for key, _ in found.values()}
        for (agent, epoch), key in self._taken.items():
            if key not in keys:  # an agent may have had to be started with its last key again
                keys.add(key)
                found[f"agent-{agent}, epoch {epoch}"] = key, self._agents[agent]
        return found

    def admits(self, public_key: str) -> bool:
        """Whether an agent has this key now, or is about to get it."""
        return public_key in self._keys()

    def owner(self, public_key: str) -> tuple[str | None, bool]:
        """Whose key it is, to be shown to a person, and whether attempts with it are reported; None: no agent's."""
        for agent, (key, _) in self._next.items():
            if key == public_key:
                return f"agent-{agent}", True
        for (agent, _), key in self._taken.items():
            if key == public_key:
                return f"agent-{agent}", True
        whose, reported_from = self._former.get(public_key, (None, 0.0))
        return whose, time.monotonic() >= reported_from

    def update(self) -> tuple[bool, set[str]]:
        """Take over what was taken and what has ended, and prepare what is missing.

        Returns whether the server has to know other keys now, and the agents whose keys were removed by others.

        Raises:
            OSError: a key cannot be written. What was found so far is kept.
        """
        files = {agent: _identity(prepared_file(self._directory, agent)) for agent in self._agents}
        # Read after the prepared ones: what is missing there has been taken, and is found here.
        present = {key for key in taken_keys(self._directory) if key[0] in self._agents}
        removed = {agent for agent, epoch in self._taken.keys() - present if epoch > self._ended.get(agent, 0)}
        for agent, epoch in present:
            self.claimed(agent, epoch)  # what takes a key has claimed its epoch
        known, self._taken = self._taken, {}
        for agent, epoch in sorted(present):
            try:
                if epoch > self._ended.get(agent, 0):
                    key = known.get((agent, epoch)) or public_key_taken(self._directory, agent, epoch)
                    self._taken[agent, epoch] = key
                    continue
            except UsageError as error:
                log.warning("key_unusable", problem=str(error))
            remove_taken(self._directory, agent, epoch)
        in_use = set(self._taken.values())
        for agent, file in files.items():
            key, expected = self._next[agent]
            if file != expected or key in in_use:
                self._next[agent] = self._read(agent) if file not in (expected, None) else self._prepare(agent)
        keys = self._keys()
        for (agent, _), key in known.items():
            if key not in keys:
                self._former[key] = f"a dead process of agent-{agent}", time.monotonic() + DEAD_S
        for key in list(self._former)[: max(0, len(self._former) - MAX_FORMER)]:
            del self._former[key]
        changed, self._served = keys != self._served, keys
        return changed, removed

    def _prepare(self, agent: str) -> tuple[str, FileIdentity]:
        key = prepare(self._directory, agent)
        return key, _identity(prepared_file(self._directory, agent))

    def _read(self, agent: str) -> tuple[str, FileIdentity]:
        """A prepared key that another process has written; another one in its place if it cannot be used."""
        file = prepared_file(self._directory, agent)
        identity = _identity(file)
        try:
            return public_key_of(read_seed(file)), identity
        except UsageError as error:
            log.warning("key_unusable", problem=str(error))
            return self._prepare(agent)

    def _keys(self) -> frozenset[str]:
        return frozenset((*(key for key, _ in self._next.values()), *self._taken.values()))


def _identity(file: Path) -> FileIdentity:
    """Changes when the file is replaced; None: there is none."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns
