"""Files with the nkey seed of one user: written for their owner alone, and checked when they are read.

Keys of single incarnations of agents are in a directory of their own. `NAME.next.nk` is the seed that the next
incarnation of agent NAME gets; `up` has prepared it. `NAME.EPOCH.nk` is the same file, renamed by the watchdog that
took it. `NAME.EPOCH.pub` has its public key, and stays as long as the server admits that key. A process that ends
between two steps leaves a state from which the next goes on.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from bus.errors import UsageError
from bus.nats.credentials import PUBLIC_KEY, public_key_of, read_private

__all__ = [
    "INCARNATIONS",
    "KEYS_VARIABLE",
    "KEY_SUFFIX",
    "agent_files",
    "agent_key_file",
    "forget_seed",
    "new_seed",
    "owner_of",
    "prepare",
    "prepared_file",
    "public_key_taken",
    "read_public",
    "read_seed",
    "record",
    "remove_taken",
    "take",
    "taken_keys",
    "voter_key_file",
    "write_private",
    "write_seed",
]

KEYS_VARIABLE = "SIGNALMESH_KEYS"
"""The directory with the keys of a swarm's processes; the watchdog reads those of the agents there."""
KEY_SUFFIX = ".nk"
INCARNATIONS = "agents"
"""Their directory in that of a swarm's keys."""
PUBLIC_SUFFIX = ".pub"
_TAKEN = re.compile(rf"(?P<agent>[^.]+)\.(?P<epoch>\d+)(?:{re.escape(KEY_SUFFIX)}|{re.escape(PUBLIC_SUFFIX)})")


def agent_key_file(directory: Path, agent: str) -> Path:
    """The file of an agent's key in the directory of a swarm's keys."""
    return directory / f"agent-{agent}{KEY_SUFFIX}"


def voter_key_file(directory: Path, name: str) -> Path:
    """The file of the key of a program outside the swarm that votes as `name`."""
    return directory / f"voter-{name}{KEY_SUFFIX}"


def new_seed() -> str:
    """The seed of a new user."""
    import nkeys

    seed: bytes = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    return seed.decode()


def write_seed(file: Path, seed: str) -> None:
    """Write a key file, whole or not at all; replaces an older one. Its directory is made, for this user alone."""
    write_private(file, seed + "\n")


def write_private(file: Path, text: str, mode: int = 0o600, *, durable: bool = True) -> None:
    """Write a file with this mode, as `write_seed`. It outlives a crash of the machine if it is `durable`."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as opened:
        os.fchmod(descriptor, mode)
        opened.write(text)
        opened.flush()
        if durable:
            os.fsync(opened.fileno())
    temporary.replace(file)


def read_seed(file: Path) -> str:
    """The seed in a key file.

    Raises:
        UsageError: it is missing, empty, of other content, of another user, or readable by others.
    """
    with contextlib.suppress(OSError):  # its directory cannot be read, which is said below
        if file.is_symlink() and not file.exists():
            raise UsageError(
                f"key {file}: a link to a file that does not exist; remove it, and `signalmesh up` makes a key"
            )
        if not file.exists():
            raise UsageError(f"key {file}: there is no such file; `signalmesh up` makes it")
    text = read_private(file, f"key {file}", "remove it instead, and `signalmesh up` makes another").strip()
    try:
        public_key_of(text)
    except ValueError as error:
        found = str(error) if text else "nothing"
        raise UsageError(
            f"key {file}: expected a user's nkey seed, 58 characters that begin with SU, not {found}; remove "
            "it, and `signalmesh up` makes another"
        ) from None
    return text


def owner_of(public_key: str, directory: Path, besides: Path) -> str:
    """Whose key it is by the key files of this directory without the file `besides`; empty: nobody's."""
    files = [(file.stem, file) for file in directory.glob(f"[!.]*{KEY_SUFFIX}")]
    agents = (directory / INCARNATIONS).glob("[!.]*")
    files += [(f"agent-{file.name.partition('.')[0]}", file) for file in agents]
    for identity, file in files:
        with contextlib.suppress(UsageError, OSError):
            if not file.samefile(besides) and read_public(file) == public_key:
                return identity
    return ""


# -- keys of single incarnations


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
    if not PUBLIC_KEY.fullmatch(text):
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
    write_private(prepared_file(directory, agent), seed + "\n", durable=False)
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
        write_private(file, public_key_of(seed) + "\n", durable=False)
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
    write_private(directory / f"{agent}.{epoch}{PUBLIC_SUFFIX}", public_key_of(seed) + "\n", durable=False)
    taken.unlink(missing_ok=True)
