"""`signalmesh keys`: the key files of a state directory."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bus.errors import UsageError
from bus.messages.subjects import DASHBOARD, PROVIDER, WATCHDOG, check_name
from bus.nats.credentials import inbox_of
from bus.nats.key_files import (
    KEY_SUFFIX,
    agent_files,
    new_seed,
    prepare,
    read_public,
    remove_taken,
    taken_keys,
    write_seed,
)
from coordinator.config.settings import ResolvedSwarm
from coordinator.reporting.tables import Column, console, print_table
from coordinator.security.keys import ADDED_ROLES, OPERATOR, KeyStore, check_voter, identities, suspension_of

__all__ = [
    "KeyInfo",
    "KeyList",
    "add_key",
    "init_keys",
    "list_keys",
    "print_keys",
    "resume_keys",
    "revoke_keys",
    "rotate_keys",
]

USED_BY = {
    "up": "`signalmesh up`",
    OPERATOR: "commands with this state directory",
    WATCHDOG: "the watchdog and its standby",
    "sandbox": "the host of sandbox {name}",
    "agent": "agent {name}",
    "voter": "a program outside the swarm that votes as {name}",
    "subscriber": "a program outside the swarm that receives decisions",
    "mirror": "the mirror",
    "metrics": "the metrics role",
    DASHBOARD: "the dashboard",
    "proxy": "the fault proxy",
    PROVIDER: "the provider of sandboxes at E2B",
}
"""Role -> what has the key."""
MAX_NEAR = 3
"""Names that an error offers in place of one that there is not."""
SECOND_OPERATOR = "a second operator: signalmesh --nats-nkey FILE"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyInfo:
    """A key file. `public_key` and `inbox`, the prefix of its user's inboxes, are empty if the file cannot be used.

    `problem` says why, or since when and why its user may publish nothing.
    """

    identity: str
    role: str = ""
    """What its permissions are for, such as `agent` or `subscriber`."""
    used_by: str = ""
    file: str
    public_key: str = ""
    inbox: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyList:
    """`keys --json`: all keys of a state directory, or those that were made, replaced or removed."""

    keys: tuple[KeyInfo, ...]


def init_keys(config: ResolvedSwarm, state_dir: Path) -> KeyList:
    """Make the keys of this swarm's processes that are missing.

    Raises:
        UsageError: a key cannot be made.
    """
    store = KeyStore(state_dir)
    return KeyList(keys=tuple(_describe(name, store.file(name)) for name in store.ensure(*identities(config))))


def add_key(config: ResolvedSwarm, state_dir: Path, name: str, role: str) -> KeyList:
    """Make a key for a person or program outside the swarm; a running swarm admits it within a second.

    Raises:
        UsageError: the name is taken, reserved or malformed, or the file cannot be written.
    """
    check_name(name, f"keys add: {role}")
    _files(state_dir, ())  # there are keys: --state-dir is the one that was meant
    store, identity = KeyStore(state_dir), f"{role}-{name}"
    if role == "voter":
        check_voter(config, name)
    if os.path.lexists(store.file(identity)):
        raise UsageError(
            f"keys add: {identity} has a key already, {store.file(identity)}: choose another name, or replace the "
            f"key with `signalmesh keys rotate {identity}`"
        )
    store.ensure(identity)
    store.resume(identity)  # an earlier key of that name was removed by hand
    return KeyList(keys=(_describe(identity, store.file(identity)),))


def revoke_keys(state_dir: Path, names: Sequence[str]) -> KeyList:
    """Remove keys of people and programs outside the swarm; a running swarm cuts them off within a second.

    Raises:
        UsageError: there is no such key, the swarm's own processes need it, or its file cannot be removed.
    """
    files = _files(state_dir, names)
    for identity in files:
        if not _is_added(identity):
            raise UsageError(
                f"keys revoke: {identity}: the swarm itself needs this key; `signalmesh keys rotate {identity}` "
                "replaces it, and the old one is refused from then on"
            )
    removed = tuple(_describe(*item) for item in files.items())
    for identity, file in files.items():
        try:
            file.unlink()
            KeyStore(state_dir).resume(identity)
        except OSError as error:
            raise UsageError(f"key {file}: cannot be removed: {error.strerror}") from None
    return KeyList(keys=removed)


def resume_keys(state_dir: Path, names: Sequence[str]) -> KeyList:
    """Let keys that were suspended publish again; a running swarm lets them within a second.

    Raises:
        UsageError: there is no such key, or it is not suspended.
    """
    store, files = KeyStore(state_dir), _files(state_dir, names)
    for identity in files:
        if not store.resume(identity):
            raise UsageError(f"keys resume: {identity}: it is not suspended; `signalmesh keys list` shows which are")
    return list_keys(state_dir, [*files])


def list_keys(state_dir: Path, names: Sequence[str] = ()) -> KeyList:
    """The keys of these identities, of all if none is named.

    Raises:
        UsageError: there is no such key, or none at all.
    """
    return KeyList(keys=tuple(_describe(*item) for item in _files(state_dir, names).items()))


def rotate_keys(state_dir: Path, names: Sequence[str]) -> KeyList:
    """Replace these keys; a running swarm uses the new ones within a second.

    Raises:
        UsageError: there is no such key, or its file cannot be written.
    """
    store, files = KeyStore(state_dir), _files(state_dir, names)
    for identity, file in files.items():
        try:
            if file.parent == store.directory:
                write_seed(file, new_seed())
                store.resume(identity)
            else:
                _replace_incarnation(store, identity.removeprefix("agent-"))
        except OSError as error:
            raise UsageError(f"key {file}: cannot be written: {error.strerror}") from None
    return list_keys(state_dir, [*files])


def _replace_incarnation(store: KeyStore, agent: str) -> None:
    """`up` has the server cut off the agent, and the watchdog starts it again with the key that is prepared now."""
    prepare(store.incarnations, agent)
    for name, epoch in taken_keys(store.incarnations):
        if name == agent:
            remove_taken(store.incarnations, name, epoch)


def _files(state_dir: Path, names: Sequence[str]) -> dict[str, Path]:
    """Identity -> its key file. Of an agent with a key for each incarnation: of the newest, else the prepared one."""
    store = KeyStore(state_dir)
    known = {file.stem: file for file in store.directory.glob(f"*{KEY_SUFFIX}") if file.name[0] != "."}
    if not known:
        raise UsageError(f"{store.directory}: there are no keys; `signalmesh keys init` makes them, and `up` too")
    known |= {f"agent-{agent}": file for agent, file in agent_files(store.incarnations).items()}
    found = [_identity(name, sorted(known), store.directory) for name in names] or sorted(known)
    return {identity: known[identity] for identity in dict.fromkeys(found)}


def _identity(name: str, known: Sequence[str], directory: Path) -> str:
    """The identity that is called this, or the only one of a role with this name, such as `agent-NAME`."""
    if name in known:
        return name
    plain: dict[str, list[str]] = {}
    for identity in known:
        plain.setdefault(identity.partition("-")[2], []).append(identity)
    meant = plain.get(name, [])
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise UsageError(f"keys: {name}: there are several such keys: {', '.join(meant)}; name one of them")
    near = difflib.get_close_matches(name, [*known, *filter(None, plain)], n=MAX_NEAR)
    hint = f"did you mean {' or '.join(near)}?" if near else f"it has: {', '.join(known)}"
    raise UsageError(f"keys: {name}: there is no such key in {directory}; {hint}")


def _is_added(identity: str) -> bool:
    role, dash, _ = identity.partition("-")
    return bool(dash) and role in ADDED_ROLES


def _describe(identity: str, file: Path) -> KeyInfo:
    role, _, name = identity.partition("-")
    used_by = SECOND_OPERATOR if name and role == OPERATOR else USED_BY.get(role, "nothing").format(name=name)
    info = KeyInfo(identity=identity, role=role, used_by=used_by, file=str(file))
    try:
        public = read_public(file)
    except UsageError as error:
        return replace(info, problem=str(error))
    problem = suspension_of(file)
    problem = problem and f"suspended {problem}: `signalmesh keys resume {identity}`, or rotate or revoke it"
    return replace(info, public_key=public, inbox=inbox_of(public), problem=problem)


def print_keys(found: KeyList) -> None:
    """A table: seeds are never shown."""
    columns = (
        Column("identity"),
        Column("role", 3),
        Column("used by", 2),
        Column("public key"),
        Column("problem", 1),
    )
    rows = [[key.identity, key.role, key.used_by, key.public_key, key.problem] for key in found.keys]
    print_table(console(), columns, rows)
