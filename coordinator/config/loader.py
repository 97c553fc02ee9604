"""Reads swarm.toml into a `SwarmConfig`: the file's schema, its checks, and the built-in default swarm.

It imports no agent: `SwarmConfig.resolve` does. An `[agents]` table replaces the five default agents, a `[sandboxes]`
table the three default sandboxes.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from bus.errors import ConfigError, UsageError
from bus.messages import VotingConfig, now
from bus.messages.subjects import WATCHDOG, check_name
from coordinator.config.convert import convert
from coordinator.config.overrides import NO_OVERRIDES, Overrides, apply_overrides
from coordinator.config.secrets import parse_secrets
from coordinator.config.settings import (
    AgentSettings,
    AlertSettings,
    CoordinatorSettings,
    DashboardSettings,
    MetricsSettings,
    MirrorSettings,
    NatsSettings,
    ResolvedSwarm,
    SandboxSpec,
    StreamSettings,
    SwarmConfig,
    WatchdogSettings,
)
from coordinator.config.tables import (
    COORDINATOR_KIND,
    PROVIDERS,
    agent_settings,
    agent_table,
    check_names,
    placement,
    sandbox_spec,
)
from coordinator.config.telemetry import NOWHERE, ListenAddress, check_page_url, check_webhook

__all__ = [
    "BUILT_IN",
    "DEFAULT_FILE",
    "PROVIDERS",
    "AgentSettings",
    "CoordinatorSettings",
    "SandboxSpec",
    "StreamSettings",
    "SwarmConfig",
    "TopLevel",
    "WatchdogSettings",
    "load_swarm",
    "parse_swarm",
    "read_toml",
    "to_config_message",
    "warnings_about",
]

DEFAULT_FILE = "swarm.toml"
BUILT_IN = "built-in defaults"
"""Used as the file's name when there is no file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopLevel:
    """The keys and tables at the top of swarm.toml, tables not yet converted."""

    swarm: str = "swarm"
    """Name of the swarm, and the first token of every subject."""
    max_agents: Annotated[int, Meta(ge=1)] = 5
    """Largest number of agents. More are refused: a generated file may contain too many by mistake."""
    sandboxes: dict[str, Any] = field(default_factory=dict)
    agents: dict[str, Any] = field(default_factory=dict)
    coordinator: dict[str, Any] = field(default_factory=dict)
    stream: dict[str, Any] = field(default_factory=dict)
    watchdog: dict[str, Any] = field(default_factory=dict)
    mirror: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    alerts: dict[str, Any] = field(default_factory=dict)
    dashboard: dict[str, Any] = field(default_factory=dict)
    secrets: dict[str, Any] = field(default_factory=dict)
    nats: dict[str, Any] = field(default_factory=dict)


MAX_FILE_BYTES = 1 << 20
DEFAULT_SANDBOXES: dict[str, dict[str, Any]] = {
    "base": {},
    "nodejs": {"packages": ["express", "axios", "lodash"]},
    "python": {"packages": ["numpy", "pandas", "requests"]},
}
DEFAULT_AGENTS: dict[str, dict[str, Any]] = {
    "research-1": {"kind": "market-data", "sandbox": "base", "memory_key": "market_data"},
    "research-2": {"kind": "sentiment", "sandbox": "nodejs", "memory_key": "sentiment"},
    "strategy-momentum": {"kind": "momentum", "sandbox": "nodejs", "memory_key": "signal"},
    "strategy-mean-reversion": {"kind": "mean-reversion", "sandbox": "python", "memory_key": "signal"},
    "coordinator": {"kind": COORDINATOR_KIND, "sandbox": "python", "memory_key": "decision"},
}


def load_swarm(
    file: Path | None = None, overrides: Overrides = NO_OVERRIDES, *, directory: Path | None = None
) -> SwarmConfig:
    """The swarm in `file` (--config), else in swarm.toml, else the default swarm, with `overrides` applied.

    Relative paths start in `directory`, the working directory unless given. Imports no agent.

    Raises:
        ConfigError: `file` does not exist, or a key in it is wrong; UsageError: an override does not fit the file.
    """
    directory = directory or Path.cwd()
    if file is None and not (directory / DEFAULT_FILE).exists():
        return apply_overrides(parse_swarm({}, BUILT_IN, ""), overrides)
    path = directory / (file or DEFAULT_FILE)
    directory_of_classes = str(path.resolve().parent)
    try:
        directory_of_classes.encode()
    except UnicodeEncodeError:  # it travels as JSON
        raise ConfigError(str(path), "", "the name of its directory is not UTF-8; rename or move it") from None
    return apply_overrides(parse_swarm(read_toml(path), str(path), directory_of_classes), overrides)


def read_toml(path: Path) -> dict[str, Any]:
    if path.exists() and not path.is_file():  # reading a pipe could block, a device could have no end
        raise ConfigError(str(path), "", "expected a file; this is a directory, a pipe or a device")
    if path.exists() and path.stat().st_size > MAX_FILE_BYTES:
        raise ConfigError(str(path), "", f"expected at most {MAX_FILE_BYTES} bytes, it has {path.stat().st_size}")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(str(path), "", "file not found; --config expects a swarm.toml") from None
    except OSError as error:
        raise ConfigError(str(path), "", f"cannot be read: {error.strerror}") from None
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(str(path), "", f"line {line}: expected UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:  # its message ends with the line and the column
        raise ConfigError(str(path), "", f"not valid TOML: {error}") from None
    except RecursionError:
        raise ConfigError(str(path), "", "tables or lists are nested too deeply") from None


def parse_swarm(raw: Mapping[str, Any], file: str, search_path: str) -> SwarmConfig:
    """Check a whole swarm.toml, already parsed as TOML; `search_path` is where its classes and commands are found.

    Raises:
        ConfigError: something is wrong in it.
    """
    top = convert(raw, TopLevel, file, "")
    try:
        check_name(top.swarm, "swarm")
    except UsageError as error:
        raise ConfigError(file, "swarm", str(error)) from None
    for key in ("agents", "sandboxes"):
        if key in raw and not raw[key]:
            raise ConfigError(file, key, "expected at least one; leave the table out for the defaults")
    sandboxes = tuple(sandbox_spec(file, name, table) for name, table in (top.sandboxes or DEFAULT_SANDBOXES).items())
    check_names(file, top.agents or DEFAULT_AGENTS, sandboxes)
    count = len(top.agents or DEFAULT_AGENTS)
    if count > top.max_agents:
        raise ConfigError(
            file,
            "agents",
            f"{count} agents are configured, at most {top.max_agents} are allowed; to allow them, write "
            f"max_agents = {count} at the top of the file",
        )
    if top.agents:
        tables = {name: agent_table(file, name, table) for name, table in top.agents.items()}
    else:
        tables = {name: agent_table(file, name, table) for name, table in DEFAULT_AGENTS.items()}
        names = {sandbox.name for sandbox in sandboxes}
        tables = {n: t if t.sandbox in names else replace(t, sandbox=None) for n, t in tables.items()}
    sandbox_of = placement(file, tables, sandboxes)
    agents = tuple(
        agent_settings(file, name, table, sandbox_of[name], top.swarm, search_path) for name, table in tables.items()
    )
    config = SwarmConfig(
        file=file,
        swarm=top.swarm,
        max_agents=top.max_agents,
        sandboxes=sandboxes,
        agents=agents,
        coordinator=convert(top.coordinator, CoordinatorSettings, file, "coordinator"),
        stream=convert(top.stream, StreamSettings, file, "stream"),
        watchdog=convert(top.watchdog, WatchdogSettings, file, "watchdog"),
        mirror=convert(top.mirror, MirrorSettings, file, "mirror"),
        metrics=convert(top.metrics, MetricsSettings, file, "metrics"),
        alerts=convert(top.alerts, AlertSettings, file, "alerts"),
        dashboard=convert(top.dashboard, DashboardSettings, file, "dashboard"),
        secrets=parse_secrets(top.secrets, file),
        nats=convert(top.nats, NatsSettings, file, "nats"),
    )
    _check_relations(config)
    return config


def warnings_about(config: ResolvedSwarm) -> tuple[str, ...]:
    """Warnings about valid settings that are probably unintended, each with the consequence."""
    deciders = config.deciders
    if not deciders:
        externals = ", ".join(item.spec.name for item in config.agents if item.external)
        unless = f", unless an external agent ({externals}) publishes them" if externals else ""
        warning = (
            f"no agent decides, so there will be no decisions{unless}; "
            f'for decisions add an agent with kind = "{COORDINATOR_KIND}"'
        )
    elif len(deciders) > 1:
        warning = (
            f"{len(deciders)} agents decide ({', '.join(deciders)}): each decides every round, so a subscriber of "
            f"{config.swarm}.decision.> receives {len(deciders)} decisions a round; the last token of the "
            "subject is the agent"
        )
    elif not config.voters:
        warning = "no agent votes, so every decision will be hold, of size 0"
    else:
        return ()
    return (f"{config.file}: agents: {warning}",)


def to_config_message(
    config: ResolvedSwarm,
    voters: Mapping[str, float],
    *,
    source: str = WATCHDOG,
    timestamp: datetime | None = None,
    changes: dict[str, Any] | None = None,
) -> VotingConfig:
    """The VotingConfig event for these voters (agent -> weight) and the settings of `config`.

    `changes` are those that were made at run time, as `encode_changes` returns them.
    """
    settings = config.coordinator
    return VotingConfig(
        voters=dict(voters),
        timestamp=timestamp or now(),
        source=source,
        quorum=settings.quorum,
        buy_at=settings.buy_at,
        sell_at=settings.sell_at,
        round_timeout_ms=settings.round_timeout_ms,
        position_cap=settings.position_cap,
        vol_target=settings.vol_target,
        drawdown_max=settings.drawdown_max,
        cvar_max=settings.cvar_max,
        deciders=config.deciders,
        changes=changes,
    )


def _check_relations(config: SwarmConfig) -> None:
    """Check what the types cannot express, such as relations between two settings."""
    checks: tuple[tuple[str, str, Callable[[str, str], object]], ...] = (
        ("metrics.listen", config.metrics.listen, ListenAddress.parse),
        ("alerts.webhook", config.alerts.webhook, check_webhook),
        ("dashboard.listen", config.dashboard.listen.removeprefix(NOWHERE), ListenAddress.parse),
        ("dashboard.jaeger", config.dashboard.jaeger, check_page_url),
    )
    for key, text, check in checks:
        try:
            if text:
                check(text, "")
        except UsageError as error:
            raise ConfigError(config.file, key, str(error).lstrip(": ")) from None
    if config.alerts.webhook and config.secrets.webhook is not None:
        raise ConfigError(config.file, "alerts.webhook", "secrets.webhook is set too; remove one of them")
    voting, watchdog_settings = config.coordinator, config.watchdog
    if voting.sell_at > voting.buy_at:
        raise ConfigError(
            config.file,
            "coordinator.sell_at",
            f"expected at most buy_at ({voting.buy_at}), not {voting.sell_at}; between them the decision is hold",
        )
    ladder = ("heartbeat_ms", "suspect_ms", "dead_ms", "starved_ms")
    for lower, higher in pairwise(ladder):
        low, high = getattr(watchdog_settings, lower), getattr(watchdog_settings, higher)
        if low >= high:
            raise ConfigError(config.file, f"watchdog.{higher}", f"expected more than {lower} ({low}), not {high}")
