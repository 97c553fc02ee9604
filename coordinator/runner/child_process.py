"""One child process of `up`: what is run, and the process: started, restarted when it dies, and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from bus.utils.backoff import RestartBackoff
from coordinator.runner.launcher import Launcher, RoleProcess

log = structlog.get_logger("signalmesh.up")

URL_VARIABLE = "SIGNALMESH_NATS"
"""Children get the bus's address by environment: an address may hold credentials, and arguments are public."""
LISTENER_VARIABLE = "SIGNALMESH_LISTENER"
"""Number of the inherited descriptor of a listening socket: `up` keeps the port while the process is restarted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """One child process: a command of signalmesh with its arguments."""

    kind: str
    """watchdog, sandbox, provider, proxy, metrics, dashboard or mirror."""
    name: str
    """Its log is `logs/{name}.log` of the state directory."""
    args: tuple[str, ...]
    restart_args: tuple[str, ...] | None = None
    """The arguments of every start after the first one; None: the same."""
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Variables that this child has and the others have not; they may hold keys."""
    pass_fds: tuple[int, ...] = ()
    """Open descriptors that the child inherits."""
    grace_s: float
    """Seconds from SIGTERM to SIGKILL."""


class ChildProcess:
    """The process of a ChildSpec, restarted each time it dies until `stop`."""

    def __init__(self, spec: ChildSpec, url: str, logs: Path, launcher: Launcher) -> None:
        """`url` is the address of the bus, `logs` the directory of the log files."""
        self.kind, self.name = spec.kind, spec.name
        self._spec, self._launcher = spec, launcher
        self._args = spec.args
        self._environment = {**os.environ, URL_VARIABLE: url, **spec.env}
        self._log_file = logs / f"{spec.name}.log"
        self._process: RoleProcess | None = None
        self.started_at = 0.0
        self.stopping = False
        self.on_start: Callable[[], None] = lambda: None

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> None:
        with self._log_file.open("ab") as output:
            self._process = await self._launcher.start(
                self._args, self._environment, output.fileno(), self._spec.pass_fds
            )
        if self._spec.restart_args is not None:
            self._args = self._spec.restart_args
        if self.stopping:  # `stop` came meanwhile, and has ended the process before
            self._process.kill()
        self.started_at = time.monotonic()
        self.on_start()

    async def keep_running(self, on_exit: Callable[[ChildProcess, int, int], None]) -> None:
        """Restart it each time it dies, until `stop`; `on_exit` gets its pid and exit code."""
        backoff = RestartBackoff(first_s=0.0)
        while not self._is_stopping():
            assert self._process is not None
            pid = self._process.pid
            code = await self._process.wait()
            if self._is_stopping():
                return
            on_exit(self, pid, code)
            await asyncio.sleep(backoff.after_s(time.monotonic() - self.started_at))
            await self._restart(backoff)

    async def _restart(self, backoff: RestartBackoff) -> None:
        while not self._is_stopping():
            try:
                await self.start()
            except (OSError, RuntimeError) as error:  # too many processes, threads or files just now
                log.warning("child_not_started", child=self.name, problem=str(error))
                await asyncio.sleep(backoff.after_s(0.0))
            else:
                return

    def kill(self) -> None:
        """SIGKILL; `keep_running` starts it again."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    def _is_stopping(self) -> bool:  # a method: a type checker takes the attribute for constant over an await
        return self.stopping

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL after its grace."""
        self.stopping = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGCONT)  # a paused process handles no SIGTERM
        try:
            async with asyncio.timeout(self._spec.grace_s):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
