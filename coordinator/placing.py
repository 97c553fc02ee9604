"""Where an agent is started, and how many are started there at once. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from coordinator.supervision import AgentState, HostState

__all__ = ["place", "starting_in"]


def place(agent: AgentState, agents: Iterable[AgentState], hosts: Collection[HostState]) -> str | None:
    """Where it was, else where it belongs, else anywhere: on the live host with the fewest agents; None: nowhere."""
    alive = {host.name: host for host in hosts if host.alive}
    if agent.sandbox in alive:
        return agent.sandbox
    names = [name for name, host in alive.items() if host.group == agent.preferred] or [*alive]
    load = dict.fromkeys(names, 0)
    for other in agents:
        if other.sandbox in load and other is not agent:
            load[other.sandbox] += 1
    return min(names, key=lambda name: (load[name], names.index(name)), default=None)


def starting_in(now: float, sandbox: str, agents: Iterable[AgentState], grace_s: float) -> int:
    """How many were ordered to start there and have not beaten; not those that should have long ago."""
    there = [other for other in agents if other.sandbox == sandbox]
    young = [other for other in there if other.phase == "starting" and not other.beaten]
    late = sum(now - other.started_at >= grace_s for other in young)
    return sum(other.phase == "restarting" for other in there) + len(young) - late
