"""A recorded run, and its copy on another server with whatever damage a test does to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bus.errors import BusError
from bus.interface import Ack, StoredMessage
from bus.messages import headers as h
from bus.nats.bus import NatsBus
from tests.support.collecting import GUARD_S, Collector
from tests.support.nats import Connections, supervised_server

FENCE = (h.EXPECTED_LAST_SUBJECT_SEQUENCE, h.EXPECTED_LAST_SUBJECT)


@dataclass(frozen=True)
class Recorded:
    """All that a swarm's bus held: messages in order, and the buckets of snapshots and registry."""

    messages: tuple[StoredMessage, ...]
    buckets: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)

    def at(self, sequence: int) -> StoredMessage:
        found = self.messages[sequence - 1]
        assert found.sequence == sequence
        return found

    def find(self, subject: str, **headers: int) -> StoredMessage:
        """The first message of this subject prefix with these headers, such as Mesh_Output=7."""
        wanted = {name.replace("_", "-"): str(value) for name, value in headers.items()}
        return next(m for m in self.messages if m.subject.startswith(subject) and wanted.items() <= m.headers.items())

    def replaced(self, sequence: int, message: StoredMessage) -> Recorded:
        """The same run with another message at `sequence`."""
        messages = list(self.messages)
        messages[sequence - 1] = replace(message, sequence=sequence)
        return replace(self, messages=tuple(messages))

    def with_headers(self, sequence: int, **headers: object) -> Recorded:
        """The same run with other headers of one message; None removes one."""
        message = self.at(sequence)
        changed: dict[str, Any] = {**message.headers, **{n.replace("_", "-"): v for n, v in headers.items()}}
        retained = {name: str(value) for name, value in changed.items() if value is not None}
        return self.replaced(sequence, replace(message, headers=retained))

    def with_value(self, bucket: str, key: str, change: Callable[[bytes], bytes]) -> Recorded:
        """The same run with another value of a key."""
        values = {**self.buckets[bucket], key: change(self.buckets[bucket][key])}
        return replace(self, buckets={**self.buckets, bucket: values})


async def record(bus: NatsBus) -> Recorded:
    """What `bus` holds now."""
    messages = await bus.read_back((f"{bus.subjects.ns}.>",), 1)
    buckets = (bus.subjects.state_bucket, bus.subjects.registry_bucket)
    retained = {
        bucket: {key: retained.value for key, retained in (await bus.kv_all(bucket)).items()} for bucket in buckets
    }
    return Recorded(tuple(messages), retained)


@asynccontextmanager
async def copied(directory: Path, run: Recorded, *, without: tuple[int, ...] = ()) -> AsyncIterator[NatsBus]:
    """A real server that holds `run` under the same sequences, but for those in `without`, which are deleted.

    Its stream differs from a swarm's in what would keep the damage out: it deletes, and hardly looks for duplicates.
    """
    async with supervised_server(directory) as server, Connections() as connections:
        bus = await connections.bus(server.url)
        subjects = bus.subjects
        await bus.api(
            f"STREAM.CREATE.{subjects.stream}",
            {
                "name": subjects.stream,
                "subjects": [f"in.{subjects.ns}.>"],
                "subject_transform": {"src": f"in.{subjects.ns}.>", "dest": f"{subjects.ns}.>"},
                "republish": {"src": f"{subjects.ns}.>", "dest": f"{subjects.ns}.>"},
                "storage": "file",
                "allow_direct": True,
                "allow_msg_ttl": True,
                "duplicate_window": 100_000_000,
            },
        )
        for bucket in run.buckets:
            name = f"KV_{bucket}"
            config = {"subjects": [f"$KV.{bucket}.>"], "max_msgs_per_subject": 1, "allow_direct": True}
            await bus.api(f"STREAM.CREATE.{name}", {"name": name, "storage": "file", **config})
            for key, value in run.buckets[bucket].items():
                await bus.kv_put(bucket, key, value, 0)
        await _store(bus, run.messages)
        for sequence in without:
            await bus.api(f"STREAM.MSG.DELETE.{subjects.stream}", {"seq": sequence, "no_erase": True})
        yield bus


async def _store(bus: NatsBus, messages: tuple[StoredMessage, ...]) -> None:
    """All of them in order, without waiting for each; but a doubled one until the server has forgotten the first."""
    ids: set[str] = set()
    acks: Collector[Ack | BusError] = Collector()
    for message in messages:
        subject, msg_id = f"in.{message.subject}", message.headers.get(h.MSG_ID, str(message.sequence))
        if msg_id not in ids:
            ids.add(msg_id)
            bus.send(subject, message.data, message.headers, acks.put)
            continue
        async with asyncio.timeout(GUARD_S):
            while (ack := await bus.publish(subject, message.data, message.headers)).duplicate:
                pass
        acks.put(ack)
    stored = await acks.reach(len(messages))
    refused = [answer for answer in stored if not isinstance(answer, Ack)]
    assert not refused, refused[0]
    assert (await bus.bounds()).last == messages[-1].sequence
