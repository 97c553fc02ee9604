"""The live view of `up` on a terminal: agents, sandboxes, decisions and events, all of it received from the bus."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bus.heartbeats import HeartbeatListener
from bus.interface import ReceivedMessage
from bus.messages import Alert, Decision, Lifecycle
from bus.utils.terminal import escape_control
from coordinator.monitor.message_lines import how_to_follow, parse, reporter_of
from coordinator.reporting.tables import Cell, Column, console, fitted, state_text
from coordinator.sandboxes.environment import provider_text

if TYPE_CHECKING:
    from coordinator.runner.up import Up

REFRESH_S = 0.25
MAX_DECISIONS = 12
MAX_EVENTS = 6
MIN_ROWS = 3
"""The least number of decisions and events shown, in a terminal that can hold them at all."""
RATE_S = 5.0
"""Decisions per second are counted over this time."""
STALE_S = 1.0
"""A heartbeat older than this is shown as silence."""
COLOURS = {"buy": "green", "sell": "red", "hold": "yellow"}
AGENT_COLUMNS = (
    Column("agent"), Column("kind", 5), Column("state"), Column("sandbox", 1), Column("pid", 2, right=True),
    Column("epoch", 6, right=True), Column("unread", 4, right=True), Column("outputs", 7, right=True),
    Column("deaths", 3, right=True),
)  # fmt: skip
SANDBOX_COLUMNS = (
    Column("sandbox"), Column("provider", 3), Column("state"), Column("pid", 2, right=True),
    Column("up", 4, right=True), Column("agents", 1),
)  # fmt: skip
DECISION_COLUMNS = (
    Column("candle (UTC)", 2), Column("symbol"), Column("round", 4, right=True), Column("decision"),
    Column("size", right=True), Column("risk", 3, right=True), Column("consensus", 1, right=True),
    Column("voters", 5, right=True), Column("absent", 6),
)  # fmt: skip


def event_line(message: Lifecycle | Alert) -> str:
    """A short line for the live view: time, agent or writer of an alert, event, and its reason or amount."""
    if isinstance(message, Alert):
        return f"{message.timestamp:%H:%M:%S}  {message.severity.upper()} by {message.source}: {message.message}"
    known = {"replayed": "inputs replayed", "cursor": "inputs up to message", "silent_ms": "silent, ms"}
    details = [f"{text}: {message.detail[key]}" for key, text in known.items() if message.detail.get(key) is not None]
    by = reporter_of(message)
    details = [*([message.reason] if message.reason else []), *details[:1], *([f"reported by {by}"] if by else [])]
    why = "; ".join(details)
    what = message.event.replace("_", " ")
    return f"{message.timestamp:%H:%M:%S.%f}"[:-3] + f"  {message.agent} {what}" + (f" ({why})" if why else "")


class LiveView:
    def __init__(self, up: Up) -> None:
        self._up = up
        self._listener = HeartbeatListener(up.bus)
        self.decisions: deque[Decision] = deque(maxlen=MAX_DECISIONS)
        self.events: deque[str] = deque(maxlen=MAX_EVENTS)
        self.count = 0
        self.counted: deque[tuple[float, int]] = deque(maxlen=round(RATE_S / REFRESH_S))
        self.deaths: Counter[str] = Counter()

    async def start(self) -> None:
        await self._listener.start()
        for kind in ("decision", "lifecycle", "alert"):
            await self._up.bus.listen(self._up.bus.subjects.all_of(kind), self._on_message)

    async def _on_message(self, received: ReceivedMessage) -> None:
        message = parse(self._up.bus, received)
        if isinstance(message, Decision):
            deciders = self._up.config.deciders
            if deciders and message.source not in deciders:
                return  # of another writer: not a decision of this swarm
            self.count += 1
            self.decisions.append(message)
        elif isinstance(message, (Lifecycle, Alert)):
            if isinstance(message, Lifecycle) and message.event == "declared_dead":
                self.deaths[message.agent] += 1
            self.events.append(event_line(message))

    def render(self, width: int, height: int) -> Group:
        """The whole view, in at most `height` lines if possible."""
        time = asyncio.get_running_loop().time()
        self.counted.append((time, self.count))
        since, before = self.counted[0]
        rate = f", {(self.count - before) / (time - since):.1f} per second" if time > since else ""
        up = self._up
        head = Text(f"signalmesh · swarm {up.config.swarm} · {up.bus.url} · Ctrl-C ends it, its state stays", "bold")
        total = Text(f"{self.count} decisions received{rate}")
        foot = Text(how_to_follow(up), "dim")
        parts: list[Text | Table] = [head, total, Text(), self._agents(time, width)]
        # The lines above and below, blanks, the heads of two tables, and one line for the cursor.
        room = height - len(up.config.agents) - 12
        sandboxes = len(up.config.sandboxes) + 3
        if room >= sandboxes + 2 * MIN_ROWS + 2:
            parts += [Text(), self._sandboxes(time, width)]
            room -= sandboxes
        events = max(MIN_ROWS, min(MAX_EVENTS, room // 3))
        shown = max(MIN_ROWS, min(MAX_DECISIONS, room - events))
        parts += [Text(), self._decided(shown, width), Text()]
        parts += [Text(escape_control(line), no_wrap=True, overflow="ellipsis") for line in [*self.events][-events:]]
        for text in (head, total, foot):
            text.no_wrap, text.overflow = True, "ellipsis"
        return Group(*parts, Text(), foot)

    def _agents(self, time: float, width: int) -> Table:
        rows: list[list[Cell]] = []
        for settings in self._up.config.agents:
            name, kind = settings.spec.name, settings.spec.kind
            received_at, heartbeat = self._listener.agents.get(name, (None, None))
            if heartbeat is None or received_at is None:
                state = "external" if settings.external else "no heartbeat yet"
                rows.append([name, kind, state, *[""] * (len(AGENT_COLUMNS) - 3)])
                continue
            rows.append([
                name, kind, _state(heartbeat.status, time - received_at), heartbeat.sandbox, str(heartbeat.pid),
                str(heartbeat.epoch), str(heartbeat.lag), str(heartbeat.outputs), str(self.deaths[name]),
            ])  # fmt: skip
        return fitted(AGENT_COLUMNS, rows, width)

    def _sandboxes(self, time: float, width: int) -> Table:
        rows: list[list[Cell]] = []
        for sandbox in self._up.config.sandboxes:
            received = self._listener.hosts.values()
            hosts = [
                (at, heartbeat) for at, heartbeat in received if sandbox.name in (heartbeat.agent, heartbeat.group)
            ]
            received_at, heartbeat = max(
                hosts, key=lambda entry: entry[0], default=(None, None)
            )  # the one that serves it now
            if heartbeat is None or received_at is None:
                provider = self._listener.provider
                provider_cell = provider_text(sandbox.provider, provider.heartbeat.endpoint if provider else None)
                rows.append([sandbox.name, provider_cell, "no heartbeat yet", "", "", ""])
                continue
            running = tuple(child.agent for child in heartbeat.inventory or () if child.exit_code is None)
            provider_cell = provider_text(heartbeat.provider, heartbeat.endpoint)
            rows.append([
                heartbeat.agent, provider_cell, _state(heartbeat.status, time - received_at), str(heartbeat.pid),
                f"{heartbeat.uptime_s or 0:.0f} s", running,
            ])  # fmt: skip
        return fitted(SANDBOX_COLUMNS, rows, width)

    def _decided(self, count: int, width: int) -> Table:
        rows: list[list[Cell]] = [
            [
                f"{decision.timestamp:%Y-%m-%d %H:%M}",
                decision.symbol or "",
                str(decision.round),
                Text(decision.final_decision, COLOURS[decision.final_decision]),
                f"{decision.position_size:.4f}",
                f"{decision.risk_score:.4f}",
                f"{decision.consensus_level:.4f}",
                str(len(decision.agents_consulted)),
                ", ".join(decision.absent),
            ]
            for decision in [*self.decisions][-count:]
        ]
        return fitted(DECISION_COLUMNS, rows, width)


def _state(status: str, silent_s: float) -> Text:
    return state_text(status if silent_s < STALE_S else f"silent {silent_s:.1f} s")


async def live_view(up: Up, stop: asyncio.Event) -> None:
    view = LiveView(up)
    out = console()
    await view.start()
    try:
        with Live(view.render(*out.size), console=out, auto_refresh=False, screen=False) as live:
            while not stop.is_set():
                live.update(view.render(*out.size), refresh=True)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(REFRESH_S):
                        await stop.wait()
    finally:
        print("ending: the agents drain and save their state; the next `up` continues from it", flush=True)
