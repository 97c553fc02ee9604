"""The command `certify`: its options, and its final output."""

from __future__ import annotations

import asyncio
import contextlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bus.errors import EXIT_DONE, EXIT_FAILED, UsageError
from bus.utils.aio import run_to_end
from bus.utils.terminal import escape_control
from coordinator.cli.options import Json, print_json

if TYPE_CHECKING:
    from coordinator.certify.models import Certificate

REPORT = Path("certify.md")


def certify(
    provider: Annotated[
        str | None, typer.Option("--provider", help="Provider of the sandboxes of the default swarm; default: local.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", envvar="SIGNALMESH_CONFIG", help="Configuration file; default: the built-in swarm."),
    ] = None,
    port: Annotated[int, typer.Option("--nats-port", help="Port of the temporary NATS server; 0: any free one.")] = 0,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Markdown report; the JSON report is written next to it.")
    ] = REPORT,
    max_detection_s: Annotated[
        float, typer.Option("--max-detection", metavar="SECONDS", help="Maximum detection time.")
    ] = 1.0,
    max_recovery_s: Annotated[
        float, typer.Option("--max-recovery", metavar="SECONDS", help="Maximum recovery time.")
    ] = 5.0,
    max_downtime_s: Annotated[
        float, typer.Option("--max-downtime", metavar="SECONDS", help="Maximum downtime, and time to rejoin.")
    ] = 10.0,
    json: Json = False,
) -> None:
    """Start a temporary swarm, kill an agent, audit the result and write a report."""
    from bus.observability.logging import set_up_logs
    from coordinator.certify.report_files import ReportFiles
    from coordinator.certify.runner import CertifyOptions, run_certify
    from coordinator.config.tables import PROVIDERS

    for name, value in (
        ("--max-detection", max_detection_s), ("--max-recovery", max_recovery_s), ("--max-downtime", max_downtime_s),
    ):  # fmt: skip
        if not (value > 0 and math.isfinite(value)):
            raise UsageError(f"{name} {value}: expected a finite number of seconds above 0")
    if not 0 <= port <= 65535:
        raise UsageError(f"--nats-port {port}: expected 0 (any free port) to 65535")
    if config is not None and provider is not None:
        raise UsageError("--provider: cannot be combined with --config; in that file each sandbox names its provider")
    if provider is not None and provider not in PROVIDERS:
        raise UsageError(f"--provider {provider}: expected one of {', '.join(PROVIDERS)}")
    files = ReportFiles.of(out, config)
    set_up_logs("error")
    options = CertifyOptions(
        provider=provider,
        config=None if config is None else config.absolute(),
        port=port,
        max_detection_s=max_detection_s,
        max_recovery_s=max_recovery_s,
        max_downtime_s=max_downtime_s,
    )
    found = None
    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
        found = run_to_end(run_certify(options, _print_progress))
    if found is None:
        raise typer.Exit(130)  # what is left was printed
    try:
        if json:
            print_json(found)
        else:
            _print_certificate(found)
    finally:  # printing fails when the terminal is closed: the report is written all the same
        files.write(found)
    if not json:
        typer.echo(escape_control(f"the report: {files.markdown} and {files.json}"))
    raise typer.Exit(EXIT_DONE if found.ok else EXIT_FAILED)


def _print_progress(text: str) -> None:
    """Print to stderr; the terminal may be closed, and the clean-up must continue."""
    with contextlib.suppress(OSError):
        typer.echo(text, err=True)


def _print_certificate(found: Certificate) -> None:
    """Print the targets and the problems, in the width of the terminal; the report has the rest."""
    from rich.text import Text

    from coordinator.certify.markdown import target_text, verdict
    from coordinator.reporting.tables import Column, console, print_table

    out = console()
    rows: list[list[str | Text]] = []
    for target in found.targets:
        limit, measured = target_text(target)
        met = Text("met", "green") if target.ok else Text("MISSED", "bold red")
        rows.append([target.name, limit, measured, met, target.how])
    columns = (
        Column("target"),
        Column("wanted", right=True),
        Column("measured", right=True),
        Column(""),
        Column("how", 1),
    )
    print_table(out, columns, rows)
    for problem in found.problems:
        out.print(escape_control(f"PROBLEM: {problem}"), soft_wrap=True)
    out.print(
        Text(f"{verdict(found)}; in {found.duration_s:.1f} s", "green" if found.ok else "bold red"), soft_wrap=True
    )
