"""Creates and checks the swarm's stream and buckets on a NATS server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from bus.errors import LimitReached, NoResponders, Refused, UsageError
from bus.messages import MAX_PAYLOAD_BYTES
from bus.messages.guard import guarded, without_guard
from bus.nats.bus import NatsBus
from bus.nats.jetstream import NANOSECOND, STREAM_NOT_FOUND
from bus.nats.permissions import is_guarded

MINIMUM_VERSION = (2, 12)
"""First nats-server with all used features: message TTLs, and transforms together with republish."""
MEMORY_TTL_S = 3600
DUPLICATE_WINDOW_S = 120
"""How long a duplicate is detected by its id; at most the maximum age, as the server refuses more."""
LIMITS = ("max_age", "max_bytes", "duplicate_window", "num_replicas", "max_consumers", "metadata", "description")
"""Settings that `up` updates. All others must be as this version creates them: the guarantees rest on them."""
GUARDED = ("subjects", "subject_transform")
"""Settings that follow whether the server has the mapping of bus/messages/guard.py."""
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
TOO_MANY_CONSUMERS = 10026
"""The error code for more consumers than the account may have, also for a stream that would allow more: its limit is
then that of the account.
"""
NO_ROOM_FOR_REPLICAS = frozenset({10005, 10074})
"""JetStream's error codes for fewer servers than replicas."""


MAX_CONSUMERS = 6144
"""Of the events: two for each connection that the embedded server admits. Unset, nats-server 2.15 allows 1,000, too few
for as many agents, and older ones allow any number."""
STREAM_SHARE = 0.4
"""Of the disk, for the stream: the mirror copies it into a file on the same one, and both need some room to write."""
SERVER_SHARE = 0.75
"""Of the free space, for the server to fill: its own default, which leaves out what its store has already."""
ROOM_KEY = "signalmesh_room_bytes"
"""In the stream's metadata: the bytes for which its disk had room, where they were fewer than configured."""
LEAST_ROOM_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskRoom:
    """The disk of a server's store: what is free there, what the store has already, and where it is."""

    free_bytes: int
    used_bytes: int
    place: str

    @property
    def for_stream(self) -> int:
        """Bytes that the stream can keep."""
        return int(STREAM_SHARE * (self.free_bytes + self.used_bytes))

    @property
    def for_server(self) -> int:
        """Bytes that the server may store in all."""
        return self.used_bytes + int(SERVER_SHARE * self.free_bytes)


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """How much the stream keeps: by age in seconds and by size in bytes; the smaller limit applies.

    `replicas`: servers of a cluster that store it and the buckets. `disk` is that of the store, if it is known here:
    the stream then keeps no more than fits.
    """

    max_age_s: float = 7 * 24 * 3600.0
    max_bytes: int = 1 << 30
    replicas: int = 1
    disk: DiskRoom | None = None

    def fitting_bytes(self, found: Mapping[str, Any] | None) -> int:
        """`max_bytes`, or less if the disk has no room for it: never less than the stream `found` may keep already."""
        metadata = (found or {}).get("metadata") or {}
        room = self.disk.for_stream if self.disk is not None else int(metadata.get(ROOM_KEY, self.max_bytes))
        if found is not None:
            room = max(room, found["max_bytes"]) if found["max_bytes"] > 0 else self.max_bytes
        return min(self.max_bytes, room)


def expected_streams(
    bus: NatsBus, settings: StreamLimits, found: Mapping[str, Any] | None = None, *, is_guarded: bool
) -> list[dict[str, Any]]:
    """Configurations, in the form of JetStream's API, of the streams and buckets that this version creates.

    `found` is that of the events' stream, if it exists. `is_guarded`: the server maps (bus/messages/guard.py).
    """
    subjects = bus.subjects
    read = f"{subjects.ns}.>"
    write = guarded(f"in.{read}") if is_guarded else f"in.{read}"
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
        "allow_msg_ttl": False,
        "no_ack": False,
        "sealed": False,
        "discard_new_per_subject": False,
        "mirror": None,
        "sources": None,
    }
    events = {
        **common,
        "name": subjects.stream,
        "description": f"signalmesh: the messages of swarm {subjects.ns}",
        "subjects": [write],
        "max_consumers": MAX_CONSUMERS,
        "subject_transform": {"src": write, "dest": read},
        "republish": {"src": read, "dest": read},
        "allow_msg_ttl": True,
        "discard": "old",
        "max_msgs_per_subject": -1,
        "deny_purge": True,
        "max_age": int(settings.max_age_s * NANOSECOND),
        "max_bytes": settings.fitting_bytes(found),
        "duplicate_window": int(min(settings.max_age_s or DUPLICATE_WINDOW_S, DUPLICATE_WINDOW_S) * NANOSECOND),
    }
    buckets = [
        {
            **common,
            "name": f"KV_{bucket}",
            "description": f"signalmesh: the {content} of swarm {subjects.ns}",
            "subjects": [guarded(key) if is_guarded else key],
            "subject_transform": {"src": guarded(key), "dest": key} if is_guarded else None,
            "max_msgs_per_subject": 1,
            "discard": "new",
            "max_age": age_s * NANOSECOND,
            "duplicate_window": DUPLICATE_WINDOW_S * NANOSECOND,
        }
        for bucket, age_s, content in (
            (subjects.state_bucket, 0, "agents' snapshots"),
            (subjects.memory_bucket, MEMORY_TTL_S, "agents' last outputs"),
            (subjects.registry_bucket, 0, "agents' registry"),
        )
        for key in (f"$KV.{bucket}.>",)
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
        raise UsageError(
            f"the nats-server at {bus.url} runs without JetStream; start it with --jetstream. A JetStream in another "
            "domain, as that of the hub of a leaf node, is not supported: name a server of that domain with --nats"
        ) from None
    except Refused as error:
        raise UsageError(
            f"JetStream at {bus.url} does not serve this account: {error.description}; enable it for the account"
        ) from None


def differing_settings(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Keys of `expected` that a stream's configuration on the server does not have as expected."""
    return [key for key, value in expected.items() if not _is_same(found.get(key), value)]


def unfit_settings(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Those for which a stream cannot be used: `up` updates its limits and what follows the mapping, and no more."""
    differing = [key for key in differing_settings(found, expected) if key not in LIMITS]
    same = _plain_subjects(found) == _plain_subjects(expected)
    return [key for key in differing if not (same and key in GUARDED)]


def _plain_subjects(config: Mapping[str, Any]) -> tuple[list[str], str]:
    """What a stream takes and under which subjects it stores it, with the mapping or without."""
    taken = [without_guard(subject) for subject in config.get("subjects") or ()]
    transform = config.get("subject_transform") or {}
    return taken, transform.get("dest") or "".join(taken)


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


def correction(name: str, unfit: Sequence[str], expected: Mapping[str, Any]) -> str:
    """The command that corrects these settings of a stream."""
    if all(key in EDITS for key in unfit):
        options = " ".join(EDITS[key].format(expected[key]) for key in unfit)
        return f"correct it: nats stream edit {name} {options}"
    return f"remove it (nats stream rm {name}), or choose another name for the swarm"


def _is_same(found: Any, expected: Any) -> bool:
    if isinstance(expected, dict):
        return isinstance(found, dict) and not differing_settings(found, expected)
    return bool((found or False) == (expected or False))  # the server leaves out what is false or 0


async def ensure_streams(bus: NatsBus, settings: StreamLimits | None = None) -> list[str]:
    """Create what is missing and bring limits up to date; returns what a person should know about the limits.

    Raises:
        UsageError: a stream of that name exists with another purpose, the server is unfit, or has no room.
    """
    settings = settings or StreamLimits()
    await check_server(bus)
    events = await _existing(bus, bus.subjects.stream)
    if events is None:
        _check_room(settings)
    notices = []
    for expected in expected_streams(bus, settings, events, is_guarded=await is_guarded(bus)):
        name = expected["name"]
        of_events = name == bus.subjects.stream
        found = events if of_events else await _existing(bus, name)
        if of_events and (fits := expected["max_bytes"]) < settings.max_bytes:
            if settings.disk is not None:
                expected["metadata"] = {ROOM_KEY: str(fits)}
            notices.append(_fitted(settings, fits))
        if found is None:
            await _create(bus, expected, settings)
        else:
            notices += await _update(bus, found, expected, settings)
    return notices


async def _existing(bus: NatsBus, name: str) -> dict[str, Any] | None:
    try:
        config: dict[str, Any] = (await bus.api(f"STREAM.INFO.{name}"))["config"]
    except Refused as error:
        if error.code != STREAM_NOT_FOUND:
            raise
        return None
    return config


def _check_room(settings: StreamLimits) -> None:
    disk = settings.disk
    if disk is not None and disk.for_stream < LEAST_ROOM_BYTES:
        least = _readable("max_bytes", int(LEAST_ROOM_BYTES / STREAM_SHARE))
        free = _readable("max_bytes", disk.free_bytes)
        raise UsageError(
            f"--state-dir: the disk of {disk.place} has {free} free, and a new swarm needs {least} at the least: "
            "free space, or name a directory on another disk"
        )


def _fitted(settings: StreamLimits, fits: int) -> str:
    free = ""
    if settings.disk is not None:
        free = f" {_readable('max_bytes', settings.disk.free_bytes)} of {settings.disk.place} are free;"
    return (
        f"[stream] max_bytes is {_readable('max_bytes', settings.max_bytes)}, for which the disk of the store has no "
        f"room:{free} the stream keeps the newest {_readable('max_bytes', fits)}; free space and start the swarm "
        "again, or lower [stream] max_bytes"
    )


async def _update(
    bus: NatsBus, found: Mapping[str, Any], expected: Mapping[str, Any], settings: StreamLimits
) -> list[str]:
    name = expected["name"]
    differing = differing_settings(found, expected)
    if unfit := unfit_settings(found, expected):
        text = "; ".join(describe_difference(key, found.get(key), expected[key]) for key in unfit)
        raise UsageError(f"stream {name} at {bus.url}: {text}: {correction(name, unfit, expected)}")
    if not differing:
        return []
    limits = {key: expected[key] for key in (*LIMITS, *GUARDED) if key in expected}
    limits["metadata"] = {
        **{
            key: value
            for key, value in (found.get("metadata") or {}).items()
            if key != ROOM_KEY or settings.disk is None
        },
        **expected.get("metadata", {}),
    }
    try:
        await bus.api(f"STREAM.UPDATE.{name}", {**found, **limits})
    except Refused as error:
        if error.code == TOO_MANY_CONSUMERS and "max_consumers" in differing:
            return await _update(bus, found, {**expected, "max_consumers": found["max_consumers"]}, settings)
        refusal = _not_stored(bus, expected, error, settings)
        if error.code not in NO_STORAGE_LEFT or "max_bytes" not in differing:
            raise refusal from None
        kept = {**expected, "max_bytes": found["max_bytes"]}  # what is stored there must not keep a swarm from starting
        return [
            *await _update(bus, found, kept, settings),
            f"{refusal}; it keeps {_readable('max_bytes', found['max_bytes'])}",
        ]
    return []


async def _create(bus: NatsBus, expected: Mapping[str, Any], settings: StreamLimits) -> None:
    try:
        await bus.api(f"STREAM.CREATE.{expected['name']}", expected)
    except Refused as error:
        if error.code == STREAM_NAME_IN_USE:
            return  # another process has created it just now
        if error.code == TOO_MANY_CONSUMERS and expected["max_consumers"] > 0:
            await _create(bus, {**expected, "max_consumers": -1}, settings)
            return
        raise _not_stored(bus, expected, error, settings) from None


def _not_stored(bus: NatsBus, expected: Mapping[str, Any], error: Refused, settings: StreamLimits) -> UsageError:
    """The error for a stream that the server does not take; the text names the setting that helps."""
    name = expected["name"]
    if error.code in NO_ROOM_FOR_REPLICAS:
        return _too_few_servers(bus, name, expected["num_replicas"], error)
    wanted = expected.get("max_bytes", 0)
    if error.code in NO_STORAGE_LEFT:
        free = (
            "" if settings.disk is None else f" ({_readable('max_bytes', settings.disk.free_bytes)} free on its disk)"
        )
        return UsageError(
            f"the server at {bus.url} has no room for the stream {name}{free}, which reserves "
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
