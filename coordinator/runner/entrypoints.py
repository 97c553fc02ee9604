"""The main functions of three roles: sandbox host, agent, watchdog."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from agents.runtime.process import Incarnation, run_incarnation
from bus.durable.events import EventPublisher
from bus.errors import EXIT_DONE, EXIT_FAILED, BusError, Fenced, UsageError
from bus.messages.subjects import check_name
from bus.nats.bus import NatsBus
from bus.nats.credentials import Credentials, credentials_from
from bus.nats.key_files import KEYS_VARIABLE
from bus.nats.streams import ensure_streams
from bus.observability.logging import set_up_logs
from bus.observability.tracer import modules_to_preload
from bus.utils.aio import run_to_end
from bus.utils.processes import MACHINE, on_signals, restore_signals
from coordinator.config.changes import NO_CHANGES, Changes, apply_changes, read_changes_file
from coordinator.config.loader import load_swarm
from coordinator.config.overrides import Overrides
from coordinator.runner.preflight import inspect_agent, inspect_users_classes, read_traits
from coordinator.sandboxes.environment import drop_key
from coordinator.security.shares import claim_host_key
from coordinator.telemetry.otel_env_check import log_wrong_variables

log = structlog.get_logger("signalmesh")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderInfo:
    """What a launcher reports of a sandbox that it created: its provider and endpoint, its age in seconds, the name of
    its host, and the directory of the agents' files.
    """

    provider: str
    endpoint: str
    age_s: float
    host: str
    files: str | None = None


def run_sandbox(
    name: str,
    url: str,
    swarm: str,
    log_level: str,
    *,
    replica: bool = False,
    keys: Path | None = None,
    agents_url: str | None = None,
    provided: ProviderInfo | None = None,
    credentials: Credentials | None = None,
) -> int:
    """Run the host of sandbox `name` until a signal ends it; a `replica` is one of several, under a name of its own:
    that of its key, if there is a directory of `keys`.

    Its agents connect to `agents_url`, by default to the same server. `provided` is set if a provider has created the
    sandbox.
    """
    from agents.host.api_gateway import ApiGateway
    from agents.host.forkserver import ForkServer
    from agents.host.host import Host

    set_up_logs(log_level)
    log_wrong_variables()
    drop_key()
    signing = ("nkeys",) if keys is not None or (credentials or credentials_from()).nkey_seed else ()
    fork_server = ForkServer(("coordinator.decisions.agent", *signing, *modules_to_preload(os.environ)))
    fork_server.fork()
    group, provider = (name, "joined") if replica else (None, "local")
    if keys is not None:
        key = claim_host_key(keys, name)  # after the fork: a child would keep it locked
        name, credentials = key.name, replace(credentials_from(), creds="", nkey_seed=key.seed)
    elif replica:
        name = check_name(f"{name}-{MACHINE}", "sandbox")
    if provided is not None:
        group, provider, name = name, provided.provider, check_name(provided.host, "sandbox")

    async def serve() -> None:
        bus = await NatsBus.connect(url, swarm, f"sandbox {name}", None, credentials)
        try:
            reports = await EventPublisher.open(bus, name)
            host = Host(
                bus,
                name,
                agents_url or url,
                reports,
                fork_server,
                group=group,
                provider=provider,
                endpoint=None if provided is None else provided.endpoint,
                age_s=None if provided is None else provided.age_s,
                log_level=log_level,
                credentials=credentials,
                files=None if provided is None else provided.files,
                gateway=ApiGateway(bus, reports, name),
            )
            on_signals(host.stop)
            await host.run()
        finally:
            await bus.close()

    run_to_end(serve())
    return EXIT_DONE


def run_agent(
    name: str, url: str, config_file: Path | None, swarm: str | None, sandbox: str, log_level: str, changes: Changes
) -> int:
    """Run one agent of the configuration with `changes` in this process, outside any host; it claims its epoch itself.

    Raises:
        UsageError: there is no such agent, or it is external.
    """
    set_up_logs(log_level)
    log_wrong_variables()
    config = apply_changes(load_swarm(config_file), changes)
    settings = config.agent(name)
    if settings.external:
        raise UsageError(f"agent {name!r} is external in {config.file}: its own program runs it")
    spec = settings.spec
    if swarm is not None and swarm != spec.swarm:
        spec = replace(spec, swarm=swarm)
    return run_incarnation(Incarnation(spec=spec, url=url, sandbox=sandbox, log_level=log_level))


def run_watchdog(
    url: str,
    config_file: Path | None,
    swarm: str | None,
    speed: float | None,
    log_level: str,
    *,
    agents: int | None = None,
    clear_quarantine: bool = False,
    standby: bool = False,
    alone: bool = False,
    max_agents: int | None = None,
    changes: Path | None = None,
) -> int:
    """Supervise the swarm, or be the standby while another watchdog does.

    `changes` is the directory with those that were made at run time, which the stream may have lost.
    """
    from coordinator.changes.change_api import ChangeApi
    from coordinator.supervisor.watchdog import Watchdog

    set_up_logs(log_level)
    log_wrong_variables()
    loaded = load_swarm(config_file, Overrides(agents=agents, max_agents=max_agents, speed=speed))
    config = loaded.resolve(read_traits(os.environ) or inspect_users_classes(loaded))

    keys = os.environ.get(KEYS_VARIABLE)

    async def watch(*, again: bool) -> bool:
        """Lead for one term; `again`: this process has led just now. Returns whether it is to lead again."""
        bus = await NatsBus.connect(url, swarm or config.swarm, "watchdog", wait_s=None)
        try:
            while True:
                with contextlib.suppress(BusError):
                    await bus.wait_connected()
                    await ensure_streams(bus, config.stream.limits())
                    break
                await asyncio.sleep(0.2)
            watchdog = Watchdog(
                bus,
                config,
                clear_quarantine=clear_quarantine and not again,
                standby=standby and not again,
                alone=alone or again,
                keys=Path(keys) if keys else None,
                changes=NO_CHANGES if changes is None else read_changes_file(changes),
                change_handler=functools.partial(ChangeApi, inspect=inspect_agent, up_runs_hosts=changes is not None),
            )
            on_signals(watchdog.stop)
            leads_again = await watchdog.run()
            if leads_again:
                restore_signals()
            return leads_again
        finally:
            await bus.close()

    async def watch_on() -> int:
        again = False
        try:
            while again := await watch(again=again):
                pass
        except Fenced as error:
            log.warning("superseded", problem=str(error))
            return EXIT_FAILED
        return EXIT_DONE

    return run_to_end(watch_on())
