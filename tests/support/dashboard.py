"""A real dashboard process, a client of its event stream, and messages for it to show."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import re
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bus.messages import Alert, Decision, Lifecycle, MarketData, encode
from bus.messages.headers import CAUSE, EPOCH, OUTPUT
from bus.nats.bus import NatsBus
from bus.utils.processes import die_with_parent
from signalmesh import python_command
from tests.support.collecting import GUARD_S
from tests.support.reporters import reporter_of

START_S = 60.0
"""Its imports alone can take long on a busy machine."""
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


class DashboardProcess:
    """`signalmesh dashboard --listen 127.0.0.1:0` with further options; `said` is what it has printed at its start."""

    def __init__(self, process: asyncio.subprocess.Process, state_dir: Path) -> None:
        self.process, self.state_dir = process, state_dir
        self.said: list[str] = []
        self.url = ""

    @property
    def token(self) -> str:
        return (self.state_dir / "dashboard.token").read_text().strip()

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or 0

    async def read_url(self) -> None:
        assert self.process.stderr is not None
        while not self.url:
            line = (await self.process.stderr.readline()).decode()
            assert line, "".join(self.said)
            self.said.append(line)
            if found := re.search(r"dashboard: (http://\S+)", line):
                self.url = found[1].rstrip("/")
        while True:  # the port is open before that, and answers once the application is made
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(*self.address)
                writer.close()
                return

    async def logged(self, event: str) -> None:
        """Wait until its log has an event."""
        assert self.process.stderr is not None
        async with asyncio.timeout(GUARD_S):
            while event not in (line := (await self.process.stderr.readline()).decode()):
                assert line, "".join(self.said)
                self.said.append(line)
            self.said.append(line)

    async def end(self) -> str:
        """SIGTERM; its log, once it has ended with exit code 0."""
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(GUARD_S):
            _, rest = await self.process.communicate()
        text = "".join(self.said) + rest.decode()
        assert self.process.returncode == 0, text
        assert "Traceback" not in text, text
        return text


@asynccontextmanager
async def dashboard_process(
    tmp_path: Path, url: str | None, *options: str, listen: str = "127.0.0.1:0"
) -> AsyncIterator[DashboardProcess]:
    """A dashboard of the server at `url`, with the state directory `tmp_path`/state."""
    state_dir = tmp_path / "state"
    state_dir.mkdir(exist_ok=True)
    bus = () if url is None else ("--nats", url)
    process = await asyncio.create_subprocess_exec(
        *python_command("dashboard", "--listen", listen, "--state-dir", str(state_dir), *bus, *options),
        cwd=tmp_path,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=functools.partial(die_with_parent, os.getpid()),
    )
    dashboard = DashboardProcess(process, state_dir)
    try:
        async with asyncio.timeout(START_S):
            await dashboard.read_url()
        yield dashboard
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@dataclass
class Event:
    name: str
    data: Any
    id: str | None = None


@dataclass
class EventClient:
    """Reads an event stream as a browser does."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    status: int
    events: list[Event] = field(default_factory=list)

    async def next(self) -> Event:
        name, data, number = "message", "", None
        while True:
            line = (await self.reader.readline()).decode()
            if not line:
                raise EOFError
            word, _, rest = line.rstrip("\r\n").partition(": ")
            if word == "event":
                name = rest
            elif word == "data":
                data += rest
            elif word == "id":
                number = rest
            elif line in ("\n", "\r\n") and data:
                event = Event(name, json.loads(data), number)
                self.events.append(event)
                return event

    async def until(self, name: str, **fields: Any) -> Event:
        """The next event of this name with these fields."""
        async with asyncio.timeout(GUARD_S):
            while True:
                event = await self.next()
                if event.name == name and all(event.data.get(key) == value for key, value in fields.items()):
                    return event


@asynccontextmanager
async def event_stream(address: tuple[str, int], query: str = "", **headers: str) -> AsyncIterator[EventClient]:
    host, port = address
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 26)
    try:
        # HTTP/1.0: the body is not in chunks then.
        lines = [f"GET /events{query} HTTP/1.0", f"Host: {host}:{port}", *(f"{k}: {v}" for k, v in headers.items())]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        async with asyncio.timeout(GUARD_S):
            status = int((await reader.readline()).split()[1])
            while (await reader.readline()).strip():
                pass
        yield EventClient(reader, writer, status)
    finally:
        writer.close()


@contextmanager
def stalled_client(address: tuple[str, int], path: str, times: int = 1) -> Iterator[socket.socket]:
    """A connection that sends requests and reads nothing."""
    with socket.create_connection(address) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, port = address
        one.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode() * times)
        yield one


async def put(
    bus: NatsBus, kind: str, topic: str, writer: str, message: Any, headers: dict[str, str] | None = None
) -> int:
    """Store a message; its sequence."""
    subject = bus.subjects.write(bus.subjects.event(kind, topic, writer))
    data = message if isinstance(message, bytes) else encode(message)
    return (await bus.publish(subject, data, headers)).sequence


async def put_output(bus: NatsBus, agent: str, number: int, epoch: int) -> int:
    """Store an output of an agent with its number and epoch; its sequence."""
    return await put(bus, "signal", "BTC/USD", agent, b"{}", {OUTPUT: str(number), EPOCH: str(epoch)})


async def put_death(bus: NatsBus, agent: str) -> int:
    """Store a life, a death and a return of `agent`, with output 4 lost and 6 duplicated; the sequence of the death."""
    for number in (1, 2, 3):
        await put_output(bus, agent, number, 3)
    await put_lifecycle(bus, "suspected", agent, epoch=3, sandbox="base", detail={"silent_ms": 400})
    dead = await put_lifecycle(bus, "declared_dead", agent, epoch=3, sandbox="base", pid=7, reason="signal 9")
    await put_lifecycle(bus, "spawned", agent, epoch=9, sandbox="base", pid=8)
    await put_lifecycle(bus, "ready", agent, epoch=9, sandbox="base", detail={"replayed": 2})
    for number in (5, 6, 6):
        await put_output(bus, agent, number, 9)
    return dead


async def put_round(bus: NatsBus, number: int, symbol: str = "BTC/USD") -> tuple[int, int]:
    """Store a tick and its decision; their sequences."""
    at = BEGIN + timedelta(hours=number)
    tick = MarketData(
        symbol=symbol, price=100.0 + number, volume=1.0, timestamp=at, source="research-1", sequence=number
    )
    cause = await put(bus, "market", symbol, "research-1", tick)
    decision = Decision(
        final_decision="buy",
        position_size=0.1,
        risk_score=0.2,
        consensus_level=0.8,
        agents_consulted=("momentum",),
        timestamp=at,
        source="coordinator",
        decision_id=f"{symbol}:research-1:{number}",
        symbol=symbol,
        round=number,
    )
    return cause, await put(bus, "decision", symbol, "coordinator", decision, {CAUSE: str(cause)})


async def put_lifecycle(bus: NatsBus, event: Any, agent: str, **fields: Any) -> int:
    writer = reporter_of(event, agent)
    message = Lifecycle(event=event, agent=agent, timestamp=datetime.now(UTC), source=writer, **fields)
    return (await bus.publish(bus.subjects.write(bus.subjects.lifecycle(agent, writer)), encode(message))).sequence


async def put_alert(bus: NatsBus, text: str) -> int:
    message = Alert(severity="warning", code="test", message=text, timestamp=datetime.now(UTC), source="up")
    return (await bus.publish(bus.subjects.write(bus.subjects.alert("warning", "up")), encode(message))).sequence
