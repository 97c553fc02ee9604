"""Keys for processes that run apart, each in a container of its own: every directory has what one process may have.

`keys init` writes these directories; a host takes its key from one that has those of all hosts of its sandbox.
"""

from __future__ import annotations

import contextlib
import fcntl
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import orjson

from bus.errors import BusError, BusUnreachable, NotAdmitted, TlsFault, UsageError
from bus.messages.subjects import WATCHDOG, Subjects
from bus.nats.bus import NatsBus
from bus.nats.credentials import credentials_of, public_key_of
from bus.nats.key_files import KEY_SUFFIX, read_seed, write_seed
from bus.nats.urls import redacted_url
from coordinator.config.settings import ResolvedSwarm
from coordinator.security.keys import KeyOwners, KeyStore, authorization, identities
from coordinator.security.permissions import UNNAMED, Permissions, sandbox_permissions

__all__ = ["HostKey", "UsersFile", "claim_host_key", "make_keys", "reload_server", "write_shares"]

SYSTEM = "system"
"""The user of the server's system account, which may have it read its configuration again."""
USERS_FILE = "users.conf"
SERVER = "nats"
"""The directory of the server: it has no key."""
RELOAD_WAIT_S = 2.0
"""A server that runs answers at once; at the first start there is none."""
_UNNAMED_USER = re.compile(r"^no_auth_user: (U[A-Z2-7]{55})$", re.MULTILINE)
_USER = re.compile(r"^  # (.+)\n  \{ nkey: (U[A-Z2-7]{55}),", re.MULTILINE)
"""As `coordinator.security.keys` writes one: its name and its key."""
_EVERYTHING = Permissions(publish=(">",), subscribe=(">",))


@dataclass(frozen=True, slots=True, kw_only=True)
class HostKey:
    """The name of a host and its seed; `file` is locked while this process runs, so that no other host takes it."""

    name: str
    seed: str
    file: IO[str]


def make_keys(config: ResolvedSwarm, store: KeyStore, *, hosts: int) -> list[str]:
    """Make the keys that are missing; returns their names. Each sandbox has `hosts` hosts, 0: one of its own name.

    Raises:
        UsageError: the keys cannot be written, or a name is taken twice.
    """
    return store.ensure(*_plan(config, hosts, store.added())[0], SYSTEM)


def write_shares(config: ResolvedSwarm, store: KeyStore, directory: Path, *, hosts: int, is_open: bool = False) -> None:
    """Write keys that were made into `directory`: a directory for each process, and one for the server with its users.

    The watchdogs' has the keys of the agents too, and that of a sandbox those of all its hosts. With `is_open` the
    server lets everybody do everything.

    Raises:
        UsageError: a key cannot be used or written, or a name is taken twice.
    """
    granted, shares = _plan(config, hosts, store.added())
    public = store.public_keys(granted)
    users = directory / SERVER / USERS_FILE
    try:
        for share, names in shares.items():
            _write_keys(directory / share, {name: store.seed(name) for name in names})
        users.parent.mkdir(parents=True, exist_ok=True)
        if users.exists() and (found := _UNNAMED_USER.search(users.read_text())):
            public[UNNAMED] = found[1]  # another one would cut off clients without a key at each reload
        allowed = dict.fromkeys(granted, _EVERYTHING) if is_open else granted
        system = f"accounts {{ SYS {{ users: [ {{ nkey: {public_key_of(store.seed(SYSTEM))} }} ] }} }}\n"
        _replace(users, f"{authorization(Subjects(config.swarm), public, allowed)}{system}system_account: SYS\n")
    except OSError as error:
        raise UsageError(
            f"{error.filename or directory}: keys cannot be written there: {error.strerror}; "
            "expected a directory of the user who runs this"
        ) from None


def _plan(
    config: ResolvedSwarm, hosts: int, added: list[str]
) -> tuple[Mapping[str, Permissions], Mapping[str, tuple[str, ...]]]:
    """Identity -> what it may do, and name of a directory -> identities whose keys are in it."""
    granted = identities(config, added)
    agents = tuple(name for name in granted if name.startswith("agent-"))
    shares: dict[str, tuple[str, ...]] = {name: (name,) for name in granted if name not in {*agents, *added, UNNAMED}}
    shares[WATCHDOG] = (WATCHDOG, *agents)
    if hosts == 0:
        return granted, shares
    subjects, several = Subjects(config.swarm), dict[str, Permissions]()
    for sandbox in config.sandboxes:
        share = f"sandbox-{sandbox.name}"
        names = [f"{sandbox.name}-{number + 1}" for number in range(hosts)]
        if taken := [other.name for other in config.sandboxes if other.name in names]:
            raise UsageError(
                f"{config.file}: sandboxes.{taken[0]}: a host of sandbox {sandbox.name} has this name too: rename one"
            )
        del granted[share]
        several |= {f"sandbox-{name}": sandbox_permissions(name, subjects) for name in names}
        shares[share] = tuple(f"sandbox-{name}" for name in names)
    unnamed = granted.pop(UNNAMED)
    return {**granted, **several, UNNAMED: unnamed}, shares


def _write_keys(directory: Path, seeds: Mapping[str, str]) -> None:
    """Let `directory` have these keys and no others. A key that stays keeps its file: a host may have locked it."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for file in directory.glob(f"*{KEY_SUFFIX}"):
        if file.stem not in seeds:
            file.unlink()
    for name, seed in seeds.items():
        file = directory / f"{name}{KEY_SUFFIX}"
        if not file.exists() or file.read_text().strip() != seed:
            write_seed(file, seed)


def _replace(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = file.with_name(f".{file.name}")
    temporary.write_text(text)
    temporary.chmod(0o644)  # the server is another user, and there is no secret in it
    temporary.replace(file)


class UsersFile:
    """Names the owners of keys by the file of the server's users, as it is now. There is no secret in it."""

    def __init__(self, file: Path) -> None:
        """Read it.

        Raises:
            UsageError: it cannot be read, or names nobody.
        """
        self._file = file
        self._stamp: tuple[int, int] | None = None
        try:
            self._owners = KeyOwners(self._read())
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"{file}: cannot be read: {error}; expected {USERS_FILE} as `signalmesh keys init --to` writes it"
            ) from None
        if not self._owners.public:
            raise UsageError(f"{file}: names nobody; expected {USERS_FILE} as `signalmesh keys init --to` writes it")

    def _read(self) -> dict[str, str]:
        found = self._file.stat()
        self._stamp = found.st_ino, found.st_mtime_ns
        return dict(_USER.findall(self._file.read_text()))

    def owner(self, public_key: str) -> str | None:
        """As `KeyOwners.owner`. Blocks for a look at the file."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            found = self._file.stat()
            if (found.st_ino, found.st_mtime_ns) != self._stamp and (public := self._read()):
                self._owners.take(public)
        return self._owners.owner(public_key)


async def reload_server(url: str, store: KeyStore) -> str:
    """Have a server that runs read its users again; returns what became of it, to be shown to a person.

    Raises:
        UsageError: the server refuses its configuration, or the key of the system account.
    """
    there = redacted_url(url)
    credentials = credentials_of(store.seed(SYSTEM))
    try:
        bus = await NatsBus.connect(url, SYSTEM, "keys", RELOAD_WAIT_S, credentials)
    except NotAdmitted:
        raise UsageError(
            f"the server at {there} has not the key of the system account that is in {store.directory}: "
            "restart it, so that it reads its users"
        ) from None
    except TlsFault:
        raise
    except BusUnreachable:
        return f"no server runs at {there} yet; it reads its users when it starts"
    try:
        server = bus.connection.client._server_info["server_id"]  # noqa: SLF001 - the client has no public name for it
        answer = orjson.loads(await bus.request(f"$SYS.REQ.SERVER.{server}.RELOAD", b""))
    except BusError:
        return f"the server at {there} has no system account of ours: it is to be restarted with these users"
    finally:
        await bus.close()
    if (refused := answer.get("error")) is not None:
        raise UsageError(f"the server at {there} refuses its configuration: {refused.get('description')}")
    return f"the server at {there} has read its users again"


def claim_host_key(directory: Path, sandbox: str) -> HostKey:
    """The first key of this sandbox's hosts that no other host has.

    A kernel keeps the lock: the containers of one machine share it, those of several need a directory each.

    Raises:
        UsageError: there is none, or all are in use.
    """
    files = [
        (int(found[1]), file)
        for file in directory.glob(f"*{KEY_SUFFIX}")
        if (found := re.fullmatch(rf"sandbox-{re.escape(sandbox)}-(\d+)", file.stem))
    ]
    for _, file in sorted(files):
        try:
            opened = file.open()
        except OSError:
            read_seed(file)  # it says why
            raise
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            opened.close()
            continue
        return HostKey(name=file.stem.removeprefix("sandbox-"), seed=read_seed(file), file=opened)
    if files:
        raise UsageError(
            f"all {len(files)} keys of hosts of sandbox {sandbox} in {directory} are in use: make more of them "
            "(`keys init --hosts`; SANDBOX_HOSTS in .env for Docker Compose), or start fewer hosts"
        )
    raise UsageError(
        f"{directory}: there is no key of a host of sandbox {sandbox}: `signalmesh keys init --hosts` makes it"
    )
