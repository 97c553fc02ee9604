"""The role that measures: `signalmesh metrics`."""

from __future__ import annotations

from typing import Annotated

import typer

from bus.errors import EXIT_DONE
from coordinator.options import (
    STATE_DIR,
    AgentCount,
    ConfigFile,
    LogLevel,
    Nats,
    StateDir,
    Swarm,
    find_target,
    on_bus,
    role_url,
)


def metrics(
    listen: Annotated[
        str | None,
        typer.Option(help="HOST:PORT of the page, :PORT, or off; default: `[metrics] listen`, else 127.0.0.1:9464."),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Print the figures of all that the stream holds, and end.")
    ] = False,
    config: ConfigFile = None,
    agents: AgentCount = None,
    nats: Nats = None,
    state_dir: StateDir = STATE_DIR,
    swarm: Swarm = None,
    log_level: LogLevel = "info",
) -> None:
    """Role: counts and measures what is heard on the bus, and serves it to Prometheus at http://HOST:PORT/metrics."""
    from pathlib import Path

    from coordinator.config import load
    from coordinator.observing import observe_once, run_metrics
    from coordinator.scaling import with_agents

    target = find_target(nats, state_dir, swarm)
    if once:
        loaded = with_agents(load(config, Path.cwd()), agents)
        typer.echo(on_bus(target, lambda bus: observe_once(bus, loaded)), nl=False)
        raise typer.Exit(EXIT_DONE)
    raise typer.Exit(run_metrics(role_url(nats, state_dir), config, target.swarm, listen, log_level, agents))
