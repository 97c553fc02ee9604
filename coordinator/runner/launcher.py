"""Starts the processes of roles: forked from the zygote, or, where there is none, as new interpreters."""

from __future__ import annotations

import asyncio
import functools
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence

import structlog

from bus.utils.backoff import RestartBackoff
from bus.utils.processes import die_with_parent
from coordinator.runner.zygote import ForkedProcess, Zygote, ZygoteGone
from signalmesh import python_command

RoleProcess = ForkedProcess | asyncio.subprocess.Process
log = structlog.get_logger("signalmesh.launcher")


class Launcher:
    """Starts processes as children of this one. Without a `zygote` each one is a new interpreter."""

    def __init__(self, zygote: Zygote | None) -> None:
        self._zygote = zygote
        self._restarts = zygote is not None
        self.on_restart: Callable[[], None] = lambda: None

    @property
    def zygote_pid(self) -> int | None:
        return None if self._zygote is None else self._zygote.pid

    async def start(
        self, args: Sequence[str], env: Mapping[str, str], output: int, pass_fds: Sequence[int] = ()
    ) -> RoleProcess:
        """Run signalmesh with `args` and `env`; `output` is its stdout and stderr.

        Raises:
            OSError: the system has no room for another process.
        """
        if (zygote := self._zygote) is not None:
            try:
                return await zygote.spawn(args, env, output, pass_fds)
            except ZygoteGone as error:
                log.warning("zygote_gone", problem=str(error))
                if self._zygote is zygote:
                    self._zygote = None
                    zygote.stop()  # `keep_zygote` starts another one
        return await asyncio.create_subprocess_exec(
            *python_command(*args),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=env,
            start_new_session=True,
            pass_fds=pass_fds,
            preexec_fn=functools.partial(die_with_parent, os.getpid()),
        )

    async def keep_zygote(self) -> None:
        """Start another zygote each time that it has ended."""
        backoff = RestartBackoff()
        loop = asyncio.get_running_loop()
        while self._restarts:
            since = loop.time()
            if (zygote := self._zygote) is not None:
                await zygote.wait()
                if self._zygote is zygote:
                    self._zygote = None
                    zygote.stop()
                log.warning("zygote_died", pid=zygote.pid)
            await asyncio.sleep(backoff.after_s(loop.time() - since))
            try:
                self._zygote = Zygote.start()
            except OSError as error:
                log.warning("zygote_not_started", problem=str(error))
            else:
                self.on_restart()

    def stop(self) -> None:
        """End the zygote; the processes that it has forked are those of their owners."""
        self._restarts = False
        if self._zygote is not None:
            self._zygote.stop()
            self._zygote = None
