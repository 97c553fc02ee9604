"""A swarm started by its own command line, as a user would, and a plain nats-py client that subscribes from outside."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg

from bus.nats.bus import NatsBus
from bus.nats.credentials import Credentials
from coordinator.runner.run_record import Run, read_run
from coordinator.security.keys import OPERATOR, KeyStore
from signalmesh import python_command

START_S = 30.0
AGENTS = ("research-1", "research-2", "strategy-momentum", "strategy-mean-reversion", "coordinator")
"""Agents of the default swarm, killed in this order."""
DECISIONS = "swarm.decision.*.*"
TICKS = "swarm.market.*.*"
CONFIG = """
[agents.research-1]
kind = "market-data"
options = {{ speed = {speed}, limit = {limit} }}
[agents.research-2]
kind = "sentiment"
[agents.strategy-momentum]
kind = "momentum"
[agents.strategy-mean-reversion]
kind = "mean-reversion"
[agents.coordinator]
kind = "coordinator"
"""
"""The default swarm with a source that ends."""


@dataclass(slots=True)
class Swarm:
    """A running swarm; `started_at` is time.monotonic() just before its process was started."""

    process: subprocess.Popen[bytes]
    url: str
    state_dir: Path
    client: Client
    started_at: float
    server_up_s: float

    credentials: Credentials
    """The operator's; none with SIGNALMESH_AUTHENTICATION=open."""

    async def connect(self) -> NatsBus:
        """A connection of the operator."""
        return await NatsBus.connect(self.url, "swarm", "bench", credentials=self.credentials)


@asynccontextmanager
async def scratch() -> AsyncIterator[Path]:
    """A directory of its own that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="signalmesh-bench-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@asynccontextmanager
async def swarm(
    speed: float,
    *,
    limit: int | None = None,
    files: dict[str, str] | None = None,
    environment: dict[str, str] | None = None,
    agents: int | None = None,
) -> AsyncIterator[Swarm]:
    """`signalmesh up --port 0 --speed SPEED` in a new state directory; `limit` ends the source after that many candles.

    `files` are written to its working directory; a `swarm.toml` among them is used. `environment` is added to this
    process's environment without its OTEL_* variables.
    """
    async with scratch() as directory:
        for name, text in (files or {}).items():
            (directory / name).write_text(text)
        state = directory / "state"
        command = python_command("up", "--port", "0", "--no-dashboard", "--state-dir", str(state))
        if limit is None:
            command += ["--speed", str(speed)]
        else:
            config = directory / "swarm.toml"
            config.write_text(CONFIG.format(speed=speed, limit=limit))
            command += ["--config", str(config)]
        own = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
        variables = {**own, **(environment or {})}
        if agents is not None:
            command += ["--agents", str(agents)]
        output = directory / "up.log"
        with output.open("wb") as log:
            started_at = time.monotonic()
            process = subprocess.Popen(  # noqa: ASYNC220
                command, cwd=directory, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        client = None
        try:
            run = await _run(state, process, output)
            server_up_s = time.monotonic() - started_at
            is_open = run.authentication == "open"
            credentials = Credentials(nkey_seed="" if is_open else KeyStore(state).seed(OPERATOR))
            client = await nats.connect(run.url, name="bench", **credentials.options(run.url))
            yield Swarm(process, run.url, state, client, started_at, server_up_s, credentials)
        finally:
            if client is not None:
                with contextlib.suppress(Exception):
                    await client.close()
            process.terminate()
            await asyncio.to_thread(process.wait)


async def _run(state_dir: Path, process: subprocess.Popen[bytes], output: Path) -> Run:
    async with asyncio.timeout(START_S):
        while (run := read_run(state_dir)) is None:
            if process.poll() is not None:
                text = await asyncio.to_thread(output.read_text)
                raise RuntimeError(f"`signalmesh up` ended with {process.returncode}: {text[-2000:]}")
            await asyncio.sleep(0.002)
    return run


class Rounds:
    """An outside core subscriber: when it received each round's tick and decision (monotonic seconds)."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self.ticks: dict[int, float] = {}
        self.decisions: dict[int, float] = {}
        self.sizes: dict[str, int] = {}
        self.started = asyncio.Event()
        self.done = asyncio.Event()

    async def on_tick(self, msg: Msg) -> None:
        at = time.monotonic()
        number = orjson.loads(msg.data)["sequence"]
        if number >= self.first:
            self.ticks[number] = at
            self.sizes["tick"] = len(msg.data)

    async def on_decision(self, msg: Msg) -> None:
        at = time.monotonic()
        number = orjson.loads(msg.data)["round"]
        if number >= self.first:
            self.started.set()
            self.decisions[number] = at
            self.sizes["decision"] = len(msg.data)
            if number >= self.last:
                self.done.set()

    def latencies_ms(self) -> list[float]:
        """From receiving the tick to receiving the decision of its round."""
        rounds = range(self.first, self.last + 1)
        return [(self.decisions[n] - self.ticks[n]) * 1000 for n in rounds if n in self.ticks and n in self.decisions]

    def rate(self) -> float:
        """Decisions a second between the first and the last of the measured rounds."""
        return (self.last - self.first) / (self.decisions[self.last] - self.decisions[self.first])


async def first_message(client: Client, subject: str) -> Callable[[], Any]:
    """Subscribe now; the returned function waits for the first message and returns its arrival (monotonic s)."""
    received: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def on_msg(_: Msg) -> None:
        if not received.done():
            received.set_result(time.monotonic())

    await client.subscribe(subject, cb=on_msg)
    await client.flush()

    async def wait() -> float:
        async with asyncio.timeout(START_S):
            return await received

    return wait
