"""Keys with a server of others: its users, to be copied into its configuration, and whether it enforces them."""

from __future__ import annotations

from collections.abc import Iterable

from bus.errors import NotAdmitted, UsageError
from bus.messages.subjects import WATCHDOG, Subjects
from bus.nats.bus import NatsBus
from bus.nats.credentials import credentials_of
from bus.nats.permissions import find_allowed
from bus.nats.urls import redacted_url
from coordinator.config.settings import ResolvedSwarm
from coordinator.security.keys import KeyStore, authorization, identities

__all__ = ["EXPORT", "check_enforced", "export_users"]

EXPORT = (
    "put the output of `signalmesh keys export` into the configuration of that server, and have it reloaded "
    "(nats-server --signal reload)"
)


def export_users(config: ResolvedSwarm, store: KeyStore) -> str:
    """The block of nats-server's configuration for this swarm. Makes the keys that are missing.

    Raises:
        UsageError: a key cannot be made or used.
    """
    store.ensure(*identities(config))
    granted = identities(config, store.added())
    return authorization(store.public_keys(granted), granted)


async def check_enforced(url: str, swarm: str, agents: Iterable[str], store: KeyStore) -> None:
    """Try with the key of each of these agents what it may not do, without any effect.

    Raises:
        UsageError: the server lets an agent do it, or does not admit it.
        BusError: the server does not answer.
    """
    subjects = Subjects(swarm)
    published = (
        subjects.write(subjects.config(WATCHDOG)),
        subjects.write(subjects.epoch(WATCHDOG)),
        f"$JS.API.STREAM.INFO.{subjects.stream}",
    )
    subscribed = (f"{subjects.ns}.control.>", "in.>")
    for name in agents:
        identity = f"agent-{name}"
        try:
            bus = await NatsBus.connect(url, swarm, identity, credentials=credentials_of(store.seed(identity)))
        except NotAdmitted:
            raise UsageError(f"the server at {redacted_url(url)} has not the key of {identity}: {EXPORT}") from None
        try:
            allowed = await find_allowed(bus, published, subscribed)
        finally:
            await bus.close()
        if allowed:
            raise UsageError(
                f"the server at {redacted_url(url)} lets {identity} {', '.join(allowed)}: it does not enforce "
                f"the permissions of the keys. {EXPORT[0].upper()}{EXPORT[1:]}, or start without --authentication keys"
            )
