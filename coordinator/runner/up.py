"""`signalmesh up`: the whole swarm on this machine, in the foreground.

It owns its direct children: nats-server (unless another one is named), a host for every sandbox, the watchdog, the
mirror. They end when it ends, however it ends; while it lives, each that dies is started again. Agents are the hosts'
and the watchdog's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import structlog

from bus.durable.events import EventPublisher
from bus.durable.outbox import Outbox
from bus.errors import EXIT_DONE, BusError, BusTimeout, Disconnected
from bus.messages.subjects import PROVIDER, STANDBY, WATCHDOG
from bus.mirror.reader import MIRROR_FILE
from bus.nats.bus import NatsBus
from bus.nats.streams import ensure_streams
from bus.observability.logging import set_up_logs
from bus.server.supervisor import NatsServer, ServerEvent, ServerRestarted
from bus.utils.aio import end_tasks
from bus.utils.processes import on_signals
from bus.utils.terminal import escape_control
from coordinator.config.settings import SwarmConfig
from coordinator.config.telemetry import metrics_arguments
from coordinator.runner.child_process import ChildProcess
from coordinator.runner.liveness import WATCHED_KINDS, find_unresponsive
from coordinator.runner.mirror_role import restore
from coordinator.runner.name_conflict import refuse_name_conflict
from coordinator.runner.proxy_role import LISTENER_VARIABLE, open_proxy_port
from coordinator.runner.run_record import Recorded, lock, remove_run, write_run
from coordinator.runner.server_events import tell_foreign_durability, tell_of_server, tell_of_stream
from coordinator.sandboxes.provider_client import plan_provider
from coordinator.telemetry.otel_env_check import check_variables

NAME = "up"

log = structlog.get_logger("signalmesh.up")


@dataclass(frozen=True, slots=True, kw_only=True)
class UpOptions:
    """What was asked for on the command line."""

    config_file: Path | None
    state_dir: Path
    port: int
    url: str | None
    for_s: float | None
    log_level: str
    speed: float | None = None
    agents: int | None = None
    standby: bool = False
    fault_proxy: bool = False
    public_url: str | None = None


class Up:
    """A running swarm: started, kept, and stopped in reverse order."""

    def __init__(self, config: SwarmConfig, options: UpOptions) -> None:
        self.config, self._options = config, options
        self._server: NatsServer | None = None
        self._lock: IO[str] | None = None
        self._proxy_socket: socket.socket | None = None
        self._tasks: list[asyncio.Task[Any]] = []
        self.roles: list[ChildProcess] = []
        self.url = ""
        self._told = ""
        self.bus: NatsBus
        self._reports: EventPublisher
        self._outbox: Outbox

    async def start(self) -> None:
        """Start everything, server first.

        Raises:
            UsageError: the port or the state directory is taken, the server unfit, or a swarm of this name there.
            BusError: the bus named by --nats does not answer.
        """
        options = self._options
        state_dir = options.state_dir
        for problem in check_variables(os.environ):
            print(f"warning: {escape_control(problem)}", file=sys.stderr)
        self._provider = await plan_provider(self.config, options.public_url, options.url)
        self._lock = await asyncio.to_thread(lock, state_dir)
        logs = state_dir / "logs"
        await asyncio.to_thread(logs.mkdir, exist_ok=True)
        set_up_logs(options.log_level, (logs / "up.log").open("a"), json=True)  # the terminal is the view's
        self._metrics = await asyncio.to_thread(metrics_arguments, self.config)
        if options.url is None:
            self._server = NatsServer(state_dir, port=options.port, durability=self.config.stream.durability)
            await self._server.start()
            self.url = self._server.url
            self._tasks.append(asyncio.create_task(self._server.supervise(self._on_server), name="nats-server"))
        else:
            self.url = options.url
        self.bus = await NatsBus.connect(self.url, self.config.swarm, NAME)
        if self._server is None:  # nobody else is on a server of our own, whose directory is locked
            names = tuple(sandbox.name for sandbox in self.config.sandboxes)
            if remark := await refuse_name_conflict(self.bus, names):
                print(f"warning: {escape_control(remark)}", file=sys.stderr)
        mirrored = self.config.mirror.enabled and await self._restore(state_dir / MIRROR_FILE)
        await ensure_streams(self.bus, self.config.stream.limits())
        self._outbox = Outbox(self.bus, (f"{self.config.swarm}.*.*.{NAME}",), lambda _: None)
        self._reports = EventPublisher(self.bus, self._outbox, NAME)
        if self._told:
            self._reports.alert("warning", "stream_restored", self._told)
        if self._server is None and self.config.stream.durability != "process":
            tell_foreign_durability(self._reports, self.config, self.bus.url)
        self._list_roles(logs, mirrored=mirrored)
        for role in self.roles:
            await role.start()
            self._tasks.append(asyncio.create_task(role.keep(self._on_exit), name=role.name))
        self._tasks.append(asyncio.create_task(self._check(), name="outbox"))
        watched = [role for role in self.roles if role.kind in WATCHED_KINDS]
        self._tasks.append(
            asyncio.create_task(find_unresponsive(self.bus, watched, self._on_unresponsive), name="hung")
        )
        self._record()
        for role in self.roles:
            role.on_start = self._record

    async def _restore(self, file: Path) -> bool:
        """Have what the bus has lost put back from the mirror's file; whether a mirror can be started on it."""
        told, usable = await restore(self.bus, file, self.config.stream.limits(), NAME)
        if told:
            log.warning("stream_restored", text=told)
            print(f"signalmesh: {escape_control(told)}", file=sys.stderr)
            self._told = told
        return usable

    def _list_roles(self, logs: Path, *, mirrored: bool) -> None:
        """Everybody who is to run, in the order of starting."""
        options = self._options
        common = ["--swarm", self.config.swarm, "--log-level", options.log_level]
        config_file = [] if options.config_file is None else ["--config", str(options.config_file)]
        through: dict[str, str] = {}
        if options.fault_proxy:
            self._proxy_socket, through = open_proxy_port(self.url)
            number = self._proxy_socket.fileno()
            self.roles.append(
                ChildProcess(
                    "proxy",
                    "proxy",
                    ["proxy", *common],
                    self.url,
                    logs / "proxy.log",
                    environment={LISTENER_VARIABLE: str(number)},
                    pass_fds=(number,),
                )
            )
        for sandbox in self.config.sandboxes:
            if sandbox.e2b is not None:
                continue
            arguments = ["sandbox", sandbox.name, *common]
            log_file = logs / f"{sandbox.name}.log"
            self.roles.append(ChildProcess("sandbox", sandbox.name, arguments, self.url, log_file, environment=through))
        count = [] if options.agents is None else ["--agents", str(options.agents)]
        if self._provider is not None:
            provider = ["provider", *config_file, "--state-dir", str(options.state_dir), *common]
            log_file, own = logs / f"{PROVIDER}.log", self._provider
            self.roles.append(ChildProcess(PROVIDER, PROVIDER, provider, self.url, log_file, environment=own))
        speed = [] if options.speed is None else ["--speed", str(options.speed)]
        watchdog = ["watchdog", *config_file, *speed, *count, *common]
        # Of two watchdogs the one that is restarted lets the other lead, which is awake and has listened all the time.
        again = ("--standby",) if options.standby else ()
        log_file = logs / "watchdog.log"
        self.roles.append(
            ChildProcess("watchdog", WATCHDOG, watchdog, self.url, log_file, first=("--clear-quarantine",), again=again)
        )
        if options.standby:
            self.roles.append(ChildProcess("watchdog", STANDBY, [*watchdog, *again], self.url, logs / f"{STANDBY}.log"))
        if self._metrics:
            metrics = [*self._metrics, *config_file, *count, *common]
            self.roles.append(ChildProcess("metrics", "metrics", metrics, self.url, logs / "metrics.log"))
        if mirrored:
            mirror = ["mirror", *config_file, "--file", str(options.state_dir / MIRROR_FILE), *common]
            self.roles.append(ChildProcess("mirror", "mirror", mirror, self.url, logs / "mirror.log"))

    def _record(self) -> None:
        """Write down who runs now; short enough to be done at once, so that no older record can overtake a newer."""
        pids = [(role.kind, role.name, role.pid) for role in self.roles]
        if self._server is not None:
            pids.append(("nats-server", "nats-server", self._server.pid))
        children = [Recorded.of(kind, name, pid) for kind, name, pid in pids if pid is not None]
        known = [child for child in children if child is not None]
        agents = self._options.agents
        try:
            write_run(self._options.state_dir, self.config.swarm, self.bus.url, self.config.file, known, agents)
        except OSError as error:
            log.warning("record_not_written", problem=str(error))

    async def _check(self) -> None:
        gone = False
        for looks in itertools.count():
            await asyncio.sleep(0.5)
            self._outbox.check()
            if looks % 4 == 0:
                with contextlib.suppress(BusTimeout, Disconnected):
                    gone = await tell_of_stream(self.bus, told=gone)

    def _on_exit(self, role: ChildProcess, pid: int, code: int) -> None:
        reason = f"signal {-code}" if code < 0 else f"exit code {code}"
        if role.kind == "sandbox":
            self._reports.lifecycle("exited", role.name, sandbox=role.name, pid=pid, reason=reason, exit_code=code)
        self._reports.alert(
            "warning",
            f"{role.kind}_died",
            f"{role.kind} {role.name} (pid {pid}) ended with {reason} and is started again; "
            f"its log is logs/{role.name}.log of the state directory",
            pid=pid,
        )

    def _on_unresponsive(self, role: ChildProcess, silent_s: float) -> None:
        self._reports.alert(
            "warning",
            f"{role.kind}_hung",
            f"{role.kind} {role.name} (pid {role.pid}) runs, but was not heard for {silent_s:.0f} s: it is ended",
            pid=role.pid,
        )
        role.kill()

    def _on_server(self, event: ServerEvent) -> None:
        if isinstance(event, ServerRestarted):
            self._record()
        tell_of_server(event, lambda: self._reports)

    async def stop(self) -> None:
        """End everything in reverse order: watchdog, hosts (their agents drain), mirror (it reads the rest), server."""
        for kinds in (("watchdog",), ("sandbox", "provider"), ("proxy",), ("metrics",), ("mirror",)):
            if "mirror" in kinds and hasattr(self, "_outbox"):  # it has the last word in its file
                with contextlib.suppress(TimeoutError, BusError):
                    async with asyncio.timeout(1.0):
                        await self._outbox.flush()
            await asyncio.gather(*(role.stop() for role in self.roles if role.kind in kinds))
        for task in self._tasks:
            if task.get_name() != "nats-server":
                task.cancel()
        if hasattr(self, "bus"):
            await self.bus.close()
        if self._server is not None:
            await self._server.stop()
        await end_tasks(self._tasks)
        if self._proxy_socket is not None:
            self._proxy_socket.close()
        if self._lock is not None:
            await asyncio.to_thread(remove_run, self._options.state_dir)
            self._lock.close()


async def run_up(config: SwarmConfig, options: UpOptions, show: Callable[[Up, asyncio.Event], Any]) -> int:
    """Run the swarm until a signal, `down` or the end of --for; `show` displays it meanwhile."""
    stop = asyncio.Event()
    asked = 0

    def on_signal() -> None:
        nonlocal asked
        asked += 1
        stop.set()
        if asked > 2:
            os._exit(130)  # the children end with us

    on_signals(on_signal)
    up = Up(config, options)
    showing: asyncio.Task[None] | None = None
    try:
        await up.start()
        showing = asyncio.create_task(show(up, stop), name="view")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(options.for_s):
                await stop.wait()
    finally:
        if showing is not None:
            stop.set()
            await end_tasks([showing])
        with contextlib.suppress(BusError):
            await up.stop()
    return EXIT_DONE
