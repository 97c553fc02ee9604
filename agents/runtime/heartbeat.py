"""The heartbeats of an agent process, with its resource usage."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Self

import psutil

from agents.runtime.inputs import InputState
from agents.runtime.runtime import Runtime
from bus.errors import BusError, MeshError
from bus.interface import Bus
from bus.messages import Heartbeat, encode
from bus.utils.aio import end_tasks
from bus.utils.processes import MACHINE

HEARTBEAT_S = 0.1
STALL_S = 1.0
"""After a pause of this length between two heartbeats (a stopped process) the claim is checked."""

STARVED_S = 5.0
"""Default of `starved_s`, as that of `[watchdog] starved_ms`."""
END_S = 2.0
"""How long an incarnation that has failed may take to end: code of users may ignore its cancellation."""

START_DELAY_S = 0.3
"""A process whose agent is created sooner sends its first heartbeat when it is ready."""
CLOSE_S = 1.0

NOT_LIVE = ("starting", "restoring")
"""States in which the next heartbeat is sent at once when the agent is live."""

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


UNFINISHED = (InputState.HANDLING, InputState.FAULTED, InputState.INTERRUPTED)


class StallWatch:
    """Ends an incarnation that has read an input and makes no progress, although its event loop runs.

    Its heartbeats alone would show it as active for ever.
    """

    def __init__(self, runtime: Runtime, limit_s: float, end: Callable[[MeshError], None]) -> None:
        """`end` ends the process by force: it is called if the incarnation has failed and does not end."""
        self._runtime, self._end = runtime, end
        self._failed_s = 0.0
        self._limit_s = runtime.agent.handler_limit_s or limit_s
        self._progress: tuple[int, int, int] | None = None
        self._stalled_s = 0.0

    def check(self, elapsed_s: float) -> None:
        """To be called about every `elapsed_s` seconds. It does not count the time of a stopped process."""
        runtime = self._runtime
        if runtime.failure is not None:
            self._failed_s += elapsed_s
            if self._failed_s > END_S:
                self._end(runtime.failure)
            return
        processor = runtime.input_processor
        progress = (processor.inputs, processor.skips, runtime.output_log.outputs)
        busy = processor.state in UNFINISHED or (
            processor.state is InputState.STOPPED and runtime.status in ("live", "finished")
        )
        if not busy or not runtime.bus.is_ready or progress != self._progress:
            self._progress, self._stalled_s = progress, 0.0
            return
        self._stalled_s += elapsed_s
        if self._stalled_s > self._limit_s:
            fault = processor.fault
            what = f"returning to its snapshot after {fault.why}" if fault is not None else processor.handling
            runtime.fail(MeshError(f"agent {runtime.name}: {what} has not finished within {self._limit_s:g} s"))


class StartHeartbeats:
    """The heartbeats of a process that imports its agent's class and creates the agent: from a thread, for as long as
    the context is active. Code of users runs meanwhile, and the process's own event loop does not.

    `connect` opens a connection for the thread, `heartbeat` makes the message from its number and what is being done.
    """

    def __init__(
        self, connect: Callable[[], Awaitable[Bus]], heartbeat: Callable[[int, str], Heartbeat], interval_s: float
    ) -> None:
        self._connect, self._heartbeat, self._interval_s = connect, heartbeat, interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="start-heartbeats", daemon=True)
        self.doing = ""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        if not self._stop.wait(START_DELAY_S):  # most agents are created by then, and need no second connection
            with contextlib.suppress(MeshError):
                asyncio.run(self._send())

    async def _send(self) -> None:
        connecting = asyncio.create_task(asyncio.wait_for(self._connect(), None))
        while not connecting.done() and not self._stop.is_set():
            await asyncio.wait({connecting}, timeout=self._interval_s)
        if not connecting.done():
            await end_tasks([connecting])
            return
        bus = connecting.result()
        number = 0
        while not self._stop.is_set():
            number += 1
            heartbeat = self._heartbeat(number, self.doing)
            with contextlib.suppress(BusError):
                await bus.notify(bus.subjects.heartbeat(heartbeat.agent), encode(heartbeat))
            await asyncio.sleep(self._interval_s)
        await bus.close()


async def send_heartbeats(
    runtime: Runtime,
    interval_s: float = HEARTBEAT_S,
    starved_s: float = STARVED_S,
    end: Callable[[MeshError], None] = lambda _: None,
) -> None:
    """Publish a heartbeat every `interval_s` seconds until cancelled, and one when the agent is live.

    An input that is not finished for `starved_s` seconds ends the incarnation; if that fails, `end` is called.
    """
    subject = runtime.bus.subjects.heartbeat(runtime.name)
    loop = asyncio.get_running_loop()
    processor, output_log = runtime.input_processor, runtime.output_log
    usage = Usage()
    stall_watch = StallWatch(runtime, starved_s, end)
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
        stall_watch.check(interval_s)
        due = max(due + interval_s, loop.time())
        if heartbeat.status in NOT_LIVE:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await runtime.ready.wait()
                    due = loop.time()  # the watchdog starts sources when the other agents are live
        else:
            await asyncio.sleep(due - loop.time())
        if loop.time() - due > STALL_S and (checking is None or checking.done()):
            # In a task: after a pause of the whole machine the answer takes a while, and heartbeats must not wait.
            checking = asyncio.create_task(runtime.check_claim(), name="check-claim")
