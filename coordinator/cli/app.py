"""The command line: its global options and the list of its commands.

The modules that do the work of a command are imported when it runs, so that the command line starts fast.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from bus.nats.credentials import (
    CA_VARIABLE,
    CERTIFICATE_KEY_VARIABLE,
    CERTIFICATE_VARIABLE,
    CREDS_VARIABLE,
    FIRST_VARIABLE,
    SEED_VARIABLE,
)
from coordinator.cli import certify, changes, checks, control, keys, mcp, monitor, roles, swarm, verify

app = typer.Typer(
    name="signalmesh",
    help="Agents as independent processes on a NATS bus: decisions that survive kill -9.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
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
    nats_ca: Annotated[
        Path | None, typer.Option(help="File of the CA certificates for the NATS server's certificate.")
    ] = None,
    nats_cert: Annotated[
        Path | None, typer.Option(help="File of a client certificate, for a server that demands one.")
    ] = None,
    nats_cert_key: Annotated[Path | None, typer.Option(help="File of the key of --nats-cert.")] = None,
    nats_tls_first: Annotated[bool, typer.Option(help="Start TLS before the NATS protocol (handshake_first).")] = False,
) -> None:
    """Agents as independent processes on a NATS bus: decisions that survive kill -9."""
    files = {
        CREDS_VARIABLE: nats_creds,
        SEED_VARIABLE: nats_nkey,
        CA_VARIABLE: nats_ca,
        CERTIFICATE_VARIABLE: nats_cert,
        CERTIFICATE_KEY_VARIABLE: nats_cert_key,
    }
    os.environ.update({variable: str(file.absolute()) for variable, file in files.items() if file is not None})
    if nats_tls_first:
        os.environ[FIRST_VARIABLE] = "1"


for command in (
    swarm.up,
    swarm.down,
    monitor.status,
    monitor.watch,
    monitor.health,
    control.kill,
    control.restart,
    control.revive,
    changes.add,
    changes.remove,
    changes.scale,
    changes.move,
    changes.rebalance,
    changes.config,
    keys.keys,
    monitor.history,
    monitor.explain,
    verify.audit,
    verify.replay,
    checks.doctor,
    checks.chaos,
    certify.certify,
):
    # A negative number is an argument, which the command refuses, and not an unknown option.
    app.command(context_settings={"ignore_unknown_options": command is changes.scale})(command)
for role in (
    roles.sandbox,
    roles.agent,
    roles.watchdog,
    roles.provider,
    roles.mirror,
    roles.proxy,
    roles.metrics,
    roles.dashboard,
    mcp.mcp,
):
    app.command()(role)
