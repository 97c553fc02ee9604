"""One E2B sandbox and the host process in it: attach or start, watch, renew the lifetime, drain and delete.

The host's heartbeat on the bus decides whether it is alive. A broken output stream does not mean that the host ended:
the sandbox's processes are listed, and a running host is attached to again. Imports the SDK.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import structlog
from e2b import AsyncCommandHandle, AsyncSandbox, CommandExitException, NotFoundException, SandboxState

from agents.host.protocol import DRAIN_GRACE_S, HEARTBEAT_S
from bus.errors import UsageError
from bus.heartbeats import HeartbeatListener
from bus.nats.credentials import Credentials
from bus.nats.urls import is_websocket, redacted_url
from bus.utils.aio import both, end_tasks
from coordinator.config.e2b import E2bSettings
from coordinator.sandboxes.e2b_client import Service
from coordinator.sandboxes.e2b_errors import PermanentError, SandboxGone, error_text, verdict_on
from coordinator.sandboxes.events import SandboxEvents
from coordinator.sandboxes.installer import FILES, LOG, InstallFailed, install, upload
from coordinator.security.created_hosts import HostKeys

__all__ = ["SandboxInstance", "SandboxTarget"]

NO_HEARTBEAT_S = 20.0
"""Silence of a running host after which an alert is published; after three times as long it is restarted."""
UNCONNECTED_S = 8.0
"""The same, if its log ends with WAITING: then it is known why."""
WAITING = '"event":"waiting_for_nats"'
"""In the log of a host that has no connection to the bus."""
NO_HEARTBEAT = "it ran, but sent no heartbeat on the bus"
RECENT_HEARTBEAT_S = 1.0
"""Maximum age of the last heartbeat of a healthy host."""
ADOPTED_S = 5.0
"""Time for the first heartbeat of a host that was found running: it may use the bus URL of an earlier run."""
STABLE_S = 60.0
"""A host that has run for so long resets the count of consecutive ends."""
MAX_ENDS = 3
"""Consecutive ends of the host after which the sandbox is unusable."""
MAX_INSTALLS = 3
"""Consecutive failed installations after which none is tried: another sandbox of this template would fail too."""
INSTALL_PAUSE_S = 5.0
"""After the first failure: a package index can be unavailable for a while."""
DRAIN_S = DRAIN_GRACE_S + 3.0
"""From SIGTERM for the host to the deletion of its sandbox."""
END_S = 5.0
POLL_INTERVAL_S = HEARTBEAT_S
GONE_S = 3.5 * HEARTBEAT_S
"""A host sends heartbeats while it drains; one silent for so long has ended."""
REFUSED_S = 2.0
"""Pause after E2B refused a request for a sandbox with a running host."""

log = structlog.get_logger("signalmesh.provider")


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxTarget:
    """What is to run: sandbox `name` of `swarm`, with the bus at `url`, in sandboxes of `pool`."""

    name: str
    swarm: str
    settings: E2bSettings
    pool: str
    version: str
    url: str = field(repr=False)
    credentials: Credentials = field(repr=False)
    """Those of the hosts, unless each has a key of its own."""
    keys: HostKeys | None = None
    log_level: str = "info"
    files: tuple[tuple[str, Path], ...] = ()

    def host_name(self, sandbox_id: str) -> str:
        """Name on the bus of the host in that sandbox."""
        return f"{self.name}-{sandbox_id}"

    def command(self, python: str, sandbox_id: str) -> str:
        """Shell command that starts the host."""
        return f"exec {shlex.quote(python)} {self.arguments(sandbox_id)} >>{LOG} 2>&1"

    def arguments(self, sandbox_id: str) -> str:
        """Arguments of the interpreter; they identify a running host, whichever interpreter it uses."""
        return (
            f"-P -m signalmesh sandbox {self.name} --host {self.host_name(sandbox_id)} --provider-name e2b "
            f"--swarm {self.swarm} --log-level {self.log_level} --files {FILES} --credentials-stdin"
        )

    async def credentials_of(self, sandbox_id: str) -> Credentials:
        """The credentials of the host in that sandbox.

        Raises:
            InstallFailed: it cannot have a key yet.
        """
        if self.keys is None:
            return self.credentials
        try:
            return await self.keys.admit(self.host_name(sandbox_id), self.credentials)
        except UsageError as error:
            raise InstallFailed(str(error)) from None

    def bootstrap_line(self, credentials: Credentials, endpoint: str, age_s: float) -> bytes:
        """The bootstrap payload for the host's standard input; all secrets are passed this way only."""
        payload = {"url": self.url, "credentials": credentials, "endpoint": endpoint, "age_s": round(age_s, 3)}
        return orjson.dumps(payload) + b"\n"


class SandboxInstance:
    """`sandbox`, `age_s` seconds old, running `target`; reports to `events`."""

    def __init__(
        self,
        service: Service,
        hosts: HeartbeatListener,
        target: SandboxTarget,
        sandbox: AsyncSandbox,
        age_s: float,
        events: SandboxEvents,
    ) -> None:
        self._service, self._hosts, self._target, self.sandbox = service, hosts, target, sandbox
        self._events = events
        self.since = time.monotonic() - age_s
        self.host_name = target.host_name(sandbox.sandbox_id)
        self._pid: int | None = None
        self._silence_alerted = False
        self.had_heartbeat = False
        self.task = asyncio.create_task(self._serve(), name=f"serve-{self.id}")
        """Runs until an error: SandboxGone or PermanentError."""

    @property
    def id(self) -> str:
        return self.sandbox.sandbox_id

    async def _serve(self) -> None:
        await both(self._renew(), self._keep_host())

    # -- its lifetime

    async def _renew(self) -> None:
        lifetime_s = self._target.settings.timeout_s
        pause_s = lifetime_s / 3
        while True:
            await asyncio.sleep(pause_s)
            pause_s = lifetime_s / 3
            try:
                try:
                    await self._service.request("renewing a lifetime", lambda: self.sandbox.set_timeout(lifetime_s))
                except SandboxGone:
                    await self.resume()
            except (
                PermanentError
            ) as error:  # such as a revoked key: the running sandbox continues until its lifetime ends
                self._service.refuse(error)
                pause_s = lifetime_s / 12

    async def resume(self) -> None:
        """Resume it if it was only paused.

        Raises:
            SandboxGone: it no longer exists.
        """
        info = await self._service.info(self.sandbox)
        if info.state == SandboxState.PAUSED:
            log.warning("sandbox_resumed", sandbox_id=self.id)
            self._events.alert("sandbox_paused", f"sandbox {self.host_name} was paused and is being resumed")
            await self._service.connect(self.id, self._target.settings.timeout_s)

    # -- the host in it

    async def _keep_host(self) -> None:
        ends, failed, adopted = 0, 0, True
        while True:
            started_at = time.monotonic()
            try:
                reason = await self._one_host(adopted=adopted)
            except InstallFailed as error:
                failed += 1
                if error.permanent or failed >= MAX_INSTALLS:
                    raise PermanentError(str(error)) from None
                self._events.alert("sandbox_not_installed", f"sandbox {self.host_name}: {error}; retrying")
                await asyncio.sleep(INSTALL_PAUSE_S * failed)
                continue
            except PermanentError as error:
                if self._hosts.silent_s(self.host_name) > GONE_S:
                    raise
                self._service.refuse(error)  # the host runs: no reason to replace it
                await asyncio.sleep(REFUSED_S)
                continue
            adopted, failed = False, 0
            if reason is None:
                continue
            ends = 1 if time.monotonic() - started_at > STABLE_S else ends + 1
            log.warning("host_ended", sandbox_id=self.id, reason=reason, ends=ends)
            if ends >= MAX_ENDS:
                raise SandboxGone(
                    f"its host ended {ends} times in a row, most recently: {reason}{await self._end_of_log()}"
                )
            await asyncio.sleep(min(2.0**ends, 10.0) / 4)

    async def _one_host(self, *, adopted: bool) -> str | None:
        """Attach to the host, or start one, and wait for its end; why it ended, None if only the stream did."""
        try:
            self._pid = await self._find()
            if self._pid is None:
                adopted = False
                handle = await self._start_host()
            else:
                log.info("host_attached", sandbox_id=self.id, pid=self._pid)
                handle = await self._attach(self._pid)
        except NotFoundException:
            return None  # it ended just now: list the processes again
        except SandboxGone:
            await self.resume()
            return None
        return await self._watch(handle, adopted=adopted)

    async def _find(self) -> int | None:
        arguments = self._target.arguments(self.id)
        running = await self._service.request("listing processes", self.sandbox.commands.list)
        return next((one.pid for one in running if any(arguments in argument for argument in one.args)), None)

    async def _start_host(self) -> AsyncCommandHandle[Any]:
        target, sandbox = self._target, self.sandbox
        await upload(self._service, sandbox, target.files)
        python = await install(self._service, sandbox, target.settings, websocket=is_websocket(target.url))
        command, credentials = target.command(python, self.id), await target.credentials_of(self.id)
        label = self._service.endpoint.label

        async def start() -> AsyncCommandHandle[Any]:
            handle = await sandbox.commands.run(
                f"mkdir -p {FILES}; {command}", background=True, stdin=True, timeout=0, retain_output=False
            )
            try:
                async with sandbox.commands.stream_input(handle.pid) as stdin:
                    await stdin.send(target.bootstrap_line(credentials, label, time.monotonic() - self.since))
                await sandbox.commands.close_stdin(handle.pid)
            except BaseException:
                with contextlib.suppress(Exception):  # without its payload it cannot start
                    await handle.kill()
                raise
            return handle

        handle = await self._service.request("starting the host", start)
        self._pid = handle.pid
        log.info("host_started", sandbox_id=self.id, pid=handle.pid, host=self.host_name)
        return handle

    async def _attach(self, pid: int) -> AsyncCommandHandle[Any]:
        async def attach() -> AsyncCommandHandle[Any]:
            return await self.sandbox.commands.connect(pid, timeout=0, retain_output=False)

        return await self._service.request("attaching to the host", attach, pass_through=(NotFoundException,))

    async def _watch(self, handle: AsyncCommandHandle[Any], *, adopted: bool) -> str | None:
        tasks: dict[str, asyncio.Task[Any]] = {
            "end": asyncio.create_task(handle.wait(), name=f"end-{self.id}"),
            "silence": asyncio.create_task(self._silence(adopted=adopted), name=f"silence-{self.id}"),
        }
        try:
            await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
            if not tasks["end"].done():
                with contextlib.suppress(Exception):
                    await self.sandbox.commands.kill(handle.pid)
                return str(tasks["silence"].result())
            await tasks["end"]
        except CommandExitException as error:
            return f"exit code {error.exit_code} ({error.error or 'no details'})"
        except Exception as error:  # noqa: BLE001 - whatever the SDK raises is judged by verdict_on
            log.info("stream_broken", sandbox_id=self.id, problem=error_text(error))
            if verdict_on(error) == "replace":
                await self.resume()
            else:
                await asyncio.sleep(POLL_INTERVAL_S)
            return None
        finally:
            await end_tasks(list(tasks.values()))
        return "exit code 0 without a request to stop"

    async def _silence(self, *, adopted: bool) -> str:
        """Returns when the host has sent no heartbeat for too long, or cannot connect again; with the reason."""
        started_at, log_read, key = time.monotonic(), False, await self._public_key()
        while True:
            await asyncio.sleep(POLL_INTERVAL_S)
            if await self._public_key() != key:
                return "its key was replaced"
            if not self._hosts.connected:
                started_at = time.monotonic()  # this process is disconnected; the host may be fine
            silent_s = min(time.monotonic() - started_at, self._hosts.silent_s(self.host_name))
            if self._hosts.silent_s(self.host_name) < RECENT_HEARTBEAT_S:
                adopted = self._silence_alerted = False
                self.had_heartbeat = True
            if adopted and silent_s > ADOPTED_S:
                return NO_HEARTBEAT
            due = silent_s > (NO_HEARTBEAT_S if log_read else UNCONNECTED_S) and not self._silence_alerted
            end_of_log = await self._end_of_log() if due else ""
            log_read = log_read or due
            if due and (silent_s > NO_HEARTBEAT_S or WAITING in end_of_log):
                self._silence_alerted = True
                self._events.alert(
                    "sandbox_no_heartbeat",
                    f"sandbox {self.host_name}: its host runs, but sent no heartbeat for {silent_s:.0f} s: "
                    f"check that it can reach {redacted_url(self._target.url)} (--public-nats; "
                    f"`allow` and `deny` of the sandbox){end_of_log}",
                    sandbox=self._target.name,
                )
            if silent_s > 3 * NO_HEARTBEAT_S:
                return NO_HEARTBEAT

    async def _public_key(self) -> str:
        keys = self._target.keys
        return "" if keys is None else await asyncio.to_thread(keys.public_key, self.host_name)

    async def _end_of_log(self) -> str:
        """The last lines of the host's log, as the end of a sentence; empty if there are none."""
        try:
            async with asyncio.timeout(END_S):
                output = (await self.sandbox.commands.run(f"tail -n 3 {LOG}", timeout=END_S)).stdout
        except Exception as error:  # noqa: BLE001 - it only adds to another message
            return f"; its log could not be read: {error_text(error)}"
        text = " | ".join(output.split("\n")).strip(" |")[-600:]
        return f"; its log ends with: {text}" * bool(text)

    # -- its deletion

    async def wait_healthy(self) -> None:
        """Wait for a recent heartbeat of the host; raises the error of `task` if that ends first."""
        while self._hosts.silent_s(self.host_name) > 1.0:
            if self.task.done():
                await self.task
            await asyncio.sleep(POLL_INTERVAL_S)

    async def close(self) -> str:
        """Drain the host, then delete the sandbox; returns the reason if that failed, else an empty string."""
        await end_tasks([self.task])
        if self._pid is not None:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(DRAIN_S):
                    await self.sandbox.commands.run(f"kill -TERM {self._pid}", timeout=END_S)
                    while self._hosts.silent_s(self.host_name) < GONE_S:  # noqa: ASYNC110 - silence is no event
                        await asyncio.sleep(POLL_INTERVAL_S)
        problem = await self._service.kill(self.id, END_S)
        if self._target.keys is not None:  # also if it could not be deleted: then all the more
            await asyncio.to_thread(self._target.keys.revoke, self.host_name)
        return problem
