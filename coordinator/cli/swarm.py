"""The commands of a whole swarm: `up`, `down`."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bus.errors import EXIT_DONE, EXIT_FAILED, UsageError
from bus.utils.aio import run_to_end
from coordinator.cli.options import (
    SERVER_LOG_VARIABLE,
    SERVER_USERS_VARIABLE,
    STATE_DIR,
    AgentCount,
    AuthenticationOption,
    ConfigFile,
    Json,
    LogLevel,
    MaxAgents,
    Nats,
    Open,
    ServerLog,
    StateDir,
    print_json,
)
from signalmesh import find_clash

if TYPE_CHECKING:
    from bus.interface import ReceivedMessage
    from coordinator.runner.up import Up


def viewer(as_json: bool) -> Callable[[Up, asyncio.Event], Any]:
    """How `up` shows its messages: a live view on a terminal, else line by line."""
    if as_json:
        from coordinator.monitor.message_lines import watch_bus

        return lambda up, _stop: watch_bus(up.bus, None, True)
    if not sys.stdout.isatty():
        return _lines
    from coordinator.monitor.live_view import live_view

    return live_view


async def _lines(up: Up, stop: asyncio.Event) -> None:
    from bus.messages import headers as h
    from coordinator.monitor.message_lines import Lines, how_to_follow, line_of, parse

    lines = Lines()
    lines.put(f"swarm {up.config.swarm} on {up.bus.url}; {how_to_follow(up)}")
    up.outcome.on_finished = lines.put

    async def on_message(received: ReceivedMessage) -> None:
        message = parse(up.bus, received)
        if message is not None:
            lines.put(line_of(message, received.subject, received.headers.get(h.SEQUENCE, "")))

    for kind in ("decision", "lifecycle", "alert"):
        await up.bus.listen(up.bus.subjects.all_of(kind), on_message)
    await stop.wait()


def _check_server_log(server_log: Path | None, nats: str | None) -> None:
    if server_log is not None and nats is None:
        raise UsageError("--server-log: expected together with --nats; the log of the embedded server is read anyway")
    for variable in (SERVER_LOG_VARIABLE, SERVER_USERS_VARIABLE):
        os.environ.pop(variable, None)  # the metrics role would report the same


def up(
    config: ConfigFile = None,
    speed: Annotated[
        float | None,
        typer.Option(
            envvar="SIGNALMESH_SPEED",
            help="Candles per second of the recorded feeds; 0: as fast as the coordinator decides.",
        ),
    ] = None,
    port: Annotated[int, typer.Option(help="Port of the embedded nats-server; 0: any free one.")] = 4222,
    state_dir: StateDir = STATE_DIR,
    nats: Nats = None,
    for_s: Annotated[float | None, typer.Option("--for", metavar="SECONDS", help="End after this time.")] = None,
    agents: AgentCount = None,
    max_agents: MaxAgents = None,
    standby: Annotated[
        bool,
        typer.Option(
            "--standby", help="Run a second watchdog, which takes over when the first one dies or stops responding."
        ),
    ] = False,
    fault_proxy: Annotated[
        bool, typer.Option("--fault-proxy", help="Connect agents through a proxy, for the network faults of `chaos`.")
    ] = False,
    public_nats: Annotated[
        str | None,
        typer.Option(
            "--public-nats", envvar="SIGNALMESH_PUBLIC_NATS", help="NATS URL at which E2B sandboxes reach the bus."
        ),
    ] = None,
    authentication: AuthenticationOption = None,
    open_: Open = False,
    tls: Annotated[
        bool,
        typer.Option("--tls", help="Demand TLS of every client of the embedded server; makes the certificates."),
    ] = False,
    server_log: ServerLog = None,
    no_dashboard: Annotated[bool, typer.Option("--no-dashboard", help="Run no dashboard.")] = False,
    json: Json = False,
    log_level: LogLevel = "info",
) -> None:
    """Run the whole swarm on this machine, in the foreground. Ctrl-C ends it; the next `up` restores its state."""
    from agents.feeds.candle_cache import CACHE_VARIABLE
    from bus.nats.urls import check_url
    from bus.observability.logging import set_up_logs
    from bus.utils.cgroups import cpu_quota
    from coordinator.config.changes import read_changes_file
    from coordinator.config.loader import load_swarm, warnings_about
    from coordinator.config.overrides import Overrides
    from coordinator.config.secrets import offer_bus_credentials
    from coordinator.runner.child_process import UpOptions
    from coordinator.runner.launcher import Launcher
    from coordinator.runner.preflight import check_agents, check_changes, least_cpus, raise_descriptor_limit
    from coordinator.runner.up import run_up
    from coordinator.runner.zygote import Zygote

    set_up_logs("warning")
    if nats is not None:
        check_url(nats)
    if speed is not None and not speed >= 0:
        raise UsageError(f"--speed {speed}: expected 0 or more candles per second")
    if for_s is not None and not for_s > 0:
        raise UsageError(f"--for {for_s}: expected more than 0 seconds")
    if open_ and authentication == "keys":
        raise UsageError("--open: expected without --authentication keys and SIGNALMESH_AUTHENTICATION=keys")
    _check_server_log(server_log, nats)
    loaded = load_swarm(config, Overrides(agents=agents, max_agents=max_agents, speed=speed))
    offer_bus_credentials(config)
    options = UpOptions(
        config_file=config,
        state_dir=state_dir,
        port=port,
        url=nats,
        for_s=for_s,
        log_level=log_level,
        speed=speed,
        agents=agents,
        max_agents=max_agents,
        standby=standby,
        fault_proxy=fault_proxy,
        public_url=public_nats,
        dashboard=not no_dashboard,
        authentication="open" if open_ else authentication,
        tls=tls,
        server_log=server_log,
    )
    if (clash := find_clash()) is not None:
        if clash.fatal:
            raise UsageError(f"{clash.problem}; {clash.remedy}")
        typer.echo(f"warning: {clash.problem}; {clash.remedy}", err=True)
    if (quota := cpu_quota()) is not None and quota < (least := least_cpus(len(loaded.agents))):
        needs = f"{len(loaded.agents)} agents need {least:.2f} or more to start in time"
        remedy = "raise it (docker run --cpus, resources.limits.cpu)"
        typer.echo(
            f"warning: a quota allows {quota:.2f} CPUs, and {needs}: {remedy}",
            err=True,
        )
    os.environ.setdefault(CACHE_VARIABLE, str(state_dir.absolute() / "cache"))
    live = check_changes(check_agents(loaded), read_changes_file(state_dir), state_dir)
    for warning in warnings_about(live.config):
        typer.echo(f"warning: {warning}", err=True)
    raise_descriptor_limit()
    launcher = Launcher(Zygote.fork())
    code = run_to_end(run_up(live, options, launcher, viewer(json)))
    raise typer.Exit(code)


def down(state_dir: StateDir = STATE_DIR, json: Json = False) -> None:
    """End the swarm of the state directory in order: agents drain and save their state.

    If none runs, delete the remote sandboxes that a killed `up` has left.
    """
    from coordinator.runner.down import end_left, stop_run
    from coordinator.runner.run_record import read_run

    run = read_run(state_dir)
    if run is None or not run.alive():
        freed = end_left(state_dir)
        if json:
            print_json(freed)
        else:
            for text, names in (
                ("deleted, left by an earlier run", freed.ended),
                ("could not be deleted", freed.orphans),
            ):
                if names:
                    typer.echo(f"sandboxes at {freed.endpoint}: {text}: {', '.join(names)}")
        raise typer.Exit(EXIT_FAILED if freed.orphans else EXIT_DONE)
    ended = stop_run(run, state_dir)
    if json:
        print_json(ended)
    else:
        typer.echo(f"swarm {run.swarm} ended in {ended.duration_s:.1f} s; its state is in {state_dir}")
        if ended.orphans:
            typer.echo(
                f"sandboxes that could not be deleted may still run at {ended.endpoint}, until their lifetime ends: "
                f"{', '.join(ended.orphans)}; `signalmesh doctor` checks again"
            )
    raise typer.Exit(EXIT_FAILED if ended.orphans else EXIT_DONE)
