"""One sandbox of E2B with our host in it: found or started, watched, its lifetime renewed, drained and ended.

The proof of life is the host's own heartbeat on the bus. A broken stream proves nothing: the sandbox is asked which
processes it has, and the running host is attached to again. Imports the SDK.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import structlog
from e2b import AsyncCommandHandle, AsyncSandbox, CommandExitException, NotFoundException, SandboxState

from agents.host.protocol import DRAIN_GRACE_S, HEARTBEAT_S
from bus.heartbeats import HeartbeatListener
from bus.nats.credentials import Credentials
from bus.nats.urls import is_websocket, redacted_url
from bus.utils.aio import both, end_tasks
from coordinator.config.e2b import E2bSettings
from coordinator.sandboxes.e2b_client import Service
from coordinator.sandboxes.e2b_errors import GivenUp, Gone, shown, verdict_on
from coordinator.sandboxes.installer import FILES, LOG, InstallFailed, install, upload

__all__ = ["SandboxInstance", "SandboxTarget"]

UNHEARD_S = 20.0
"""A host that runs, but was not heard for so long, is told of; after three times as long it is started anew."""
RECENT_HEARTBEAT_S = 1.0
"""A host is there that was heard so lately."""
ADOPTED_S = 5.0
"""How long one that was found running may take to be heard: it may have been sent to an address of an earlier run."""
STABLE_S = 60.0
"""A host that has run for so long is forgiven its earlier ends."""
ENDS = 3
"""So many ends of the host in a row, and the sandbox is taken to be of no use."""
INSTALLS = 3
"""So many failed installations in a row, and no more are tried: another sandbox of this template is no better."""
INSTALL_PAUSE_S = 5.0
"""After the first of them; an index can be ill for a while."""
DRAIN_S = DRAIN_GRACE_S + 3.0
"""From SIGTERM for the host to the end of its sandbox."""
END_S = 5.0
POLL_INTERVAL_S = HEARTBEAT_S
GONE_S = 3.5 * HEARTBEAT_S
"""A host beats while it drains; one silent for so long has ended."""
REFUSED_S = 2.0
"""Before a host is looked after again that runs, though what was asked of its sandbox is refused."""

log = structlog.get_logger("signalmesh.provider")


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxTarget:
    """What is to run: sandbox `name` of `swarm`, at `url` on the bus, in sandboxes of this `pool`."""

    name: str
    swarm: str
    settings: E2bSettings
    pool: str
    version: str
    url: str = field(repr=False)
    credentials: Credentials = field(repr=False)
    log_level: str = "info"
    files: tuple[tuple[str, Path], ...] = ()

    def host_name(self, sandbox_id: str) -> str:
        """What our host in that sandbox is called on the bus."""
        return f"{self.name}-{sandbox_id}"

    def command(self, python: str, sandbox_id: str) -> str:
        """What starts the host; a host is known by all but its interpreter (`marks`)."""
        return f"exec {shlex.quote(python)} {self.marks(sandbox_id)} >>{LOG} 2>&1"

    def marks(self, sandbox_id: str) -> str:
        return (
            f"-m coordinator sandbox {self.name} --host {self.host_name(sandbox_id)} --provider-name e2b "
            f"--swarm {self.swarm} --log-level {self.log_level} --files {FILES} --credentials-stdin"
        )

    def told(self, endpoint: str, age_s: float) -> bytes:
        """The line that the host reads from its standard input: whatever is secret goes this way, and no other."""
        told = {"url": self.url, "credentials": self.credentials, "endpoint": endpoint, "age_s": round(age_s, 3)}
        return orjson.dumps(told) + b"\n"


class SandboxInstance:
    """`sandbox`, `age_s` seconds old, as one that serves `wanted`; `told(code, text)` alerts."""

    def __init__(
        self,
        service: Service,
        hosts: HeartbeatListener,
        target: SandboxTarget,
        sandbox: AsyncSandbox,
        age_s: float,
        told: Callable[[str, str], None],
    ) -> None:
        self._service, self._hosts, self._wanted, self.sandbox = service, hosts, target, sandbox
        self._told = told
        self.since = time.monotonic() - age_s
        self.host_name = target.host_name(sandbox.sandbox_id)
        self._pid: int | None = None
        self._unheard_told = False
        self.had_heartbeat = False
        self.task = asyncio.create_task(self._serve(), name=f"serve-{self.id}")
        """Serves it; ends only by an error: Gone or GivenUp."""

    @property
    def id(self) -> str:
        return self.sandbox.sandbox_id

    async def _serve(self) -> None:
        await both(self._renew(), self._keep_host())

    # -- its lifetime

    async def _renew(self) -> None:
        lifetime_s = self._wanted.settings.timeout_s
        pause_s = lifetime_s / 3
        while True:
            await asyncio.sleep(pause_s)
            pause_s = lifetime_s / 3
            try:
                try:
                    await self._service.ask("renewing a lifetime", lambda: self.sandbox.set_timeout(lifetime_s))
                except Gone:
                    await self.resume()
            except GivenUp as error:  # such as a revoked key: no reason to end what runs, which its lifetime will do
                self._service.refuse(error)
                pause_s = lifetime_s / 12

    async def resume(self) -> None:
        """Wake it if it was only paused.

        Raises:
            Gone: it is no more.
        """
        info = await self._service.info(self.sandbox)
        if info.state == SandboxState.PAUSED:
            log.warning("sandbox_resumed", sandbox_id=self.id)
            self._told("sandbox_paused", f"sandbox {self.host_name} was paused, and is resumed")
            await self._service.connect(self.id, self._wanted.settings.timeout_s)

    # -- the host in it

    async def _keep_host(self) -> None:
        ends, failed, adopted = 0, 0, True
        while True:
            started_at = time.monotonic()
            try:
                reason = await self._one_host(adopted=adopted)
            except InstallFailed as error:
                failed += 1
                if error.hopeless or failed >= INSTALLS:
                    raise GivenUp(str(error)) from None
                self._told("sandbox_not_installed", f"sandbox {self.host_name}: {error}; it is tried again")
                await asyncio.sleep(INSTALL_PAUSE_S * failed)
                continue
            except GivenUp as error:
                if self._hosts.silent_s(self.host_name) > GONE_S:
                    raise
                self._service.refuse(error)  # it runs, whatever is said of it
                await asyncio.sleep(REFUSED_S)
                continue
            adopted, failed = False, 0
            if reason is None:
                continue
            ends = 1 if time.monotonic() - started_at > STABLE_S else ends + 1
            log.warning("host_ended", sandbox_id=self.id, reason=reason, ends=ends)
            if ends >= ENDS:
                raise Gone(f"its host ended {ends} times in a row, at last: {reason}{await self._end_of_log()}")
            await asyncio.sleep(min(2.0**ends, 10.0) / 4)

    async def _one_host(self, *, adopted: bool) -> str | None:
        """Attach to the host, or start one, and wait for its end; why it ended, None where only the stream did."""
        try:
            self._pid = await self._find()
            if self._pid is None:
                adopted = False
                handle = await self._start_host()
            else:
                log.info("host_attached", sandbox_id=self.id, pid=self._pid)
                handle = await self._attach(self._pid)
        except NotFoundException:
            return None  # it ended just now: look again
        except Gone:
            await self.resume()
            return None
        return await self._watch(handle, adopted=adopted)

    async def _find(self) -> int | None:
        marks = self._wanted.marks(self.id)
        running = await self._service.ask("listing processes", self.sandbox.commands.list)
        return next((one.pid for one in running if any(marks in argument for argument in one.args)), None)

    async def _start_host(self) -> AsyncCommandHandle[Any]:
        target, sandbox = self._wanted, self.sandbox
        await upload(self._service, sandbox, target.files)
        python = await install(self._service, sandbox, target.settings, websocket=is_websocket(target.url))
        command = target.command(python, self.id)

        async def start() -> AsyncCommandHandle[Any]:
            handle = await sandbox.commands.run(
                f"mkdir -p {FILES}; {command}", background=True, stdin=True, timeout=0, retain_output=False
            )
            try:
                async with sandbox.commands.stream_input(handle.pid) as given:
                    await given.send(target.told(self._service.endpoint.shown, time.monotonic() - self.since))
                await sandbox.commands.close_stdin(handle.pid)
            except BaseException:
                with contextlib.suppress(Exception):  # without what it waits for it is of no use
                    await handle.kill()
                raise
            return handle

        handle = await self._service.ask("starting the host", start)
        self._pid = handle.pid
        log.info("host_started", sandbox_id=self.id, pid=handle.pid, host=self.host_name)
        return handle

    async def _attach(self, pid: int) -> AsyncCommandHandle[Any]:
        gone: NotFoundException | None = None

        async def attach() -> AsyncCommandHandle[Any] | None:
            nonlocal gone
            try:
                return await self.sandbox.commands.connect(pid, timeout=0, retain_output=False)
            except NotFoundException as error:
                gone = error
                return None

        handle = await self._service.ask("attaching to the host", attach)
        if handle is None:
            assert gone is not None
            raise gone
        return handle

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
                return "it ran, but was not heard on the bus"
            await tasks["end"]
        except CommandExitException as error:
            return f"exit code {error.exit_code} ({error.error or 'no more is known'})"
        except Exception as error:  # noqa: BLE001 - whatever the SDK raises: judged by the one table
            log.info("stream_broken", sandbox_id=self.id, problem=shown(error))
            if verdict_on(error) == "replace":
                await self.resume()
            else:
                await asyncio.sleep(POLL_INTERVAL_S)
            return None
        finally:
            await end_tasks(list(tasks.values()))
        return "exit code 0, though nobody had asked it to end"

    async def _silence(self, *, adopted: bool) -> None:
        """Back when the host has been silent for too long."""
        started_at = time.monotonic()
        while True:
            await asyncio.sleep(POLL_INTERVAL_S)
            if not self._hosts.connected:
                started_at = time.monotonic()  # it is us who do not hear
            silent_s = min(time.monotonic() - started_at, self._hosts.silent_s(self.host_name))
            if self._hosts.silent_s(self.host_name) < RECENT_HEARTBEAT_S:
                adopted = self._unheard_told = False
                self.had_heartbeat = True
            if adopted and silent_s > ADOPTED_S:
                return
            if silent_s > UNHEARD_S and not self._unheard_told:
                self._unheard_told = True
                self._told(
                    "sandbox_no_heartbeat",
                    f"sandbox {self.host_name}: its host runs, but was not heard for {silent_s:.0f} s: can it reach "
                    f"{redacted_url(self._wanted.url)} from there (--public-nats, and `allow` and `deny` of the "
                    f"sandbox)?"
                    f"{await self._end_of_log()}",
                )
            if silent_s > 3 * UNHEARD_S:
                return

    async def _end_of_log(self) -> str:
        """The last lines of the host's log, as the end of a sentence; nothing where it has said nothing."""
        try:
            async with asyncio.timeout(END_S):
                said = (await self.sandbox.commands.run(f"tail -n 3 {LOG}", timeout=END_S)).stdout
        except Exception as error:  # noqa: BLE001 - it only adds to what is told
            return f"; its log could not be read: {shown(error)}"
        text = " | ".join(said.split("\n")).strip(" |")[-600:]
        return f"; its log ends with: {text}" * bool(text)

    # -- its end

    async def received(self) -> None:
        """Back when its host is heard, or raises what its task ended with."""
        while self._hosts.silent_s(self.host_name) > 1.0:
            if self.task.done():
                await self.task
            await asyncio.sleep(POLL_INTERVAL_S)

    async def close(self) -> str:
        """Have the host drain its agents, then end the sandbox; why it could not be ended, or nothing."""
        await end_tasks([self.task])
        if self._pid is not None:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(DRAIN_S):
                    await self.sandbox.commands.run(f"kill -TERM {self._pid}", timeout=END_S)
                    while self._hosts.silent_s(self.host_name) < GONE_S:  # noqa: ASYNC110 - silence is no event
                        await asyncio.sleep(POLL_INTERVAL_S)
        return await self._service.kill(self.id, END_S)
