"""Which faults are injected in which order: drawn from a seed in advance, so that a run can be repeated."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

__all__ = [
    "EVERY_AGENT",
    "KINDS",
    "POLL_INTERVAL_S",
    "FaultRun",
    "FaultTargets",
    "PlannedFault",
    "T",
    "eventually",
    "kinds_of",
    "plan",
]

KINDS = {
    "kill-agent": "SIGKILL to an agent",
    "kill-agents": "SIGKILL to several agents at the same moment",
    "stop-agent": "SIGSTOP to an agent until its successor is live, then SIGCONT",
    "pause-agent": "SIGSTOP to an agent, and SIGCONT before it is declared dead",
    "kill-host": "SIGKILL to a sandbox host; its agents end with it",
    "freeze-sandbox": "SIGSTOP to a host and its agents until their successors are live, then SIGCONT",
    "kill-watchdog": "SIGKILL to the leading watchdog",
    "stop-watchdog": "SIGSTOP to the leading watchdog, then SIGCONT",
    "kill-standby": "SIGKILL to the standby watchdog",
    "kill-mirror": "SIGKILL to the mirror",
    "stop-mirror": "SIGSTOP to the mirror, then SIGCONT",
    "kill-nats": "SIGKILL to the embedded nats-server",
    "stop-nats": "SIGSTOP to the embedded nats-server, then SIGCONT",
    "kill-proxy": "SIGKILL to the proxy between agents and bus",
    "reset": "reset the agents' connections",
    "delay": "delay the agents' connections",
    "blackhole": "drop all data on the agents' connections, silently",
}
NEEDS = {
    "freeze-sandbox": "two sandboxes",
    "kill-standby": "standby",
    "kill-mirror": "mirror",
    "stop-mirror": "mirror",
    "kill-nats": "nats-server",
    "stop-nats": "nats-server",
    "kill-proxy": "proxy",
    "reset": "proxy",
    "delay": "proxy",
    "blackhole": "proxy",
}
"""What a swarm must have for a fault of this kind."""
DURATIONS_S = {
    "pause-agent": (0.05, 0.4),
    "freeze-sandbox": (1.0, 2.0),
    "stop-watchdog": (0.3, 2.0),
    "stop-mirror": (0.3, 2.0),
    "stop-nats": (0.2, 2.5),
    "delay": (0.5, 2.0),
}
"""Shortest and longest duration of a fault of this kind, unless the swarm's recovery ends it."""
REST_S = (0.1, 1.0)
OVERLAP = 0.15
"""Share of faults during the recovery of which the next one is injected."""
EVERY_AGENT = "all agents"
"""Target of a fault that hits the connections of all agents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFault:
    """One fault of the plan, `rest_s` seconds after the one before; `overlaps`: the next one does not wait for it."""

    number: int
    kind: str
    targets: tuple[str, ...]
    fault_s: float
    rest_s: float
    overlaps: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultTargets:
    """What faults can hit in a swarm. `has`: standby, mirror, nats-server, proxy."""

    agents: tuple[str, ...]
    sandboxes: tuple[str, ...]
    has: frozenset[str]


def kinds_of(candidates: FaultTargets) -> list[str]:
    """The kinds of faults that such a swarm can have."""
    has = candidates.has | ({"two sandboxes"} if len(candidates.sandboxes) > 1 else set())
    return [kind for kind in KINDS if NEEDS.get(kind, "") in {"", *has}]


def plan(seed: int, candidates: FaultTargets) -> Iterator[PlannedFault]:
    """Endless faults: the same seed and targets give the same ones. Every kind comes once before any is repeated."""
    chance = random.Random(seed)  # noqa: S311 - it must be repeatable
    kinds = kinds_of(candidates)
    number = 0
    while True:
        for kind in chance.sample(kinds, len(kinds)):
            number += 1
            yield PlannedFault(
                number=number,
                kind=kind,
                targets=_targets(kind, candidates, chance),
                fault_s=round(chance.uniform(*DURATIONS_S.get(kind, (0.0, 0.0))), 3),
                rest_s=round(chance.uniform(*REST_S), 3),
                overlaps=chance.random() < OVERLAP,
            )


def _targets(kind: str, candidates: FaultTargets, chance: random.Random) -> tuple[str, ...]:
    agents = sorted(candidates.agents)
    if kind == "kill-agents":
        return tuple(sorted(chance.sample(agents, chance.randint(min(2, len(agents)), len(agents)))))
    if kind in ("reset", "delay", "blackhole"):
        all_agents, one = chance.random() < 0.5, chance.choice(agents)
        return (EVERY_AGENT,) if all_agents else (one,)
    if kind.endswith("-agent"):
        return (chance.choice(agents),)
    if kind in ("kill-host", "freeze-sandbox"):
        return (chance.choice(sorted(candidates.sandboxes)),)
    return (kind.partition("-")[2].replace("nats", "nats-server"),)


POLL_INTERVAL_S = 0.01
T = TypeVar("T")


@dataclass(slots=True)
class FaultRun:
    """A fault under way; times are of time.monotonic()."""

    fault: PlannedFault
    started_at: float = 0.0
    detected: float | None = None
    recovered: float | None = None
    injected: asyncio.Event = field(default_factory=asyncio.Event)

    def begin(self) -> None:
        """Record the start: call this just before the first signal or request."""
        self.started_at = time.monotonic()

    def noticed(self, *times: float | None) -> None:
        """Record the earliest observed time of detection."""
        known = [at for at in (self.detected, *times) if at is not None]
        self.detected = min(known, default=None)


async def eventually(found: Callable[[], T | None], timeout_s: float) -> T:
    """Poll for a result that no event signals.

    Raises:
        TimeoutError: it did not come.
    """
    async with asyncio.timeout(timeout_s):
        while not (result := found()):  # noqa: ASYNC110 - it has no event of its own
            await asyncio.sleep(POLL_INTERVAL_S)
        return result
