"""`signalmesh kill`: end an agent's process on purpose and watch, from outside, how it comes back.

All times are on this observer's clock, from just before the signal was asked for; each is when the message that says
so was heard here. Whether anything was lost or doubled is read from the stream afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from agents.host import SignalRequest
from bus import headers as h
from bus.bus import Heard
from bus.errors import BusError, BusTimeout, MeshError, MessageError, UsageError
from bus.messages import Epoch, Heartbeat, Lifecycle, Message, decode
from bus.nats_bus import NatsBus
from bus.registry import read_records
from bus.subjects import AGENT_KINDS
from coordinator.gather import external_voters

FIND_S = 1.0
"""How long to listen for a heartbeat."""
LIVES_ON_BEATS = 15
"""So many more heartbeats of the same incarnation, none of which says that it drains: the signal did not end it."""
ENDS_NOTHING = frozenset(
    {signal.SIGCONT, signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH, signal.SIGPIPE, signal.SIGXFSZ}
)
"""Signals that a Python process lives through, by their nature or because the interpreter ignores them."""
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
    outcome: Literal["recovered", "drained", "quarantined", "lives on", "not back in time"] = "not back in time"

    @property
    def as_asked(self) -> bool:
        """Whether it went as it should: back (or drained, or untouched by a signal that ends nothing) without loss."""
        if self.outputs_lost or self.outputs_doubled:
            return False
        if self.outcome == "lives on":
            return signal.Signals[self.signal] in ENDS_NOTHING
        return self.outcome in ("recovered", "drained")


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
    beat = await _heard(bus, name)
    if beat is not None:
        return beat
    records = await read_records(bus)
    if name in records:
        raise MeshError(
            f"agent {name!r} does not run: its registry record says {records[name].status}; "
            f"`signalmesh revive {name}` brings a quarantined or drained one back"
        )
    if name in await external_voters(bus, records):
        raise UsageError(
            f"agent {name!r} is external: a program of somebody else's runs it, and only its votes are heard here; "
            "end or start it where it runs"
        )
    known = ", ".join(records) or "none yet"
    raise UsageError(f"no agent {name!r} in swarm {bus.subjects.ns!r}; it has: {known}")


async def _heard(bus: NatsBus, name: str) -> Heartbeat | None:
    """A heartbeat of the agent or sandbox `name`; None when there is none within FIND_S."""
    beats: asyncio.Queue[Heartbeat] = asyncio.Queue()

    async def on_heard(message: Heard) -> None:
        with contextlib.suppress(MessageError):
            beat = decode(bus.subjects.parse(message.subject), message.subject, message.data)
            if isinstance(beat, Heartbeat):
                beats.put_nowait(beat)

    listening = await bus.listen(bus.subjects.heartbeat(name), on_heard)
    try:
        async with asyncio.timeout(FIND_S):
            return await beats.get()
    except TimeoutError:
        return None
    finally:
        await listening.close()


class _Observer:
    def __init__(self, bus: NatsBus, result: Killing) -> None:
        self._bus, self._result = bus, result
        self._zero = 0.0
        self.beats = 0
        self.ready = asyncio.Event()
        self.output = asyncio.Event()

    def start_clock(self) -> None:
        self._zero = asyncio.get_running_loop().time()

    async def on_heard(self, heard: Heard) -> None:
        at_ms = round((asyncio.get_running_loop().time() - self._zero) * 1000, 2)
        result = self._result
        address = self._bus.subjects.parse(heard.subject)
        if address.kind == "heartbeat":
            with contextlib.suppress(MessageError):
                self._on_beat(decode(address, heard.subject, heard.data))
            return
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

    def _on_beat(self, beat: Message) -> None:
        assert isinstance(beat, Heartbeat)
        if beat.epoch != self._result.epoch_before or beat.status == "draining":
            return
        self.beats += 1
        if self.beats == LIVES_ON_BEATS and self._result.outcome == "not back in time":
            self._result.outcome = "lives on"
            self.ready.set()

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
            subjects.heartbeat(name),
            subjects.epoch(name),
            subjects.lifecycle(name, "*"),
            *(f"{subjects.ns}.{kind}.*.{name}" for kind in AGENT_KINDS),
        )
    ]
    observer.start_clock()
    request = orjson.dumps(SignalRequest(agent=name, signal=number, pid=beat.pid))
    try:
        observer.beats = 0
        try:
            answer = await bus.request(subjects.control(beat.sandbox, "signal"), request)
        except BusTimeout:  # not just NobodyServes: whoever listens to everything keeps the server from saying so
            if await _heard(bus, beat.sandbox) is not None:
                raise
            raise UsageError(
                f"agent {name!r} is not run by a sandbox host: it beats as sandbox {beat.sandbox!r}, as pid {beat.pid} "
                f"on machine {beat.machine or 'unknown'}; signal that process there"
            ) from None
        reply: dict[str, Any] = orjson.loads(answer)
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
