"""The roles: the processes of a swarm, each a command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bus.errors import EXIT_DONE
from bus.messages.subjects import SANDBOX_ACTIONS, UNSUPERVISED
from coordinator.cli.changes import change_sandbox
from coordinator.cli.options import (
    SERVER_USERS_VARIABLE,
    STATE_DIR,
    AgentCount,
    ConfigFile,
    Json,
    LogLevel,
    MaxAgents,
    MirrorPath,
    Nats,
    ServerLog,
    StateDir,
    Swarm,
    find_run,
    find_target,
    mirror_file,
    on_bus,
    role_url,
)


def sandbox(
    name: Annotated[str, typer.Argument(help="The sandbox's name; or add or remove, followed by the name.")],
    changed: Annotated[
        str | None, typer.Argument(help="With add and remove: the sandbox of the running swarm that comes or goes.")
    ] = None,
    provider: Annotated[
        str | None,
        typer.Option("--provider", help="With add: what makes it: local, a process group of `up`, or e2b."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            metavar="KEY=VALUE",
            help="With add: a key of its table in swarm.toml, such as template; repeatable.",
        ),
    ] = None,
    json: Json = False,
    replica: Annotated[
        bool,
        typer.Option(
            "--replica",
            envvar="SIGNALMESH_REPLICA",
            help="Run one of several hosts of this sandbox, each on its own machine or in its own container.",
        ),
    ] = False,
    keys: Annotated[
        Path | None,
        typer.Option(
            "--keys",
            metavar="DIRECTORY",
            envvar="SIGNALMESH_HOST_KEYS",
            help="With --replica: take the first key there that no other host on this machine uses, and its name.",
        ),
    ] = None,
    agents_nats_url: Annotated[
        str | None,
        typer.Option(
            "--agents-nats-url",
            envvar="SIGNALMESH_AGENTS_NATS",
            help="NATS URL for the agents, if different from --nats.",
        ),
    ] = None,
    provider_name: Annotated[str, typer.Option(help="Provider name (used with --host).")] = "joined",
    host: Annotated[str | None, typer.Option(help="Name of the host, set by the provider.")] = None,
    files: Annotated[
        Path | None, typer.Option(help="Directory of the agents' own files, if different from the configuration.")
    ] = None,
    credentials_stdin: Annotated[
        bool,
        typer.Option(
            "--credentials-stdin",
            help="Read the URL and credentials of the bus, and the endpoint, as one line from standard input.",
        ),
    ] = False,
    nats: Nats = None,
    state_dir: StateDir = STATE_DIR,
    swarm: Swarm = None,
    log_level: LogLevel = "info",
) -> None:
    """Role: sandbox host; starts and ends agent processes on its machine. With add or remove: change the swarm.

    `sandbox add NAME` adds a sandbox to the running swarm, and `sandbox remove NAME` moves its agents to others and
    ends its host; both are kept for the next `up`.
    """
    from bus.errors import UsageError
    from bus.messages.subjects import check_name
    from bus.nats.urls import check_url
    from coordinator.runner.entrypoints import ProviderInfo, run_sandbox
    from coordinator.sandboxes.handoff import read_payload

    if name in SANDBOX_ACTIONS:
        change_sandbox(name, changed, provider, option or [], find_target(nats, state_dir, swarm), json=json)
        return
    if changed is not None:
        raise UsageError(f"sandbox {name} {changed}: expected a name alone, or add or remove before the name")
    if provider is not None or option or json:
        raise UsageError("--provider, --option, --json: expected with `sandbox add` and `sandbox remove` alone")
    check_name(name, "sandbox")
    if keys is not None and not replica:
        raise UsageError("--keys: expected together with --replica; a host without it connects with --nats-nkey")
    if credentials_stdin:
        payload = read_payload()
        where = None if files is None else str(files.resolve())
        provided = (
            None
            if host is None
            else ProviderInfo(
                provider=provider_name, endpoint=payload.endpoint, age_s=payload.age_s, host=host, files=where
            )
        )
        raise typer.Exit(
            run_sandbox(
                name, payload.url, swarm or "swarm", log_level, provided=provided, credentials=payload.credentials
            )
        )
    target = find_target(nats, state_dir, swarm)
    if agents_nats_url is not None:
        check_url(agents_nats_url, "--agents-nats-url")
    url = role_url(nats, state_dir)
    raise typer.Exit(
        run_sandbox(name, url, target.swarm, log_level, replica=replica, keys=keys, agents_url=agents_nats_url)
    )


def agent(
    name: Annotated[str, typer.Argument(help="The agent's name.")],
    config: ConfigFile = None,
    nats: Nats = None,
    state_dir: StateDir = STATE_DIR,
    swarm: Swarm = None,
    sandbox: Annotated[str, typer.Option(help="The sandbox to report as.")] = UNSUPERVISED,
    log_level: LogLevel = "info",
) -> None:
    """Role: one agent, started manually; it takes over from a running process of that agent.

    It may be one that was added at run time, if the state directory is that of the running swarm.
    """
    from coordinator.config.changes import NO_CHANGES, read_changes_file
    from coordinator.runner.entrypoints import run_agent

    url, run = role_url(nats, state_dir, config), find_run(nats, state_dir)[1]
    changes = NO_CHANGES if run is None else read_changes_file(state_dir)
    raise typer.Exit(run_agent(name, url, config, swarm, sandbox, log_level, changes))


def watchdog(
    config: ConfigFile = None,
    nats: Nats = None,
    state_dir: StateDir = STATE_DIR,
    swarm: Swarm = None,
    clear_quarantine: Annotated[
        bool, typer.Option("--clear-quarantine", help="Start quarantined and drained agents again.")
    ] = False,
    standby: Annotated[bool, typer.Option("--standby", help="Let another watchdog lead first.")] = False,
    alone: Annotated[bool, typer.Option("--alone", help="Lead at once: no other watchdog of this swarm runs.")] = False,
    speed: Annotated[
        float | None, typer.Option(envvar="SIGNALMESH_SPEED", help="Candles per second, as for `up`.")
    ] = None,
    agents: AgentCount = None,
    max_agents: MaxAgents = None,
    changes: Annotated[
        Path | None,
        typer.Option(
            "--changes",
            metavar="DIRECTORY",
            help="Directory with the changes made at run time; those that the stream has count if they are newer.",
        ),
    ] = None,
    log_level: LogLevel = "info",
) -> None:
    """Role: detects failed agents and restarts them; a second watchdog is the standby."""
    from bus.errors import UsageError
    from coordinator.runner.entrypoints import run_watchdog

    if alone and standby:
        raise UsageError("--alone, --standby: a standby is not alone, expected one of the two")

    raise typer.Exit(
        run_watchdog(
            role_url(nats, state_dir, config),
            config,
            swarm,
            speed,
            log_level,
            agents=agents,
            clear_quarantine=clear_quarantine,
            standby=standby,
            alone=alone,
            max_agents=max_agents,
            changes=changes,
        )
    )


def provider(
    check: Annotated[
        bool, typer.Option("--check", help="Only check that E2B_API_KEY is accepted, and list the sandboxes.")
    ] = False,
    end: Annotated[bool, typer.Option("--end", help="Only delete the sandboxes that an earlier run has left.")] = False,
    config: ConfigFile = None,
    nats: Nats = None,
    state_dir: StateDir = STATE_DIR,
    swarm: Swarm = None,
    log_level: LogLevel = "info",
) -> None:
    """Role: creates, keeps and deletes the sandboxes that are configured with provider = "e2b"."""
    from dataclasses import replace

    from coordinator.config.loader import load_swarm
    from coordinator.sandboxes.environment import export_key_of
    from coordinator.sandboxes.provider import exit_at_once, run_check, run_provider

    if check or end:
        export_key_of(config)
        exit_at_once(run_check(state_dir, end=end))
    settings = load_swarm(config)
    if swarm is not None:
        settings = replace(settings, swarm=swarm)
    url = role_url(nats, state_dir, config)
    exit_at_once(run_provider(url, settings, state_dir, log_level))


def proxy(
    nats: Nats = None, state_dir: StateDir = STATE_DIR, swarm: Swarm = None, log_level: LogLevel = "info"
) -> None:
    """Role: TCP proxy between agents and the bus that can inject network faults (`up --fault-proxy`)."""
    from coordinator.runner.proxy_role import run_proxy

    target = find_target(nats, state_dir, swarm)
    raise typer.Exit(run_proxy(role_url(nats, state_dir), target.swarm, log_level, state_dir))


def metrics(
    listen: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT of the page, :PORT, or off; default: metrics.listen in swarm.toml, or 127.0.0.1:9464."
        ),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Print the metrics of everything in the stream, and end.")
    ] = False,
    count_from: Annotated[
        int | None,
        typer.Option(
            metavar="SEQUENCE",
            min=1,
            help="Count messages from this stream sequence on; default: those stored from now on.",
        ),
    ] = None,
    server_log: ServerLog = None,
    server_users: Annotated[
        Path | None,
        typer.Option(
            "--server-users",
            metavar="FILE",
            envvar=SERVER_USERS_VARIABLE,
            help="With --server-log: users.conf of `keys init --to`, by which alerts name the owner of a key.",
        ),
    ] = None,
    config: ConfigFile = None,
    agents: AgentCount = None,
    nats: Nats = None,
    state_dir: StateDir = STATE_DIR,
    swarm: Swarm = None,
    log_level: LogLevel = "info",
) -> None:
    """Role: measures what is published on the bus, and serves Prometheus metrics at http://HOST:PORT/metrics."""
    from bus.errors import UsageError
    from coordinator.config.loader import load_swarm
    from coordinator.config.overrides import Overrides
    from coordinator.telemetry.metrics_role import ServerFiles, observe_once, run_metrics

    target = find_target(nats, state_dir, swarm, config)
    if once:
        loaded = load_swarm(config, Overrides(agents=agents))
        typer.echo(on_bus(target, lambda bus: observe_once(bus, loaded)), nl=False)
        raise typer.Exit(EXIT_DONE)
    url = role_url(nats, state_dir, config)
    if server_users is not None and server_log is None:
        raise UsageError("--server-users: expected together with --server-log")
    watched = None if server_log is None else ServerFiles(server_log, server_users)
    raise typer.Exit(run_metrics(url, config, target.swarm, listen, log_level, agents, count_from, watched))


def mirror(
    file: MirrorPath = None,
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild", help="First restore what the bus has lost, as `up` does; run nothing else meanwhile."
        ),
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="With --rebuild: end after the restore.")] = False,
    config: ConfigFile = None,
    nats: Nats = None,
    state_dir: StateDir = STATE_DIR,
    swarm: Swarm = None,
    log_level: LogLevel = "info",
) -> None:
    """Role: copies the stream into an SQLite file, of which it is the only writer."""
    from bus.errors import UsageError
    from coordinator.runner.mirror_role import run_mirror, run_rebuild

    if once and not rebuild:
        raise UsageError("--once: expected together with --rebuild; a mirror without it runs until it is stopped")
    target = find_target(nats, state_dir, swarm, config)
    path = mirror_file(file, state_dir)
    url = role_url(nats, state_dir, config)
    if once:
        raise typer.Exit(run_rebuild(url, config, target.swarm, path, log_level))
    raise typer.Exit(run_mirror(url, config, target.swarm, path, log_level, rebuild_first=rebuild))


def dashboard(
    listen: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT of the pages; default: dashboard.listen in swarm.toml, or 127.0.0.1:8080. "
            "Any other address than loopback needs the token for reading too."
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="Show this mirror's file at rest, without a bus; nothing can be acted on.")
    ] = None,
    jaeger: Annotated[
        str | None,
        typer.Option(
            envvar="SIGNALMESH_JAEGER",
            help="Address of Jaeger, to which decisions and recoveries link; default: dashboard.jaeger in swarm.toml.",
        ),
    ] = None,
    link: Annotated[
        bool, typer.Option("--link", help="Only print the link with the token of the state directory, and end.")
    ] = False,
    config: ConfigFile = None,
    nats: Nats = None,
    state_dir: StateDir = STATE_DIR,
    swarm: Swarm = None,
    log_level: LogLevel = "info",
) -> None:
    """Role: web pages over the bus, or over a mirror's file: decisions and why, agents, deaths, the mesh."""
    from coordinator.dashboard.role import ShownSwarm, start_dashboard
    from coordinator.runner.dashboard_link import print_link

    if link:
        print_link(state_dir)
        raise typer.Exit(EXIT_DONE)
    shown = None
    if file is None:
        target = find_target(nats, state_dir, swarm, config)
        shown = ShownSwarm(role_url(nats, state_dir, config), target.swarm, target.run)
    raise typer.Exit(
        start_dashboard(
            shown, file=file, listen=listen, jaeger=jaeger, config_file=config, state_dir=state_dir, log_level=log_level
        )
    )
