"""The verbs. Each verb's work is elsewhere; it is imported when the verb runs, to start fast."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from bus.credentials import CA_VARIABLE, CREDS_VARIABLE, FIRST_VARIABLE, SEED_VARIABLE
from bus.errors import EXIT_DONE, EXIT_FAILED, UsageError
from bus.plain import harmless
from bus.tasks import run_to_end
from coordinator import cli_certify, cli_checks, cli_metrics, cli_mirror, cli_proofs, cli_roles
from coordinator.options import (
    STATE_DIR,
    AgentCount,
    BeatingRole,
    ConfigFile,
    Json,
    LogLevel,
    Nats,
    StateDir,
    Swarm,
    check_seconds,
    find_target,
    on_bus,
    print_json,
)

app = typer.Typer(
    name="signalmesh",
    help="Agents as independent processes on a NATS bus: decisions that survive kill -9.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"signalmesh {version('signalmesh')}")
        raise typer.Exit


@app.callback()
def main(
    _: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
    nats_creds: Annotated[Path | None, typer.Option(help="File of a NATS user's JWT and seed (.creds).")] = None,
    nats_nkey: Annotated[Path | None, typer.Option(help="File of a NATS user's nkey seed.")] = None,
    nats_ca: Annotated[Path | None, typer.Option(help="File of certificates that sign the NATS server's.")] = None,
    nats_tls_first: Annotated[bool, typer.Option(help="TLS before anything else (handshake_first).")] = False,
) -> None:
    """Agents as independent processes on a NATS bus: decisions that survive kill -9."""
    files = {CREDS_VARIABLE: nats_creds, SEED_VARIABLE: nats_nkey, CA_VARIABLE: nats_ca}
    os.environ.update({variable: str(file.absolute()) for variable, file in files.items() if file is not None})
    if nats_tls_first:
        os.environ[FIRST_VARIABLE] = "1"


# -- running


@app.command()
def up(
    config: ConfigFile = None,
    speed: Annotated[
        float | None,
        typer.Option(
            envvar="SIGNALMESH_SPEED", help="Candles a second of the recorded feeds; 0: as fast as decisions come."
        ),
    ] = None,
    port: Annotated[int, typer.Option(help="Port of the embedded nats-server; 0: any free one.")] = 4222,
    state_dir: StateDir = STATE_DIR,
    nats: Nats = None,
    for_s: Annotated[float | None, typer.Option("--for", metavar="SECONDS", help="End after so many seconds.")] = None,
    no_dashboard: Annotated[  # noqa: ARG001 - part of the contract before there is a dashboard
        bool, typer.Option("--no-dashboard", help="Without the web page (there is none yet: this changes nothing).")
    ] = False,
    agents: AgentCount = None,
    standby: Annotated[
        bool,
        typer.Option("--standby", help="Run a second watchdog, which takes over when the first one dies or hangs."),
    ] = False,
    fault_proxy: Annotated[
        bool, typer.Option("--fault-proxy", help="Agents connect through a proxy, for the network faults of `chaos`.")
    ] = False,
    public_nats: Annotated[
        str | None,
        typer.Option("--public-nats", envvar="SIGNALMESH_PUBLIC_NATS", help="Where sandboxes of E2B reach the bus."),
    ] = None,
    json: Json = False,
    log_level: LogLevel = "info",
) -> None:
    """Run the whole swarm on this machine, in the foreground. Ctrl-C ends it; the next `up` goes on with its state."""
    from bus.connection import check_url
    from bus.logs import set_up_logs
    from coordinator.checking import check_agents
    from coordinator.config import doubts_about, load, with_speed
    from coordinator.scaling import with_agents
    from coordinator.up import UpOptions, run_up
    from coordinator.view import viewer

    set_up_logs("warning")
    if nats is not None:
        check_url(nats)
    if speed is not None and not speed >= 0:
        raise UsageError(f"--speed {speed}: expected 0 or more candles a second")
    if for_s is not None and not for_s > 0:
        raise UsageError(f"--for {for_s}: expected more than 0 seconds")
    loaded = with_speed(with_agents(load(config, Path.cwd()), agents), speed)
    options = UpOptions(
        config_file=config,
        state_dir=state_dir,
        port=port,
        url=nats,
        for_s=for_s,
        log_level=log_level,
        speed=speed,
        agents=agents,
        standby=standby,
        fault_proxy=fault_proxy,
        public_url=public_nats,
    )
    checked = check_agents(loaded)
    for doubt in doubts_about(checked):
        typer.echo(f"warning: {doubt}", err=True)
    code = run_to_end(run_up(checked, options, viewer(json)))
    raise typer.Exit(code)


@app.command()
def down(state_dir: StateDir = STATE_DIR, json: Json = False) -> None:
    """End the swarm whose state directory is here, in order: agents drain and save their state.

    Where none runs, the sandboxes elsewhere that a killed one has left are ended.
    """
    from coordinator.rundir import read_run
    from coordinator.stopping import end_left, stop_run

    run = read_run(state_dir)
    if run is None or not run.alive():
        freed = end_left(state_dir)
        if json:
            print_json(freed)
        else:
            for text, names in (("ended, left by an earlier run", freed.ended), ("could not be ended", freed.left)):
                if names:
                    typer.echo(f"sandboxes at {freed.endpoint}: {text}: {', '.join(names)}")
        raise typer.Exit(EXIT_FAILED if freed.left else EXIT_DONE)
    ended = stop_run(run, state_dir)
    if json:
        print_json(ended)
    else:
        typer.echo(f"swarm {run.swarm} ended in {ended.took_s:.1f} s; its state is in {state_dir}")
        if ended.left:
            typer.echo(
                f"sandboxes that could not be ended may still run at {ended.endpoint}, until their lifetime ends: "
                f"{', '.join(ended.left)}; `signalmesh doctor` looks again"
            )
    raise typer.Exit(EXIT_FAILED if ended.left else EXIT_DONE)


@app.command()
def status(nats: Nats = None, state_dir: StateDir = STATE_DIR, swarm: Swarm = None, json: Json = False) -> None:
    """What runs, as heard on the bus within half a second."""
    from coordinator.gather import gather_status
    from coordinator.view import print_status

    found = on_bus(find_target(nats, state_dir, swarm), gather_status)
    if json:
        print_json(found)
    else:
        print_status(found)


@app.command()
def watch(
    kind: Annotated[str | None, typer.Argument(help="market, headline, sentiment, signal, decision …")] = None,
    nats: Nats = None,
    state_dir: StateDir = STATE_DIR,
    swarm: Swarm = None,
    json: Json = False,
) -> None:
    """Follow messages as they are stored: all kinds, or one. Ctrl-C ends it."""
    from bus.messages import KINDS
    from coordinator.config_tables import similar
    from coordinator.view import watch_bus

    if kind is not None and kind not in KINDS:
        raise UsageError(f"watch {kind}: unknown kind{similar(kind, KINDS)}; expected one of {', '.join(KINDS)}")
    on_bus(find_target(nats, state_dir, swarm), lambda bus: watch_bus(bus, kind, json))


@app.command()
def health(
    role: Annotated[BeatingRole, typer.Argument(help="The role that must be heard.")] = "any",
    within_s: Annotated[float, typer.Option("--within", help="Longest time to listen, seconds.")] = 3.0,
    nats: Nats = None,
    state_dir: StateDir = STATE_DIR,
    swarm: Swarm = None,
    json: Json = False,
) -> None:
    """Whether a role that runs on this machine (in this container) is heard beating on the bus; else exit code 1."""
    from coordinator.health import check_health

    check_seconds("--within", within_s)
    found = on_bus(find_target(nats, state_dir, swarm), lambda bus: check_health(bus, role, within_s))
    if json:
        print_json(found)
    else:
        typer.echo(harmless(found.text))
    raise typer.Exit(EXIT_DONE if found.ok else EXIT_FAILED)


# -- acting on agents


@app.command()
def kill(
    agent: Annotated[str, typer.Argument(help="The agent's name.")],
    signal: Annotated[str, typer.Option("--signal", "-s", help="KILL, STOP, TERM, … or a number; 0: none.")] = "KILL",
    wait_s: Annotated[float, typer.Option("--wait", help="Longest time to watch it come back, seconds.")] = 15.0,
    nats: Nats = None,
    state_dir: StateDir = STATE_DIR,
    swarm: Swarm = None,
    json: Json = False,
) -> None:
    """Send a signal to an agent's process and print how it came back, with what was lost and doubled (measured)."""
    from coordinator.killing import kill as kill_agent
    from coordinator.killing import signal_number
    from coordinator.view import print_killing

    number = signal_number(signal)
    check_seconds("--wait", wait_s)
    found = on_bus(find_target(nats, state_dir, swarm), lambda bus: kill_agent(bus, agent, number, wait_s))
    if json:
        print_json(found)
    else:
        print_killing(found)
    raise typer.Exit(EXIT_DONE if found.as_asked else EXIT_FAILED)


@app.command()
def restart(
    agent: Annotated[str, typer.Argument(help="The agent's name.")],
    nats: Nats = None,
    state_dir: StateDir = STATE_DIR,
    swarm: Swarm = None,
    json: Json = False,
) -> None:
    """Drain an agent (it saves its state), start it anew, and wait until it is ready."""
    from coordinator.wishes import Restarted, ask_watchdog

    target = find_target(nats, state_dir, swarm)
    done = on_bus(target, lambda bus: ask_watchdog(bus, "restart", agent, Restarted))
    if json:
        print_json(done)
    else:
        before = f"was {done.was}" if done.was else "drained"
        typer.echo(f"{agent}: {before}; ready as epoch {done.epoch_after} after {done.ready_ms:.0f} ms")


@app.command()
def revive(
    agent: Annotated[str, typer.Argument(help="The agent's name.")],
    nats: Nats = None,
    state_dir: StateDir = STATE_DIR,
    swarm: Swarm = None,
    json: Json = False,
) -> None:
    """Bring a quarantined or drained agent back, with its deaths forgotten."""
    from coordinator.wishes import Revived, ask_watchdog

    done = on_bus(find_target(nats, state_dir, swarm), lambda bus: ask_watchdog(bus, "revive", agent, Revived))
    if json:
        print_json(done)
    else:
        typer.echo(f"{agent}: was {done.was}; it is started")


for verb in (
    cli_mirror.history,
    cli_proofs.audit,
    cli_proofs.replay,
    cli_checks.doctor,
    cli_checks.chaos,
    cli_certify.certify,
):
    app.command()(verb)
for role in (
    cli_roles.sandbox,
    cli_roles.agent,
    cli_roles.watchdog,
    cli_roles.provider,
    cli_mirror.mirror,
    cli_roles.proxy,
    cli_metrics.metrics,
):
    app.command()(role)
