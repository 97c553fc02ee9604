"""`signalmesh up`: the whole swarm on this machine, in the foreground.

Owns its direct children: nats-server (unless another one is named), a host for every sandbox on this machine, the
provider of the other sandboxes, the watchdog, the metrics role, the dashboard and the mirror. They end when it ends,
however it ends; a child that dies is restarted. The hosts and the watchdog start and restart the agents.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import structlog

from bus.durable.events import EventPublisher
from bus.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    BusError,
    BusTimeout,
    Disconnected,
    NotAdmitted,
    PermissionDenied,
    Refused,
    UsageError,
)
from bus.mirror.reader import MIRROR_FILE
from bus.nats.bus import NatsBus
from bus.nats.connection import Denial, describe_denials
from bus.nats.credentials import Credentials
from bus.nats.permissions import find_denied
from bus.nats.streams import ensure_streams
from bus.nats.urls import redacted_url
from bus.observability.logging import set_up_logs
from bus.server.disk import measure_room
from bus.server.supervisor import NatsServer, ServerEvent, ServerRestarted
from bus.utils.aio import end_tasks
from bus.utils.processes import OrphanReaper, adopt_orphans, end_orphans, on_signals
from bus.utils.terminal import escape_control
from coordinator.changes.follower import ChangesFollower
from coordinator.config.live_swarm import LiveSwarm
from coordinator.config.settings import ResolvedSwarm
from coordinator.config.telemetry import NOWHERE, WEBHOOK_VARIABLE, metrics_arguments, webhook_of
from coordinator.runner.child_process import ChildProcess, FoundOut, UpOptions, plan_children, plan_host
from coordinator.runner.dashboard_link import announce, keep_token, open_port
from coordinator.runner.launcher import Launcher
from coordinator.runner.liveness import WATCHED_KINDS, find_unresponsive
from coordinator.runner.mirror_role import restore
from coordinator.runner.name_conflict import refuse_name_conflict
from coordinator.runner.outcome import Outcome
from coordinator.runner.preflight import check_changes
from coordinator.runner.proxy_role import open_proxy_port
from coordinator.runner.run_record import Recorded, lock, remove_run, write_run
from coordinator.runner.server_events import (
    alert_external_durability,
    renew_certificates,
    report_server_event,
    warn_of_deleted_stream,
)
from coordinator.sandboxes.provider_client import plan_provider
from coordinator.security.admission import (
    Admission,
    admission_of,
    describe_new_keys,
    foreign_remark,
    is_from_before_keys,
)
from coordinator.security.connections import ConnectionWatch, ConsumerWatch, FloodWatch, HandshakeWatch, most_inside
from coordinator.security.enforcement import EXPORT, check_enforced
from coordinator.security.keys import (
    KeyStore,
    ServedKeys,
    identity_of,
)
from coordinator.security.reloading import KeyReloader
from coordinator.security.tls_files import ServedTls, plain_remarks, serve_tls
from coordinator.security.violations import ViolationLog, ViolationWatch, check_log
from coordinator.telemetry.otel_env_check import check_variables

NAME = "up"
CHECK_INTERVAL_S = 0.5
CHECKS_PER_STREAM_CHECK = 4
"""The stream is looked up less often than the outbox is checked: that is a request to the server."""
CHECKS_PER_PERMISSION_CHECK = 8
"""The children use the same user, so that what this process is denied concerns them too."""

log = structlog.get_logger("signalmesh.up")


class Up:
    """A running swarm: started, kept running, and stopped in reverse order."""

    def __init__(self, swarm: LiveSwarm, options: UpOptions, launcher: Launcher) -> None:
        self._swarm, self._options, self._launcher = swarm, options, launcher
        self._logs = options.state_dir / "logs"
        self._found = FoundOut()
        self._server: NatsServer | None = None
        self._lock: IO[str] | None = None
        self._sockets: list[socket.socket] = []
        """Listening sockets of children: a port is kept while its process is restarted."""
        self._tasks: list[asyncio.Task[Any]] = []
        self._children: list[ChildProcess] = []
        self._denied: frozenset[Denial] = frozenset()
        self._admission: Admission
        self._credentials: Credentials | None = None
        """None: the environment's."""
        self._keys: ServedKeys | None = None
        self._violations: ViolationWatch | None = None
        """With keys: what the server has refused, if its log can be read here."""
        self._crowds: ConnectionWatch | None = None
        """With keys: who has too many connections."""
        self._consumers: ConsumerWatch | None = None
        """With keys: who has too many consumers."""
        self._tls: ServedTls | None = None
        self._handshakes = HandshakeWatch()
        self._reloader: KeyReloader | None = None
        self._changes = ChangesFollower(swarm, options.state_dir, self._on_change)
        self._connected: ResolvedSwarm | None = None
        """The swarm with the sandboxes that were removed and still need their hosts; None while no children run."""
        self._changing_hosts = asyncio.Lock()
        self.url = ""
        self.bus: NatsBus
        self.outcome: Outcome
        self._events: EventPublisher

    @property
    def config(self) -> ResolvedSwarm:
        """The swarm as it is now."""
        return self._swarm.config

    async def start(self) -> None:
        """Start everything, server first.

        Raises:
            UsageError: the port or the state directory is taken, the server unfit, or a swarm of this name there.
            PermissionDenied: the server denies what a swarm needs to this user.
            BusError: the bus named by --nats does not answer.
        """
        await self._prepare()
        await self._start_server()
        await self._restore()
        await self._take_changes()
        self.outcome = Outcome(self.config)
        await self.outcome.listen(self.bus)
        await self._start_children()

    async def _prepare(self) -> None:
        """Check what can be checked before anything runs, and take the state directory."""
        options = self._options
        self._admission = admission_of(self.config, options.authentication, foreign=options.url is not None)
        for problem in check_variables(os.environ):
            _warn(problem)
        provider = await plan_provider(self.config, self._options.public_url, self._options.url)
        webhook = await asyncio.to_thread(webhook_of, self.config)
        os.environ.pop(WEBHOOK_VARIABLE, None)  # a secret: only for the metrics role
        self._lock = await asyncio.to_thread(lock, self._options.state_dir)
        await asyncio.to_thread(self._logs.mkdir, exist_ok=True)
        # The terminal belongs to the view.
        set_up_logs(self._options.log_level, (self._logs / "up.log").open("a"), json=True)
        metrics = await asyncio.to_thread(metrics_arguments, self.config, webhook)
        self._found = replace(
            self._found,
            provider_env=provider,
            metrics=tuple(metrics),
            metrics_env={WEBHOOK_VARIABLE: webhook} if webhook else {},
        )

    async def _start_server(self) -> None:
        """Start nats-server, unless another one is named, and connect."""
        options = self._options
        await asyncio.to_thread(self._secure)
        users = await asyncio.to_thread(self._admit_users) if self._admission.authentication == "keys" else ""
        if options.url is None:
            self._server = NatsServer(
                options.state_dir,
                port=options.port,
                durability=self.config.stream.durability,
                authorization=users,
                tls="" if self._tls is None else self._tls.block,
            )
            if self._keys is not None:
                self._watch_log(self._server.log_file, self._keys)
                self._crowds = ConnectionWatch(self._keys.owner)
                self._consumers = ConsumerWatch(self._keys.owner, self._reading_names)
            await self._server.start()
            self.url = self._server.url
            self._tasks.append(asyncio.create_task(self._server.supervise(self._on_server), name="nats-server"))
        else:
            self.url = options.url
            await self._watch_given_log()
        self._describe_admission()
        try:
            self.bus = await NatsBus.connect(self.url, self.config.swarm, NAME, credentials=self._credentials)
        except NotAdmitted:
            if self._server is not None or self._keys is None:
                raise
            raise UsageError(f"the server at {redacted_url(self.url)} has not {NAME}'s key: {EXPORT}") from None
        if self._server is None:  # a server of our own has no other swarm: its directory is locked
            if self._keys is not None:
                agents = [agent.spec.name for agent in self.config.agents if not agent.external]
                await check_enforced(self.url, self.config.swarm, agents, self._keys.store)
            names = tuple(sandbox.name for sandbox in self.config.sandboxes)
            if remark := await refuse_name_conflict(self.bus, names):
                _warn(remark)
            if denied := await self._find_denied(quiet=not remark):
                raise PermissionDenied(describe_denials(denied))

    def _describe_admission(self) -> None:
        """Say who may do what, if that is not each process by its key."""
        if self._keys is not None:
            return
        if self._server is None:
            _say(foreign_remark(self.url))
        else:
            _warn(self._admission.warning(self.url))

    def _secure(self) -> None:
        """Prepare TLS, if the embedded server is to have it, and say where messages are sent without."""
        options = self._options
        self._tls = serve_tls(
            self.config, options.state_dir, asked=options.tls, url=options.url, public=options.public_url
        )
        if self._tls is not None:
            self._found = replace(self._found, tls_env=self._tls.environment)
            os.environ.update(self._tls.environment)
            if self._tls.made:
                log.info("certificates_made", certificates=self._tls.made)
        for remark in plain_remarks(options.url, options.public_url):
            _warn(remark)

    def _admit_users(self) -> str:
        """Make the keys that are missing; returns the lines of the server's configuration about its users."""
        store = KeyStore(self._options.state_dir)
        if self._options.url is None:
            for sandbox in self._swarm.changes.removed_sandboxes:  # an `up` that was killed may have left it
                store.remove(identity_of("sandbox", sandbox))
        upgraded = self._options.url is None and is_from_before_keys(self._options.state_dir)
        # The users of another server do not change while the swarm runs.
        self._keys = keys = ServedKeys(store, self.config, NAME, incarnations=self._options.url is None)
        if upgraded:
            external = [agent.spec.name for agent in self.config.agents if agent.external]
            _say(describe_new_keys(store, keys.made, external, self._options.state_dir))
        if keys.made:
            log.info("keys_made", directory=str(store.directory), identities=keys.made)
        self._found = replace(self._found, keys=store.directory)
        self._credentials = store.credentials(NAME)
        return keys.authorization

    async def _keep_keys(self) -> None:
        """Have our server use the keys that are there now, and restart the children that have old ones."""
        if self._keys is None or self._server is None:
            return

        def restart(identities: frozenset[str]) -> None:
            for child in self._children:
                if identity_of(child.kind, child.name) in identities:
                    child.kill()

        self._reloader = KeyReloader(self._keys, self._server, self._events, restart)
        await self._reloader.listen(self.bus)
        self._tasks.append(asyncio.create_task(self._reloader.run(), name="keys"))
        floods = FloodWatch(
            self._keys.owner,
            self._reloader.suspend,
            outsiders=self.config.nats.max_messages_per_s,
            inside=most_inside(self.config.watchdog.max_outputs_per_s),
        )
        self._tasks.append(asyncio.create_task(floods.run(self._server, self.bus, self._events), name="floods"))

    async def _watch_given_log(self) -> None:
        if (file := self._options.server_log) is None:
            return
        if self._keys is None:
            raise UsageError("--server-log: expected with --authentication keys; without, the server refuses nothing")
        await asyncio.to_thread(check_log, file, "--server-log")
        self._watch_log(file, self._keys)

    def _watch_log(self, file: Path, keys: ServedKeys) -> None:
        admits = None if keys.incarnations is None else keys.incarnations.admits
        self._violations = ViolationWatch(ViolationLog(file), keys.owner, admits=admits)

    async def _report_violations(self, watch: ViolationWatch) -> None:
        """Report what the server has refused to clients, of this swarm or not."""
        failed = {}
        if self._tls is not None and self._server is not None:
            failed = await self._handshakes.look(self._server.directory, self._server.pid)
        await watch.look(self._events, failed)

    def _reading_names(self) -> list[str]:
        """The names by which agents and hosts make consumers."""
        hosts = (f"sandbox-{sandbox.name}" for sandbox in self.config.sandboxes)
        return [*(agent.spec.name for agent in self.config.agents), *hosts]

    async def _find_denied(self, *, quiet: bool) -> list[Denial]:
        agents = [item.spec.name for item in self.config.agents if not item.external]
        hosts = [sandbox.name for sandbox in self.config.sandboxes if sandbox.e2b is None]
        return await find_denied(self.bus, agents, hosts, NAME, quiet=quiet)

    async def _restore(self) -> None:
        """Restore what the bus has lost from the mirror's file, then create or update the stream."""
        restored, limits = "", self.config.stream.limits()
        if self._server is not None:
            limits = replace(limits, disk=await asyncio.to_thread(measure_room, self._server.directory))
        if self.config.mirror.enabled:
            file = self._options.state_dir / MIRROR_FILE
            restored, usable = await restore(self.bus, file, limits, NAME)
            self._found = replace(self._found, mirror=usable)
            if restored:
                log.warning("stream_restored", text=restored)
                _say(restored)
        for notice in await ensure_streams(self.bus, limits):
            _warn(notice)
        self._found = replace(self._found, stored=(await self.bus.bounds()).last)
        self._events = await EventPublisher.open(self.bus, NAME)
        if restored:
            self._events.alert("warning", "stream_restored", restored)
        if self._server is None and self.config.stream.durability != "process":
            alert_external_durability(self._events, self.config, self.bus.url)

    async def _take_changes(self) -> None:
        """Take over changes that the stream has and the state directory has not, and follow those to come."""
        base, state_dir = self._swarm.base, self._options.state_dir
        taken = await self._changes.begin(self.bus, lambda changes: check_changes(base, changes, state_dir))
        if taken and self._keys is not None:
            await asyncio.to_thread(self._keys.take, self.config)

    async def _on_change(self, connected: ResolvedSwarm) -> None:
        """Agents or sandboxes have come or gone; `connected` has those that still drain."""
        if self._connected is not None:
            async with self._changing_hosts:
                self._connected = connected
                await self._end_hosts({sandbox.name for sandbox in connected.sandboxes})
        if self._reloader is not None:
            self._reloader.take(connected)
        await self.outcome.take(self.config, self.bus)

    async def _end_hosts(self, sandboxes: set[str]) -> None:
        """End the hosts of other sandboxes than these, and revoke their keys."""
        gone = [child for child in self._children if child.kind == "sandbox" and child.name not in sandboxes]
        await asyncio.gather(*(child.stop() for child in gone))
        for child in gone:
            self._children.remove(child)
            log.info("host_ended", sandbox=child.name)
            if self._keys is not None and self._server is not None:
                try:
                    await asyncio.to_thread(self._keys.store.remove, identity_of("sandbox", child.name))
                except UsageError as error:
                    log.warning("key_not_removed", problem=str(error))
        if gone:
            self._record()

    async def _start_hosts(self) -> None:
        """Start the hosts of sandboxes that were added, once the server has their keys."""
        async with self._changing_hosts:
            if self._connected is None or (self._reloader is not None and not self._reloader.served):
                return
            running = {child.name for child in self._children if child.kind == "sandbox"}
            for sandbox in self._connected.sandboxes:
                if sandbox.e2b is not None or sandbox.name in running:
                    continue
                spec = plan_host(sandbox.name, self.config.swarm, self._options, self._found)
                child = ChildProcess(spec, self.url, self._logs, self._launcher)
                child.on_start = self._record
                self._children.append(child)
                try:
                    await child.start()
                except (OSError, RuntimeError) as error:  # too many processes, threads or files just now
                    self._children.remove(child)
                    log.warning("child_not_started", child=child.name, problem=str(error))
                    return
                log.info("host_started", sandbox=sandbox.name)
                self._tasks.append(asyncio.create_task(child.keep_running(self._on_exit), name=child.name))

    async def _start_children(self) -> None:
        """Start the children, and the tasks that watch them."""
        if self._options.fault_proxy:
            listener, env = open_proxy_port(self.url, embedded=self._server is not None)
            self._sockets.append(listener)
            self._found = replace(self._found, proxy_fd=listener.fileno(), proxy_env=env)
        if self._options.dashboard and self.config.dashboard.listen not in ("", NOWHERE):
            await asyncio.to_thread(self._open_dashboard)
        await self._keep_keys()
        self._connected = self.config
        specs = plan_children(self._swarm, self._options, self._found)
        self._children = [ChildProcess(spec, self.url, self._logs, self._launcher) for spec in specs]
        for child in [*self._children]:  # a change may come meanwhile
            await child.start()
            self._tasks.append(asyncio.create_task(child.keep_running(self._on_exit), name=child.name))
        self._tasks.append(asyncio.create_task(self._launcher.keep_zygote(), name="zygote"))
        self._tasks.append(asyncio.create_task(self._check(), name="outbox"))
        watched = [child for child in self._children if child.kind in WATCHED_KINDS]
        unresponsive = find_unresponsive(self.bus, watched, self._on_unresponsive)
        self._tasks.append(asyncio.create_task(unresponsive, name="liveness"))
        self._record()
        self._launcher.on_restart = self._record
        for child in self._children:
            child.on_start = self._record

    def _open_dashboard(self) -> None:
        """Open its port, and say once where it is."""
        state_dir = self._options.state_dir
        token = keep_token(state_dir)
        port = open_port(self.config.dashboard.listen, f"{self.config.file}: dashboard.listen:")
        self._sockets.append(port.socket)
        self._found = replace(self._found, dashboard_fd=port.socket.fileno())
        announce(port, token, state_dir)

    def _record(self) -> None:
        """Record the processes that run now."""
        # Synchronous on purpose, and short: an older record cannot overwrite a newer one.
        pids = [(child.kind, child.name, child.pid) for child in self._children]
        if self._server is not None:
            pids.append(("nats-server", "nats-server", self._server.pid))
        pids.append(("zygote", "zygote", self._launcher.zygote_pid))
        recorded = [Recorded.of(kind, name, pid) for kind, name, pid in pids if pid is not None]
        known = [child for child in recorded if child is not None]
        agents = self._options.agents
        try:
            write_run(
                self._options.state_dir,
                self.config.swarm,
                self.bus.url,
                self.config.file,
                known,
                agents,
                self._admission.authentication,
            )
        except OSError as error:
            log.warning("record_not_written", problem=str(error))

    async def _check(self) -> None:
        gone = False
        orphans = OrphanReaper()
        for count in itertools.count():
            await asyncio.sleep(CHECK_INTERVAL_S)
            self._events.check()
            orphans.check()
            await self._start_hosts()
            if self._tls is not None and self._server is not None:
                await renew_certificates(self._tls, self._server, self._events)
            if self._violations is not None:
                await self._report_violations(self._violations)
            if count % CHECKS_PER_STREAM_CHECK == 0:
                # Refused: the stream was deleted just now, and the next look says so.
                with contextlib.suppress(BusTimeout, Disconnected, PermissionDenied, Refused):
                    gone = await warn_of_deleted_stream(self.bus, warned=gone)
                    if not gone:
                        await self._changes.look(self.bus)
                        if self._consumers is not None:
                            await self._consumers.look(self.bus, self._events)
            if count % CHECKS_PER_PERMISSION_CHECK == 0 and self._crowds is not None and self._server is not None:
                await self._crowds.look(self._server, self._events)
            if count % CHECKS_PER_PERMISSION_CHECK == 0 and self._server is None:
                with contextlib.suppress(BusTimeout, Disconnected):
                    self._report_denied(await self._find_denied(quiet=False))

    def _report_denied(self, denials: list[Denial]) -> None:
        """Report what the server denies now and did not before: its configuration can change at any time."""
        if new := [denial for denial in denials if denial not in self._denied]:
            text = describe_denials(new)
            _warn(text)
            self._events.alert("critical", "permission_denied", text)
        self._denied = frozenset(denials)

    def _on_exit(self, child: ChildProcess, pid: int, code: int) -> None:
        reason = f"signal {-code}" if code < 0 else f"exit code {code}"
        if child.kind == "sandbox":
            self._events.lifecycle("exited", child.name, sandbox=child.name, pid=pid, reason=reason, exit_code=code)
        self._events.alert(
            "warning",
            f"{child.kind}_died",
            f"{child.kind} {child.name} (pid {pid}) ended with {reason} and is restarted; "
            f"its log is logs/{child.name}.log of the state directory",
            pid=pid,
        )

    def _on_unresponsive(self, child: ChildProcess, silent_s: float) -> None:
        self._events.alert(
            "warning",
            f"{child.kind}_unresponsive",
            f"{child.kind} {child.name} (pid {child.pid}) runs, but has sent no heartbeat for {silent_s:.0f} s: "
            "it is killed and restarted",
            pid=child.pid,
        )
        child.kill()

    def _on_server(self, event: ServerEvent) -> None:
        if isinstance(event, ServerRestarted):
            self._record()
        report_server_event(event, lambda: self._events)

    async def stop(self) -> None:
        """End everything in reverse order.

        Hosts have time to drain their agents, the mirror to read what is left in the stream; the server ends last.
        """
        async with self._changing_hosts:
            self._connected = None
        for kinds in (("watchdog",), ("sandbox", "provider"), ("proxy",), ("metrics", "dashboard"), ("mirror",)):
            if "mirror" in kinds and hasattr(self, "_events"):  # the mirror stores the last events as well
                await self._events.finish()
            await asyncio.gather(*(child.stop() for child in self._children if child.kind in kinds))
        for task in self._tasks:
            if task.get_name() != "nats-server":
                task.cancel()
        if hasattr(self, "bus"):
            await self.bus.close()
        if self._server is not None:
            await self._server.stop()
        await end_tasks(self._tasks)
        for listener in self._sockets:
            listener.close()
        if self._lock is not None:
            await asyncio.to_thread(remove_run, self._options.state_dir)
            self._lock.close()


def _say(text: str) -> None:
    print(f"signalmesh: {escape_control(text)}", file=sys.stderr)


def _warn(text: str) -> None:
    print(f"warning: {escape_control(text)}", file=sys.stderr)


async def run_up(
    swarm: LiveSwarm, options: UpOptions, launcher: Launcher, show: Callable[[Up, asyncio.Event], Any]
) -> int:
    """Run the swarm until a signal, `down` or the end of --for; `show` displays it meanwhile.

    The exit code is 1 if no decision was made, or if an agent is quarantined at the end.
    """
    stop = asyncio.Event()
    signals = 0

    def on_signal() -> None:
        nonlocal signals
        signals += 1
        stop.set()
        if signals > 2:
            os._exit(130)  # the children end with this process

    on_signals(on_signal)
    adopt_orphans(True)  # what the agents of a killed sandbox host have forked ends with this process
    up = Up(swarm, options, launcher)
    problems: list[str] = []
    ending: str | None = None
    showing: asyncio.Task[None] | None = None
    try:
        await up.start()
        showing = asyncio.create_task(show(up, stop), name="view")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(options.for_s):
                await stop.wait()
        problems = await up.outcome.problems(up.bus, signalled=stop.is_set())
        ending = up.outcome.ending()
    finally:
        if showing is not None:
            stop.set()
            await end_tasks([showing])
        with contextlib.suppress(BusError):
            await up.stop()
        launcher.stop()
        await end_orphans()
    if ending is not None:
        _say(ending)
    for problem in problems:
        _say(problem)
    return EXIT_FAILED if problems else EXIT_DONE
