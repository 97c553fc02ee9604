"""Keys with a server of others: its users, to be copied into its configuration, and whether it enforces them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from bus.errors import NotAdmitted, UsageError
from bus.messages.guard import guarded
from bus.messages.subjects import WATCHDOG, Subjects
from bus.nats.bus import NatsBus
from bus.nats.credentials import credentials_of
from bus.nats.permissions import find_allowed, is_guarded
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
    return authorization(Subjects(config.swarm), store.public_keys(granted), granted)


async def check_enforced(url: str, swarm: str, agents: Iterable[str], store: KeyStore) -> None:
    """Try whether the server maps the write side, and with the key of each of these agents what it may not do.

    Nothing of that has an effect.

    Raises:
        UsageError: the server has not the mapping, lets an agent do it, or does not admit it.
        BusError: the server does not answer.
    """
    subjects = Subjects(swarm)
    published = (
        subjects.write(subjects.config(WATCHDOG)),
        subjects.write(subjects.epoch(WATCHDOG)),
        f"$JS.API.STREAM.INFO.{subjects.stream}",
    )
    subscribed = (f"{subjects.ns}.control.>", "in.>", guarded("in.>"))
    async with _connected(url, swarm, WATCHDOG, store) as bus:
        if not await is_guarded(bus):
            raise UsageError(
                f"the server at {redacted_url(url)} does not map {subjects.write_prefix}> to "
                f"{guarded(subjects.write_prefix)}>: {EXPORT}, or start without --authentication keys"
            )
    for name in agents:
        identity = f"agent-{name}"
        async with _connected(url, swarm, identity, store) as bus:
            allowed = await find_allowed(bus, published, subscribed)
        if allowed:
            raise UsageError(
                f"the server at {redacted_url(url)} lets {identity} {', '.join(allowed)}: it does not enforce "
                f"the permissions of the keys. {EXPORT[0].upper()}{EXPORT[1:]}, or start without --authentication keys"
            )


@asynccontextmanager
async def _connected(url: str, swarm: str, identity: str, store: KeyStore) -> AsyncIterator[NatsBus]:
    try:
        bus = await NatsBus.connect(url, swarm, identity, credentials=credentials_of(store.seed(identity)))
    except NotAdmitted:
        raise UsageError(f"the server at {redacted_url(url)} has not the key of {identity}: {EXPORT}") from None
    try:
        yield bus
    finally:
        await bus.close()
