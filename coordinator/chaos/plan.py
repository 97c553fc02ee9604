"""Which faults happen in which order: drawn from a seed, before anything has happened, so that it can be repeated."""

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
    "stop-agent": "SIGSTOP to an agent until another one has taken over, then SIGCONT",
    "pause-agent": "SIGSTOP to an agent and SIGCONT before it counts as dead",
    "kill-host": "SIGKILL to a sandbox host; its agents end with it",
    "freeze-sandbox": "SIGSTOP to a host and its agents until these run elsewhere, then SIGCONT: zombies",
    "kill-watchdog": "SIGKILL to the leading watchdog",
    "stop-watchdog": "SIGSTOP to the leading watchdog, then SIGCONT",
    "kill-standby": "SIGKILL to the watchdog that stands by",
    "kill-mirror": "SIGKILL to the mirror",
    "stop-mirror": "SIGSTOP to the mirror, then SIGCONT",
    "kill-nats": "SIGKILL to the embedded nats-server",
    "stop-nats": "SIGSTOP to the embedded nats-server, then SIGCONT",
    "kill-proxy": "SIGKILL to the proxy between agents and bus",
    "reset": "agents' connections reset",
    "delay": "agents' connections slow",
    "blackhole": "what passes on agents' connections is lost, without a word",
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
HOLDS_S = {
    "pause-agent": (0.05, 0.4),
    "freeze-sandbox": (1.0, 2.0),
    "stop-watchdog": (0.3, 2.0),
    "stop-mirror": (0.3, 2.0),
    "stop-nats": (0.2, 2.5),
    "delay": (0.5, 2.0),
}
"""Shortest and longest time that a fault of this kind lasts, where it is not ended by the swarm's own recovery."""
REST_S = (0.1, 1.0)
OVERLAP = 0.15
"""Share of faults during whose recovery the next one comes already."""
EVERY_AGENT = "everybody"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFault:
    """One fault of the plan. `rest_s` of quiet come before it; `overlaps`: the next one does not wait for it."""

    number: int
    kind: str
    targets: tuple[str, ...]
    hold_s: float
    rest_s: float
    overlaps: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultTargets:
    """What a swarm has to be hit. `has`: standby, mirror, nats-server, proxy."""

    agents: tuple[str, ...]
    sandboxes: tuple[str, ...]
    has: frozenset[str]


def kinds_of(candidates: FaultTargets) -> list[str]:
    """The kinds of faults that such a swarm can have."""
    has = candidates.has | ({"two sandboxes"} if len(candidates.sandboxes) > 1 else set())
    return [kind for kind in KINDS if NEEDS.get(kind, "") in {"", *has}]


def plan(seed: int, candidates: FaultTargets) -> Iterator[PlannedFault]:
    """Faults without end: the same seed and places give the same ones. Every kind comes once before any comes again."""
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
                hold_s=round(chance.uniform(*HOLDS_S.get(kind, (0.0, 0.0))), 3),
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
    """A fault as it happens; times are of time.monotonic()."""

    fault: PlannedFault
    started_at: float = 0.0
    detected: float | None = None
    recovered: float | None = None
    injected: asyncio.Event = field(default_factory=asyncio.Event)

    def begin(self) -> None:
        """Now it is done: call this just before the first signal or request."""
        self.started_at = time.monotonic()

    def noticed(self, *times: float | None) -> None:
        """Take the earliest time that was observed at all."""
        known = [at for at in (self.detected, *times) if at is not None]
        self.detected = min(known, default=None)


async def eventually(found: Callable[[], T | None], timeout_s: float) -> T:
    """Look again and again, for what nobody tells us.

    Raises:
        TimeoutError: it did not come.
    """
    async with asyncio.timeout(timeout_s):
        while not (result := found()):  # noqa: ASYNC110 - it has no event of its own
            await asyncio.sleep(POLL_INTERVAL_S)
        return result
