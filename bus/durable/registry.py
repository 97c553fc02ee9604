"""The registry of agents: one record an agent in the bucket `{ns}_agents`, written by compare-and-set."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import msgspec
import orjson
import structlog

from bus.errors import WrongSequence
from bus.interface import Bus
from bus.utils.json_text import parse_json

log = structlog.get_logger("signalmesh.bus")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The record of one agent. `status` is active, stopped (ended on request), drained (not to be restarted)
    or quarantined.
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
        stored = None if found is None else _found(found.value)
        if stored is not None and stored.epoch > record.epoch:
            return False
        try:
            await bus.kv_put(bucket, record.name, data, found.revision if found else 0)
        except WrongSequence:
            continue
        return True


def read_record(data: bytes) -> Record:
    """Decode a stored record.

    Raises:
        ValueError: it is not a valid record.
    """
    return msgspec.convert(parse_json(data), Record)


def _found(data: bytes) -> Record | None:
    try:
        return read_record(data)
    except ValueError:
        return None


async def read_records(bus: Bus) -> dict[str, Record]:
    """All records by agent's name; invalid ones are logged and left out."""
    found = await bus.kv_all(bus.subjects.registry_bucket)
    records: dict[str, Record] = {}
    for name, entry in sorted(found.items()):
        record = _found(entry.value)
        if record is not None and record.name == name:
            records[name] = record
        else:
            log.warning("record_unreadable", bucket=bus.subjects.registry_bucket, key=name, revision=entry.revision)
    return records
