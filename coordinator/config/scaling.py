"""`--agents N` and `scale KIND N`: a swarm of so many agents, by further strategies beside the configured ones.

They are of the shipped kinds, momentum and mean reversion in turn, each with periods of its own, so that no two look at
the market in the same way: an ensemble over parameters. All of a kind together weigh as much as one agent of weight 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bus.errors import UsageError
from coordinator.config.settings import AgentSettings, SwarmConfig, WatchdogSettings
from coordinator.config.tables import AgentTable, agent_settings, placement

__all__ = ["FAMILIES", "MOST_AGENTS", "SUSPECT_HEARTBEATS", "check_scale", "strategy_table", "with_agents"]

MOST_AGENTS = 1000
"""A larger number is refused as a mistake: at 100 ms it would mean more than 10,000 heartbeats a second."""
FEEDER = "market-data"
HEARTBEATS_PER_S = 500
"""Heartbeats a second of all agents together: more agents send them less often. Each costs its agent, the server and
the watchdog about a millisecond of a processor in all (benchmarks, `idle`), so that this is half of one."""
SUSPECT_HEARTBEATS, DEAD_HEARTBEATS, STARVED_HEARTBEATS = 3, 6, 50
"""Silence in heartbeats, in the proportions of the defaults."""
NICE = 10
"""Of the strategies added: on a busy machine the hosts, the source and the deciders come first, since all
other agents wait for them."""
OPEN_VOTES = 1280
"""Votes on undecided rounds that a source may have outstanding: 256 rounds of the default swarm's five agents. More
agents mean fewer open rounds, else the coordinator's state would not fit a snapshot."""


def _momentum(number: int) -> dict[str, Any]:
    return {"rsi_period": 7 + number % 22, "trend_period": 20 + number, "window": 250 + number}


def _mean_reversion(number: int) -> dict[str, Any]:
    return {"band_period": 10 + number, "window": 250 + number}


FAMILIES: tuple[tuple[str, Callable[[int], dict[str, Any]]], ...] = (
    ("momentum", _momentum),
    ("mean-reversion", _mean_reversion),
)


def strategy_table(kind: str, number: int, size: int) -> dict[str, Any]:
    """The table of the `number`-th of `size` strategies of a kind in FAMILIES; all of them weigh as much as one."""
    return {"kind": kind, "weight": round(1 / size, 6), "nice": NICE, "options": dict(FAMILIES)[kind](number)}


def check_scale(kind: str, count: int) -> None:
    """Refuse a number of generated strategies that is none.

    Raises:
        UsageError: it is negative or too large.
    """
    if not 0 <= count <= MOST_AGENTS:
        raise UsageError(
            f"scale {kind} {count}: expected 0 to {MOST_AGENTS}, the number of generated agents of this kind; 0 "
            "removes them all"
        )


def with_agents(config: SwarmConfig, count: int) -> SwarmConfig:
    """`config` with strategies added until there are `count` agents.

    They are placed where the fewest agents are. Beyond 50 agents heartbeats become rarer, and the watchdog's timeouts
    for silence grow with them (a process that ends is reported at once, however many there are). A source that has
    no `max_open_rounds` of its own gets one that keeps the number of votes on open rounds where it is with five agents.

    Raises:
        UsageError: fewer than are configured, too many, or one of the configured has the name of one to be added.
    """
    present = len(config.agents)
    if not present <= count <= MOST_AGENTS:
        raise UsageError(
            f"--agents {count}: expected {present} (so many are configured in {config.file}) to {MOST_AGENTS}"
        )
    added = _tables(config, count - present)
    own = {
        item.spec.name: AgentTable(kind="external", external=item.external, sandbox=item.spec.sandbox or None)
        for item in config.agents
    }
    sandbox_of = placement(config.file, own | added, config.sandboxes)
    further = [
        agent_settings(config.file, name, table, sandbox_of[name], config.swarm, "") for name, table in added.items()
    ]
    agents = (*(_bounded(item, count) for item in config.agents), *further)
    return replace(
        config, max_agents=max(config.max_agents, count), agents=agents, watchdog=_calmed(config.watchdog, count)
    )


def _tables(config: SwarmConfig, count: int) -> dict[str, AgentTable]:
    taken = {name.lower() for name in (*(a.spec.name for a in config.agents), *(s.name for s in config.sandboxes))}
    members = [(count + len(FAMILIES) - 1 - at) // len(FAMILIES) for at in range(len(FAMILIES))]
    tables: dict[str, AgentTable] = {}
    for at in range(count):
        (kind, _), size = FAMILIES[at % len(FAMILIES)], members[at % len(FAMILIES)]
        number = at // len(FAMILIES) + 1
        name = f"{kind}-{number}"
        if name in taken:
            raise UsageError(f"--agents: {config.file}: the name {name!r} is needed for an added agent; rename yours")
        tables[name] = AgentTable(**strategy_table(kind, number, size))
    return tables


def _calmed(watchdog: WatchdogSettings, count: int) -> WatchdogSettings:
    """Heartbeats rare enough that all of them together stay within HEARTBEATS_PER_S, and timeouts in proportion."""
    heartbeat_ms = count * 1000 // HEARTBEATS_PER_S
    if heartbeat_ms <= watchdog.heartbeat_ms:
        return watchdog
    dead_ms = max(watchdog.dead_ms, DEAD_HEARTBEATS * heartbeat_ms)
    starved_ms = max(watchdog.starved_ms, STARVED_HEARTBEATS * heartbeat_ms)
    return replace(
        watchdog,
        heartbeat_ms=heartbeat_ms,
        suspect_ms=max(watchdog.suspect_ms, SUSPECT_HEARTBEATS * heartbeat_ms),
        dead_ms=dead_ms,
        starved_ms=starved_ms,
    )


def _bounded(item: AgentSettings, count: int) -> AgentSettings:
    if item.spec.kind != FEEDER or "max_open_rounds" in item.spec.options:
        return item
    options = {**item.spec.options, "max_open_rounds": max(1, min(256, OPEN_VOTES // count))}
    return replace(item, spec=replace(item.spec, options=options))
