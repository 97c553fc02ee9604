"""`signalmesh kill`: end an agent's process on purpose and watch, from outside, how it comes back.

All times are on this observer's clock, from just before the signal was asked for; each is when the message that says
so was heard here. Whether anything was lost or doubled is read from the stream afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from dataclasses import dataclass
from typing import Any

import orjson

from agents.host import SignalRequest
from bus import headers as h
from bus.bus import Heard
from bus.errors import BusError, MeshError, UsageError
from bus.messages import Epoch, Heartbeat, Lifecycle, Message, decode
from bus.nats_bus import NatsBus
from bus.registry import read_records
from bus.subjects import AGENT_KINDS

FIND_S = 1.0
"""How long to listen for the agent's heartbeat."""
FIRST_OUTPUT_S = 5.0
"""After it is ready: how long to wait for an output of the new incarnation (it may have nothing to say)."""


@dataclass(slots=True, kw_only=True)
class Killing:
    """`kill --json`. Milliseconds since the signal; None where it was not observed."""

    agent: str
    sandbox: str
    pid: int
    signal: str
    detected_ms: float | None = None
    claimed_ms: float | None = None
    spawned_ms: float | None = None
    restored_ms: float | None = None
    ready_ms: float | None = None
    first_output_ms: float | None = None
    epoch_before: int
    epoch_after: int | None = None
    events_replayed: int | None = None
    outputs_lost: int | None = None
    outputs_doubled: int | None = None
    outputs_checked: int | None = None
    outcome: str = "not back in time"


def signal_number(name: str) -> int:
    """The number of KILL, SIGKILL, kill or 9.

    Raises:
        UsageError: no such signal.
    """
    try:
        if name.isdigit():
            return signal.Signals(int(name)).value
        return signal.Signals[name.upper() if name.upper().startswith("SIG") else f"SIG{name.upper()}"].value
    except (KeyError, ValueError):
        raise UsageError(f"--signal {name}: expected a signal such as KILL, STOP, TERM or 9") from None


async def find_agent(bus: NatsBus, name: str) -> Heartbeat:
    """The newest heartbeat of `name`.

    Raises:
        UsageError: the swarm has no such agent; MeshError: it does not beat.
    """
    heard: asyncio.Queue[Heartbeat] = asyncio.Queue()

    async def on_heard(message: Heard) -> None:
        beat = decode(bus.subjects.parse(message.subject), message.subject, message.data)
        if isinstance(beat, Heartbeat):
            heard.put_nowait(beat)

    listening = await bus.listen(bus.subjects.heartbeat(name), on_heard)
    try:
        async with asyncio.timeout(FIND_S):
            return await heard.get()
    except TimeoutError:
        records = await read_records(bus)
        if name not in records:
            known = ", ".join(records) or "none yet"
            raise UsageError(f"no agent {name!r} in swarm {bus.subjects.ns!r}; it has: {known}") from None
        raise MeshError(
            f"agent {name!r} does not run: its registry record says {records[name].status}; "
            f"`signalmesh revive {name}` brings a quarantined or drained one back"
        ) from None
    finally:
        await listening.close()


class _Observer:
    def __init__(self, bus: NatsBus, result: Killing) -> None:
        self._bus, self._result = bus, result
        self._zero = 0.0
        self.changed = asyncio.Event()
        self.ready = asyncio.Event()
        self.output = asyncio.Event()

    def start_clock(self) -> None:
        self._zero = asyncio.get_running_loop().time()

    async def on_heard(self, heard: Heard) -> None:
        at_ms = round((asyncio.get_running_loop().time() - self._zero) * 1000, 2)
        result = self._result
        address = self._bus.subjects.parse(heard.subject)
        message: Message | None = None
        if address.kind in ("lifecycle", "epoch"):
            message = decode(address, heard.subject, heard.data)
        sequence = int(heard.headers.get(h.SEQUENCE, 0))
        if isinstance(message, Epoch):
            if sequence > result.epoch_before:
                result.claimed_ms, result.epoch_after = at_ms, sequence
        elif isinstance(message, Lifecycle):
            self._note(message, at_ms)
        elif self._fresh(int(heard.headers.get(h.EPOCH, 0))) and not self.output.is_set():
            result.first_output_ms = at_ms
            self.output.set()
        self.changed.set()

    def _fresh(self, epoch: int) -> bool:
        """Whether it is the epoch of the newest incarnation, even if its claim is handed to us a little later."""
        return epoch >= (self._result.epoch_after or self._result.epoch_before + 1)

    def _note(self, event: Lifecycle, at_ms: float) -> None:
        result = self._result
        fresh = self._fresh(event.epoch or 0)
        if event.event == "declared_dead" and event.epoch == result.epoch_before:
            result.detected_ms = at_ms
        elif event.event == "quarantined":
            result.outcome = "quarantined"
            self.ready.set()
        elif event.event == "drained" and event.epoch == result.epoch_before:
            result.outcome = "drained"
            self.ready.set()
        elif fresh and event.event == "spawned":
            result.spawned_ms = at_ms
        elif fresh and event.event == "restored":
            result.restored_ms = at_ms
        elif fresh and event.event == "ready":
            result.ready_ms = at_ms
            result.events_replayed = event.detail.get("replayed")
            result.outcome = "recovered"
            self.ready.set()


async def kill(bus: NatsBus, name: str, number: int, wait_s: float) -> Killing:
    """Send signal `number` to the process of agent `name` and watch for at most `wait_s` seconds.

    Raises:
        UsageError: no such agent; MeshError: it does not run, or its host refuses; BusError: the bus does not answer.
    """
    beat = await find_agent(bus, name)
    subjects = bus.subjects
    result = Killing(
        agent=name,
        sandbox=beat.sandbox,
        pid=beat.pid,
        signal=signal.Signals(number).name,
        epoch_before=beat.epoch,
    )
    observer = _Observer(bus, result)
    listening = [
        await bus.listen(subject, observer.on_heard)
        for subject in (
            subjects.epoch(name),
            subjects.lifecycle(name, "*"),
            *(f"{subjects.ns}.{kind}.*.{name}" for kind in AGENT_KINDS),
        )
    ]
    observer.start_clock()
    request = orjson.dumps(SignalRequest(agent=name, signal=number, pid=beat.pid))
    try:
        reply: dict[str, Any] = orjson.loads(await bus.request(subjects.control(beat.sandbox, "signal"), request))
        if "error" in reply:
            raise MeshError(reply["error"])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await observer.ready.wait()
        if result.ready_ms is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIRST_OUTPUT_S):
                    await observer.output.wait()
    finally:
        for item in listening:
            await item.close()
    await _count(bus, result)
    return result


async def _count(bus: NatsBus, result: Killing) -> None:
    """Read the agent's outputs back from the stream and look for gaps and repetitions in their numbers."""
    try:
        stored = await bus.read_back(bus.subjects.outputs_of(result.agent), result.epoch_before)
    except BusError:
        return
    numbers = [int(m.headers[h.OUTPUT]) for m in stored if h.OUTPUT in m.headers]
    result.outputs_checked = len(numbers)
    result.outputs_doubled = len(numbers) - len(set(numbers))
    result.outputs_lost = max(numbers) - min(numbers) + 1 - len(set(numbers)) if numbers else 0
