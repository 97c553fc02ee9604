"""A whole swarm as its user has it: the console script in a directory of its own, its processes, its state.

Whatever is started here ends with its context, by pid. Nothing waits by sleeping: an end is waited for by pidfd, all
else by messages on the bus (tests/acceptance/subscriber.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import psutil
import pytest

from bus.nats.credentials import SEED_VARIABLE
from bus.utils.processes import die_with_parent, wait_pid_exit
from coordinator.security.keys import KeyStore
from coordinator.security.tls_files import TlsFiles
from tests.acceptance.subscriber import Subscriber

SIGNALMESH = Path(sys.executable).with_name("signalmesh")
GUARD_S = 60.0
"""A wait that takes so long has failed; nothing here is expected to take a tenth of it."""
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith(("SIGNALMESH_", "OTEL_"))}
ENVIRONMENT["PYTHONFAULTHANDLER"] = "1"
TEMPORARY = tempfile.TemporaryDirectory(prefix="signalmesh-tests-")
ENVIRONMENT["TMPDIR"] = TEMPORARY.name
"""Of this test process alone: `doctor` reports what other runs have left in the machine's own."""

AUTHENTICATION = os.environ.get("ACCEPTANCE_AUTHENTICATION", "")
"""`open`: the swarms of these tests have no keys (CONTRIBUTING.md)."""
if AUTHENTICATION:
    ENVIRONMENT["SIGNALMESH_AUTHENTICATION"] = AUTHENTICATION

AGENTS = ("research-1", "research-2", "strategy-momentum", "strategy-mean-reversion", "coordinator")
VOTERS = ("research-2", "strategy-momentum", "strategy-mean-reversion")
SANDBOXES = ("base", "nodejs", "python")


BREAKOUT = """\
from dataclasses import dataclass, field
from agents.agent import Agent
from bus.messages import MarketData, Signal

class Breakout(Agent):
    kind = "breakout"
    listens = ("market",)

    @dataclass
    class State:
        highs: list[float] = field(default_factory=list)

    def on_market(self, tick: MarketData) -> Signal:
        highs = self.state.highs = [*self.state.highs, tick.high or tick.price][-20:]
        return self.signal(tick, "buy" if tick.price >= max(highs) else "hold", 0.6)
"""
"""A module with an agent of a user's own."""


def agents_toml(**source_options: float) -> str:
    """The default agents, with options for the source of candles."""
    options = ", ".join(f"{key} = {value}" for key, value in source_options.items())
    return f"""
[agents.research-1]
kind = "market-data"
sandbox = "base"
options = {{ {options} }}
[agents.research-2]
kind = "sentiment"
sandbox = "nodejs"
[agents.strategy-momentum]
kind = "momentum"
sandbox = "nodejs"
[agents.strategy-mean-reversion]
kind = "mean-reversion"
sandbox = "python"
[agents.coordinator]
kind = "coordinator"
sandbox = "python"
"""


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


async def run_command(
    directory: Path, *arguments: str, guard_s: float = GUARD_S, environment: Mapping[str, str] | None = None
) -> Finished:
    """Run `signalmesh ARGUMENTS` in `directory` to its end; never a traceback."""
    process = await asyncio.create_subprocess_exec(
        str(SIGNALMESH),
        *arguments,
        cwd=directory,
        env={**ENVIRONMENT, **(environment or {})},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=functools.partial(die_with_parent, os.getpid()),
    )
    communicating = asyncio.create_task(process.communicate())
    await asyncio.wait({communicating}, timeout=guard_s)
    if not communicating.done():
        process.send_signal(signal.SIGABRT)  # faulthandler prints its stack
    out, err = await communicating
    assert process.returncode is not None
    assert process.returncode != -signal.SIGABRT, f"{arguments} did not end: {err.decode()}"
    assert "Traceback" not in err.decode() + out.decode(), err.decode()
    return Finished(process.returncode, out.decode(), err.decode())


class Ends:
    """The ends of processes, watched from now on; so that no later process of the same pid can be taken for them."""

    def __init__(self, pids: Iterable[int]) -> None:
        self.pids = tuple(pids)
        self._tasks = [asyncio.create_task(wait_pid_exit(pid)) for pid in self.pids]

    @classmethod
    async def of(cls, *pids: int) -> Self:
        ends = cls(pids)
        await asyncio.sleep(0)  # each task opens its pidfd
        return ends

    async def all(self) -> None:
        """Wait until every one has ended."""
        try:
            async with asyncio.timeout(GUARD_S):
                await asyncio.gather(*self._tasks)
        except TimeoutError:
            left = [pid for pid, task in zip(self.pids, self._tasks, strict=True) if task.cancelled()]
            raise AssertionError(f"still running: {[describe(pid) for pid in left]}") from None


def describe(pid: int) -> str:
    try:
        return f"{pid}: {' '.join(psutil.Process(pid).cmdline())}"
    except psutil.NoSuchProcess:
        return f"{pid}: gone"


class Swarm:
    """`signalmesh up` in `directory`, with the swarm.toml `toml`. Started by `up`, as often as one likes."""

    def __init__(
        self, directory: Path, toml: str = "", name: str = "swarm", environment: Mapping[str, str] | None = None
    ) -> None:
        self.directory, self.name = directory, name
        self.environment = {**ENVIRONMENT, **(environment or {})}
        directory.mkdir(parents=True, exist_ok=True)
        if toml:
            (directory / "swarm.toml").write_text(toml)
        self.url = ""
        self.process: asyncio.subprocess.Process
        self._last_lines: deque[str] = deque(maxlen=6)
        self._drains: list[asyncio.Task[None]] = []
        self._key = pytest.MonkeyPatch()
        self._subscribers: list[Subscriber] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._tell()
        await self._close_subscribers()
        self._key.undo()
        if hasattr(self, "process"):
            all_agents = [] if self.process.returncode is not None else self.all_agents()
            ends = await Ends.of(*(process.pid for process in all_agents))
            for process in all_agents:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()  # psutil makes sure that it is no later process of the same pid
            await ends.all()
            await self.process.wait()
            await asyncio.gather(*self._drains)

    async def _close_subscribers(self) -> None:
        for subscriber in self._subscribers:
            await subscriber.close()
        self._subscribers.clear()

    def _tell(self) -> None:
        """Where it stood; pytest shows this with a failure."""
        print(f"-- {self.directory}")  # noqa: T201
        print(*self._last_lines, sep="\n")  # noqa: T201
        for path in (self.directory / "up.err", *(self.directory / ".signalmesh" / "logs").glob("*.log")):
            lines = path.read_text(errors="replace").splitlines() if path.exists() else []
            print(f"-- {path.name}, last lines", *lines[-12:], sep="\n")  # noqa: T201

    # -- running

    async def up(
        self,
        *arguments: str,
        port: str = "0",
        dashboard: bool = False,
        stdin: int | IO[bytes] = asyncio.subprocess.DEVNULL,
    ) -> Subscriber:
        """Start it; returns a subscriber that was there before the first agent."""
        with (self.directory / "up.err").open("ab") as errors:
            self.process = await asyncio.create_subprocess_exec(
                str(SIGNALMESH),
                "up",
                *(() if "--nats" in arguments else ("--port", port)),
                *(() if dashboard else ("--no-dashboard",)),
                *arguments,
                cwd=self.directory,
                env=self.environment,
                stdin=stdin,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                preexec_fn=functools.partial(die_with_parent, os.getpid()),
            )
        assert self.process.stdout is not None
        async with asyncio.timeout(GUARD_S):
            first = (await self.process.stdout.readline()).decode()
        self._drains.append(asyncio.create_task(self._drain(self.process.stdout)))
        if not first:
            await self.process.wait()
        assert first.startswith((f"swarm {self.name} on nats://", f"swarm {self.name} on tls://")), first + self.errors
        self.url = self.record["url"]
        if self.url.startswith("tls://"):
            for variable, file in TlsFiles(self.directory / ".signalmesh").environment(mutual=True).items():
                self._key.setenv(variable, file)
        if self.record["authentication"] == "keys":
            self._key.setenv(SEED_VARIABLE, str(KeyStore(self.directory / ".signalmesh").file("operator")))
        return await self.listen()

    async def _drain(self, stdout: asyncio.StreamReader) -> None:
        async for line in stdout:
            self._last_lines.append(line.decode().rstrip())

    @property
    def record(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.directory / ".signalmesh" / "run.json").read_text())
        return record

    @property
    def errors(self) -> str:
        """What `up` wrote to its standard error, of all its runs."""
        return (self.directory / "up.err").read_text()

    async def listen(self, subject: str = "", url: str = "") -> Subscriber:
        """A plain NATS client that receives everything of this swarm (or `subject`) from now on."""
        subscriber = await Subscriber.open(url or self.url, subject or f"{self.name}.>", self.name)
        self._subscribers.append(subscriber)
        return subscriber

    async def command(self, *arguments: str, guard_s: float = GUARD_S) -> Finished:
        return await run_command(self.directory, *arguments, guard_s=guard_s)

    # -- its processes

    def all_agents(self) -> list[psutil.Process]:
        """`up` and all that descends from it."""
        top = psutil.Process(self.process.pid)
        return [top, *top.children(recursive=True)]

    def send(self, pid: int, number: int) -> None:
        """Send a signal to one of its processes, and to nothing else."""
        try:
            process = psutil.Process(pid)
            ancestors = {parent.pid for parent in process.parents()}
            assert pid == self.process.pid or self.process.pid in ancestors, describe(pid)
            os.kill(pid, number)
        except (psutil.NoSuchProcess, ProcessLookupError):
            if number not in (signal.SIGKILL, signal.SIGCONT):
                raise

    async def wait(self) -> int:
        """Exit code of `up`; subscribers keep what they have received, and receive no more."""
        async with asyncio.timeout(GUARD_S):
            code = await self.process.wait()
            await asyncio.gather(*self._drains)
        await self._close_subscribers()
        return code

    async def end(self, number: int) -> int:
        """Send `up` a signal; its exit code, once nothing of it is left."""
        ends = await Ends.of(*(process.pid for process in self.all_agents()))
        self.process.send_signal(number)
        code = await self.wait()
        await ends.all()
        return code
