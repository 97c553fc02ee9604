"""Creates and checks the swarm's stream and buckets on a NATS server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bus.errors import Refused, UsageError
from bus.nats.bus import NatsBus
from bus.nats.jetstream import NANOSECOND, STREAM_NOT_FOUND

MINIMUM_VERSION = (2, 12)
"""First nats-server with all used features: message TTLs, and transforms together with republish."""
MEMORY_TTL_S = 3600
DUPLICATE_WINDOW_S = 120
"""How long a duplicate is detected by its id; at most the maximum age, as the server refuses more."""
FIXED = ("subjects", "subject_transform", "republish", "storage", "deny_delete", "allow_rollup_hdrs")
"""Settings that must be as this version creates them; all others can be updated."""
LIMITS = ("max_age", "max_bytes", "duplicate_window", "num_replicas")
STREAM_NAME_IN_USE = 10058
NO_ROOM_FOR_REPLICAS = frozenset({10005, 10074})
"""JetStream's error codes for fewer servers than replicas."""


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """How much the stream keeps: by age in seconds and by size in bytes; the smaller limit applies.

    `replicas`: servers of a cluster that store it and the buckets.
    """

    max_age_s: float = 7 * 24 * 3600.0
    max_bytes: int = 1 << 30
    replicas: int = 1


def expected_streams(bus: NatsBus, settings: StreamLimits) -> list[dict[str, Any]]:
    """Configurations, in the form of JetStream's API, of the streams and buckets that this version creates."""
    subjects = bus.subjects
    write, read = f"in.{subjects.ns}.>", f"{subjects.ns}.>"
    common = {"storage": "file", "num_replicas": settings.replicas, "allow_direct": True, "allow_rollup_hdrs": False}
    events = {
        **common,
        "name": subjects.stream,
        "subjects": [write],
        "subject_transform": {"src": write, "dest": read},
        "republish": {"src": read, "dest": read},
        "retention": "limits",
        "discard": "old",
        "deny_delete": True,
        "deny_purge": True,
        "allow_msg_ttl": True,
        "max_age": int(settings.max_age_s * NANOSECOND),
        "max_bytes": settings.max_bytes,
        "duplicate_window": int(min(settings.max_age_s or DUPLICATE_WINDOW_S, DUPLICATE_WINDOW_S) * NANOSECOND),
    }
    buckets = [
        {
            **common,
            "name": f"KV_{bucket}",
            "subjects": [f"$KV.{bucket}.>"],
            "max_msgs_per_subject": 1,
            "discard": "new",
            "deny_delete": True,
            "allow_msg_ttl": True,
            "max_age": age_s * NANOSECOND,
            "duplicate_window": DUPLICATE_WINDOW_S * NANOSECOND,
        }
        for bucket, age_s in (
            (subjects.state_bucket, 0),
            (subjects.memory_bucket, MEMORY_TTL_S),
            (subjects.registry_bucket, 0),
        )
    ]
    return [events, *buckets]


async def check_server(bus: NatsBus) -> None:
    """Refuse a server that is too old or has no JetStream.

    Raises:
        UsageError: it names the found and the required version.
    """
    client = bus.connection.client
    version = client.connected_server_version
    if (version.major, version.minor) < MINIMUM_VERSION:
        raise UsageError(
            f"the nats-server at {bus.url} is {version.major}.{version.minor}.{version.patch}; "
            f"expected {MINIMUM_VERSION[0]}.{MINIMUM_VERSION[1]} or newer: upgrade it, or leave out --nats to use the "
            "embedded one"
        )
    if not client._server_info.get("jetstream"):  # noqa: SLF001 - the client has no public name for it
        raise UsageError(f"the nats-server at {bus.url} runs without JetStream; start it with --jetstream")


def differing_settings(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Keys of `expected` that a stream's configuration on the server does not have as expected."""
    return [key for key, value in expected.items() if not _is_same(found.get(key), value)]


def _is_same(found: Any, expected: Any) -> bool:
    if isinstance(expected, dict):
        return isinstance(found, dict) and not differing_settings(found, expected)
    return bool((found or False) == (expected or False))  # the server leaves out what is false or 0


async def ensure_streams(bus: NatsBus, settings: StreamLimits | None = None) -> None:
    """Create what is missing and bring limits up to date.

    Raises:
        UsageError: a stream of that name exists with another purpose, or the server is unfit.
    """
    await check_server(bus)
    for expected in expected_streams(bus, settings or StreamLimits()):
        name = expected["name"]
        try:
            await bus.api(f"STREAM.CREATE.{name}", expected)
            continue
        except Refused as error:
            if error.code in NO_ROOM_FOR_REPLICAS:
                raise _too_few_servers(bus, name, expected["num_replicas"], error) from None
            if error.code != STREAM_NAME_IN_USE:
                raise UsageError(
                    f"the server at {bus.url} refused to create the stream {name}: {error.description}; "
                    "is another swarm or program using its subjects or all of its storage?"
                ) from None
        found = (await bus.api(f"STREAM.INFO.{name}"))["config"]
        differing = differing_settings(found, expected)
        for key in FIXED:
            if key in differing:
                raise UsageError(
                    f"stream {name} at {bus.url} has another {key} ({found.get(key)!r}) than expected "
                    f"({expected[key]!r}): choose another swarm name, or remove that stream"
                )
        try:
            limits = {key: expected[key] for key in LIMITS if key in expected}
            if any(key in differing for key in limits):
                await bus.api(f"STREAM.UPDATE.{name}", {**found, **limits})
        except Refused as error:
            if error.code in NO_ROOM_FOR_REPLICAS:
                raise _too_few_servers(bus, name, expected["num_replicas"], error) from None
            raise UsageError(f"stream {name} at {bus.url}: {error.description}") from None


def _too_few_servers(bus: NatsBus, name: str, replicas: int, error: Refused) -> UsageError:
    return UsageError(
        f"stream.replicas = {replicas}: the server at {bus.url} cannot store {name} on that many servers "
        f"({error.description}): name a cluster of {replicas} servers or more with --nats, or set fewer replicas"
    )


async def streams_exist(bus: NatsBus) -> bool:
    """Whether this swarm's stream exists."""
    try:
        await bus.bounds()
    except Refused as error:
        if error.code == STREAM_NOT_FOUND:
            return False
        raise
    return True
