"""Configures, starts, watches, restarts (same port, same store) and stops the embedded nats-server.

It owns the server process and the directory `state_dir/nats` (configuration, store, logs, a lock against a second
server on the same store). bus/server/binary.py finds and checks the program.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from bus.errors import BusError, UsageError
from bus.server.binary import find_binary, server_version
from bus.server.config import HOST, Durability, configuration
from bus.server.disk import measure_room
from bus.server.log_tail import LogTail
from bus.server.monitoring import keep_storing, listed, read_info
from bus.utils.aio import end_tasks
from bus.utils.backoff import RestartBackoff
from bus.utils.file_lock import take_lock
from bus.utils.processes import die_with_parent

__all__ = [
    "DIRECTORY",
    "NatsServer",
    "ServerDied",
    "ServerEvent",
    "ServerNotStoring",
    "ServerRestartFailed",
    "ServerRestarted",
    "config_file",
    "find_binary",
    "server_version",
]

DIRECTORY = "nats"
"""Relative to the state directory."""
DEFAULT_PORT = 4222
START_TIMEOUT_S = 30.0
"""A server with a large store needs time to recover it; one that cannot start usually exits at once."""
STOP_GRACE_S = 5.0
"""From SIGTERM to SIGKILL."""
LOCK_TIMEOUT_S = 2.0
"""A server needs a moment to end and to release its store after its parent was killed."""
RELOAD_TIMEOUT_S = 10.0
RELOAD_POLL_S = 0.005
"""The server tells only its log."""
RELOADED, NOT_RELOADED = b"Reloaded server configuration", b"Failed to reload server configuration"
LOG_TAIL_LINES = 8
CONFIG = "nats.conf"


def config_file(state_dir: Path) -> Path:
    """The configuration of the server of this state directory, with the public keys that it has."""
    return state_dir / "nats" / CONFIG


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerDied:
    """The server ended unexpectedly; `returncode` is negative for a signal. It is restarted in `retry_s` seconds."""

    pid: int
    returncode: int
    up_s: float
    retry_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRestarted:
    """The server answers again, `down_s` seconds after its end was noticed."""

    pid: int
    down_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRestartFailed:
    """A restart did not succeed; the next one follows in `retry_s` seconds."""

    problem: str
    retry_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerNotStoring:
    """The server runs, but had a write error; it is restarted when the disk has space."""

    pid: int
    problem: str


ServerEvent = ServerDied | ServerRestarted | ServerRestartFailed | ServerNotStoring


class NatsServer:
    """One nats-server on this machine, from `start` (or `async with`) to `stop`. Run `supervise` to keep it up.

    Start it from the main thread: the kernel ends the server with the thread that started it (see bus.utils.processes).
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        port: int = DEFAULT_PORT,
        durability: Durability = "process",
        binary: Path | None = None,
        authorization: str = "",
        tls: str = "",
    ) -> None:
        """Prepare the server; only `start` touches the disk. Port 0 takes a free port and keeps it over restarts.

        `authorization` are the lines of its configuration about users, `tls` those about TLS (bus/server/config.py).
        """
        if not 0 <= port <= 65535:
            raise UsageError(f"--port {port}: expected 0 (any free port) to 65535")
        self.port = port
        self.version: tuple[int, int, int] | None = None
        self._binary = binary
        self._durability, self._authorization, self._tls = durability, authorization, tls
        self._written = ""
        """The lines about users of the last start."""
        self._answers = False
        """Whether the present process has answered."""
        self._settings = ""
        """The configuration of the last start, without users."""
        self._directory = state_dir / DIRECTORY  # made absolute in `start`: reading the working directory blocks
        self._log_from = 0
        self._name = f"signalmesh-{secrets.token_hex(4)}"  # distinguishes it from another server on the same port
        self._lock: IO[str] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._up_since = 0.0
        self._stopping = asyncio.Event()
        self._spawning = asyncio.Lock()
        self._reloading = asyncio.Lock()

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"{'tls' if self._tls else 'nats'}://{HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """Process id, None while it is down."""
        process = self._process
        return None if process is None or process.returncode is not None else process.pid

    @property
    def directory(self) -> Path:
        """Directory of its configuration, log and store; absolute after `start`."""
        return self._directory

    async def reload(self, authorization: str | None = None) -> None:
        """Have it read its certificates again, and use these lines about users from now on; returns when it does.

        It has cut off the clients of users that are gone by then; a new certificate is for new connections. A server
        that is down or starting reads them when it starts.

        Raises:
            OSError: its configuration cannot be written; it is tried again at the server's next start.
            BusError: the server has refused the configuration, or has not read it within RELOAD_TIMEOUT_S.
        """
        if authorization is not None:
            self._authorization = authorization
        async with self._reloading:
            # The rest stays as it was at the start: the server refuses another limit of its store while it runs.
            await asyncio.to_thread(self._replace_config, self._settings + self._authorization)
            # The signal would end a server that has just been started: `_launch` sends it then.
            process = self._process
            if self._answers and process is not None and process.returncode is None:
                logged = LogTail(self.log_file)
                process.send_signal(signal.SIGHUP)
                await self._reloaded(process, logged)

    async def _reloaded(self, process: asyncio.subprocess.Process, logged: LogTail) -> None:
        """Return when the server has logged that it uses its configuration, or has ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RELOAD_TIMEOUT_S):
                while process.returncode is None:
                    for line in await asyncio.to_thread(logged.lines):
                        if RELOADED in line:
                            return
                        if NOT_RELOADED in line:
                            raise BusError(f"nats-server: {line[line.index(NOT_RELOADED) :].decode(errors='replace')}")
                    await asyncio.sleep(RELOAD_POLL_S)
                return
        raise BusError(f"nats-server has not read its configuration within {RELOAD_TIMEOUT_S:g} s; see {self.log_file}")

    def _replace_config(self, text: str) -> None:
        """Whole or not at all: a server that starts may read it at any time."""
        temporary = self._directory / f".{CONFIG}"
        temporary.write_text(text)
        temporary.replace(self._directory / CONFIG)

    def kill(self) -> None:
        """SIGKILL, if it runs; `supervise` starts it again."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    @property
    def log_file(self) -> Path:
        """Its log."""
        return self._directory / "nats.log"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start the server and return when clients and JetStream requests are answered.

        Raises:
            UsageError: no binary, or one that is too old; the port is in use, or the store by another server.
            BusError: it did not start; the message contains the end of its log.
        """
        self._stopping = asyncio.Event()
        if self._binary is None:
            self._binary = await asyncio.to_thread(find_binary)
        self.version = await asyncio.to_thread(server_version, self._binary)
        try:
            self._lock = await asyncio.to_thread(self._take_lock)
            await self._launch()
        except BaseException:
            await asyncio.shield(self.stop())
            raise

    async def wait(self) -> int:
        """Exit status of the present server process, once it has ended."""
        if self._process is None:
            raise RuntimeError("the server is not started")
        return await self._process.wait()

    async def stop(self) -> None:
        """End the server: SIGTERM, and SIGKILL after STOP_GRACE_S. Also ends `supervise`. May be called twice."""
        self._stopping.set()
        async with self._spawning:
            process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(STOP_GRACE_S):
                    await process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    async def supervise(self, on_event: Callable[[ServerEvent], None] = lambda _: None) -> None:
        """Restart the server, on the same port and store, each time it ends unexpectedly. Returns after `stop`."""
        storing = asyncio.create_task(
            keep_storing(self, lambda pid, problem: on_event(ServerNotStoring(pid=pid, problem=problem))),
            name="nats-server storing",
        )
        try:
            await self._supervise(on_event)
        finally:
            await end_tasks([storing])

    async def _supervise(self, on_event: Callable[[ServerEvent], None]) -> None:
        stopping = self._stopping  # a later start has an event of its own
        backoff = RestartBackoff()
        while True:
            status = await self.wait()
            if stopping.is_set():
                return
            died_at = time.monotonic()
            up_s = died_at - self._up_since
            backoff_s = backoff.after_s(up_s)
            pid = self._process.pid if self._process else 0
            on_event(ServerDied(pid=pid, returncode=status, up_s=up_s, retry_s=backoff_s))
            while not await _is_set_within(stopping, backoff_s):
                try:
                    await self._launch()
                except (UsageError, BusError, OSError) as error:
                    await self._kill_half_started()
                    if stopping.is_set():
                        return
                    backoff_s = backoff.after_s(0)
                    on_event(ServerRestartFailed(problem=str(error), retry_s=backoff_s))
                else:
                    on_event(ServerRestarted(pid=self.pid or 0, down_s=time.monotonic() - died_at))
                    break
            else:
                return

    async def _kill_half_started(self) -> None:
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def _take_lock(self) -> IO[str]:
        """Lock the store. The server inherits the lock, so it is held as long as either process lives."""
        self._directory = self._directory.absolute()
        try:
            lock = take_lock(self._directory / "lock", LOCK_TIMEOUT_S)
        except OSError as error:
            raise UsageError(f"--state-dir: {self._directory}: {error.strerror}; choose another directory") from None
        if lock is None:
            raise UsageError(
                f"{self._directory} is in use by another server; end that swarm with `signalmesh down`, "
                "or choose another directory with --state-dir"
            )
        return lock

    def _write_config(self) -> Path:
        for stale in self._directory.glob("*.ports"):
            stale.unlink()
        path = self._directory / CONFIG
        self._settings = configuration(
            name=self._name,
            port=self.port,
            directory=self._directory,
            log=self.log_file,
            durability=self._durability,
            max_store=measure_room(self._directory).for_server,
        )
        self._settings += self._tls
        self._written = self._authorization
        self._replace_config(self._settings + self._written)
        self._log_from = self.log_file.stat().st_size if self.log_file.exists() else 0
        return path

    async def _launch(self) -> None:
        """One start: write the configuration, spawn, wait until it answers; `port` is set from what it listens on."""
        self._answers = False
        config = await asyncio.to_thread(self._write_config)
        async with self._spawning:
            if self._stopping.is_set():
                raise BusError("nats-server: stopped while starting")
            self._process = await asyncio.create_subprocess_exec(
                str(self._binary),
                "-c",
                str(config),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # it writes its log itself
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in the terminal must not end it before its clients have drained
                pass_fds=[self._lock.fileno()] if self._lock else [],
                preexec_fn=functools.partial(die_with_parent, os.getpid()),
            )
        process = self._process
        ended = asyncio.create_task(process.wait(), name="nats-server end")
        ready = asyncio.create_task(self._ready(process.pid), name="nats-server ready")
        try:
            await asyncio.wait({ended, ready}, timeout=START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                self.port = ready.result()
                self._up_since = time.monotonic()
                self._answers = True
                if self._authorization != self._written:
                    process.send_signal(signal.SIGHUP)
                return
            problem = f"ended with status {ended.result()}" if ended.done() else f"no answer in {START_TIMEOUT_S} s"
        finally:
            for task in (ended, ready):
                task.cancel()
            await asyncio.gather(ended, ready, return_exceptions=True)
        tail = await asyncio.to_thread(self._log_tail)
        if any("address already in use" in line for line in tail):
            raise UsageError(await _port_in_use(self.port))
        log_tail = "".join(f"\n  {line}" for line in tail) or " (empty)"
        raise BusError(f"nats-server {self._binary} {problem}; end of its log {self.log_file}:{log_tail}")

    async def _ready(self, pid: int) -> int:
        """The port, once the server has written its ports file and answers there with JetStream."""
        while True:
            port = await asyncio.to_thread(self._listening_port, pid)
            if port is not None:
                info = await read_info(HOST, port)
                if info is not None and info.get("server_name") == self._name and info.get("jetstream"):
                    return port
            await asyncio.sleep(0.005)

    def _listening_port(self, pid: int) -> int | None:
        """The port in the file that the server writes when it listens; None before."""
        url = listed(self._directory, pid, "nats")
        return None if url is None else int(url.rsplit(":", 1)[1])

    def _log_tail(self) -> list[str]:
        """Last lines of what this start has logged."""
        try:
            with self.log_file.open("rb") as file:
                file.seek(self._log_from if self.log_file.stat().st_size >= self._log_from else 0)
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            return []
        return lines[-LOG_TAIL_LINES:]


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


async def _port_in_use(port: int) -> str:
    info = await read_info(HOST, port)
    if info is None:
        return f"--port {port}: another program listens there; --port 0 picks a free one"
    server = f"nats-server {info.get('version', '?')}, named {info.get('server_name', '?')}"
    return (
        f"--port {port}: another NATS server listens there ({server}); --port 0 picks a free one, "
        f"and --nats nats://{HOST}:{port} uses that server"
    )
