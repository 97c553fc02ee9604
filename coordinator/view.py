"""What a person sees: the live view of `up` on a terminal, plain lines elsewhere, and the tables of the verbs."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bus import headers as h
from bus.bus import Heard
from bus.errors import MessageError
from bus.messages import Alert, Decision, Lifecycle, Message, decode
from bus.nats_bus import NatsBus
from coordinator.gather import Listener, Status

if TYPE_CHECKING:
    from coordinator.killing import Killing
    from coordinator.up import Up

REFRESH_S = 0.25
SHOWN_DECISIONS = 12
SHOWN_EVENTS = 6
STALE_S = 1.0
"""A heartbeat older than this is shown as silence."""
COLOURS = {"buy": "green", "sell": "red", "hold": "yellow"}


def line_of(message: Message, subject: str, sequence: str) -> str:
    """One plain line for a message, as `watch` and a piped `up` print it."""
    if isinstance(message, Decision):
        absent = f" absent={','.join(message.absent)}" if message.absent else ""
        return (
            f"{message.timestamp:%Y-%m-%d %H:%M} decision {message.symbol} round={message.round} "
            f"{message.final_decision} size={message.position_size:.4f} risk={message.risk_score:.4f} "
            f"consensus={message.consensus_level:.4f} voters={len(message.agents_consulted)}{absent}"
        )
    if isinstance(message, Lifecycle):
        parts = [f"{message.timestamp:%H:%M:%S.%f}"[:-3], "lifecycle", message.agent, message.event]
        known = {name: getattr(message, name) for name in ("epoch", "sandbox", "pid", "reason")}
        details = {**known, **message.detail}
        return " ".join([*parts, *(f"{key}={value}" for key, value in details.items() if value is not None)])
    if isinstance(message, Alert):
        return f"{message.timestamp:%H:%M:%S} ALERT {message.severity} {message.code}: {message.message}"
    return f"{subject} {sequence}".rstrip()


def _parse(bus: NatsBus, heard: Heard) -> Message | None:
    try:
        return decode(bus.subjects.parse(heard.subject), heard.subject, heard.data)
    except MessageError:
        return None


async def watch_bus(bus: NatsBus, kind: str | None, as_json: bool) -> None:
    """Print what is stored (and, for `heartbeat`, what is merely said) until interrupted."""

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
            print(orjson.dumps(record).decode(), flush=True)
            return
        message = _parse(bus, heard)
        text = heard.data.decode(errors="replace")
        if isinstance(message, (Decision, Lifecycle, Alert)):
            print(line_of(message, heard.subject, sequence or ""), flush=True)
        else:
            print(f"{heard.subject} {text}", flush=True)

    subjects = bus.subjects
    await bus.listen(f"{subjects.ns}.>" if kind is None else subjects.all_of(kind), on_heard)
    await asyncio.Event().wait()


def viewer(as_json: bool) -> Callable[[Up, asyncio.Event], Any]:
    """How `up` shows what happens: live on a terminal, else line by line."""
    if as_json:
        return lambda up, _stop: watch_bus(up.bus, None, True)
    return _live_view if sys.stdout.isatty() else _lines


async def _lines(up: Up, stop: asyncio.Event) -> None:
    print(f"swarm {up.config.swarm} on {up.bus.url}; {_how_to_follow(up)}", flush=True)

    async def on_heard(heard: Heard) -> None:
        message = _parse(up.bus, heard)
        if message is not None:
            print(line_of(message, heard.subject, heard.headers.get(h.SEQUENCE, "")), flush=True)

    for kind in ("decision", "lifecycle", "alert"):
        await up.bus.listen(up.bus.subjects.all_of(kind), on_heard)
    await stop.wait()


def _how_to_follow(up: Up) -> str:
    return f"follow it with: nats sub -s {up.bus.url} '{up.config.swarm}.decision.>'"


class _Live:
    def __init__(self, up: Up) -> None:
        self._up = up
        self._listener = Listener(up.bus)
        self.decisions: deque[Decision] = deque(maxlen=SHOWN_DECISIONS)
        self.events: deque[str] = deque(maxlen=SHOWN_EVENTS)
        self.count = 0
        self.claims: Counter[str] = Counter()

    async def start(self) -> None:
        await self._listener.start()
        for kind in ("decision", "lifecycle", "alert"):
            await self._up.bus.listen(self._up.bus.subjects.all_of(kind), self._on_heard)

    async def _on_heard(self, heard: Heard) -> None:
        message = _parse(self._up.bus, heard)
        if isinstance(message, Decision):
            self.count += 1
            self.decisions.append(message)
        elif isinstance(message, (Lifecycle, Alert)):
            if isinstance(message, Lifecycle) and message.event == "declared_dead":
                self.claims[message.agent] += 1
            self.events.append(line_of(message, heard.subject, ""))

    def render(self) -> Group:
        time = asyncio.get_running_loop().time()
        up = self._up
        head = Text(f"signalmesh · swarm {up.config.swarm} · {up.bus.url} · {self.count} decisions heard · Ctrl-C ends")
        return Group(
            head, self._agents(time), self._sandboxes(time), self._decided(), Text("\n".join(self.events)),
            Text(_how_to_follow(up), style="dim"),
        )  # fmt: skip

    def _agents(self, time: float) -> Table:
        table = Table(title="agents", title_justify="left", expand=True)
        for column in ("agent", "kind", "state", "sandbox", "pid", "epoch", "inputs behind", "outputs", "deaths seen"):
            table.add_column(column)
        for settings in self._up.config.agents:
            name = settings.spec.name
            heard_at, beat = self._listener.agents.get(name, (None, None))
            if beat is None or heard_at is None:
                unheard = "external" if settings.external else "not heard yet"
                table.add_row(name, settings.spec.kind, unheard, "", "", "", "", "", "")
                continue
            silent_s = time - heard_at
            state = Text(beat.status, "green") if silent_s < STALE_S else Text(f"silent {silent_s:.1f} s", "red")
            table.add_row(
                name, settings.spec.kind, state, beat.sandbox, str(beat.pid), str(beat.epoch), str(beat.lag),
                str(beat.outputs), str(self.claims[name]),
            )  # fmt: skip
        return table

    def _sandboxes(self, time: float) -> Table:
        table = Table(title="sandboxes", title_justify="left", expand=True)
        for column in ("sandbox", "provider", "state", "host pid", "up", "agents"):
            table.add_column(column)
        for sandbox in self._up.config.sandboxes:
            heard_at, beat = self._listener.hosts.get(sandbox.name, (None, None))
            if beat is None or heard_at is None:
                table.add_row(sandbox.name, sandbox.provider, "not heard yet", "", "", "")
                continue
            silent_s = time - heard_at
            state = Text(beat.status, "green") if silent_s < STALE_S else Text(f"silent {silent_s:.1f} s", "red")
            running = ", ".join(child.agent for child in beat.inventory or () if child.exit_code is None)
            table.add_row(
                sandbox.name, beat.provider or "", state, str(beat.pid), f"{beat.uptime_s or 0:.0f} s", running
            )
        return table

    def _decided(self) -> Table:
        table = Table(title="last decisions", title_justify="left", expand=True)
        for column in ("time of candle", "symbol", "round", "decision", "size", "risk", "consensus", "absent"):
            table.add_column(column)
        for decision in self.decisions:
            table.add_row(
                f"{decision.timestamp:%Y-%m-%d %H:%M}",
                decision.symbol or "",
                str(decision.round),
                Text(decision.final_decision, COLOURS[decision.final_decision]),
                f"{decision.position_size:.4f}",
                f"{decision.risk_score:.4f}",
                f"{decision.consensus_level:.4f}",
                ", ".join(decision.absent),
            )
        return table


async def _live_view(up: Up, stop: asyncio.Event) -> None:
    shown = _Live(up)
    await shown.start()
    with Live(shown.render(), console=Console(), auto_refresh=False, screen=False) as live:
        while not stop.is_set():
            live.update(shown.render(), refresh=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_S):
                    await stop.wait()


def print_status(status: Status) -> None:
    """The tables of `status`."""
    console = Console()
    watchdog = f"watchdog leads with term {status.watchdog_term}" if status.watchdog_term else "no watchdog heard"
    console.print(
        f"swarm {status.swarm} on {status.nats}: {status.active_agents} active agents, {status.processes} processes, "
        f"{len(status.sandboxes)} sandboxes; {watchdog}"
    )
    agents = Table()
    for column in ("agent", "kind", "state", "epoch", "pid", "sandbox", "restarts", "beat, ms ago", "cursor", "lag"):
        agents.add_column(column)
    for agent in status.agents:
        cells = (
            agent.name, agent.kind, agent.status, agent.epoch, agent.pid, agent.sandbox, agent.restarts,
            agent.heartbeat_age_ms, agent.cursor, agent.lag,
        )  # fmt: skip
        agents.add_row(*("" if cell is None else str(cell) for cell in cells))
    console.print(agents)
    sandboxes = Table()
    for column in ("sandbox", "provider", "state", "pid", "up, s", "agents"):
        sandboxes.add_column(column)
    for sandbox in status.sandboxes:
        sandboxes.add_row(
            sandbox.name, sandbox.provider or "", sandbox.status, str(sandbox.pid), f"{sandbox.uptime_s or 0:.0f}",
            ", ".join(sandbox.agents),
        )  # fmt: skip
    console.print(sandboxes)
    last = f", the last one for {status.decisions.last_at:%Y-%m-%d %H:%M} UTC" if status.decisions.last_at else ""
    console.print(f"decisions in the stream: {status.decisions.count}{last}")


def print_killing(result: Killing) -> None:
    """The timeline of `kill`."""
    console = Console()
    console.print(f"{result.signal} to {result.agent} (pid {result.pid}, sandbox {result.sandbox}): {result.outcome}")
    table = Table()
    table.add_column("what was heard")
    table.add_column("ms after the signal", justify="right")
    for name in ("detected", "claimed", "spawned", "restored", "ready", "first_output"):
        value = getattr(result, f"{name}_ms")
        table.add_row(name.replace("_", " "), "not heard" if value is None else f"{value:.1f}")
    console.print(table)
    console.print(
        f"epoch {result.epoch_before} -> {result.epoch_after}, {result.events_replayed} events replayed; of "
        f"{result.outputs_checked} outputs in the stream since: {result.outputs_lost} lost, "
        f"{result.outputs_doubled} doubled"
    )
