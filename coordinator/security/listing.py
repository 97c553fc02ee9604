"""`keys list` and `keys rotate`: the key files of a state directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bus.errors import UsageError
from bus.nats.credentials import inbox_of, public_key_of
from bus.nats.key_files import KEY_SUFFIX, new_seed, read_seed, write_seed
from coordinator.reporting.tables import Column, console, print_table
from coordinator.security.keys import KeyStore

__all__ = ["KeyInfo", "KeyList", "list_keys", "print_keys", "rotate_keys"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyInfo:
    """A key file. `public_key` and `inbox`, the prefix of its user's inboxes, are empty if there is a `problem`."""

    identity: str
    file: str
    public_key: str = ""
    inbox: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyList:
    """`keys --json`: all keys of a state directory, or those that were replaced."""

    keys: tuple[KeyInfo, ...]


def list_keys(state_dir: Path, names: Sequence[str] = ()) -> KeyList:
    """The keys of these identities, of all if none is named.

    Raises:
        UsageError: there is no such key, or none at all.
    """
    return KeyList(keys=tuple(_describe(file) for file in _files(state_dir, names)))


def rotate_keys(state_dir: Path, names: Sequence[str]) -> KeyList:
    """Replace these keys; a running swarm uses the new ones within a second.

    Raises:
        UsageError: there is no such key, or its file cannot be written.
    """
    files = _files(state_dir, names)
    for file in files:
        try:
            write_seed(file, new_seed())
        except OSError as error:
            raise UsageError(f"key {file}: cannot be written: {error.strerror}") from None
    return KeyList(keys=tuple(map(_describe, files)))


def _files(state_dir: Path, names: Sequence[str]) -> list[Path]:
    store = KeyStore(state_dir)
    known = {file.stem: file for file in sorted(store.directory.glob(f"*{KEY_SUFFIX}")) if file.name[0] != "."}
    if not known:
        raise UsageError(
            f'{store.directory}: there are no keys; a swarm with [nats] authentication = "keys" makes them at its start'
        )
    for name in names:
        if name not in known:
            raise UsageError(f"keys: {name}: there is no such key in {store.directory}; it has: {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)] or [*known.values()]


def _describe(file: Path) -> KeyInfo:
    try:
        public = public_key_of(read_seed(file))
    except UsageError as error:
        return KeyInfo(identity=file.stem, file=str(file), problem=str(error))
    return KeyInfo(identity=file.stem, file=str(file), public_key=public, inbox=inbox_of(public))


def print_keys(found: KeyList) -> None:
    """A table: seeds are never shown."""
    rows = [[key.identity, key.public_key, key.problem] for key in found.keys]
    print_table(console(), (Column("identity"), Column("public key"), Column("problem", 1)), rows)
