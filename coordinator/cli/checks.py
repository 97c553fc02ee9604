"""The commands that test a swarm: `doctor`, `chaos`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bus.errors import EXIT_DONE, EXIT_FAILED, UsageError
from bus.utils.aio import run_to_end
from coordinator.cli.options import STATE_DIR, ConfigFile, Json, Nats, StateDir, Target, json_alone, on_bus, print_json


def doctor(nats: Nats = None, state_dir: StateDir = STATE_DIR, config: ConfigFile = None, json: Json = False) -> None:
    """Check everything that a swarm needs, running or not, and print remedies. Changes nothing."""
    from bus.observability.logging import set_up_logs
    from coordinator.doctor.runner import diagnose, print_diagnosis

    set_up_logs("error")
    found = run_to_end(diagnose(nats, state_dir, config, Path.cwd()))
    if json:
        print_json(found)
    else:
        print_diagnosis(found)
    raise typer.Exit(EXIT_DONE if found.ok else EXIT_FAILED)


def chaos(
    for_s: Annotated[float, typer.Option("--for", metavar="SECONDS", help="Duration of the fault injection.")],
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the order of faults; default: random.")] = None,
    timeout_s: Annotated[
        float,
        typer.Option("--recovery-timeout", metavar="SECONDS", help="Seconds to wait for recovery before failing."),
    ] = 30.0,
    state_dir: StateDir = STATE_DIR,
    json: Json = False,
) -> None:
    """Inject random faults into the running swarm, measure each recovery, then check for lost or duplicated outputs."""
    from coordinator.chaos.report import FaultSeen, line_of, print_chaos
    from coordinator.chaos.runner import ChaosOptions, run_chaos, running
    from coordinator.security.keys import use_operator_key
    from coordinator.security.tls_files import use_authority

    for name, value in (("--for", for_s), ("--recovery-timeout", timeout_s)):
        if not value > 0:
            raise UsageError(f"{name} {value}: expected more than 0 seconds")
    options = ChaosOptions(for_s=for_s, seed=seed, timeout_s=timeout_s)
    run = running(state_dir)
    use_operator_key(state_dir, run.authentication)
    use_authority(state_dir, run.url)

    def print_fault(fault: FaultSeen) -> None:
        typer.echo(line_of(fault), err=json)

    def print_progress(text: str) -> None:
        typer.echo(text, err=True)

    with json_alone(json):
        found = on_bus(
            Target(run.url, run.swarm), lambda bus: run_chaos(bus, state_dir, options, print_fault, print_progress)
        )
    if json:
        print_json(found)
    else:
        print_chaos(found)
    raise typer.Exit(EXIT_DONE if found.ok else EXIT_FAILED)
