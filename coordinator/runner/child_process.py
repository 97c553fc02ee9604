"""The child processes of `up`: which ones there are, and each of them: started, restarted when it dies, and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from bus.messages.subjects import PROVIDER, STANDBY, WATCHDOG
from bus.mirror.reader import MIRROR_FILE
from bus.utils.backoff import RestartBackoff
from coordinator.config.connection import Authentication
from coordinator.config.live_swarm import LiveSwarm
from coordinator.runner.launcher import Launcher, RoleProcess
from coordinator.runner.preflight import traits_environment
from coordinator.security.keys import key_environment

log = structlog.get_logger("signalmesh.up")

URL_VARIABLE = "SIGNALMESH_NATS"
"""Children get the bus's address by environment: an address may hold credentials, and arguments are public."""
LISTENER_VARIABLE = "SIGNALMESH_LISTENER"
"""Number of the inherited descriptor of a listening socket: `up` keeps the port while the process is restarted."""
STOP_GRACE_S = {
    "watchdog": 3.0, "sandbox": 10.0, "provider": 22.0, "proxy": 2.0, "metrics": 8.0, "dashboard": 4.0, "mirror": 10.0,
}  # fmt: skip
"""From SIGTERM to SIGKILL; a sandbox host drains its agents in this time, the mirror reads the rest."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class UpOptions:
    """The options of the command line."""

    config_file: Path | None
    state_dir: Path
    port: int
    url: str | None
    for_s: float | None
    log_level: str
    speed: float | None = None
    agents: int | None = None
    max_agents: int | None = None
    standby: bool = False
    fault_proxy: bool = False
    public_url: str | None = None
    dashboard: bool = True
    authentication: Authentication | None = None
    """None: as the configuration has it."""
    tls: bool = False
    """Also if the configuration does not ask for it."""
    server_log: Path | None = None
    """The log of the server at `url`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundOut:
    """What a start has found out, and the plan of the children needs."""

    metrics: tuple[str, ...] = ()
    """The command line of the metrics role; empty: no such process."""
    metrics_env: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The environment of the metrics role: the webhook."""
    stored: int = 0
    """Sequence of the newest message that the stream had before the children were started."""
    provider_env: Mapping[str, str] | None = field(default=None, repr=False)
    """The environment of the provider role; None: no such process."""
    proxy_fd: int | None = None
    """The listening socket of the fault proxy; None: no such process."""
    proxy_env: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The environment by which hosts send their agents to the proxy."""
    mirror: bool = False
    dashboard_fd: int | None = None
    """The listening socket of the dashboard; None: no such process."""
    keys: Path | None = None
    """The directory of the processes' keys; None: they connect without."""
    tls_env: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The environment by which processes connect to the embedded server with TLS; empty without."""


def plan_children(swarm: LiveSwarm, options: UpOptions, found: FoundOut) -> list[ChildSpec]:
    """The children of `up`, in the order in which they are started."""
    config = swarm.config
    common = ("--swarm", config.swarm, "--log-level", options.log_level)
    config_file = () if options.config_file is None else ("--config", str(options.config_file))
    agents = () if options.agents is None else ("--agents", str(options.agents))
    speed = () if options.speed is None else ("--speed", str(options.speed))
    children: list[ChildSpec] = []

    def add(kind: str, name: str, *args: str, **rest: Any) -> None:
        children.append(_child(found, kind, name, args, **rest))

    if found.proxy_fd is not None:
        env = {LISTENER_VARIABLE: str(found.proxy_fd)}
        state_dir = ("--state-dir", str(options.state_dir))
        add("proxy", "proxy", "proxy", *state_dir, *common, env=env, pass_fds=(found.proxy_fd,))
    local = (sandbox.name for sandbox in config.sandboxes if sandbox.e2b is None)
    children += (plan_host(name, config.swarm, options, found) for name in local)
    if found.provider_env is not None:
        state_dir = ("--state-dir", str(options.state_dir))
        add(PROVIDER, PROVIDER, "provider", *config_file, *state_dir, *common, env=found.provider_env)
    limit = () if options.max_agents is None else ("--max-agents", str(options.max_agents))
    changes = ("--changes", str(options.state_dir))
    watchdog = ("watchdog", *config_file, *speed, *agents, *limit, *changes, *common)
    # Of two watchdogs the restarted one lets the other lead: that one runs, and has received every heartbeat.
    again = (*watchdog, "--standby" if options.standby else "--alone")
    traits = traits_environment(swarm.base)
    add("watchdog", WATCHDOG, *watchdog, "--clear-quarantine", "--alone", restart_args=again, env=traits)
    if options.standby:
        add("watchdog", STANDBY, *watchdog, "--standby", env=traits)
    if found.metrics:
        metrics = (*found.metrics, *config_file, *agents, *common)
        # What its siblings publish before it has connected counts too.
        add(
            "metrics", "metrics", *metrics, "--count-from", str(found.stored + 1), restart_args=metrics,
            env=found.metrics_env,
        )  # fmt: skip
    if found.dashboard_fd is not None:
        env = {LISTENER_VARIABLE: str(found.dashboard_fd)}
        arguments = ("dashboard", *config_file, "--state-dir", str(options.state_dir), *common)
        add("dashboard", "dashboard", *arguments, env=env, pass_fds=(found.dashboard_fd,))
    if found.mirror:
        add("mirror", "mirror", "mirror", *config_file, "--file", str(options.state_dir / MIRROR_FILE), *common)
    return children


def plan_host(sandbox: str, swarm: str, options: UpOptions, found: FoundOut) -> ChildSpec:
    """The host of a sandbox on this machine."""
    args = ("sandbox", sandbox, "--swarm", swarm, "--log-level", options.log_level)
    return _child(found, "sandbox", sandbox, args, env=found.proxy_env)


def _child(
    found: FoundOut, kind: str, name: str, args: tuple[str, ...], env: Mapping[str, str] | None = None, **rest: Any
) -> ChildSpec:
    key = {} if found.keys is None else key_environment(found.keys, kind, name)
    env = {**(env or {}), **key, **found.tls_env}
    return ChildSpec(kind=kind, name=name, args=args, env=env, grace_s=STOP_GRACE_S[kind], **rest)


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
