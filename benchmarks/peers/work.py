"""What the programs of all peers share: the work, payloads of one size, the pace of the source, and their reports.

Every peer's interpreter imports this: the standard library only.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

VOTERS = ("voter-1", "voter-2", "voter-3")
OPEN_ROUNDS = 256
"""Most undecided rounds, as in the swarm's source."""
TICKS, VOTES, DECISIONS = "bare.market.x.source", "bare.signal.x", "bare.decision.x.coordinator"
STREAM = "bare"
SAID = "peer: "
BURST = 32
"""Ticks that an unpaced source publishes before other tasks of its loop run."""
P_UP, CHOICE, PRICE = 0.5, "buy", 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What each process of a peer is given. `speed` is in ticks a second, 0 is unpaced; `sizes` are bytes.

    Rounds `first` to `last` are measured. The source publishes `rounds` ticks.
    """

    address: str
    way: str
    speed: float
    first: int
    last: int
    rounds: int
    sizes: dict[str, int]
    open_rounds: int = OPEN_ROUNDS
    directory: str = ""

    def to_argument(self) -> str:
        return json.dumps(asdict(self))


def arguments() -> tuple[str, Work]:
    """The role and the work of this process, from its command line."""
    role, text = sys.argv[1:]
    return role, Work(**json.loads(text))


def padding(fields: dict[str, Any], size: int) -> str:
    """What a field `pad` holds so that the JSON of `fields` with it has about `size` bytes."""
    bare = len(json.dumps({**fields, "pad": ""}, separators=(",", ":")))
    return "x" * max(0, size - bare)


def tick_padding(work: Work, **more: float) -> str:
    return padding({"sequence": work.rounds, "price": PRICE, **more}, work.sizes["tick"])


def vote_padding(work: Work, **more: float) -> str:
    return padding(
        {"round": work.rounds, "p_up": P_UP, "pid": 10000, "seen": work.rounds, **more}, work.sizes["signal"]
    )


def decision_padding(work: Work) -> str:
    return padding({"round": work.rounds, "final_decision": CHOICE}, work.sizes["decision"])


def say(line: str) -> None:
    """A line for the process that started this one; libraries print to standard output as well."""
    print(f"{SAID}{line}", flush=True)


class Source:
    """The pace of a source: `decided` is called with each decision's round, `run` calls `publish` with each tick's."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._decided = 0
        self._wake = asyncio.Event()

    def decided(self, number: int) -> None:
        self._decided = max(self._decided, number)
        self._wake.set()

    async def run(self, publish: Callable[[int], Awaitable[None]]) -> None:
        """All ticks, once a line arrives on standard input."""
        await asyncio.to_thread(sys.stdin.readline)
        loop = asyncio.get_running_loop()
        due = loop.time()
        for number in range(1, self._work.rounds + 1):
            while number - self._decided > self._work.open_rounds:
                self._wake.clear()
                await self._wake.wait()
            if self._work.speed:
                await asyncio.sleep(due - loop.time())
                due = max(due + 1 / self._work.speed, loop.time())
            elif number % BURST == 0:
                await asyncio.sleep(0)
            await publish(number)
        await asyncio.Event().wait()


class Ballots:
    """Counts votes: `add` returns whether the round has all of them."""

    def __init__(self) -> None:
        self._votes: dict[int, int] = {}

    def add(self, number: int) -> bool:
        count = self._votes.get(number, 0) + 1
        if count < len(VOTERS):
            self._votes[number] = count
            return False
        self._votes.pop(number, None)
        return True


class Stamps:
    """When rounds were sent and decided, where there is no bus that an outside subscriber could listen to.

    Times are of CLOCK_MONOTONIC, which all processes of a machine share, in seconds.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._first_decided_at: float | None = None
        self._rounds: dict[int, tuple[float, float]] = {}
        self._decided: set[int] = set()
        self._processes: dict[int, tuple[float, int]] = {}

    def vote(self, pid: int, seen: int) -> None:
        """A vote for VOTERS[0] of process `pid`, the `seen`th of its life."""
        if pid not in self._processes:
            self._processes[pid] = (time.monotonic(), seen)

    def decide(self, number: int, sent_at: float) -> None:
        at = time.monotonic()
        if self._first_decided_at is None:
            self._first_decided_at = at
        self._decided.add(number)
        if self._work.first <= number <= self._work.last:
            self._rounds[number] = (sent_at, at)

    @property
    def complete(self) -> bool:
        return len(self._rounds) == self._work.last - self._work.first + 1

    def measured(self) -> dict[str, Any]:
        return {"first_decided_at": self._first_decided_at, "rounds": self._rounds}

    def processes(self) -> dict[str, Any]:
        """The processes that VOTERS[0] has had, each with its first vote, and the rounds that have no decision."""
        undecided = max(self._decided, default=0) - len(self._decided)
        return {"processes": self._processes, "undecided": undecided}
