"""What an incarnation does besides handling inputs: heartbeats, its memory key, its registry record."""

from __future__ import annotations

import asyncio
import contextlib
import time

import psutil
import structlog

from agents.agent import Agent
from agents.runtime import Runtime
from bus.bus import Bus
from bus.errors import BusError, WrongSequence
from bus.messages import Heartbeat, encode, now
from bus.process import MACHINE
from bus.registry import Record, write_record

HEARTBEAT_S = 0.1
MEMORY_S = 0.1
"""The memory key follows the outputs at most this often, and no more often than the agent beats; the last one always
gets there."""
STALL_S = 1.0
"""After a pause of this length between two beats (a stopped process) the claim is looked at before going on."""

USAGE_S = 1.0
"""What the process uses is looked at no more often than this: a look costs as much as a heartbeat."""
MEBIBYTE = 1 << 20

log = structlog.get_logger("signalmesh.agent")


class Usage:
    """Memory and processor time of this process (its children's are not counted), as of the last second."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._looked_at = -USAGE_S
        self.rss_mb = self.cpu_s = 0.0

    def look(self) -> None:
        """Renew the figures, if they are older than USAGE_S."""
        if time.monotonic() - self._looked_at >= USAGE_S:
            self._looked_at = time.monotonic()
            self.rss_mb = round(self._process.memory_info().rss / MEBIBYTE, 1)
            self.cpu_s = round(time.process_time(), 2)


async def beat(runtime: Runtime, interval_s: float = HEARTBEAT_S) -> None:
    """Publish a heartbeat every `interval_s` seconds, for ever."""
    subject = runtime.bus.subjects.heartbeat(runtime.name)
    loop = asyncio.get_running_loop()
    intake = runtime.intake
    usage = Usage()
    sequence = 0
    checking: asyncio.Task[None] | None = None
    due = loop.time()
    while True:
        sequence += 1
        journal = getattr(runtime, "journal", None)
        usage.look()
        heartbeat = Heartbeat(
            agent=runtime.name,
            agent_id=runtime.agent_id,
            epoch=runtime.epoch,
            sequence=sequence,
            progress=intake.inputs + (0 if journal is None else journal.outputs),
            status=runtime.status,
            interval_ms=int(interval_s * 1000),
            sandbox=runtime.sandbox,
            pid=runtime.pid,
            cursor=intake.cursor,
            lag=intake.lag,
            outputs=0 if journal is None else journal.outputs,
            poison=intake.poison,
            skipped=intake.skips,
            machine=MACHINE,
            snapshot_ms=runtime.snapshot_ms,
            rss_mb=usage.rss_mb,
            cpu_s=usage.cpu_s,
        )
        with contextlib.suppress(BusError):
            await runtime.bus.tell(subject, encode(heartbeat))
        if journal is not None:
            journal.check()
        due = max(due + interval_s, loop.time())
        await asyncio.sleep(due - loop.time())
        if loop.time() - due > STALL_S and (checking is None or checking.done()):
            # Beside the beats: after a pause of the whole machine the answer takes a while, and silence would be death.
            checking = asyncio.create_task(runtime.check_claim(), name="check-claim")


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
                revision = None  # the key expired, or a write of ours landed unheard; a superseded process ends soon
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
