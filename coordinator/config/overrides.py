"""The command-line options that change a loaded swarm, applied in one place."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bus.errors import UsageError
from coordinator.config.scaling import with_agents
from coordinator.config.settings import SwarmConfig

__all__ = ["NO_OVERRIDES", "Overrides", "apply_overrides"]

FEEDER = "market-data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """Values that replace those of swarm.toml; None keeps the file's."""

    agents: int | None = None
    """--agents: the number of agents in all."""
    max_agents: int | None = None
    """--max-agents: the largest number of agents, those that are added at run time included."""
    speed: float | None = None
    """--speed: candles a second of every recorded feed; 0: as fast as possible."""


NO_OVERRIDES = Overrides()


def apply_overrides(config: SwarmConfig, overrides: Overrides) -> SwarmConfig:
    """`config` with `overrides`.

    Raises:
        UsageError: a number of agents does not fit `config`.
    """
    if overrides.agents is not None:
        config = with_agents(config, overrides.agents)
    if overrides.max_agents is not None:
        config = _with_limit(config, overrides.max_agents)
    if overrides.speed is not None:
        config = _with_speed(config, overrides.speed)
    return config


def _with_limit(config: SwarmConfig, limit: int) -> SwarmConfig:
    if limit < len(config.agents):
        raise UsageError(f"--max-agents {limit}: expected {len(config.agents)} or more: so many are in {config.file}")
    return replace(config, max_agents=limit)


def _with_speed(config: SwarmConfig, speed: float) -> SwarmConfig:
    agents = tuple(
        replace(item, spec=replace(item.spec, options={**item.spec.options, "speed": speed}))
        if item.spec.kind == FEEDER
        else item
        for item in config.agents
    )
    return replace(config, agents=agents)
