"""The tables [agents.*] and [sandboxes.*] of swarm.toml: checked one by one and against each other, and placed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from msgspec import Meta

from agents.agent import LISTENABLE
from agents.builtin import KINDS
from agents.spec import AgentSpec, check_class_path
from bus.errors import ConfigError, UsageError
from bus.messages.subjects import AGENT_KINDS, SANDBOX_ACTIONS, check_name
from coordinator.config.convert import convert, plain_options, similar, table_of
from coordinator.config.e2b import E2bSettings, check_settings
from coordinator.config.settings import AgentSettings, SandboxSpec

__all__ = [
    "ALL_KINDS",
    "COORDINATOR_KIND",
    "MAX_WEIGHT",
    "PROVIDERS",
    "AgentTable",
    "SandboxTable",
    "agent_settings",
    "agent_table",
    "check_names",
    "placement",
    "sandbox_spec",
]

PROVIDERS = ("local", "e2b")
"""Sandbox providers that are implemented."""
COORDINATOR_KIND = "coordinator"
ALL_KINDS = {**KINDS, COORDINATOR_KIND: "coordinator.decisions.agent:CoordinatorAgent"}
MAX_WEIGHT = 1_000_000
"""Of a vote; larger ones tell no more, and their sum might be no number."""
_MEMORY_KEY = re.compile(r"(?=.{1,128}$)[A-Za-z0-9_=-]+(\.[A-Za-z0-9_=-]+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxTable:
    """One [sandboxes.NAME] table as written, unless its provider is E2B."""

    provider: str = "local"
    """`local`: a process group on this machine. `e2b`: a sandbox at E2B, which has further keys."""
    packages: tuple[str, ...] = ()
    """What a provider should install. `local` installs nothing."""
    price_per_hour: Annotated[float, Meta(ge=0)] | None = None
    """USD an hour. `status`, `metrics` and `certify` show the cost since the provider created the sandbox (of a local
    one: since its host was started)."""
    price_source: str = ""
    """Where that price is from. Required with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTable:
    """One [agents.NAME] table as written; `class_` is its key `class`."""

    kind: str | None = None
    """An agent kind that ships with the project."""
    class_: str | None = None
    """`"module:Class"` or `"path/to/file.py:Class"`, found beside `swarm.toml`."""
    command: Annotated[tuple[str, ...], Meta(min_length=1)] | None = None
    """Program and arguments, run in the directory of `swarm.toml`."""
    external: bool = False
    """`true`: a program of its own runs this agent, and no sandbox host."""
    listens: tuple[str, ...] = ()
    """With `command`: the message kinds that it receives."""
    publishes: tuple[str, ...] = ()
    """With `command`: the message kinds that it answers with."""
    sandbox: str | None = None
    """Preferred sandbox. By default the one with the fewest agents."""
    votes: bool | None = None
    """Whether its votes count. By default `true` for agents that publish `signal` or `sentiment`, and for external
    ones."""
    weight: Annotated[float, Meta(ge=0, le=MAX_WEIGHT)] = 1.0
    """Weight of its vote; normalised over all voters."""
    memory_key: str | None = None
    """Last part of its key in the memory bucket. By default its first published kind."""
    nice: Annotated[int, Meta(ge=0, le=19)] = 0
    """Niceness of its process: with more than 0 others come first on a busy machine."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of its kind, below."""


def check_names(file: str, agents: Mapping[str, Any], sandboxes: tuple[SandboxSpec, ...]) -> None:
    """Agents and sandboxes share one space of subjects, and some file systems know no case."""
    seen: dict[str, str] = {}
    for table, what, names in (
        ("sandboxes", "sandbox", [sandbox.name for sandbox in sandboxes]),
        ("agents", "agent", list(agents)),
    ):
        for name in names:
            key = f"{table}.{name}"
            try:
                check_name(name, what)
            except UsageError as error:
                raise ConfigError(file, key, str(error)) from None
            other = seen.setdefault(name.lower(), f"{what} {name!r}")
            if other != f"{what} {name!r}":
                raise ConfigError(
                    file, key, f"{what} {name!r}: this name collides with {other} (case does not count); rename one"
                )


def sandbox_spec(file: str, name: str, raw: Any) -> SandboxSpec:
    key = f"sandboxes.{name}"
    if name in SANDBOX_ACTIONS:
        raise ConfigError(file, key, f"{name!r} is reserved: `signalmesh sandbox {name} NAME` is a command; rename it")
    raw = table_of(raw, file, key)
    if raw.get("provider") == "e2b":
        if isinstance(raw.get("packages"), list):
            raise ConfigError(
                file, f"{key}.packages", 'with provider = "e2b" expected a table: { pip = […], npm = […] }'
            )
        settings = convert({k: value for k, value in raw.items() if k != "provider"}, E2bSettings, file, key)
        check_settings(file, key, name, settings)
        _check_price(file, key, settings)
        price, source = settings.price()
        return SandboxSpec(name=name, provider="e2b", e2b=settings, price_per_hour=price, price_source=source)
    for field_name in E2bSettings.__dataclass_fields__.keys() - SandboxTable.__dataclass_fields__.keys():
        if field_name in raw:
            raise ConfigError(
                file, f"{key}.{field_name}", 'is valid only with provider = "e2b"; remove it, or add that'
            )
    table = convert(raw, SandboxTable, file, key)
    if table.provider not in PROVIDERS:
        raise ConfigError(
            file, f"{key}.provider", f"{table.provider!r} is not available; available: {', '.join(PROVIDERS)}"
        )
    for index, package in enumerate(table.packages):
        if not package.strip() or package.startswith("-"):
            raise ConfigError(file, f"{key}.packages[{index}]", f"expected the name of a package, not {package!r}")
    _check_price(file, key, table)
    return SandboxSpec(
        name=name,
        provider=table.provider,
        packages=table.packages,
        price_per_hour=table.price_per_hour,
        price_source=table.price_source,
    )


def _check_price(file: str, key: str, table: SandboxTable | E2bSettings) -> None:
    if table.price_per_hour is not None and not table.price_source.strip():
        raise ConfigError(file, f"{key}.price_source", "expected the source of price_per_hour, such as a price list")


def agent_table(file: str, name: str, raw: Any) -> AgentTable:
    """The checked table of one agent."""
    key = f"agents.{name}"
    table = convert(table_of(raw, file, key), AgentTable, file, key)
    ways = {
        "kind": table.kind is not None,
        "class": table.class_ is not None,
        "command": table.command is not None,
        "external": table.external,
    }
    given = [way for way, is_given in ways.items() if is_given]
    if len(given) != 1:
        forms = 'kind = "…", class = "module:Class", command = […] or external = true'
        problem = (
            f"only one of {' and '.join(given)} is allowed" if given else f"nothing to run is configured: add {forms}"
        )
        raise ConfigError(file, key, problem)
    if table.kind is not None and table.kind not in ALL_KINDS:
        raise ConfigError(
            file,
            f"{key}.kind",
            f"unknown kind {table.kind!r}{similar(table.kind, ALL_KINDS)}; "
            f'expected one of {", ".join(sorted(ALL_KINDS))}, or class = "module:Class" for an agent of your own',
        )
    if table.class_ is not None:
        try:
            check_class_path(table.class_)
        except UsageError as error:
            raise ConfigError(file, f"{key}.class", str(error)) from None
    if table.memory_key is not None and not _MEMORY_KEY.fullmatch(table.memory_key):
        raise ConfigError(
            file,
            f"{key}.memory_key",
            f"{table.memory_key!r}: expected letters, digits, '_', '-' or '=', and '.' within, 128 at most",
        )
    _check_kind_lists(file, key, table)
    if table.external:
        for extra in ("sandbox", "memory_key", "nice", "options"):
            if raw.get(extra) is not None:
                raise ConfigError(file, f"{key}.{extra}", "has no effect on an external agent; remove it")
    return table


def _check_kind_lists(file: str, key: str, table: AgentTable) -> None:
    """`listens` and `publishes`: required with a command, otherwise defined by the class."""
    for name, value, known in (
        ("listens", table.listens, LISTENABLE),
        ("publishes", table.publishes, AGENT_KINDS),
    ):
        if table.command is None:
            if value:
                raise ConfigError(
                    file, f"{key}.{name}", "is valid only with command, because a class defines it; remove it"
                )
        elif not value:
            raise ConfigError(file, f"{key}.{name}", f"is required with command: a list of {', '.join(known)}")
        for kind in value:
            if kind not in known:
                raise ConfigError(
                    file, f"{key}.{name}", f"unknown kind {kind!r}{similar(kind, known)}; expected {', '.join(known)}"
                )
            if value.count(kind) > 1:
                raise ConfigError(file, f"{key}.{name}", f"{kind!r} is listed {value.count(kind)} times; list it once")


def placement(
    file: str, tables: Mapping[str, AgentTable], sandboxes: tuple[SandboxSpec, ...], others: Iterable[str] = ()
) -> dict[str, str]:
    """Agent -> sandbox: the one of its table, else the first one with the fewest agents, `others` among them."""
    names = [sandbox.name for sandbox in sandboxes]
    for name, table in tables.items():
        if table.sandbox is not None and table.sandbox not in names:
            raise ConfigError(
                file,
                f"agents.{name}.sandbox",
                f"there is no sandbox {table.sandbox!r}{similar(table.sandbox, names)}; expected one of "
                f"{', '.join(names)}, or a table [sandboxes.{table.sandbox}]",
            )
    load_of = Counter([*others, *(table.sandbox for table in tables.values())])
    sandbox_of = {}
    for name, table in tables.items():
        sandbox = "" if table.external else table.sandbox
        if sandbox is None:
            sandbox = min(names, key=lambda name: load_of[name])
            load_of[sandbox] += 1
        sandbox_of[name] = sandbox
    return sandbox_of


def agent_settings(
    file: str, name: str, table: AgentTable, sandbox: str, swarm: str, search_path: str
) -> AgentSettings:
    kind = table.kind or ("command" if table.command else "external" if table.external else "")
    spec = AgentSpec(
        name=name,
        kind=kind,
        class_path=ALL_KINDS[table.kind] if table.kind else table.class_ or "",
        search_path="" if table.kind or table.external else search_path,
        command=table.command or (),
        listens=table.listens,
        publishes=table.publishes,
        options=plain_options(table.options, file, f"agents.{name}.options"),
        memory_key=table.memory_key or "",
        sandbox=sandbox,
        swarm=swarm,
        nice=table.nice,
    )
    return AgentSettings(spec=spec, external=table.external, votes=table.votes, weight=table.weight)
