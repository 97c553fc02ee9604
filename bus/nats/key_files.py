"""Files with the nkey seed of one user: written for their owner alone, and checked when they are read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from bus.errors import UsageError
from bus.nats.credentials import public_key_of

__all__ = [
    "KEYS_VARIABLE",
    "KEY_SUFFIX",
    "OTHERS",
    "agent_key_file",
    "new_seed",
    "read_seed",
    "write_private",
    "write_seed",
]

KEYS_VARIABLE = "SIGNALMESH_KEYS"
"""The directory with the keys of a swarm's processes; the watchdog reads those of the agents there."""
KEY_SUFFIX = ".nk"
MAX_FILE_BYTES = 1024
OTHERS = stat.S_IRWXG | stat.S_IRWXO
"""Bits of a mode by which others than its owner may use a file."""


def agent_key_file(directory: Path, agent: str) -> Path:
    """The file of an agent's key in the directory of a swarm's keys."""
    return directory / f"agent-{agent}{KEY_SUFFIX}"


def new_seed() -> str:
    """The seed of a new user."""
    import nkeys

    seed: bytes = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    return seed.decode()


def write_seed(file: Path, seed: str) -> None:
    """Write a key file, whole or not at all; replaces an older one. Its directory is made, for this user alone."""
    write_private(file, seed + "\n")


def write_private(file: Path, text: str, mode: int = 0o600) -> None:
    """Write a file with this mode, as `write_seed`."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as opened:
        os.fchmod(descriptor, mode)
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    temporary.replace(file)


def read_seed(file: Path) -> str:
    """The seed in a key file.

    Raises:
        UsageError: it is missing, empty, of other content, of another user, or readable by others.
    """
    try:
        with file.open() as opened:
            about = os.fstat(opened.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise UsageError(f"key {file}: expected a file; remove it, and `signalmesh up` makes one")
            text = opened.read(MAX_FILE_BYTES + 1).strip()
    except FileNotFoundError:
        raise UsageError(f"key {file}: there is no such file; `signalmesh up` makes it") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UsageError(f"key {file}: cannot be read: {reason}; expected a file of the user who runs this") from None
    if about.st_uid not in (os.geteuid(), 0):
        raise UsageError(f"key {file}: belongs to another user (uid {about.st_uid}); expected this one: chown it")
    if about.st_mode & OTHERS:
        mode = stat.S_IMODE(about.st_mode)
        raise UsageError(
            f"key {file}: others may read or write it (mode {mode:04o}): chmod 600 it; if somebody may have read "
            "it, remove it instead, and `signalmesh up` makes another"
        )
    try:
        public_key_of(text)
    except ValueError as error:
        found = str(error) if text else "nothing"
        raise UsageError(
            f"key {file}: expected a user's nkey seed, 58 characters that begin with SU, not {found}; remove "
            "it, and `signalmesh up` makes another"
        ) from None
    return text
