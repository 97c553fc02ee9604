"""What a run of `certify` must find: sandboxes, agents and their memory keys, from the configuration."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from agents.builtin.command import command_class
from agents.builtin.market_data import MarketDataAgent
from agents.runtime.process import memory_key_of
from agents.spec import ClassTraits
from bus.errors import UsageError
from coordinator.config.loader import DEFAULT_AGENTS, DEFAULT_SANDBOXES, load_swarm, parse_swarm
from coordinator.config.settings import SwarmConfig

__all__ = ["ExpectedSwarm", "configuration", "expected_swarm"]

FEEDER = MarketDataAgent.kind
PREFERRED_TARGET = "research-1"
"""Killed if the swarm has it, else the first source of market data, which all decisions need."""
GENERATED = "certify's own configuration"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedSwarm:
    """`sandboxes` maps a name to its provider, `agents` a name to its kind, `keys` an agent to the last part of its
    memory key. `target` is the agent to kill; the first `history` rounds of each symbol come without a pause.
    """

    sandboxes: dict[str, str]
    agents: dict[str, str]
    keys: dict[str, str]
    target: str
    history: int

    @property
    def providers(self) -> str:
        """The providers of the sandboxes."""
        return ", ".join(sorted(set(self.sandboxes.values())))


def configuration(provider: str) -> str:
    """swarm.toml of the default swarm, with sandboxes of `provider`."""
    # TOML's strings, numbers and arrays of them are written as JSON's are.
    lines: list[str] = []
    for name, table in DEFAULT_SANDBOXES.items():
        settings = table if provider == "local" else {}  # a remote sandbox has its packages from its template
        lines += [f"[sandboxes.{name}]", *_assignments({"provider": provider, **settings})]
    for name, table in DEFAULT_AGENTS.items():
        lines += [f"[agents.{name}]", *_assignments(table)]
    return "\n".join(lines) + "\n"


def _assignments(table: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {orjson.dumps(value).decode()}" for key, value in table.items()]


def expected_swarm(path: Path | None, provider: str | None) -> tuple[ExpectedSwarm, str]:
    """What to find in the swarm of `path`, or in the default one with this provider; and the latter as TOML.

    Raises:
        UsageError: a mistake in the file, or a swarm without market data or without a decider.
    """
    if path is not None:
        return _of(load_swarm(path, directory=path.parent)), ""
    toml = configuration(provider or "local")
    return _of(parse_swarm(tomllib.loads(toml), GENERATED, "")), toml


def _of(config: SwarmConfig) -> ExpectedSwarm:
    resolved = config.resolve()
    own = [item for item in resolved.agents if not item.external]
    feeders = [item.spec for item in own if item.spec.kind == FEEDER]
    if not feeders or not resolved.deciders:
        lacking = f'no agent of kind = "{FEEDER}"' if not feeders else "no agent that decides"
        raise UsageError(
            f"{config.file}: agents: certify measures rounds from a tick to its decision, and finds {lacking}"
        )
    names = [spec.name for spec in feeders]
    history = feeders[0].options.get("history", MarketDataAgent.Options.history)
    return ExpectedSwarm(
        sandboxes={sandbox.name: sandbox.provider for sandbox in resolved.sandboxes},
        agents={item.spec.name: item.spec.kind for item in own},
        keys={
            item.spec.name: memory_key_of(
                item.spec, resolved.traits.get(item.spec.name) or ClassTraits.of(command_class(item.spec))
            )
            for item in own
        },
        target=PREFERRED_TARGET if PREFERRED_TARGET in names else names[0],
        history=history,
    )
