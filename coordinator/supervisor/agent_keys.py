"""The keys that the leading watchdog gives to the agents it starts.

Where `up` prepares them, each incarnation has one, from a directory of their own. `NAME.next.nk` is the seed that the
next incarnation of agent NAME gets. `NAME.EPOCH.nk` is the same file, renamed by the watchdog that took it.
`NAME.EPOCH.pub` has its public key, and stays as long as the server admits that key. A process that ends between two
steps leaves a state from which the next goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from pathlib import Path

import structlog

from bus.errors import UsageError
from bus.nats.credentials import public_key_of
from bus.nats.key_files import KEY_SUFFIX, agent_key_file, new_seed, read_seed

__all__ = [
    "INCARNATIONS",
    "AgentKeys",
    "agent_files",
    "forget_seed",
    "prepare",
    "prepared_file",
    "public_key_taken",
    "read_public",
    "record",
    "remove_taken",
    "take",
    "taken_keys",
]

PAUSE_S = 0.02
TRIES = 50
"""A start waits a second for a prepared key: `up` prepares the next one within half a second."""
INCARNATIONS = "agents"
"""Their directory in that of a swarm's keys."""
PUBLIC_SUFFIX = ".pub"
_TAKEN = re.compile(rf"(?P<agent>[^.]+)\.(?P<epoch>\d+)(?:{re.escape(KEY_SUFFIX)}|{re.escape(PUBLIC_SUFFIX)})")
_PUBLIC_KEY = re.compile(r"U[A-Z2-7]{55}")

log = structlog.get_logger("signalmesh.watchdog")


class AgentKeys:
    """The keys in `directory`: one for each incarnation if `up` prepares them there, else one for each agent."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._prepared = directory, directory / INCARNATIONS
        self._last: dict[str, str] = {}
        """Agent -> the seed of its last incarnation that got one of this watchdog."""
        self._taken: dict[str, tuple[int, str]] = {}
        """Agent -> epoch and seed of a prepared key whose seed is still in a file."""

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


def prepared_file(directory: Path, agent: str) -> Path:
    """The file of the key that the next incarnation of `agent` gets."""
    return directory / f"{agent}.next{KEY_SUFFIX}"


def taken_keys(directory: Path) -> set[tuple[str, int]]:
    """Agent and epoch of each key that an incarnation has."""
    found = (_TAKEN.fullmatch(file.name) for file in directory.iterdir())
    return {(match["agent"], int(match["epoch"])) for match in found if match}


def agent_files(directory: Path) -> dict[str, Path]:
    """Agent -> the file of the key of its newest incarnation, or of the prepared one; nothing without the directory."""
    found: dict[str, tuple[int, Path]] = {}
    for file in directory.glob("[!.]*"):
        match = _TAKEN.fullmatch(file.name)
        agent, epoch = (match["agent"], int(match["epoch"])) if match else (file.name.partition(".")[0], -1)
        if epoch >= found.get(agent, (-1, file))[0]:
            found[agent] = epoch, file
    return {agent: file for agent, (_, file) in found.items()}


def public_key_taken(directory: Path, agent: str, epoch: int) -> str:
    """The public key of this incarnation.

    Raises:
        UsageError: its file is missing, or has other content.
    """
    public, seed = (directory / f"{agent}.{epoch}{suffix}" for suffix in (PUBLIC_SUFFIX, KEY_SUFFIX))
    with contextlib.suppress(UsageError):
        return read_public(seed)
    return read_public(public)  # the watchdog replaces the other one by it


def read_public(file: Path) -> str:
    """The public key in a key file, or in that of a taken key.

    Raises:
        UsageError: it is missing, or has other content.
    """
    if file.suffix == KEY_SUFFIX:
        return public_key_of(read_seed(file))
    try:
        text = file.read_text("ascii").strip()
    except OSError as error:
        raise UsageError(f"key {file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        text = ""
    if not _PUBLIC_KEY.fullmatch(text):
        raise UsageError(f"key {file}: expected a public key; remove it, and its agent gets another")
    return text


def remove_taken(directory: Path, agent: str, epoch: int) -> None:
    """Remove the key of this incarnation."""
    for suffix in (KEY_SUFFIX, PUBLIC_SUFFIX):
        (directory / f"{agent}.{epoch}{suffix}").unlink(missing_ok=True)


def prepare(directory: Path, agent: str) -> str:
    """Write a new key for the next incarnation of `agent`; returns its public key.

    Raises:
        OSError: it cannot be written.
    """
    seed = new_seed()
    _write(prepared_file(directory, agent), seed)
    return public_key_of(seed)


def take(directory: Path, agent: str, epoch: int) -> str | None:
    """Take the prepared key for the incarnation `epoch`; None: there is none.

    Raises:
        UsageError: it cannot be used; it is then not prepared any more.
    """
    taken = directory / f"{agent}.{epoch}{KEY_SUFFIX}"
    try:
        prepared_file(directory, agent).rename(taken)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"key {prepared_file(directory, agent)}: cannot be renamed: {error.strerror}") from None
    return read_seed(taken)


def record(directory: Path, agent: str, epoch: int, seed: str) -> None:
    """Let the incarnation `epoch` have this key, which is not a prepared one.

    Raises:
        UsageError: it cannot be written.
    """
    file = directory / f"{agent}.{epoch}{PUBLIC_SUFFIX}"
    try:
        _write(file, public_key_of(seed))
    except OSError as error:
        raise UsageError(f"key {file}: cannot be written: {error.strerror}") from None


def forget_seed(directory: Path, agent: str, epoch: int, seed: str) -> None:
    """Keep only the public key of what was taken, unless its file was removed meanwhile.

    Raises:
        OSError: it cannot be written; the file with the seed stays.
    """
    taken = directory / f"{agent}.{epoch}{KEY_SUFFIX}"
    if not taken.exists():
        return
    _write(directory / f"{agent}.{epoch}{PUBLIC_SUFFIX}", public_key_of(seed))
    taken.unlink(missing_ok=True)


def _write(file: Path, text: str) -> None:
    """Write it whole or not at all. It need not outlive the machine: the next start makes all of them again."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(text + "\n")
    temporary.replace(file)
