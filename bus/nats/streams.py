"""Creates and checks the swarm's stream and buckets on a NATS server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from bus.errors import LimitReached, NoResponders, Refused, UsageError
from bus.messages import MAX_PAYLOAD_BYTES
from bus.nats.bus import NatsBus
from bus.nats.jetstream import NANOSECOND, STREAM_NOT_FOUND

MINIMUM_VERSION = (2, 12)
"""First nats-server with all used features: message TTLs, and transforms together with republish."""
MEMORY_TTL_S = 3600
DUPLICATE_WINDOW_S = 120
"""How long a duplicate is detected by its id; at most the maximum age, as the server refuses more."""
LIMITS = ("max_age", "max_bytes", "duplicate_window", "num_replicas")
"""Settings that `up` updates. All others must be as this version creates them: the guarantees rest on them."""
EDITS = {
    "discard": "--discard={}",
    "max_msgs": "--max-msgs={}",
    "max_msgs_per_subject": "--max-msgs-per-subject={}",
    "max_msg_size": "--max-msg-size={}",
    "max_consumers": "--max-consumers={}",
    "allow_msg_ttl": "--allow-msg-ttl",
}
"""Options of `nats stream edit`, for the settings that it can correct."""
NO_STORAGE_LEFT = frozenset({10002, 10023, 10047, 10122})
"""JetStream's error codes for a server or an account that has no room for the stream."""
DUPLICATE_WINDOW = "duplicates window"
"""In the server's text about a limit that has no error code of its own."""
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
    common = {
        "storage": "file",
        "num_replicas": settings.replicas,
        "retention": "limits",
        "max_msgs": -1,
        "max_msg_size": -1,
        "max_consumers": -1,
        "allow_direct": True,
        "allow_rollup_hdrs": False,
        "deny_delete": True,
        "allow_msg_ttl": True,
        "no_ack": False,
        "sealed": False,
        "discard_new_per_subject": False,
        "mirror": None,
        "sources": None,
    }
    events = {
        **common,
        "name": subjects.stream,
        "subjects": [write],
        "subject_transform": {"src": write, "dest": read},
        "republish": {"src": read, "dest": read},
        "discard": "old",
        "max_msgs_per_subject": -1,
        "deny_purge": True,
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
    if client.max_payload < MAX_PAYLOAD_BYTES:
        raise UsageError(
            f"the nats-server at {bus.url} takes messages of at most {client.max_payload} bytes (max_payload); "
            f"expected {MAX_PAYLOAD_BYTES} or more: set max_payload in its configuration"
        )
    if client._server_info.get("jetstream"):  # noqa: SLF001 - the client has no public name for it
        return
    try:  # in a cluster another server may serve JetStream
        await bus.api("INFO")
    except NoResponders:
        raise UsageError(f"the nats-server at {bus.url} runs without JetStream; start it with --jetstream") from None
    except Refused as error:
        raise UsageError(
            f"JetStream at {bus.url} does not serve this account: {error.description}; enable it for the account"
        ) from None


def differing_settings(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Keys of `expected` that a stream's configuration on the server does not have as expected."""
    return [key for key, value in expected.items() if not _is_same(found.get(key), value)]


def is_fit(differing: Sequence[str]) -> bool:
    """Whether a stream that differs in these settings can be used: `up` updates its limits, and no more."""
    return all(key in LIMITS for key in differing)


def describe_difference(key: str, found: Any, expected: Any) -> str:
    """A setting as it is and as expected, in units that people read."""
    return f"{key} is {_readable(key, found)}, expected {_readable(key, expected)}"


def _readable(key: str, value: Any) -> str:
    if key in ("max_age", "duplicate_window") and isinstance(value, int):
        return f"{timedelta(seconds=value / NANOSECOND)}" if value else "unlimited"
    if key == "max_bytes" and isinstance(value, int) and value > 0:
        return f"{value / 2**20:,.1f} MiB"
    if isinstance(value, int) and not isinstance(value, bool) and value < 0:
        return "unlimited"
    return "not set" if value is None else json.dumps(value)


def correction(name: str, differing: Sequence[str], expected: Mapping[str, Any]) -> str:
    """The command that corrects these settings of a stream."""
    keys = [key for key in differing if key not in LIMITS]
    if all(key in EDITS for key in keys):
        options = " ".join(EDITS[key].format(expected[key]) for key in keys)
        return f"correct it: nats stream edit {name} {options}"
    return f"remove it (nats stream rm {name}), or choose another name for the swarm"


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
            found = (await bus.api(f"STREAM.INFO.{name}"))["config"]
        except Refused as error:
            if error.code != STREAM_NOT_FOUND:
                raise
            await _create(bus, expected)
            continue
        differing = differing_settings(found, expected)
        if not is_fit(differing):
            unfit = "; ".join(
                describe_difference(key, found.get(key), expected[key]) for key in differing if key not in LIMITS
            )
            raise UsageError(f"stream {name} at {bus.url}: {unfit}: {correction(name, differing, expected)}")
        if differing:
            limits = {key: expected[key] for key in LIMITS if key in expected}
            try:
                await bus.api(f"STREAM.UPDATE.{name}", {**found, **limits})
            except Refused as error:
                raise _not_stored(bus, expected, error) from None


async def _create(bus: NatsBus, expected: Mapping[str, Any]) -> None:
    try:
        await bus.api(f"STREAM.CREATE.{expected['name']}", expected)
    except Refused as error:
        if error.code == STREAM_NAME_IN_USE:
            return  # another process has created it just now
        raise _not_stored(bus, expected, error) from None


def _not_stored(bus: NatsBus, expected: Mapping[str, Any], error: Refused) -> UsageError:
    """The error for a stream that the server does not take; the text names the setting that helps."""
    name = expected["name"]
    if error.code in NO_ROOM_FOR_REPLICAS:
        return _too_few_servers(bus, name, expected["num_replicas"], error)
    wanted = expected.get("max_bytes", 0)
    if error.code in NO_STORAGE_LEFT:
        return UsageError(
            f"the server at {bus.url} has no room for the stream {name}, which reserves "
            f"{_readable('max_bytes', wanted) if wanted else 'space'}: {error.description}; or lower [stream] max_bytes"
        )
    if isinstance(error, LimitReached):
        return UsageError(f"the server at {bus.url} refused the stream {name}: {error.description}")
    if DUPLICATE_WINDOW in error.description:
        return UsageError(
            f"the server at {bus.url} refused the stream {name}: {error.description}; raise "
            f"jetstream.limits.duplicate_window in its configuration to {DUPLICATE_WINDOW_S}s"
        )
    return UsageError(
        f"the server at {bus.url} refused the stream {name}: {error.description}; "
        "is another swarm or program using its subjects?"
    )


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
