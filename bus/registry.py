"""The registry of agents: one record an agent in the bucket `{ns}_agents`, written by compare-and-set."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import msgspec
import orjson

from bus.bus import Bus
from bus.errors import WrongSequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is known of one agent. `status` is active, stopped (it ended as asked), drained (and is to stay
    away) or quarantined.
    """

    agent_id: str
    name: str
    kind: str
    capabilities: tuple[str, ...]
    status: str
    epoch: int
    sandbox: str
    pid: int
    spawned_at: datetime


async def write_record(bus: Bus, record: Record) -> bool:
    """Write `record` unless the bucket holds one of a later epoch; returns whether it was written."""
    bucket = bus.subjects.registry_bucket
    data = orjson.dumps(record, option=orjson.OPT_UTC_Z)
    while True:
        found = await bus.kv_get(bucket, record.name)
        if found is not None and read_record(found.value).epoch > record.epoch:
            return False
        try:
            await bus.kv_put(bucket, record.name, data, found.revision if found else 0)
        except WrongSequence:
            continue
        return True


def read_record(data: bytes) -> Record:
    """Decode a stored record."""
    return msgspec.convert(orjson.loads(data), Record)


async def read_records(bus: Bus) -> dict[str, Record]:
    """All records by agent's name."""
    found = await bus.kv_all(bus.subjects.registry_bucket)
    return {name: read_record(kept.value) for name, kept in sorted(found.items())}
