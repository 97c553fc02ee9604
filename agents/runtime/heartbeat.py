"""The heartbeats of an agent process, with its resource usage."""

from __future__ import annotations

import asyncio
import contextlib
import time

import psutil

from agents.runtime.runtime import Runtime
from bus.errors import BusError
from bus.messages import Heartbeat, encode
from bus.utils.processes import MACHINE

HEARTBEAT_S = 0.1
STALL_S = 1.0
"""After a pause of this length between two heartbeats (a stopped process) the claim is checked."""

USAGE_S = 1.0
"""The usage of the process is measured at most this often: a measurement costs as much as a heartbeat."""
MEBIBYTE = 1 << 20


class Usage:
    """Memory and processor time of this process (its children's are not counted), as of the last second."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._measured_at = -USAGE_S
        self.rss_mb = self.cpu_s = 0.0

    def measure(self) -> None:
        """Measure again, if the values are older than USAGE_S."""
        if time.monotonic() - self._measured_at >= USAGE_S:
            self._measured_at = time.monotonic()
            self.rss_mb = round(self._process.memory_info().rss / MEBIBYTE, 1)
            self.cpu_s = round(time.process_time(), 2)


async def send_heartbeats(runtime: Runtime, interval_s: float = HEARTBEAT_S) -> None:
    """Publish a heartbeat every `interval_s` seconds until cancelled."""
    subject = runtime.bus.subjects.heartbeat(runtime.name)
    loop = asyncio.get_running_loop()
    processor, output_log = runtime.input_processor, runtime.output_log
    usage = Usage()
    sequence = 0
    checking: asyncio.Task[None] | None = None
    due = loop.time()
    while True:
        sequence += 1
        usage.measure()
        heartbeat = Heartbeat(
            agent=runtime.name,
            agent_id=runtime.agent_id,
            epoch=runtime.epoch,
            sequence=sequence,
            progress=processor.inputs + output_log.outputs,
            status=runtime.status,
            interval_ms=int(interval_s * 1000),
            sandbox=runtime.sandbox,
            pid=runtime.pid,
            cursor=processor.cursor,
            lag=processor.lag,
            outputs=output_log.outputs,
            poison=processor.poison,
            skipped=processor.skips,
            machine=MACHINE,
            snapshot_ms=runtime.snapshot_ms,
            rss_mb=usage.rss_mb,
            cpu_s=usage.cpu_s,
        )
        with contextlib.suppress(BusError):
            await runtime.bus.notify(subject, encode(heartbeat))
        output_log.check()
        due = max(due + interval_s, loop.time())
        await asyncio.sleep(due - loop.time())
        if loop.time() - due > STALL_S and (checking is None or checking.done()):
            # In a task: after a pause of the whole machine the answer takes a while, and heartbeats must not wait.
            checking = asyncio.create_task(runtime.check_claim(), name="check-claim")
