"""The keys of a swarm's processes in its state directory, and the server's configuration that follows from them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from agents.runtime.process import memory_key_of
from bus.errors import UsageError
from bus.messages.subjects import DASHBOARD, WATCHDOG, Subjects
from bus.nats.credentials import CREDS_VARIABLE, SEED_VARIABLE, public_key_of
from bus.nats.key_files import KEY_SUFFIX, KEYS_VARIABLE, new_seed, read_seed, write_seed
from coordinator.config.connection import Authentication
from coordinator.config.settings import ResolvedAgent, ResolvedSwarm, SwarmConfig
from coordinator.security.permissions import (
    Permissions,
    agent_permissions,
    observer_permissions,
    role_permissions,
    sandbox_permissions,
    voter_permissions,
)

__all__ = [
    "UNNAMED",
    "KeyStore",
    "authorization",
    "check_can_have_keys",
    "identities",
    "key_environment",
    "use_operator_key",
]

KEYS_DIRECTORY = "keys"
OPERATOR = "operator"
UNNAMED = "clients without a key"
"""In place of an identity: it has no file, for nobody has its seed."""
ROLES = ("up", OPERATOR, WATCHDOG, "mirror", "metrics", DASHBOARD, "proxy")


def check_can_have_keys(config: SwarmConfig, url: str | None) -> None:
    """Refuse keys where they could not be enforced; `url` is the server that --nats names.

    Raises:
        UsageError: the server is another one than the embedded one, or a sandbox is at E2B.
    """
    remedy = '--authentication open, or [nats] authentication = "open", starts it without keys'
    if url is not None:
        raise UsageError(
            "--nats: keys are for the embedded server, of which this command writes the configuration; "
            f"{remedy}, with the users and permissions of that server"
        )
    if remote := [sandbox.name for sandbox in config.sandboxes if sandbox.e2b is not None]:
        raise UsageError(f"{config.file}: sandboxes.{remote[0]}: keys are not handed to sandboxes at E2B yet; {remedy}")


class KeyStore:
    """The directory `keys` of a state directory: a file for each process, by the name of its identity."""

    def __init__(self, state_dir: Path) -> None:
        self.directory = state_dir.absolute() / KEYS_DIRECTORY

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
            self.directory.chmod(0o700)
            missing = [name for name in names if name != UNNAMED and not os.path.lexists(self.file(name))]
            for name in missing:
                write_seed(self.file(name), new_seed())
        except OSError as error:
            raise UsageError(f"{self.directory}: keys cannot be written there: {error.strerror}") from None
        return missing

    def seed(self, identity: str) -> str:
        """An identity's seed.

        Raises:
            UsageError: its file is missing or no such key, or others may read it.
        """
        return read_seed(self.file(identity))


def identities(config: ResolvedSwarm) -> dict[str, Permissions]:
    """Identity -> what it may do, of every process of this swarm and of clients without a key."""
    subjects = Subjects(config.swarm)
    found = {role: role_permissions(role, subjects) for role in ROLES}
    for sandbox in config.sandboxes:
        found[f"sandbox-{sandbox.name}"] = sandbox_permissions(sandbox.name, subjects)
    for agent in config.agents:
        found[f"agent-{agent.spec.name}"] = _of_agent(config, agent, subjects)
    return {**found, UNNAMED: observer_permissions(subjects)}


def _of_agent(config: ResolvedSwarm, agent: ResolvedAgent, subjects: Subjects) -> Permissions:
    spec = agent.spec
    if agent.external:
        return voter_permissions(spec.name, spec.publishes, subjects)
    traits = config.traits.get(spec.name)
    key = spec.memory_key or (spec.publishes[0] if spec.publishes else "state")
    return agent_permissions(spec, key if traits is None else memory_key_of(spec, traits), subjects)


def authorization(store: KeyStore, granted: Mapping[str, Permissions]) -> str:
    """The block of nats-server's configuration for these identities.

    They are users of the server's default account, so that a stream from before there were keys stays in place.

    Raises:
        UsageError: a key file cannot be used.
    """
    public = {name: public_key_of(new_seed() if name == UNNAMED else store.seed(name)) for name in granted}
    users = "".join(_user(public[name], name, allowed) for name, allowed in granted.items())
    return f"authorization {{ users: [\n{users}] }}\nno_auth_user: {public[UNNAMED]}\n"


def _user(public_key: str, name: str, allowed: Permissions) -> str:
    publish = f"allow: {_list(allowed.publish)}" if allowed.publish else 'deny: [">"]'
    subscribe = f"allow: {_list(allowed.subscriptions(public_key))}"
    if allowed.never_subscribe:
        subscribe += f", deny: {_list(allowed.never_subscribe)}"
    answers = "\n    allow_responses: { max: 2, expires: 5s }" if allowed.answers else ""
    return (
        f"  # {name}\n  {{ nkey: {public_key}, permissions: {{\n"
        f"    publish: {{ {publish} }}\n    subscribe: {{ {subscribe} }}{answers} }} }}\n"
    )


def _list(subjects: tuple[str, ...]) -> str:
    return "[" + ", ".join(f'"{subject}"' for subject in subjects) + "]"


def key_environment(keys: Path, kind: str, name: str) -> dict[str, str]:
    """The variables by which a child of `up` finds its key. File names are no secrets."""
    identity = f"sandbox-{name}" if kind == "sandbox" else kind
    own = {SEED_VARIABLE: str(keys / f"{identity}{KEY_SUFFIX}"), CREDS_VARIABLE: ""}
    return {**own, KEYS_VARIABLE: str(keys) if kind == "sandbox" else ""}


def use_operator_key(state_dir: Path, authentication: Authentication) -> None:
    """Have this process connect with the operator's key to a swarm with keys, unless it was given credentials.

    Raises:
        UsageError: the key cannot be used.
    """
    if authentication == "open" or os.environ.get(SEED_VARIABLE) or os.environ.get(CREDS_VARIABLE):
        return
    store = KeyStore(state_dir)
    store.seed(OPERATOR)
    os.environ[SEED_VARIABLE] = str(store.file(OPERATOR))
    os.environ[KEYS_VARIABLE] = str(store.directory)
