"""The next Changes after agents and sandboxes are added and removed: pure, so that a wrong request changes nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from agents.spec import ClassTraits
from bus.errors import ConfigError, MeshError, UsageError
from bus.messages.subjects import check_name
from coordinator.config.changes import (
    AddedAgent,
    Changes,
    Move,
    RemovedAgent,
    RemovedSandbox,
    check_count,
    encode_changes,
    origin_of,
    search_path_of,
)
from coordinator.config.convert import similar
from coordinator.config.credential_check import check_no_credentials
from coordinator.config.live_swarm import LiveSwarm
from coordinator.config.scaling import FAMILIES, check_scale, strategy_table
from coordinator.config.settings import AgentSettings, ResolvedSwarm
from coordinator.config.tables import (
    ALL_KINDS,
    AgentTable,
    agent_settings,
    agent_table,
    check_names,
    placement,
    sandbox_spec,
)

MAX_CHANGES_BYTES = 128 * 1024
"""A VotingConfig with them must fit a message."""


def place_added(
    swarm: LiveSwarm, name: str, table: Mapping[str, Any], live: Collection[str]
) -> tuple[dict[str, Any], AgentSettings]:
    """The table of an agent to be added, with the sandbox that it is placed in, and its settings.

    `live` are the sandboxes with a live host.

    Raises:
        UsageError: the table is wrong, the name is taken, or there are too many agents; MeshError: its sandbox is not
            live.
    """
    config, file = swarm.config, f"add {name}"
    names = [item.spec.name for item in config.agents]
    if name in names:
        raise UsageError(f"agent {name!r} is in the swarm already; `signalmesh remove {name}` removes it")
    check_count(config, 1)
    check_no_credentials(file, table)
    checked = agent_table(file, name, table)
    if checked.external:
        raise UsageError(f"{file}: an external agent cannot be added at run time; write it into swarm.toml")
    check_names(file, dict.fromkeys([*names, name]), config.sandboxes)
    specs = config.sandboxes if checked.sandbox else tuple(spec for spec in config.sandboxes if spec.name in live)
    if not specs:
        raise MeshError("no sandbox has a live host; `signalmesh status` lists them")
    sandbox = placement(file, {name: checked}, specs, (item.spec.sandbox for item in config.agents))[name]
    if sandbox not in live:
        raise MeshError(f"--sandbox: {sandbox} has no live host; `signalmesh status` lists those that have")
    settings = agent_settings(file, name, checked, sandbox, config.swarm, search_path_of(config))
    left = swarm.changes.removed.get(name)
    if left is not None and not left.forget and left.was and left.was != (origin := origin_of(settings.spec)):
        was, now = (orjson.dumps(found).decode() for found in (left.was, origin))
        raise UsageError(
            f"agent {name!r} has left a state as {was}, which {now} does not continue: add it as it was, or delete "
            f"that state (`signalmesh remove {name} --forget`), or choose another name"
        )
    return {**table, "sandbox": sandbox}, settings


def after_adding(changes: Changes, name: str, added: AddedAgent, request: str) -> Changes:
    """The changes with an agent more."""
    return changes.after(
        f"add {name}",
        request,
        agents={**changes.agents, name: added},
        removed=_without(changes.removed, name),
        moved=_without(changes.moved, name),
    )


def after_removing(swarm: LiveSwarm, name: str, request: str, *, after: int, forget: bool) -> Changes:
    """The changes with an agent less; or, if it was removed already, without its state.

    Raises:
        UsageError: there is no such agent, or no other one.
    """
    config, changes = swarm.config, swarm.changes
    agents = {item.spec.name: item for item in config.agents}
    left = changes.removed.get(name)
    words = f"remove {name}{' and its state' if forget else ''}"
    if name not in agents and forget and left is not None:
        forgotten = replace(left, forget=True, after=after, was={})
        return changes.after(words, request, removed={**changes.removed, name: forgotten})
    if name not in agents:
        raise UsageError(f"no agent {name!r} in this swarm{similar(name, agents)}; it has: {', '.join(agents)}")
    if len(agents) == 1:
        raise UsageError(f"{name!r} is the only agent; `signalmesh down` ends the swarm")
    removed = RemovedAgent(
        after=after,
        forget=forget,
        configured=any(item.spec.name == name for item in swarm.base.agents),
        external=agents[name].external,
        was={} if forget else origin_of(agents[name].spec),
    )
    return changes.after(
        words,
        request,
        agents=_without(changes.agents, name),
        removed={**changes.removed, name: removed},
        moved=_without(changes.moved, name),
    )


def missing_parts(config: ResolvedSwarm) -> list[str]:
    """What this swarm has nobody for, and what does not happen therefore; for a person who has just removed one."""
    published = {kind for agent in config.agents for kind in agent.spec.publishes}
    found = [] if "market" in published else ["no agent publishes market data any more: no round begins"]
    found += [] if config.voters else ["no agent votes any more: every decision is to hold"]
    return found + ([] if config.deciders else ["no agent decides any more: there are no decisions"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where an agent that is added begins (`AddedAgent`)."""

    after: int
    outputs: int
    continues: bool


def generated_members(swarm: LiveSwarm, kind: str) -> dict[str, int]:
    """The generated strategies of a kind that the swarm has: name -> number.

    Raises:
        UsageError: strategies of this kind are not generated, or another agent has the name of one.
    """
    if kind not in dict(FAMILIES):
        kinds = ", ".join(dict(FAMILIES))
        raise UsageError(
            f"scale {kind}: expected one of {kinds}: only these look at the market with other periods each"
        )
    found = {}
    for item in swarm.config.agents:
        name, _, number = item.spec.name.rpartition("-")
        if name != kind or not number.isdecimal() or number.startswith("0"):
            continue
        if item.spec.class_path != ALL_KINDS[kind] or item.spec.options != dict(FAMILIES)[kind](int(number)):
            raise UsageError(f"scale {kind}: the name {item.spec.name!r} is needed for a generated agent; rename yours")
        found[item.spec.name] = int(number)
    return found


def scaled_tables(swarm: LiveSwarm, kind: str, count: int, live: Collection[str]) -> dict[str, dict[str, Any]]:
    """The tables of the `count` generated strategies of a kind, with their sandboxes.

    Raises:
        UsageError: the number or the kind is wrong, or a name is taken, or there would be too many agents;
        MeshError: no sandbox is live.
    """
    check_scale(kind, count)
    present, file = generated_members(swarm, kind), f"scale {kind}"
    most = max(0, swarm.config.max_agents - len(swarm.config.agents) + len(present))
    check_count(swarm.config, count - len(present), f", which leaves room for {most} of kind {kind}")
    agents = {item.spec.name: item.spec for item in swarm.config.agents}
    tables = {f"{kind}-{number}": strategy_table(kind, number, count) for number in range(1, count + 1)}
    new = {name: agent_table(file, name, table) for name, table in tables.items() if name not in present}
    check_names(file, dict.fromkeys([*agents, *new]), swarm.config.sandboxes)
    specs = tuple(spec for spec in swarm.config.sandboxes if spec.name in live)
    if new and not specs:
        raise MeshError("no sandbox has a live host; `signalmesh status` lists them")
    sandbox_of = placement(file, new, specs, (spec.sandbox for spec in agents.values())) if new else {}
    return {
        name: {**table, "sandbox": sandbox_of[name] if name in new else agents[name].sandbox}
        for name, table in tables.items()
    }


def after_scaling(
    swarm: LiveSwarm, kind: str, tables: Mapping[str, dict[str, Any]], request: str, *,
    starts: Mapping[str, Start], traits: ClassTraits | None, after: int,
) -> Changes:  # fmt: skip
    """The changes after which the generated strategies of a kind are those of `tables`; the others are forgotten.

    `starts` are those of the agents that are new.
    """
    changes = swarm.changes
    known, agents = {item.spec.name: item for item in swarm.config.agents}, dict(changes.agents)
    for name, table in tables.items():
        if name in starts:
            start = starts[name]
            agents[name] = AddedAgent(
                table=table, after=start.after, outputs=start.outputs, continues=start.continues, traits=traits
            )
        elif name in agents:
            agents[name] = replace(agents[name], table=table)
        elif known[name].weight != table["weight"]:
            agents[name] = AddedAgent(table=table, after=0, continues=True, traits=swarm.base.traits[name])
    removed = {name: item for name, item in changes.removed.items() if name not in tables}
    configured = {item.spec.name for item in swarm.base.agents}
    for name in generated_members(swarm, kind):
        if name not in tables:
            agents.pop(name, None)
            removed[name] = RemovedAgent(after=after, forget=True, configured=name in configured)
    moved = {name: move for name, move in changes.moved.items() if name not in starts and name not in removed}
    return changes.after(f"scale {kind} to {len(tables)}", request, agents=agents, removed=removed, moved=moved)


def after_adding_sandbox(
    swarm: LiveSwarm, name: str, table: Mapping[str, Any], request: str, hosts: Collection[str]
) -> Changes:
    """The changes with a sandbox more. `hosts` are the names of the hosts that run.

    Raises:
        UsageError: the table is wrong, or the name is taken.
    """
    config, file = swarm.config, f"sandbox add {name}"
    if name in (spec.name for spec in config.sandboxes):
        raise UsageError(f"sandbox {name!r} is in the swarm already; `signalmesh sandbox remove {name}` removes it")
    check_name(name, "sandbox")
    taken = {host.lower(): f"host {host!r}" for host in hosts}
    taken |= {spec.name.lower(): f"sandbox {spec.name!r}" for spec in config.sandboxes}
    taken |= {item.spec.name.lower(): f"agent {item.spec.name!r}" for item in config.agents}
    if name.lower() in taken:
        raise UsageError(
            f"{file}: this name collides with {taken[name.lower()]} (case does not count); choose another one"
        )
    check_no_credentials(file, {"options": table})
    spec = sandbox_spec(file, name, table)
    is_configured = name in (each.name for each in swarm.base.sandboxes)  # it comes back as it was
    added = {} if is_configured else {name: {**table, "provider": spec.provider}}
    return swarm.changes.after(
        f"add sandbox {name}",
        request,
        sandboxes={**swarm.changes.sandboxes, **added},
        removed_sandboxes=_without(swarm.changes.removed_sandboxes, name),
    )


def after_removing_sandbox(swarm: LiveSwarm, name: str, request: str, *, after: int, live: Collection[str]) -> Changes:
    """The changes with a sandbox less; the agents that had their home there get one of the `live` ones.

    Raises:
        UsageError: there is no such sandbox, or no other one; MeshError: no other one is live.
    """
    config, changes, file = swarm.config, swarm.changes, f"sandbox remove {name}"
    present = {spec.name: spec for spec in config.sandboxes}
    if name not in present:
        raise UsageError(f"no sandbox {name!r}{similar(name, present)}; there are: {', '.join(present)}")
    if len(present) == 1:
        raise UsageError(f"{name!r} is the only sandbox; `signalmesh down` ends the swarm")
    homes = tuple(spec for spec in config.sandboxes if spec.name in live and spec.name != name)
    if not homes:
        raise MeshError(
            f"{file}: no other sandbox has a live host, and its agents must go somewhere; `signalmesh status` lists "
            "the sandboxes"
        )
    homed = {item.spec.name: AgentTable() for item in config.agents if item.spec.sandbox == name}
    others = [item.spec.sandbox for item in config.agents if item.spec.name not in homed]
    sandbox_of = placement(file, homed, homes, others)
    moved = {agent: Move(sandbox=sandbox, after=after) for agent, sandbox in sandbox_of.items()}
    configured = any(spec.name == name for spec in swarm.base.sandboxes)
    return changes.after(
        f"remove sandbox {name}",
        request,
        moved={**changes.moved, **moved},
        sandboxes=_without(changes.sandboxes, name),
        removed_sandboxes={**changes.removed_sandboxes, name: RemovedSandbox(after=after, configured=configured)},
    )


def check_changed(config: ResolvedSwarm, changes: Changes) -> None:
    """Refuse changes after which there would be more agents than allowed, or more changes than a message holds.

    Raises:
        UsageError: there would be.
    """
    check_count(config)
    size = len(orjson.dumps(encode_changes(changes)))
    if size > MAX_CHANGES_BYTES:
        raise ConfigError(
            config.file,
            "",
            f"the changes made at run time would have {size} bytes, at most {MAX_CHANGES_BYTES} are possible: write "
            "them into swarm.toml (`signalmesh config save`), and start the swarm again",
        )


def _without(items: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in items.items() if key != name}
