"""The keys of a swarm's processes in its state directory, and the server's configuration that follows from them."""

from __future__ import annotations

import functools
import os
import stat
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from agents.runtime.process import memory_key_of
from bus.errors import UsageError
from bus.messages.guard import mappings
from bus.messages.subjects import DASHBOARD, PROVIDER, WATCHDOG, Subjects, check_name
from bus.nats.credentials import (
    CREDS_VARIABLE,
    SEED_VARIABLE,
    Credentials,
    credentials_of,
    jwt_beside,
    public_key_of,
)
from bus.nats.key_files import INCARNATIONS, KEY_SUFFIX, KEYS_VARIABLE, new_seed, read_seed, write_seed
from coordinator.config.connection import Authentication
from coordinator.config.settings import ResolvedAgent, ResolvedSwarm
from coordinator.security.incarnations import IncarnationKeys, remove_incarnations
from coordinator.security.permissions import (
    ANSWERS,
    ANSWERS_S,
    UNNAMED,
    Permissions,
    agent_permissions,
    observer_permissions,
    role_permissions,
    sandbox_permissions,
    subscriber_permissions,
    voter_permissions,
)

__all__ = [
    "ADDED_ROLES",
    "OPERATOR",
    "KeyChanges",
    "KeyOwners",
    "KeyStore",
    "ServedKeys",
    "authorization",
    "check_voter",
    "identities",
    "identity_of",
    "key_environment",
    "suspension_of",
    "use_operator_key",
]

KEYS_DIRECTORY = "keys"
REPLACED_S = 30.0
"""How long the processes that have a replaced key may still try to connect with it."""
OPERATOR = "operator"
SUSPENDED_SUFFIX = ".suspended"
"""Of a file beside the key of an identity that may publish nothing: since when, and why."""
MAX_KEY = 56
"""Characters of a public nkey."""
ROLES = ("up", OPERATOR, WATCHDOG, "mirror", "metrics", DASHBOARD, "proxy")
ADDED_ROLES = ("voter", "subscriber", OPERATOR)
"""Roles of people and programs outside the swarm; their identities are `{role}-{name}`."""


class KeyStore:
    """The directory `keys` of a state directory: a file for each process, by the name of its identity."""

    def __init__(self, state_dir: Path) -> None:
        self.directory = state_dir.absolute() / KEYS_DIRECTORY

    @property
    def incarnations(self) -> Path:
        """Where the keys of single incarnations of agents are, while the server is that of `up`."""
        return self.directory / INCARNATIONS

    def file(self, identity: str) -> Path:
        """The file of an identity's key."""
        return self.directory / f"{identity}{KEY_SUFFIX}"

    def ensure(self, *names: str) -> list[str]:
        """Make the keys that are missing, and return their names.

        Raises:
            UsageError: the directory cannot be written, or others may read it.
        """
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if (owner := self.directory.stat().st_uid) != os.geteuid():
                raise UsageError(
                    f"{self.directory}: belongs to another user (uid {owner}); expected a directory of the user who "
                    "runs this: chown it, or use another --state-dir"
                )
            self.directory.chmod(0o700)
            missing = [name for name in names if name != UNNAMED and not os.path.lexists(self.file(name))]
            for name in missing:
                write_seed(self.file(name), new_seed())
        except OSError as error:
            raise UsageError(f"{self.directory}: keys cannot be written there: {error.strerror}") from None
        return missing

    def remove(self, identity: str) -> None:
        """Remove the key of an identity that the swarm does not have any more, if there is one.

        Raises:
            UsageError: the file cannot be removed.
        """
        try:
            self.file(identity).unlink(missing_ok=True)
        except OSError as error:
            raise UsageError(f"key {self.file(identity)}: cannot be removed: {error.strerror}") from None

    def suspend(self, identity: str, why: str) -> None:
        """Note that an identity outside the swarm may publish nothing; `up` has its server enforce it.

        Raises:
            UsageError: the file cannot be written.
        """
        file = _suspension(self.file(identity))
        try:
            file.write_text(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC: {why}\n")
        except OSError as error:
            raise UsageError(f"{file}: cannot be written: {error.strerror}") from None

    def resume(self, identity: str) -> bool:
        """Undo `suspend`; False if the identity was not suspended.

        Raises:
            UsageError: the file cannot be removed.
        """
        file = _suspension(self.file(identity))
        try:
            file.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise UsageError(f"{file}: cannot be removed: {error.strerror}") from None
        return True

    def suspended(self) -> frozenset[str]:
        """The identities outside the swarm that may publish nothing."""
        names = (file.stem for file in self.directory.glob(f"*{SUSPENDED_SUFFIX}"))
        return frozenset(name for name in names if name.startswith(tuple(f"{role}-" for role in ADDED_ROLES)))

    def added(self) -> list[str]:
        """The identities outside the swarm that have keys.

        Raises:
            UsageError: a file has a name that no such identity may have.
        """
        found = sorted(file.stem for role in ADDED_ROLES for file in self.directory.glob(f"{role}-*{KEY_SUFFIX}"))
        for identity in found:
            role, _, name = identity.partition("-")
            check_name(name, f"key {self.file(identity)}: {role}")
        return found

    def created(self, sandboxes: Iterable[str]) -> list[str]:
        """The identities of hosts in sandboxes that a provider has created, for these names of the configuration.

        Raises:
            UsageError: a file has a name that no such identity may have.
        """
        found = sorted(file.stem for name in sandboxes for file in self.directory.glob(f"sandbox-{name}-*{KEY_SUFFIX}"))
        for identity in found:
            check_name(identity.removeprefix("sandbox-"), f"key {self.file(identity)}: sandbox")
        return found

    def seed(self, identity: str) -> str:
        """An identity's seed.

        Raises:
            UsageError: its file is missing or no such key, or others may read it.
        """
        return read_seed(self.file(identity))

    def credentials(self, identity: str) -> Credentials:
        """An identity's credentials: its key, and its JWT if there is one.

        Raises:
            UsageError: as `seed`, or the JWT is none of this key.
        """
        return credentials_of(self.seed(identity), jwt_beside(self.file(identity)))

    def public_keys(self, names: Iterable[str]) -> dict[str, str]:
        """The public key of each of these identities; a new one of UNNAMED.

        Raises:
            UsageError: as `seed`.
        """
        return {name: public_key_of(new_seed() if name == UNNAMED else self.seed(name)) for name in names}

    def check_distinct(self, public: Mapping[str, str]) -> None:
        """Refuse public keys of which two are the same: a server takes none of them.

        Raises:
            UsageError: two files have the same key.
        """
        owners: dict[str, str] = {}
        for name, key in public.items():
            if (other := owners.setdefault(key, name)) != name:
                raise UsageError(
                    f"keys {self.file(other)} and {self.file(name).name}: expected two keys, found the same one twice; "
                    "remove the file that is a copy, and `signalmesh up` makes another key"
                )


def _suspension(key: Path) -> Path:
    return key.with_suffix(SUSPENDED_SUFFIX)


def suspension_of(key: Path) -> str:
    """Why the identity of this key file may publish nothing, and since when; empty if it may."""
    try:
        return _suspension(key).read_text(errors="replace").strip() or "suspended"
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"suspended, and why cannot be read: {error.strerror}"


@dataclass(frozen=True, slots=True)
class KeyChanges:
    """Identities that have a new key, those whose key was removed for good, and whether agents have come or gone.

    `permissions`: some may publish nothing from now on, or may again.

    `hosts` are those among them that have come or gone with their sandboxes.
    """

    new: frozenset[str] = frozenset()
    revoked: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()
    incarnations: bool = False
    permissions: bool = False

    def __bool__(self) -> bool:
        return bool(self.new or self.revoked or self.incarnations or self.permissions)


class KeyOwners:
    """Whose public keys these are, and were."""

    def __init__(self, public: Mapping[str, str]) -> None:
        """`public`: identity -> its key."""
        self.public = dict(public)
        self._former: dict[str, tuple[str, float]] = {}
        """Public key -> whose it was, and from when on attempts with it are reported (monotonic seconds)."""

    def take(self, public: Mapping[str, str]) -> tuple[frozenset[str], frozenset[str]]:
        """From now on they are these; returns whose keys were replaced, and whose are there no more."""
        now, known = time.monotonic(), self.public
        replaced = frozenset(name for name, key in known.items() if name in public and public[name] != key)
        revoked = frozenset(known.keys() - public.keys())
        self._former |= {known[name]: (f"the replaced key of {name}", now + REPLACED_S) for name in replaced}
        self._former |= {known[name]: (f"the revoked key of {name}", now) for name in revoked}
        self.public = dict(public)
        return replaced, revoked

    def owner(self, public_key: str) -> str | None:
        """Whose key it is, to be shown to a person; None: a process of ours that is about to get a new one."""
        for identity, key in self.public.items():
            if key == public_key:
                return identity
        if public_key in self._former:
            whose, reported_from = self._former[public_key]
            return None if time.monotonic() < reported_from else whose
        return f"unknown key {public_key[:MAX_KEY]}" if public_key else UNNAMED


class ServedKeys:
    """The keys that the server of a running swarm has, and those that its directory has now."""

    def __init__(self, store: KeyStore, config: ResolvedSwarm, fixed: str, *, incarnations: bool = False) -> None:
        """`fixed` is the identity of this process: its key stays as it is until it ends. With `incarnations` each
        incarnation of an agent has a key of its own, else each agent.

        Raises:
            UsageError: a key cannot be made or used.
        """
        self.store, self._config = store, config
        self._fixed = (fixed, UNNAMED)
        self.incarnations: IncarnationKeys | None = None
        self._agents: dict[str, Permissions] = {}
        if incarnations:
            agents = {agent.spec.name for agent in config.agents if not agent.external}
            self._agents = {f"agent-{name}": identities(config)[f"agent-{name}"] for name in agents}
        self._suspended = store.suspended()
        self._provider: Permissions | None = None
        """Of the provider, once a sandbox was its own."""
        self.made = store.ensure(*self._identities())
        try:
            if incarnations:
                permissions = {name.removeprefix("agent-"): allowed for name, allowed in self._agents.items()}
                self.incarnations = IncarnationKeys(store.incarnations, permissions)
            else:
                remove_incarnations(store.incarnations)
        except OSError as error:
            raise UsageError(f"{store.incarnations}: keys cannot be written there: {error.strerror}") from None
        self._granted = self._identities(self._found())
        self._owners = KeyOwners(store.public_keys(self._granted))
        store.check_distinct(self._owners.public)
        self._stamp: frozenset[tuple[str, int, int]] | None = self._read_stamp()
        """None: look at all keys again."""

    def owner(self, public_key: str) -> str | None:
        """As that of KeyOwners, with the keys of incarnations."""
        if self.incarnations is not None and public_key not in self._owners.public.values():
            agent, reported = self.incarnations.owner(public_key)
            if agent is not None:
                return agent if reported else None
        return self._owners.owner(public_key)

    @property
    def authorization(self) -> str:
        """The lines of the server's configuration."""
        agents = {} if self.incarnations is None else self.incarnations.users()
        return authorization(
            Subjects(self._config.swarm),
            {**self._owners.public, **{name: key for name, (key, _) in agents.items()}},
            {**self._granted, **{name: allowed for name, (_, allowed) in agents.items()}},
        )

    def _identities(self, added: Iterable[str] = ()) -> dict[str, Permissions]:
        """Those with a key of their own: not the agents whose incarnations have one."""
        found = {name: one for name, one in identities(self._config, added).items() if name not in self._agents}
        self._provider = self._provider or found.get(PROVIDER)
        if self._provider is not None:  # it runs until the end, also after its last sandbox was removed
            found[PROVIDER] = self._provider
        return found | {
            name: replace(found[name], publish=(), answers=False) for name in self._suspended & found.keys()
        }

    def take(self, config: ResolvedSwarm) -> None:
        """Serve the processes of `config` from now on. `update` returns what follows.

        Raises:
            UsageError: a key cannot be made.
        """
        self._config, self._stamp = config, None
        if self.incarnations is None:
            return
        found, names = identities(config), {agent.spec.name for agent in config.agents if not agent.external}
        self._agents = {f"agent-{name}": found[f"agent-{name}"] for name in names}
        try:
            self.incarnations.take({name: found[f"agent-{name}"] for name in names})
        except OSError as error:
            raise UsageError(f"{self.store.incarnations}: keys cannot be written there: {error.strerror}") from None

    def update(self) -> KeyChanges:
        """Take over what has changed in the directory, and make what is missing there.

        Raises:
            UsageError: a key cannot be made or used; the keys stay as they were until the directory changes again.
        """
        changes = self._update()
        if self.incarnations is None:
            return changes
        try:
            changed, removed = self.incarnations.update()
        except OSError as error:
            raise UsageError(f"{self.store.incarnations}: keys cannot be written there: {error.strerror}") from None
        return replace(changes, new=changes.new | {f"agent-{name}" for name in removed}, incarnations=changed)

    def _update(self) -> KeyChanges:
        if (stamp := self._read_stamp()) == self._stamp:
            return KeyChanges()
        self._stamp = stamp
        self.store.ensure(*self._identities())
        before, self._suspended = self._suspended, self.store.suspended()
        granted = self._identities(self._found())
        found = self.store.public_keys(name for name in granted if name not in self._fixed)
        found |= {name: self._owners.public[name] for name in self._fixed}
        self.store.check_distinct(found)
        self._check_no_agents(found)
        added = found.keys() - self._owners.public.keys()
        replaced, revoked = self._owners.take(found)
        self._granted = granted
        hosts = frozenset(name for name in added | revoked if name.startswith("sandbox-"))
        return KeyChanges(new=replaced | added, revoked=revoked, hosts=hosts, permissions=before != self._suspended)

    def _check_no_agents(self, public: Mapping[str, str]) -> None:
        """Refuse public keys that incarnations of agents have or had: the server would take none of its users."""
        for name, key in public.items():
            agent = None if self.incarnations is None else self.incarnations.owner(key)[0]
            if agent is not None:
                raise UsageError(
                    f"key {self.store.file(name)}: it is that of {agent}, expected another one; "
                    f"`signalmesh keys rotate {name}` makes one"
                )

    def _found(self) -> list[str]:
        """The identities that have keys without being in the configuration."""
        remote = (sandbox.name for sandbox in self._config.sandboxes if sandbox.e2b is not None)
        return [*self.store.added(), *self.store.created(remote)]

    def _read_stamp(self) -> frozenset[tuple[str, int, int]]:
        """Changes whenever a key file is made, replaced, removed, or changed in place."""
        try:
            with os.scandir(self.store.directory) as entries:
                files = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries if entry.name[0] != "."]
        except FileNotFoundError:  # the directory, or a file that was removed just now
            return frozenset()
        found = ((name, about) for name, about in files if not stat.S_ISDIR(about.st_mode))
        return frozenset((name, about.st_ino, about.st_ctime_ns) for name, about in found)


def identities(config: ResolvedSwarm, added: Iterable[str] = ()) -> dict[str, Permissions]:
    """Identity -> what it may do, of every process of this swarm, of clients without a key, and of the `added` ones.

    A host that a provider creates is one of the latter: it is named after its sandbox.

    Raises:
        UsageError: an added voter has the name of an agent that the swarm runs.
    """
    subjects = Subjects(config.swarm)
    found = {role: role_permissions(role, subjects) for role in ROLES}
    for sandbox in config.sandboxes:
        if sandbox.e2b is None:
            found[f"sandbox-{sandbox.name}"] = sandbox_permissions(sandbox.name, subjects)
        else:
            found[PROVIDER] = role_permissions(PROVIDER, subjects)
    for agent in config.agents:
        role = "voter" if agent.external else "agent"
        found[f"{role}-{agent.spec.name}"] = _of_agent(config, agent, subjects)
    for identity in added:
        if identity not in found:
            found[identity] = _of_added(config, identity, subjects)
    return {**found, UNNAMED: observer_permissions(subjects)}


def _of_added(config: ResolvedSwarm, identity: str, subjects: Subjects) -> Permissions:
    role, _, name = identity.partition("-")
    if role == "voter":
        check_voter(config, name)
        return voter_permissions(name, (), subjects)
    if role == "sandbox":
        return sandbox_permissions(name, subjects)
    return subscriber_permissions(subjects) if role == "subscriber" else role_permissions(role, subjects)


def check_voter(config: ResolvedSwarm, name: str) -> None:
    """Refuse a voter of this name outside the swarm if the swarm has an agent or a host of that name.

    Raises:
        UsageError: it has, or may have.
    """
    for sandbox in config.sandboxes:
        if name == sandbox.name or name.startswith(f"{sandbox.name}-"):
            raise UsageError(
                f"voter {name!r}: the hosts of sandbox {sandbox.name} are called {sandbox.name} or {sandbox.name}-...: "
                "a voter would send heartbeats as a host. Choose another name; "
                f"`signalmesh keys revoke voter-{name}` removes a key that is there"
            )
    for agent in config.agents:
        if agent.spec.name != name or agent.external:
            continue
        if agent.spec.start_after:
            where = "an agent of that name was added at run time (`signalmesh config diff`)"
            remedy = (
                f"remove the agent (`signalmesh remove {name}`, or with the swarm down `signalmesh config reset`, "
                "which forgets all changes)"
            )
        else:
            where = f"{config.file} has an agent of that name, which the swarm runs"
            remedy = "set external = true there and remove what runs it"
        raise UsageError(
            f"voter {name!r}: {where}: a voter would publish as that agent. Choose another name, or {remedy}; "
            f"`signalmesh keys revoke voter-{name}` removes a key that is there"
        )


def _of_agent(config: ResolvedSwarm, agent: ResolvedAgent, subjects: Subjects) -> Permissions:
    spec = agent.spec
    if agent.external:
        return voter_permissions(spec.name, spec.publishes, subjects)
    traits = config.traits.get(spec.name)
    key = spec.memory_key or (spec.publishes[0] if spec.publishes else "state")
    return agent_permissions(spec, key if traits is None else memory_key_of(spec, traits), subjects)


def authorization(subjects: Subjects, public: Mapping[str, str], granted: Mapping[str, Permissions]) -> str:
    """The lines of nats-server's configuration for these identities of a swarm, whose public keys are `public`.

    They are users of the server's default account, so that a stream from before there were keys stays in place.
    """
    users = "".join(_user(public[name], name, allowed) for name, allowed in granted.items())
    return f"{mappings(subjects)}authorization {{ users: [\n{users}] }}\nno_auth_user: {public[UNNAMED]}\n"


@functools.lru_cache(maxsize=2048)
def _user(public_key: str, name: str, allowed: Permissions) -> str:
    publish = f"allow: {_list(allowed.mapped_publish)}" if allowed.publish else 'deny: [">"]'
    subscribe = f"allow: {_list(allowed.subscriptions(public_key))}"
    if allowed.never_subscribe:
        subscribe += f", deny: {_list(allowed.never_subscribe)}"
    answers = f"\n    allow_responses: {{ max: {ANSWERS}, expires: {ANSWERS_S}s }}" if allowed.answers else ""
    return (
        f"  # {name}\n  {{ nkey: {public_key}, permissions: {{\n"
        f"    publish: {{ {publish} }}\n    subscribe: {{ {subscribe} }}{answers} }} }}\n"
    )


def _list(subjects: tuple[str, ...]) -> str:
    return "[" + ", ".join(f'"{subject}"' for subject in subjects) + "]"


def identity_of(kind: str, name: str) -> str:
    """The identity of a child of `up`."""
    return f"sandbox-{name}" if kind == "sandbox" else kind


def key_environment(keys: Path, kind: str, name: str) -> dict[str, str]:
    """The variables by which a child of `up` finds its key. File names are no secrets."""
    identity = identity_of(kind, name)
    own = {SEED_VARIABLE: str(keys / f"{identity}{KEY_SUFFIX}"), CREDS_VARIABLE: ""}
    return {**own, KEYS_VARIABLE: str(keys) if kind in (WATCHDOG, PROVIDER) else ""}


def use_operator_key(state_dir: Path, authentication: Authentication) -> None:
    """Have this process connect with the operator's key to a swarm with keys, unless it was given credentials.

    Raises:
        UsageError: the key cannot be used.
    """
    if authentication == "open":
        return
    store = KeyStore(state_dir)
    os.environ.setdefault(KEYS_VARIABLE, str(store.directory))  # errors name whose key it is
    if os.environ.get(SEED_VARIABLE) or os.environ.get(CREDS_VARIABLE):
        return
    store.seed(OPERATOR)
    os.environ[SEED_VARIABLE] = str(store.file(OPERATOR))
