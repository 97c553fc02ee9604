"""One child process of `up`: started, restarted when it dies, and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from bus.utils.processes import die_with_parent

FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.05, 5.0
STEADY_S = 10.0
"""A child that was up for so long is forgiven its earlier deaths."""
STOP_GRACE_S = {"watchdog": 3.0, "sandbox": 10.0, "provider": 22.0, "proxy": 2.0, "metrics": 8.0, "mirror": 10.0}
"""From SIGTERM to SIGKILL; a sandbox host drains its agents in this time, the mirror reads the rest."""
URL_VARIABLE = "SIGNALMESH_NATS"
"""Children get the bus's address by environment: an address may hold credentials, and arguments are public."""


class ChildProcess:
    """One direct child, kept alive, of a `kind` that STOP_GRACE_S names; its log is `state_dir/logs/{name}.log`."""

    def __init__(
        self,
        kind: str,
        name: str,
        arguments: list[str],
        url: str,
        log_file: Path,
        *,
        first: tuple[str, ...] = (),
        again: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        """`first` are further arguments for its first start, `again` for every later one."""
        self.kind, self.name = kind, name
        self._arguments, self._extra, self._again = arguments, first, again
        self._pass_fds = pass_fds
        self._environment = {**os.environ, URL_VARIABLE: url, **(environment or {})}
        self._log_file = log_file
        self._process: asyncio.subprocess.Process | None = None
        self.started_at = 0.0
        self.stopping = False
        self.restarts = 0
        self.on_start: Callable[[], None] = lambda: None

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> None:
        with self._log_file.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "coordinator",
                *self._arguments,
                *self._extra,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
                start_new_session=True,
                pass_fds=self._pass_fds,
                preexec_fn=functools.partial(die_with_parent, os.getpid()),
            )
        self._extra = self._again
        self.started_at = time.monotonic()
        self.on_start()

    async def keep(self, on_exit: Callable[[ChildProcess, int, int], None]) -> None:
        """Start it again whenever it dies, until `stop`."""
        backoff_s = 0.0
        while not self._ending():
            assert self._process is not None
            pid = self._process.pid
            code = await self._process.wait()
            if self._ending():
                return
            on_exit(self, pid, code)
            backoff_s = (
                0.0
                if time.monotonic() - self.started_at > STEADY_S
                else min(backoff_s * 2 or FIRST_BACKOFF_S, LAST_BACKOFF_S)
            )
            await asyncio.sleep(backoff_s)
            self.restarts += 1
            if not self._ending():
                await self.start()

    def kill(self) -> None:
        """SIGKILL; `keep` starts it again."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    def _ending(self) -> bool:
        return self.stopping

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL after its grace."""
        self.stopping = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGCONT)
        try:
            async with asyncio.timeout(STOP_GRACE_S[self.kind]):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
