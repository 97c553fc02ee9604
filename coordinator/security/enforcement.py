"""Keys with a server of others: its users, for its configuration or for `nsc`, and whether it enforces them."""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from bus.errors import NotAdmitted, UsageError
from bus.messages.guard import guarded, mapped
from bus.messages.subjects import WATCHDOG, Subjects
from bus.nats.bus import NatsBus
from bus.nats.permissions import find_allowed, is_guarded
from bus.nats.urls import redacted_url
from coordinator.config.settings import ResolvedSwarm
from coordinator.security.keys import KeyStore, authorization, identities
from coordinator.security.permissions import ANSWERS, ANSWERS_S, UNNAMED, Permissions

__all__ = ["EXPORT", "check_enforced", "export_commands", "export_users"]

EXPORT = (
    "put the output of `signalmesh keys export` into the configuration of that server, and have it reloaded "
    "(nats-server --signal reload); on one with operators run the output of `signalmesh keys export --nsc ACCOUNT`"
)


def export_users(config: ResolvedSwarm, store: KeyStore) -> str:
    """The block of nats-server's configuration for this swarm. Makes the keys that are missing.

    Raises:
        UsageError: a key cannot be made or used.
    """
    store.ensure(*identities(config))
    granted = identities(config, store.added())
    return authorization(Subjects(config.swarm), store.public_keys(granted), granted)


def export_commands(config: ResolvedSwarm, store: KeyStore, account: str) -> str:
    """A shell script that makes the users of this swarm in `account` with `nsc`, for a server with operators.

    It writes the JWT of each user beside its key file. Makes the keys that are missing. A client without a key is
    admitted by no such server.

    Raises:
        UsageError: a key cannot be made or used.
    """
    store.ensure(*identities(config))
    granted = {name: allowed for name, allowed in identities(config, store.added()).items() if name != UNNAMED}
    public, named = store.public_keys(granted), shlex.quote(account)
    lines = [
        "#!/bin/sh",
        f"# The users of swarm {config.swarm}. Repeat it after each change: a user that exists is made anew.",
        "# On another machine than that of the keys: set KEYS, and bring the files *.jwt into their directory.",
        "set -eu",
        f"KEYS=${{KEYS:-{shlex.quote(str(store.directory))}}}",
        "user() {",
        "  name=$1 file=$2; shift 2",
        f'  nsc delete user --account {named} --name "$name" >/dev/null 2>&1 || true',
        f'  nsc add user --account {named} --name "$name" "$@"',
        f'  nsc describe user --account {named} --name "$name" --raw >"$KEYS/$file.jwt"',
        "}",
        *(
            f"nsc add mapping --account {named} --from '{subject}' --to '{guarded(subject)}'"
            for subject in mapped(Subjects(config.swarm))
        ),
        *(
            shlex.join(
                ["user", f"{config.swarm}-{name}", name, "--public-key", public[name], *_flags(allowed, public[name])]
            )
            for name, allowed in granted.items()
        ),
        f"# Where the server takes accounts from `nsc push`: nsc push --account {named}",
    ]
    return "\n".join(lines) + "\n"


def _flags(allowed: Permissions, public_key: str) -> list[str]:
    """The permissions as options of `nsc add user`."""
    publish = ["--allow-pub", ",".join(allowed.mapped_publish)] if allowed.publish else ["--deny-pub", ">"]
    refused = ["--deny-sub", ",".join(allowed.never_subscribe)] if allowed.never_subscribe else []
    answers = [f"--allow-pub-response={ANSWERS}", "--response-ttl", f"{ANSWERS_S}s"] if allowed.answers else []
    return [*publish, "--allow-sub", ",".join(allowed.subscriptions(public_key)), *refused, *answers]


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
        bus = await NatsBus.connect(url, swarm, identity, credentials=store.credentials(identity))
    except NotAdmitted:
        raise UsageError(f"the server at {redacted_url(url)} has not the key of {identity}: {EXPORT}") from None
    try:
        yield bus
    finally:
        await bus.close()
