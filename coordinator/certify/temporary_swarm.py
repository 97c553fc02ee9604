"""A swarm for one run of `certify`: the command `signalmesh up` in a temporary directory, and the checks after its end.

It ends with this process, however that ends: the kernel ends the children (bus.utils.processes.die_with_parent), down
to the agents.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from urllib.parse import urlsplit

import orjson
import psutil

from bus.errors import BusUnreachable, MeshError, UsageError
from bus.messages.subjects import PROVIDER
from bus.server.monitoring import read_info
from bus.utils.processes import die_with_parent, is_running, start_identity
from coordinator.certify.leftovers import STATE, create_directory
from coordinator.certify.models import Cleanup, CleanupCheck
from coordinator.runner.run_record import Run, read_run
from coordinator.sandboxes.pool_record import read_pool
from coordinator.sandboxes.provider_client import Listing, list_sandboxes
from signalmesh import python_command

__all__ = ["TemporarySwarm"]

START_S = 30.0
"""From the start of `up` to its record."""
STOP_S = 25.0
POLL_INTERVAL_S = 0.02
GONE_S = 2.0
"""How long processes that `up` has ended may still exist."""
LOG_LINES = 5
"""Lines of up's log in an error message."""
PASSED_VARIABLES = frozenset({"SIGNALMESH_PUBLIC_NATS", "SIGNALMESH_WEBHOOK"})
"""SIGNALMESH_ variables that `up` gets: certify has no options for them."""


def _environment() -> dict[str, str]:
    """This process's environment without the variables that would configure another swarm."""
    return {
        key: value for key, value in os.environ.items() if key in PASSED_VARIABLES or not key.startswith("SIGNALMESH_")
    }


def _created(log: Path) -> list[str]:
    """The sandboxes that the provider has created, by its log."""
    created = []
    with contextlib.suppress(OSError):
        for line in log.read_bytes().splitlines():
            with contextlib.suppress(orjson.JSONDecodeError):  # a traceback, or output of other programs
                entry = orjson.loads(line)
                if isinstance(entry, dict) and entry.get("event") == "sandbox_created":
                    created.append(str(entry.get("sandbox_id")))
    return created


def _ids(sandboxes: list[str]) -> str:
    return f"{len(sandboxes)} ({', '.join(sandboxes)})" if sandboxes else "none"


class TemporarySwarm:
    """`up` in a directory of its own. Call `start`, and then `stop` in any case."""

    def __init__(self, toml: str, config: Path | None = None, *, speed: float = 20.0, port: int = 0) -> None:
        """`toml` is its configuration, unless `config` names a file; `port` 0: any free one."""
        self.directory = create_directory()
        self._toml, self._config = toml, config
        self._arguments = ["--speed", str(speed), "--port", str(port)]
        self._process: asyncio.subprocess.Process | None = None
        self._all_agents: dict[int, tuple[str, str]] = {}
        self.started_at = 0.0
        """When `up` was started, monotonic seconds."""
        self.url = ""
        self._listed: tuple[float, Listing] | None = None
        """The last listing while it ran, and when it was requested, seconds since `started_at`."""

    @property
    def state_dir(self) -> Path:
        return self.directory / STATE

    async def start(self) -> Run:
        """Start it; returns its record.

        Raises:
            UsageError, BusUnreachable, MeshError: it did not start; with the end of its log and its exit code.
        """
        config = self._config
        if config is None:
            config = self.directory / "swarm.toml"
            await asyncio.to_thread(config.write_text, self._toml)
        output = await asyncio.to_thread((self.directory / "up.log").open, "wb")
        with output:
            self.started_at = time.monotonic()
            self._process = await asyncio.create_subprocess_exec(
                *python_command("up", "--config", str(config), "--state-dir", str(self.state_dir), "--no-dashboard"),
                *self._arguments,
                cwd=self.directory,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C in the terminal is for certify, which ends it in order
                preexec_fn=functools.partial(die_with_parent, os.getpid()),
            )
        try:
            async with asyncio.timeout(START_S):
                while (run := await asyncio.to_thread(read_run, self.state_dir)) is None:
                    if self._process.returncode is not None:
                        raise await asyncio.to_thread(self._failure, self._process.returncode)
                    await asyncio.sleep(POLL_INTERVAL_S)
        except TimeoutError:
            raise MeshError(f"`signalmesh up` did not start within {START_S:.0f} s; {self._log_end()}") from None
        self.url = run.url
        return run

    def _log_end(self) -> str:
        with contextlib.suppress(OSError):
            lines = (self.directory / "up.log").read_text(errors="replace").splitlines()
            if lines:
                return " ".join(["its log ends with:", *lines[-LOG_LINES:]])
        return "its log is empty"

    def _failure(self, code: int) -> MeshError:
        log_end = self._log_end().replace("--port", "--nats-port")  # the option of certify
        text = f"`signalmesh up` ended with exit code {code}; {log_end}"
        if code == UsageError.exit_code:
            return UsageError(text)
        return BusUnreachable("the embedded server", text) if code == BusUnreachable.exit_code else MeshError(text)

    def remember(self) -> int:
        """Record all processes of the swarm, for the check after its end; returns how many are known by now."""
        if self._process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                top = psutil.Process(self._process.pid)
                for process in (top, *top.children(recursive=True)):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        self._all_agents.setdefault(
                            process.pid,
                            (start_identity(process.pid), " ".join(process.cmdline()).strip() or process.name()),
                        )
        return len(self._all_agents)

    async def list_sandboxes(self) -> None:
        """Record which remote sandboxes of this swarm run now, as their provider lists them."""
        requested_s = time.monotonic() - self.started_at
        if (found := await self._list()) is not None:
            self._listed = requested_s, found

    async def _list(self) -> Listing | None:
        """None if no provider has recorded sandboxes."""
        if await asyncio.to_thread(read_pool, self.state_dir) is None:
            return None
        return await asyncio.to_thread(list_sandboxes, self.state_dir)

    async def stop(self) -> Cleanup:
        """End it in order, remove its directory, and check what is left.

        The directory stays while remote sandboxes are left, or may be: it has the record of them.
        """
        cleanup = Cleanup()
        started_at = time.monotonic()
        process = self._process
        killed = []
        if process is not None:
            cleanup.processes = await asyncio.to_thread(self.remember)
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
                try:
                    async with asyncio.timeout(STOP_S):
                        await process.wait()
                except TimeoutError:
                    killed = [f"`signalmesh up` (pid {process.pid}) had to be killed after {STOP_S:.0f} s"]
                    process.kill()
            cleanup.exit_code = await process.wait()
        known = f"{cleanup.processes} seen in the run, by pid and start time"
        cleanup.checks.append(CleanupCheck(what="processes", how=known, orphans=[*killed, *await self._left()]))
        if self.url:
            cleanup.checks.append(
                CleanupCheck(what="NATS server", how=f"request to {self.url}", orphans=await self._server())
            )
        sandboxes = await self._sandboxes()
        if sandboxes is not None:
            cleanup.checks.append(sandboxes)
        if sandboxes is None or sandboxes.orphans == []:
            await asyncio.to_thread(shutil.rmtree, self.directory, ignore_errors=True)
        orphans = [f"the directory {self.directory}: `signalmesh doctor` prints the remedy"]
        there = self.directory.exists()
        cleanup.checks.append(CleanupCheck(what="directory", how=str(self.directory), orphans=orphans if there else []))
        cleanup.duration_s = round(time.monotonic() - started_at, 3)
        return cleanup

    async def _sandboxes(self) -> CleanupCheck | None:
        found = await self._list()
        if found is None:
            return None
        created = await asyncio.to_thread(_created, self.state_dir / "logs" / f"{PROVIDER}.log")
        how = (
            f"listed by {found.endpoint}, by the metadata `pool`, after the end; over the whole run the provider's log "
            f"has {_ids(created)} created; {self._listed_text()}"
        )
        orphans = found.sandboxes
        if orphans is not None:
            orphans = [f"sandbox {one} at {found.endpoint}: its lifetime ends it" for one in orphans]
        return CleanupCheck(what="remote sandboxes", how=how, orphans=orphans, why=found.problem)

    def _listed_text(self) -> str:
        if self._listed is None:
            return "not listed while it ran"
        requested_s, listed = self._listed
        when = f"{requested_s:.1f} s after `up` was started"
        return f"listed {when}: {listed.problem if listed.sandboxes is None else _ids(listed.sandboxes)}"

    async def _left(self) -> list[str]:
        until = time.monotonic() + GONE_S
        while alive := [pid for pid, (started, _) in self._all_agents.items() if is_running(pid, started)]:
            if time.monotonic() > until:
                break
            await asyncio.sleep(POLL_INTERVAL_S)
        return [f"process {pid} ({self._all_agents[pid][1][:100]}): end it with `kill {pid}`" for pid in alive]

    async def _server(self) -> list[str]:
        parts = urlsplit(self.url)
        if parts.port is not None and await read_info(parts.hostname or "127.0.0.1", parts.port) is not None:
            return [f"a NATS server answers at {self.url}: `signalmesh doctor --nats {self.url}` describes it"]
        return []
