"""What was changed at run time, beside swarm.toml: agents and sandboxes added and removed, and agents moved.

The changes travel in the watchdog's VotingConfig, whole in each, so that one stored message is one change. `up` keeps a
copy in the state directory, for commands without a bus and for a swarm whose stream is gone. The newer revision counts.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import msgspec
import orjson

from agents.spec import AgentSpec, ClassTraits
from bus.errors import ConfigError, UsageError
from bus.utils.json_text import parse_json, read_limited
from coordinator.config.loader import BUILT_IN
from coordinator.config.settings import AgentSettings, ResolvedSwarm, SandboxSpec, SwarmConfig
from coordinator.config.tables import AgentTable, agent_settings, agent_table, check_names, placement, sandbox_spec

__all__ = [
    "CHANGES_FILE",
    "NO_CHANGES",
    "SAVED_FILE",
    "AddedAgent",
    "ChangedAgent",
    "Changes",
    "Move",
    "RemovedAgent",
    "RemovedSandbox",
    "apply_changes",
    "changed_sandboxes",
    "check_count",
    "describe_changes",
    "encode_changes",
    "forget_saved_changes",
    "known_traits",
    "newer_changes",
    "origin_of",
    "read_changes_file",
    "read_saved_changes",
    "search_path_of",
    "to_changes",
    "without_configured",
    "write_changes_file",
    "write_saved_changes",
]

CHANGES_FILE = "changes.json"
"""In the state directory."""
SAVED_FILE = "changes.saved.json"
"""In the state directory: what `config save` has written into the configuration file, until the next `up`."""
MOST_REQUESTS = 32
"""Ids of requests that are kept, so that a repeated request changes nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedAgent:
    """An agent that was added. `table` is what [agents.NAME] would be, with the sandbox that it was placed in.

    `continues`: it goes on from a state that was saved under its name. Else it reads the stream from after message
    `after`, and its outputs are numbered from after `outputs`. `traits` are those of its class, so that it need not be
    imported again to know the swarm.
    """

    table: dict[str, Any]
    after: int
    outputs: int = 0
    continues: bool = False
    traits: ClassTraits | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovedAgent:
    """An agent that was removed after message `after`. `forget`: its state is deleted.

    `configured`: swarm.toml has it. `external`: no host ran it. `was` is what its state belongs to (`origin_of`), for
    as long as there is one.
    """

    after: int
    forget: bool = False
    configured: bool = True
    external: bool = False
    was: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """The new home of an agent. An incarnation with an epoch up to `after` is still to be moved there."""

    sandbox: str
    after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovedSandbox:
    """A sandbox that was removed after message `after`. `configured`: swarm.toml has it."""

    after: int
    configured: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """All changes since swarm.toml. `revision` grows by one with each change."""

    revision: int = 0
    change: str = ""
    """The newest change, in words."""
    requests: tuple[str, ...] = ()
    """Ids of the newest requests that are in it."""
    agents: dict[str, AddedAgent] = field(default_factory=dict)
    removed: dict[str, RemovedAgent] = field(default_factory=dict)
    moved: dict[str, Move] = field(default_factory=dict)
    sandboxes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Sandboxes that were added: what [sandboxes.NAME] would be."""
    removed_sandboxes: dict[str, RemovedSandbox] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether the swarm is that of swarm.toml."""
        return not (self.agents or self.removed or self.moved or self.sandboxes or self.removed_sandboxes)

    def after(self, change: str, request: str, **values: Any) -> Changes:
        """The next revision, with `values` in place of the present ones."""
        requests = (*self.requests, request)[-MOST_REQUESTS:]
        return replace(self, revision=self.revision + 1, change=change, requests=requests, **values)


NO_CHANGES = Changes()
SECTIONS = ("agents", "removed", "moved", "sandboxes", "removed_sandboxes")
"""The fields of Changes with a change for each name."""
SavedChanges = Mapping[str, Mapping[str, str]]
"""Of each section: name -> digest of the change that was saved."""
NOTHING_SAVED: SavedChanges = {}


def encode_changes(changes: Changes) -> dict[str, Any]:
    """As a VotingConfig carries them: plain JSON, without what has its default."""
    plain: dict[str, Any] = orjson.loads(orjson.dumps(changes))
    return {item.name: plain[item.name] for item in fields(Changes) if plain[item.name] not in ("", [], {})}


def to_changes(raw: Mapping[str, Any] | None) -> Changes:
    """The inverse of `encode_changes`; None: none.

    Raises:
        ValueError: they are none.
    """
    return NO_CHANGES if raw is None else msgspec.convert(raw, Changes)


def newer_changes(*known: Changes) -> Changes:
    """The one of the latest revision; of several the first."""
    return max(known, key=lambda changes: changes.revision)


def read_changes_file(state_dir: Path) -> Changes:
    """The copy in the state directory; none without a file.

    Raises:
        UsageError: it cannot be read.
    """
    path = state_dir / CHANGES_FILE
    try:
        return msgspec.convert(parse_json(read_limited(path)), Changes)
    except (FileNotFoundError, NotADirectoryError):
        return NO_CHANGES
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path}: cannot be read ({error}); restore it, or remove it: a swarm with its stream has the changes too"
        ) from None


def write_changes_file(state_dir: Path, changes: Changes) -> None:
    """Replace the copy in the state directory.

    Raises:
        OSError: it cannot be written.
    """
    _write(state_dir / CHANGES_FILE, encode_changes(changes))


def _write(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_saved_changes(state_dir: Path, file: Path, changes: Changes) -> None:
    """Record that `file` has these changes: from now on it says what they are.

    Raises:
        OSError: the record cannot be written.
    """
    saved = {section: {name: _digest(item) for name, item in getattr(changes, section).items()} for section in SECTIONS}
    _write(state_dir / SAVED_FILE, {"file": str(file.resolve()), "saved": saved})


def read_saved_changes(state_dir: Path, config: SwarmConfig) -> SavedChanges:
    """The changes that were saved into the file of `config` while this swarm had them; none without a record.

    Raises:
        UsageError: the record cannot be read.
    """
    path = state_dir / SAVED_FILE
    try:
        record = parse_json(read_limited(path))
        if config.file == BUILT_IN or record["file"] != str(Path(config.file).resolve()):
            return NOTHING_SAVED
        return msgspec.convert(record["saved"], dict[str, dict[str, str]])
    except (FileNotFoundError, NotADirectoryError):
        return NOTHING_SAVED
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); remove it, and see `signalmesh config diff`") from None


def forget_saved_changes(state_dir: Path, config: SwarmConfig) -> None:
    """Remove the record about the file of `config`, whose saved changes are no changes any more.

    Raises:
        OSError, UsageError: it cannot be read or removed.
    """
    if read_saved_changes(state_dir, config):
        (state_dir / SAVED_FILE).unlink()


def _unsaved(changes: Changes, section: str, saved: SavedChanges) -> dict[str, Any]:
    digests = saved.get(section, {})
    return {name: item for name, item in getattr(changes, section).items() if digests.get(name) != _digest(item)}


def _digest(item: Any) -> str:
    """Of one change: the record is no copy of commands and options, which a removal may forget."""
    return hashlib.sha256(orjson.dumps(item, option=orjson.OPT_SORT_KEYS)).hexdigest()


def origin_of(spec: AgentSpec) -> dict[str, Any]:
    """What the state of an agent belongs to: another class, or other options, would not continue it."""
    given = {
        "kind": spec.kind if spec.class_path and not spec.search_path else "",
        "class": spec.class_path if spec.search_path else "",
        "command": list(spec.command),
        "options": dict(spec.options),
    }
    return {key: value for key, value in given.items() if value}


def search_path_of(config: SwarmConfig) -> str:
    """Where the classes and programs of added agents are found: beside swarm.toml, else in the working directory."""
    return str(Path.cwd() if config.file == BUILT_IN else Path(config.file).resolve().parent)


def apply_changes(config: SwarmConfig, changes: Changes) -> SwarmConfig:
    """The swarm of `config` with `changes`. Those about agents and sandboxes that it does not have are left out.

    Raises:
        ConfigError: an added agent or sandbox is wrong, its name is taken, or no sandbox is left.
    """
    if changes.is_empty:
        return config
    file, sandboxes = config.file, changed_sandboxes(config, changes)
    if not sandboxes:
        raise ConfigError(file, "sandboxes", "every sandbox here was removed at run time")
    own = tuple(item for item in config.agents if item.spec.name not in {*changes.removed, *changes.agents})
    names = {spec.name for spec in sandboxes}
    tables = {name: agent_table(file, name, added.table) for name, added in changes.agents.items()}
    tables = {name: table if table.sandbox in names else replace(table, sandbox=None) for name, table in tables.items()}
    check_names(file, dict.fromkeys([*(item.spec.name for item in own), *tables]), sandboxes)
    homeless = {item.spec.name: AgentTable() for item in own if not item.external and item.spec.sandbox not in names}
    others = [item.spec.sandbox for item in own if item.spec.name not in homeless]
    sandbox_of = placement(file, {**homeless, **tables}, sandboxes, others)
    added = []
    for name, table in tables.items():
        settings = agent_settings(file, name, table, sandbox_of[name], config.swarm, search_path_of(config))
        change = changes.agents[name]
        spec = replace(settings.spec, start_after=change.after, start_outputs=change.outputs)
        added.append(replace(settings, spec=spec))
    placed = (_placed(item, sandbox_of[item.spec.name]) if item.spec.name in homeless else item for item in own)
    agents = tuple(_moved(item, changes, names) for item in (*placed, *added))
    return replace(_unresolved(config), sandboxes=sandboxes, agents=agents)


def changed_sandboxes(config: SwarmConfig, changes: Changes) -> tuple[SandboxSpec, ...]:
    """The sandboxes of `config` with `changes`.

    Raises:
        ConfigError: an added sandbox is wrong.
    """
    kept = (spec for spec in config.sandboxes if spec.name not in {*changes.removed_sandboxes, *changes.sandboxes})
    return (*kept, *(sandbox_spec(config.file, name, table) for name, table in changes.sandboxes.items()))


def _unresolved(config: SwarmConfig) -> SwarmConfig:
    if isinstance(config, ResolvedSwarm):
        return SwarmConfig(**{item.name: getattr(config, item.name) for item in fields(SwarmConfig)})
    return config


def _moved(item: AgentSettings, changes: Changes, sandboxes: set[str]) -> AgentSettings:
    move = changes.moved.get(item.spec.name)
    if move is None or move.sandbox not in sandboxes or item.external:
        return item
    return _placed(item, move.sandbox)


def _placed(item: AgentSettings, sandbox: str) -> AgentSettings:
    return replace(item, spec=replace(item.spec, sandbox=sandbox))


def without_configured(config: SwarmConfig, changes: Changes, saved: SavedChanges = NOTHING_SAVED) -> Changes:
    """The changes by which the swarm differs from the file of `config`; the next revision, if these are not all.

    What the file has by now is left out, and so is what was `saved` into it, whatever it says since: somebody has
    edited it.

    Raises:
        ConfigError: the changes do not fit `config`.
    """
    own = {item.spec.name: item for item in config.agents}
    present = {spec.name: spec for spec in config.sandboxes}
    left: dict[str, Any] = {section: _unsaved(changes, section, saved) for section in SECTIONS}
    left["removed"] = {  # those that are not in the file stay, for what their states belong to
        name: replace(item, configured=name in own)
        for name, item in changes.removed.items()
        if name not in own or name in left["removed"]
    }
    left["removed_sandboxes"] = {
        name: item for name, item in left["removed_sandboxes"].items() if item.configured and name in present
    }
    unsaved = replace(changes, **left)
    changed = [
        {item.spec.name: item for item in apply_changes(config, way).agents}
        for way in (unsaved, replace(unsaved, moved={}))
    ]
    added = {
        name: item
        for name, item in unsaved.agents.items()
        if name not in own or not any(_is_same(own[name], agents[name]) for agents in changed)
    }
    moved = {
        name: move
        for name, move in unsaved.moved.items()
        if name in added or (name in own and own[name].spec.sandbox != move.sandbox)
    }
    sandboxes = {
        name: table
        for name, table in unsaved.sandboxes.items()
        if present.get(name) != sandbox_spec(config.file, name, table)
    }
    found = replace(unsaved, agents=added, moved=moved, sandboxes=sandboxes)
    if found == changes:
        return changes
    return replace(found, revision=changes.revision + 1, change="without what swarm.toml has")


def _is_same(own: AgentSettings, added: AgentSettings) -> bool:
    """Whether an agent of swarm.toml, resolved or not, is what was added."""
    names = ["class_path", "search_path", "command", "options", "memory_key", "sandbox", "nice"]
    names += ["listens", "publishes"] if added.spec.command else []
    same = all(getattr(own.spec, name) == getattr(added.spec, name) for name in names)
    return same and own.weight == added.weight and added.votes in (None, own.votes)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedAgent:
    """An agent that is not as swarm.toml has it: added, changed, moved or removed there; `detail` says to what.

    Of a sandbox that was added or removed, `agent` is its name and `is_sandbox` true: both share one space of names.
    """

    agent: str
    change: str
    detail: str
    is_sandbox: bool = False


def describe_changes(changes: Changes) -> list[ChangedAgent]:
    """How the swarm differs from swarm.toml."""
    found = [
        ChangedAgent(agent=name, change="added", detail=f"a sandbox, provider {table['provider']}", is_sandbox=True)
        for name, table in changes.sandboxes.items()
    ]
    found += [
        ChangedAgent(agent=name, change="removed", detail="a sandbox; its agents were moved", is_sandbox=True)
        for name, gone in changes.removed_sandboxes.items()
        if gone.configured
    ]
    for name, added in changes.agents.items():
        table = added.table
        way = next((f"{key} {table[key]}" for key in ("kind", "class", "command") if key in table), "")
        weight = f", weight {table['weight']:g}" if "weight" in table else ""
        change = "added" if added.after else "changed"
        found.append(ChangedAgent(agent=name, change=change, detail=f"{way} in {table.get('sandbox')}{weight}"))
    found += [
        ChangedAgent(agent=name, change="moved", detail=f"to {move.sandbox}") for name, move in changes.moved.items()
    ]
    found += [
        ChangedAgent(
            agent=name, change="removed", detail="its state is deleted" if gone.forget else "its state is kept"
        )
        for name, gone in changes.removed.items()
        if gone.configured
    ]
    return found


def known_traits(config: ResolvedSwarm, changes: Changes) -> dict[str, ClassTraits]:
    """Agent -> traits of its class, of the agents of `config` and of those added."""
    added = {name: agent.traits for name, agent in changes.agents.items() if agent.traits is not None}
    return {**config.traits, **added}


def check_count(config: SwarmConfig, added: int = 0, hint: str = "") -> None:
    """Refuse more agents than are allowed; with `added` ones more than `config` has. `hint` is what is possible now.

    Raises:
        ConfigError: there would be more.
    """
    count = len(config.agents) + added
    if count > config.max_agents:
        raise ConfigError(
            config.file,
            "max_agents",
            f"{count} agents would run, at most {config.max_agents} are allowed{hint}; to allow them, write "
            f"max_agents = {count} at the top of swarm.toml, or start with --max-agents {count}",
        )
