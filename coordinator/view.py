"""What a person sees: lines of messages, and the tables of the verbs. The live view of `up` is coordinator/live.py."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from bus import headers as h
from bus.bus import Heard
from bus.errors import MessageError
from bus.messages import Alert, Decision, Lifecycle, Message, decode
from bus.nats_bus import NatsBus
from bus.plain import harmless
from coordinator.e2b_settings import provider_text
from coordinator.gather import GIVEN_UP_REMEDY, AgentStatus, SandboxStatus, Status, given_up_text
from coordinator.sandbox_health import SandboxHealth
from coordinator.supervision import GIVEN_UP
from coordinator.tables import Cell, Column, console, print_table, state_text

if TYPE_CHECKING:
    from coordinator.killing import Killing
    from coordinator.up import Up

SANDBOX_COLUMNS = (
    Column("sandbox"), Column("provider", 3), Column("state"), Column("pid", 2, right=True),
    Column("up", 4, right=True), Column("available", 6, right=True), Column("processes", 8, right=True),
    Column("CPU", 7, right=True), Column("PSS MiB", 7, right=True), Column("network in, out", 10), Column("cost", 9),
    Column("agents", 1),
)  # fmt: skip
STATUS_COLUMNS = (
    Column("agent"), Column("state"), Column("kind", 7), Column("sandbox", 1), Column("pid", 2, right=True),
    Column("epoch", 5, right=True), Column("restarts", 3, right=True), Column("beat, ms ago", 6, right=True),
    Column("cursor", 8, right=True), Column("unread", 4, right=True), Column("outputs", 9, right=True),
)  # fmt: skip
MIB = 1 << 20
KILL_STEPS = {
    "detected": "the watchdog declared it dead",
    "claimed": "the next epoch is claimed: the old process is fenced",
    "spawned": "its host has started a new process",
    "restored": "snapshot taken over, own stored outputs read back",
    "ready": "replay done, live again",
    "first_output": "first output of the new process heard",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """One line of `watch --json` and `up --json`. `sequence` is None for what is not kept, such as heartbeats.

    One of `payload` and `malformed` (what is no JSON, as text) is there.
    """

    subject: str
    sequence: int | None
    payload: Any = None
    malformed: str | None = None


def line_of(message: Message, subject: str, sequence: str) -> str:
    """One plain line for a message, as `watch` and a piped `up` print it."""
    if isinstance(message, Decision):
        absent = f" absent={','.join(message.absent)}" if message.absent else ""
        return (
            f"{message.timestamp:%Y-%m-%d %H:%M} decision {message.symbol} round={message.round} "
            f"{message.final_decision} size={message.position_size:.4f} risk={message.risk_score:.4f} "
            f"consensus={message.consensus_level:.4f} voters={len(message.agents_consulted)}{absent} "
            f"by={message.source}"
        )
    if isinstance(message, Lifecycle):
        parts = [f"{message.timestamp:%H:%M:%S.%f}"[:-3], "lifecycle", message.agent, message.event]
        known = {name: getattr(message, name) for name in ("epoch", "sandbox", "pid", "reason")}
        details = {**known, **message.detail}
        return " ".join([*parts, *(f"{key}={value}" for key, value in details.items() if value is not None)])
    if isinstance(message, Alert):
        return f"{message.timestamp:%H:%M:%S} ALERT {message.severity} {message.code}: {message.message}"
    return f"{subject} {sequence}".rstrip()


def parse(bus: NatsBus, heard: Heard) -> Message | None:
    try:
        return decode(bus.subjects.parse(heard.subject), heard.subject, heard.data)
    except MessageError:
        return None


class Lines:
    """Prints lines until whoever reads them has gone (`| head`): then `unread` is set, and nothing more is printed."""

    def __init__(self) -> None:
        self.unread = asyncio.Event()

    def put(self, line: str) -> None:
        if self.unread.is_set():
            return
        try:
            print(harmless(line), flush=True)
        except BrokenPipeError:
            self.unread.set()
            # What is still buffered must go somewhere, or the interpreter complains at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


async def watch_bus(bus: NatsBus, kind: str | None, as_json: bool) -> None:
    """Print what is stored (and, for `heartbeat`, what is merely said) until interrupted, or unread."""
    lines = Lines()

    async def on_heard(heard: Heard) -> None:
        sequence = heard.headers.get(h.SEQUENCE)
        if kind is None and sequence is None:
            return  # heartbeats and requests: on demand only
        if as_json:
            record: dict[str, Any] = {"subject": heard.subject, "sequence": int(sequence) if sequence else None}
            try:
                record["payload"] = orjson.loads(heard.data)
            except orjson.JSONDecodeError:
                record["malformed"] = heard.data.decode(errors="replace")
            lines.put(orjson.dumps(record).decode())
            return
        message = parse(bus, heard)
        text = heard.data.decode(errors="replace")
        if isinstance(message, (Decision, Lifecycle, Alert)):
            lines.put(line_of(message, heard.subject, sequence or ""))
        else:
            lines.put(f"{heard.subject} {text}")

    subjects = bus.subjects
    await bus.listen(f"{subjects.ns}.>" if kind is None else subjects.all_of(kind), on_heard)
    await lines.unread.wait()


def viewer(as_json: bool) -> Callable[[Up, asyncio.Event], Any]:
    """How `up` shows what happens: live on a terminal, else line by line."""
    if as_json:
        return lambda up, _stop: watch_bus(up.bus, None, True)
    if not sys.stdout.isatty():
        return _lines
    from coordinator.live import live_view

    return live_view


async def _lines(up: Up, stop: asyncio.Event) -> None:
    lines = Lines()
    lines.put(f"swarm {up.config.swarm} on {up.bus.url}; {how_to_follow(up)}")

    async def on_heard(heard: Heard) -> None:
        message = parse(up.bus, heard)
        if message is not None:
            lines.put(line_of(message, heard.subject, heard.headers.get(h.SEQUENCE, "")))

    for kind in ("decision", "lifecycle", "alert"):
        await up.bus.listen(up.bus.subjects.all_of(kind), on_heard)
    await stop.wait()


def how_to_follow(up: Up) -> str:
    return f"follow it with: nats sub -s {up.bus.url} '{up.config.swarm}.decision.>'"


def watchdogs_text(status: Status) -> str:
    """Who leads, and who stands by."""
    leading = [f"watchdog {dog.pid} leads with term {dog.term}" for dog in status.watchdogs if dog.term is not None]
    waiting = [str(dog.pid) for dog in status.watchdogs if dog.term is None]
    return f"{', '.join(leading) or 'no watchdog leads'}, {' and '.join(waiting) or 'none'} stands by"


def agents_text(status: Status) -> str:
    """How many agents there are, and how many of them work."""
    external = sum(agent.status == "external" for agent in status.agents)
    # Who leads brings back, or tells of, every agent that it knows.
    led = status.watchdog_term is not None
    former = sum(agent.status == "stopped" for agent in status.agents) if led else 0
    own = len(status.agents) - external - former
    text = f"{status.active_agents} of {own} agents active" if own else "no agent was heard of yet"
    text += f", {external} external" if external else ""
    return text + (f", {former} stopped and not configured any more" if former else "")


def provider_lines(status: Status) -> list[str]:
    """Of the provider, where there is one or should be: a sandbox that it made is heard."""
    if (heard := status.provider) is not None:
        at = heard.endpoint or "an endpoint that it does not name"
        return [f"sandboxes elsewhere are made at {at}, by provider {heard.pid}: {heard.status}"]
    elsewhere = [sandbox.endpoint for sandbox in status.sandboxes if sandbox.provider == "e2b"]
    if not elsewhere:
        return []
    known = sorted({endpoint or "an endpoint that their hosts do not name" for endpoint in elsewhere})
    return [f"no provider heard: nobody renews the lifetimes of the sandboxes at {' and '.join(known)}"]


def print_status(status: Status) -> None:
    """What `status` has gathered, as wide as there is room for."""
    out = console()
    watchdog = watchdogs_text(status)
    others = f" (and {status.decisions.of_others} of other writers)" if status.decisions.of_others else ""
    last = f", the newest for {status.decisions.last_at:%Y-%m-%d %H:%M} UTC" if status.decisions.last_at else ""
    mirror = "no mirror heard"
    if (heard := status.mirror) is not None:
        mirror = f"mirror {heard.status}: {heard.file}, {heard.behind} rows and {heard.behind_ms} ms behind"
    for line in (
        f"swarm {status.swarm} on {status.nats}",
        f"{agents_text(status)}; processes: {status.processes}; {watchdog}",
        f"decisions in the stream: {status.decisions.count}{last}{others}",
        mirror,
        *provider_lines(status),
        "",
    ):
        out.print(harmless(line), soft_wrap=True)
    rows: list[list[Cell]] = []
    for agent in status.agents:
        cells = (
            agent.kind, agent.sandbox, agent.pid, agent.epoch, agent.restarts, agent.heartbeat_age_ms, agent.cursor,
            agent.lag, agent.outputs,
        )  # fmt: skip
        rows.append([agent.name, state_text(agent.status), *("" if cell is None else str(cell) for cell in cells)])
    print_table(out, STATUS_COLUMNS, rows)
    for agent in status.agents:
        if agent.status == "external":
            out.print(_heard_of(agent), soft_wrap=True)
        elif agent.poison or agent.skipped:
            counts = f"{agent.poison or 0} poison messages set aside, {agent.skipped or 0} events skipped"
            out.print(harmless(f"{agent.name}: {counts}; the alerts name them"), soft_wrap=True)
    out.print()
    rows = [
        [
            sandbox.name, provider_text(sandbox.provider, sandbox.endpoint), state_text(sandbox.status),
            *_sandbox_cells(sandbox), tuple(sandbox.agents),
        ]
        for sandbox in status.sandboxes
    ]  # fmt: skip
    print_table(out, SANDBOX_COLUMNS, rows)
    for sandbox in status.sandboxes:
        if sandbox.status == GIVEN_UP:
            out.print(harmless(f"{given_up_text(sandbox)}; {GIVEN_UP_REMEDY}"), soft_wrap=True)


def _sandbox_cells(sandbox: SandboxStatus) -> list[str]:
    """Pid, uptime and health; nothing of one that has no host."""
    if sandbox.pid is None:
        return [""] * 8
    return [str(sandbox.pid), f"{sandbox.uptime_s or 0:.0f} s", *health_cells(sandbox.health)]


def health_cells(health: SandboxHealth) -> list[str]:
    """Availability, processes, CPU, memory, network and cost, for a table."""
    received, sent = health.rx_bytes, health.tx_bytes
    return [
        "" if health.availability is None else f"{100 * health.availability:.2f} %",
        "" if health.processes is None else str(health.processes),
        "" if health.cpu_percent is None else f"{health.cpu_percent:.1f} %",
        _memory(health),
        "not its own" if received is None or sent is None else f"{received / MIB:.1f}, {sent / MIB:.1f} MiB",
        health.price_source if health.cost is None else f"${health.cost:.4f} at ${health.price_per_hour:g}/h",
    ]


def _memory(health: SandboxHealth) -> str:
    """PSS, in MiB; where the system of the sandbox does not tell it, RSS, and that it is."""
    if health.pss_mb is not None:
        return f"{health.pss_mb:.0f}"
    return "" if health.rss_mb is None else f"RSS {health.rss_mb:.0f}"


def _heard_of(agent: AgentStatus) -> str:
    heard = "not heard: nothing of it is in the stream"
    if agent.outputs and agent.last_output_at:
        heard = (
            f"{agent.outputs} messages of it in the stream, the newest of {agent.last_output_at:%Y-%m-%d %H:%M:%S} UTC"
        )
    return harmless(f"{agent.name}: run by somebody else; {heard}")


def print_killing(result: Killing) -> None:
    """The timeline of `kill`, and what reading the stream back has found."""
    out = console()
    sent = f"signal {result.signal}" if result.signal.isdigit() else result.signal
    head = f"{sent} to {result.agent} (pid {result.pid}, sandbox {result.sandbox}): {result.outcome}"
    out.print(harmless(head), soft_wrap=True)
    revive = harmless(f"`signalmesh revive {result.agent}`")
    if result.outcome == "lives on":
        what = "nothing was sent" if result.signal == "0" else "it was sent"
        out.print(f"{what}, and the same process beats on as epoch {result.epoch_before}", soft_wrap=True)
        return
    if result.outcome == "drained":
        out.print(f"after {result.drained_ms:.1f} ms, as asked: it stays away until {revive}", soft_wrap=True)
        out.print(_verdict(result), soft_wrap=True)
        return
    if result.outcome == "quarantined":
        out.print(f"it has died too often and stays away until {revive}; its alert says more", soft_wrap=True)
    rows = []
    for step, meaning in KILL_STEPS.items():
        value = getattr(result, f"{step}_ms")
        rows.append(["not heard" if value is None else f"{value:.1f} ms", step.replace("_", " "), meaning])
    columns = (Column("after", right=True), Column("step"), Column("what was heard on the bus", 1))
    print_table(out, columns, rows)
    epochs = f"epoch {result.epoch_before} -> {result.epoch_after or 'none yet'}"
    replayed = "" if result.events_replayed is None else f", {result.events_replayed} inputs replayed"
    out.print(f"{epochs}{replayed}\n{_verdict(result)}", soft_wrap=True)


def _verdict(result: Killing) -> str:
    if result.outputs_checked is None:
        return "the stream could not be read back: whether anything was lost or doubled is not known"
    return (
        f"{result.outputs_lost} lost, {result.outputs_doubled} doubled, of {result.outputs_checked} outputs in "
        f"the stream since epoch {result.epoch_before}"
    )
