"""The memory key and the registry record of an agent, which outlive its process."""

from __future__ import annotations

import asyncio

import structlog

from agents.agent import Agent
from agents.runtime.runtime import Runtime
from bus.durable.registry import Record, write_record
from bus.errors import BusError, WrongSequence
from bus.interface import Bus
from bus.messages import now

MEMORY_S = 0.1
"""The memory key follows the outputs at most this often, and at most once a heartbeat; the last output is always
written."""

log = structlog.get_logger("signalmesh.agent")


class Memory:
    """Keeps the agent's memory key at its last stored output of the kind that the key is for."""

    def __init__(self, bus: Bus, agent: Agent, key: str, kinds: tuple[str, ...], interval_s: float = MEMORY_S) -> None:
        """`interval_s` is the shortest time between two writes."""
        self._bus, self._interval_s = bus, interval_s
        self._bucket = bus.subjects.memory_bucket
        self._key = bus.subjects.memory_key(agent.name, key)
        self._kinds = (key,) if key in kinds else kinds
        self._data: bytes | None = None
        self._changed = asyncio.Event()

    def take(self, kind: str, data: bytes) -> None:
        """An output of `kind` has been stored."""
        if kind in self._kinds:
            self._data = data
            self._changed.set()

    async def run(self) -> None:
        """Write the newest output, for ever. A stopped incarnation that wakes up loses the compare-and-set."""
        revision: int | None = None
        while True:
            await self._changed.wait()
            self._changed.clear()
            assert self._data is not None
            try:
                if revision is None:
                    found = await self._bus.kv_get(self._bucket, self._key)
                    revision = found.revision if found else 0
                revision = await self._bus.kv_put(self._bucket, self._key, self._data, revision)
            except WrongSequence:
                revision = None  # the key expired, or the answer to a write was lost; a superseded process ends soon
                self._changed.set()
            except BusError as error:
                log.debug("memory_retried", error=str(error))
                self._changed.set()
            await asyncio.sleep(self._interval_s)


async def register(runtime: Runtime, status: str | None = None) -> None:
    """Write this incarnation into the registry, once it is ready (or at once, with another `status`)."""
    if status is None:
        await runtime.ready.wait()
    cls = type(runtime.agent)
    record = Record(
        agent_id=runtime.agent_id,
        name=runtime.name,
        kind=cls.kind,
        capabilities=cls.capabilities,
        status=status or "active",
        epoch=runtime.epoch,
        sandbox=runtime.sandbox,
        pid=runtime.pid,
        spawned_at=now(),
    )
    while True:
        try:
            await write_record(runtime.bus, record)
            return
        except BusError as error:
            log.debug("registration_retried", error=str(error))
            await asyncio.sleep(0.2)
