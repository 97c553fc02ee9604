"""`signalmesh kill`: send a signal to an agent's process, and measure its recovery from outside.

All times are on the clock of this process: from just before the request for the signal to the arrival of the message
that reports the step. Lost and duplicated outputs are counted in the stream afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from agents.host.protocol import SignalRequest
from bus.durable.registry import read_records
from bus.errors import BusError, BusTimeout, MeshError, MessageError, UsageError
from bus.heartbeats import HeartbeatListener, HeartbeatTable
from bus.interface import ReceivedMessage
from bus.messages import Epoch, Heartbeat, Lifecycle
from bus.messages import headers as h
from bus.messages.reporters import ClaimedHosts
from bus.messages.subjects import AGENT_KINDS, check_name
from bus.nats.bus import NatsBus
from bus.utils.terminal import escape_control
from coordinator.control.outputs import count_outputs, epoch_of, is_successor
from coordinator.reporting.tables import Column, console, print_table

FIND_S = 1.0
"""How long to listen for a heartbeat."""
RARE_HEARTBEAT_S = 5.0
"""The same for an agent that its registry record has as active."""
PROBE = 0
"""No signal: only whether the process exists."""
ENDS_NOTHING = frozenset(
    {PROBE, signal.SIGCONT, signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH, signal.SIGPIPE, signal.SIGXFSZ}
)
"""Signals that do not end a Python process, by their nature or because the interpreter ignores them."""
CONFIRMING_HEARTBEATS = 2
"""After so many heartbeats of the same incarnation since such a signal, the process is known to live on."""
LIVES_ON_HEARTBEATS = 15
"""The same for any other signal; a heartbeat with the status draining does not count."""
FIRST_OUTPUT_S = 5.0
"""After it is ready: how long to wait for an output of the new incarnation (it may have none)."""


@dataclass(slots=True, kw_only=True)
class KillReport:
    """`kill --json`. Milliseconds since the signal; None where it was not observed.

    `outcome`: recovered (a new process continues from its state), drained (it ended on request, and is not
    restarted until it is revived), quarantined, lives on (the signal has not ended it), not back in time.
    """

    agent: str
    sandbox: str
    pid: int
    signal: str
    drained_ms: float | None = None
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
    outputs_duplicated: int | None = None
    outputs_checked: int | None = None
    outcome: Literal["recovered", "drained", "quarantined", "lives on", "not back in time"] = "not back in time"

    @property
    def ok(self) -> bool:
        """Whether the agent recovered (or drained, or survived a signal that ends nothing) without loss."""
        if self.outputs_lost or self.outputs_duplicated:
            return False
        if self.outcome == "lives on":
            return signal_number(self.signal) in ENDS_NOTHING
        return self.outcome in ("recovered", "drained")


def signal_number(name: str) -> int:
    """The number of KILL, SIGKILL, kill or 9; 0 is allowed too.

    Raises:
        UsageError: no such signal.
    """
    word = name.upper().removeprefix("SIG")
    if word.isascii() and word.isdigit() and (int(word) == PROBE or int(word) in signal.valid_signals()):
        return int(word)
    try:
        return signal.Signals[f"SIG{word}"].value
    except KeyError:
        raise UsageError(
            f"--signal {name}: there is no such signal; expected a name such as KILL, STOP or TERM, or a number such "
            "as 9 (0: check that the process exists)"
        ) from None


def signal_name(number: int) -> str:
    """SIGKILL for 9; the number itself for those that have no name."""
    return signal.Signals(number).name if number in {item.value for item in signal.Signals} else str(number)


async def find_agent(bus: NatsBus, name: str) -> Heartbeat:
    """The newest heartbeat of `name`.

    Raises:
        UsageError: the swarm has no such agent, or it is external; MeshError: it sends no heartbeats.
    """
    listener = await _listen(bus, lambda received: name in received.agents and received.leader is not None)
    phase = listener.phases.get(name)
    if phase == "external":
        raise UsageError(
            f"agent {name!r} is external: the swarm receives its messages, but does not run its process; "
            "stop or start it where it runs"
        )
    if name in listener.agents:
        return listener.agents[name].heartbeat
    records = await read_records(bus)
    if phase is None and name in records and records[name].status == "active":
        # With hundreds of agents heartbeats are seconds apart.
        listener = await _listen(bus, lambda received: name in received.agents, RARE_HEARTBEAT_S)
        if name in listener.agents:
            return listener.agents[name].heartbeat
    if phase is not None or name in records:
        state = f"{phase}, by the watchdog" if phase else f"{records[name].status}, by its registry record"
        raise MeshError(
            f"agent {name!r} does not run ({state}); `signalmesh revive {name}` starts a quarantined or drained agent"
        )
    known = ", ".join(sorted({*records, *listener.phases, *listener.agents})) or "none yet"
    raise UsageError(f"no agent {name!r} in swarm {bus.subjects.ns!r}; it has: {known}")


async def _listen(bus: NatsBus, enough: Callable[[HeartbeatTable], bool], most_s: float = FIND_S) -> HeartbeatTable:
    """The heartbeats received until they are `enough`, for at most `most_s` seconds."""
    async with HeartbeatListener(bus) as listener:
        await listener.wait(enough, most_s)
    return listener


class _Observer:
    def __init__(self, bus: NatsBus, result: KillReport) -> None:
        self._bus, self._result = bus, result
        self._zero = 0.0
        self._heartbeats_left = -1
        self._hosts = ClaimedHosts()
        self._hosts.claimed(result.agent, result.epoch_before, result.sandbox)
        self.ready = asyncio.Event()
        self.spawned = asyncio.Event()
        self.output = asyncio.Event()

    def start_clock(self) -> None:
        self._zero = asyncio.get_running_loop().time()

    async def on_message(self, received: ReceivedMessage) -> None:
        at_ms = round((asyncio.get_running_loop().time() - self._zero) * 1000, 2)
        result = self._result
        try:
            message = received.decode(self._bus.subjects)
        except MessageError:
            return  # the readers of the stream report it
        if isinstance(message, Heartbeat):
            self._on_heartbeat(message)
        elif isinstance(message, Epoch):
            sequence = h.number(received.headers, h.SEQUENCE) or 0
            if sequence > result.epoch_before:
                result.claimed_ms, result.epoch_after = at_ms, sequence
                self._hosts.claimed(result.agent, sequence, message.sandbox)
        elif isinstance(message, Lifecycle):
            self._note(message, at_ms)
        elif self._fresh(epoch_of(received.headers)) and not self.output.is_set():
            result.first_output_ms = at_ms
            self.output.set()

    def sent(self, number: int) -> None:
        """The signal has reached the process: its heartbeats count from now on."""
        self._heartbeats_left = CONFIRMING_HEARTBEATS if number in ENDS_NOTHING else LIVES_ON_HEARTBEATS

    def _on_heartbeat(self, heartbeat: Heartbeat) -> None:
        if heartbeat.epoch != self._result.epoch_before or heartbeat.status == "draining":
            return
        self._heartbeats_left -= 1
        if self._heartbeats_left == 0 and self._result.outcome == "not back in time":
            self._result.outcome = "lives on"
            self.ready.set()

    def _fresh(self, epoch: int) -> bool:
        """Whether it is the epoch of the newest incarnation, even if its claim arrives a little later."""
        return is_successor(epoch, self._result.epoch_before, self._result.epoch_after)

    def _note(self, event: Lifecycle, at_ms: float) -> None:
        result = self._result
        fresh = self._fresh(event.epoch or 0)
        if event.event == "declared_dead" and event.epoch == result.epoch_before:
            result.detected_ms = at_ms
        elif event.event == "quarantined":
            result.outcome = "quarantined"
            self.ready.set()
        elif event.event == "drained" and event.epoch == result.epoch_before:
            result.outcome, result.drained_ms = "drained", at_ms
            self.ready.set()
        elif (
            fresh
            and event.event == "spawned"
            and self._hosts.may_report(event.event, event.agent, event.epoch, event.source)
        ):
            result.spawned_ms = at_ms
            self.spawned.set()
        elif fresh and event.event == "restored":
            result.restored_ms = at_ms
        elif fresh and event.event == "ready":
            result.ready_ms = at_ms
            result.events_replayed = event.detail.get("replayed")
            result.outcome = "recovered"
            self.ready.set()


async def kill(bus: NatsBus, name: str, number: int, wait_s: float) -> KillReport:
    """Send signal `number` to the process of agent `name` and watch for at most `wait_s` seconds.

    Raises:
        UsageError: no such agent, or no sandbox host runs it; MeshError: it does not run, or its host refuses;
            BusError: the bus does not answer.
    """
    check_name(name, "agent")  # whatever a heartbeat says: a server cuts off a client whose subjects are too long
    heartbeat = await find_agent(bus, name)
    subjects = bus.subjects
    result = KillReport(
        agent=name,
        sandbox=heartbeat.sandbox,
        pid=heartbeat.pid,
        signal=signal_name(number),
        epoch_before=heartbeat.epoch,
    )
    observer = _Observer(bus, result)
    listening = [
        await bus.listen(subject, observer.on_message)
        for subject in (
            subjects.heartbeat(name),
            subjects.epoch(name),
            subjects.lifecycle(name, "*"),
            *(f"{subjects.ns}.{kind}.*.{name}" for kind in AGENT_KINDS),
        )
    ]
    await bus.flush()
    observer.start_clock()
    request = orjson.dumps(SignalRequest(agent=name, signal=number, pid=heartbeat.pid))
    try:
        try:
            reply: dict[str, Any] = orjson.loads(
                await bus.request(subjects.control(heartbeat.sandbox, "signal"), request)
            )
        except BusTimeout:
            # NoResponders is not enough: a subscriber to all subjects hides that no host serves this one.
            if heartbeat.sandbox in (await _listen(bus, lambda received: heartbeat.sandbox in received.hosts)).hosts:
                raise
            raise UsageError(_not_supervised(heartbeat)) from None
        if "error" in reply:
            received = (await _listen(bus, lambda received: name in received.agents)).agents.get(name)
            if received is not None and (received.heartbeat.epoch, received.heartbeat.pid) == (
                heartbeat.epoch,
                heartbeat.pid,
            ):
                raise UsageError(_not_supervised(heartbeat))
            raise MeshError(reply["error"])
        observer.sent(number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await observer.ready.wait()
        if result.ready_ms is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIRST_OUTPUT_S):
                    await observer.output.wait()
                    await observer.spawned.wait()  # the watchdog may report it after the new process is ready
    finally:
        for item in listening:
            await item.close()
    if result.outcome != "lives on":
        await _count(bus, result)
    return result


def _not_supervised(heartbeat: Heartbeat) -> str:
    return (
        f"agent {heartbeat.agent!r} is not run by a sandbox host: its heartbeats come from sandbox "
        f"{heartbeat.sandbox!r}, pid {heartbeat.pid} on machine {heartbeat.machine or 'unknown'}; signal that process "
        "there"
    )


async def _count(bus: NatsBus, result: KillReport) -> None:
    """Read the agent's outputs back from the stream and find gaps and repetitions in their numbers."""
    try:
        stored = await bus.read_back(bus.subjects.outputs_of(result.agent), result.epoch_before)
    except BusError:
        return
    found = count_outputs(stored)
    result.outputs_checked, result.outputs_lost, result.outputs_duplicated = found.checked, found.lost, found.duplicated


KILL_STEPS = {
    "detected": "the watchdog declared it dead",
    "claimed": "the next epoch is claimed: the old process is fenced",
    "spawned": "its host has started a new process",
    "restored": "snapshot loaded, own stored outputs read back",
    "ready": "replay done, live again",
    "first_output": "first output of the new process received",
}


def print_kill_report(result: KillReport) -> None:
    """Print the timeline of `kill`, and the outputs lost and duplicated."""
    out = console()
    sent = f"signal {result.signal}" if result.signal.isdigit() else result.signal
    head = f"{sent} to {result.agent} (pid {result.pid}, sandbox {result.sandbox}): {result.outcome}"
    out.print(escape_control(head), soft_wrap=True)
    revive = escape_control(f"`signalmesh revive {result.agent}`")
    if result.outcome == "lives on":
        what = "nothing was sent" if result.signal == "0" else "it was sent"
        out.print(f"{what}, and the same process sends heartbeats as epoch {result.epoch_before}", soft_wrap=True)
        return
    if result.outcome == "drained":
        out.print(f"after {result.drained_ms:.1f} ms, as requested: it is not restarted until {revive}", soft_wrap=True)
        out.print(_verdict(result), soft_wrap=True)
        return
    if result.outcome == "quarantined":
        out.print(f"it has died too often and is not restarted until {revive}; see its alert", soft_wrap=True)
    rows = []
    for step, meaning in KILL_STEPS.items():
        value = getattr(result, f"{step}_ms")
        rows.append(["not received" if value is None else f"{value:.1f} ms", step.replace("_", " "), meaning])
    columns = (Column("after", right=True), Column("step"), Column("what the bus reported", 1))
    print_table(out, columns, rows)
    epochs = f"epoch {result.epoch_before} -> {result.epoch_after or 'none yet'}"
    replayed = "" if result.events_replayed is None else f", {result.events_replayed} inputs replayed"
    out.print(f"{epochs}{replayed}\n{_verdict(result)}", soft_wrap=True)


def _verdict(result: KillReport) -> str:
    if result.outputs_checked is None:
        return "the stream could not be read back: lost and duplicated outputs are not known"
    return (
        f"{result.outputs_lost} lost, {result.outputs_duplicated} duplicated, of {result.outputs_checked} outputs in "
        f"the stream since epoch {result.epoch_before}"
    )
