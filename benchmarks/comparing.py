"""The swarm beside other software on the same pipeline, taking turns: latency, full speed, start, a SIGKILL of a voter.

`make bench-peers` makes an environment for each peer first; benchmarks/peers holds their programs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import psutil
from nats.aio.msg import Msg

from benchmarks.peers import environments, work
from benchmarks.peers.catalogue import DEEP, PEERS, Peer
from benchmarks.peers.processes import Pipeline, pipeline
from benchmarks.pipeline import HISTORY, SIZES, SPEED, SWARM, WAIT_S, run_swarm
from benchmarks.report import Result, percentiles
from benchmarks.swarm import DECISIONS, TICKS, Rounds, swarm
from coordinator.control.kill import kill as kill_agent

SKIPPED = 151
"""Paced rounds before the measured ones."""
UNPACED = 500
"""The same at full speed."""
VICTIM = "strategy-momentum"
BACK_S = 10.0
"""How long a killed voter has to vote again."""
NOTHING_S = 2.0
"""The same where nothing starts it again; that no vote arrives is observed all the same."""
SWARM_ROUNDS = 5000
SWARM_LACKS = (
    "It is no general framework: it moves trading signals. Each message is stored, numbered, fenced and checked, which "
    "takes time that the peers do not spend."
)
BUSY_S = 1.0
KEPT, LOST, NONE = "kept", "lost", "-"


class Observed(Rounds):
    """Rounds as an outside subscriber receives them, with the first decision and the votes of one voter."""

    def __init__(self, first: int, last: int) -> None:
        super().__init__(first, last)
        self.first_decision_at: float | None = None
        self.decided = 0
        self.highest = 0
        self.votes: dict[int, tuple[float, int]] = {}
        """Process of the voter -> when its first vote arrived, and how many ticks it had seen by its own count."""
        self.voted_again = asyncio.Event()

    async def on_decision(self, msg: Msg) -> None:
        if self.first_decision_at is None:
            self.first_decision_at = time.monotonic()
        self.decided += 1
        self.highest = max(self.highest, orjson.loads(msg.data)["round"])
        await super().on_decision(msg)

    async def on_vote(self, msg: Msg) -> None:
        vote = orjson.loads(msg.data)
        if vote["pid"] not in self.votes:
            self.votes[vote["pid"]] = (time.monotonic(), vote["seen"])
            if len(self.votes) > 1:
                self.voted_again.set()


@dataclass(slots=True, kw_only=True)
class Paced:
    """One paced run. `back_ms`: from the SIGKILL of a voter to its next vote; None if it did not vote again."""

    start_s: float
    latencies_ms: list[float]
    back_ms: float | None
    lost: int | None
    state: str


@dataclass(slots=True, kw_only=True)
class Turns:
    """What one system did in each turn that it ended; `rates` by the number of undecided rounds, then by turn."""

    versions: dict[str, str]
    lacks: str
    paced: dict[int, Paced] = field(default_factory=dict)
    rates: dict[int, dict[int, float]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


async def swarm_paced(measured: int, sizes: dict[str, int]) -> Paced:
    """A paced run of the swarm; `sizes` learn how large its payloads are."""
    first = HISTORY + SKIPPED
    rounds = Observed(first, first + measured - 1)

    async def on_signal(msg: Msg) -> None:
        rounds.sizes["signal"] = len(msg.data)

    async with swarm(SPEED) as running:
        await running.client.subscribe(TICKS, cb=rounds.on_tick)
        signals = await running.client.subscribe("swarm.signal.*.*", cb=on_signal)
        await running.client.subscribe(DECISIONS, cb=rounds.on_decision)
        async with asyncio.timeout(WAIT_S):
            await rounds.started.wait()
            await signals.unsubscribe()
            await rounds.done.wait()
        sizes.update(rounds.sizes)
        bus = await running.connect()
        try:
            report = await kill_agent(bus, VICTIM, signal.SIGKILL, BACK_S)
        finally:
            await bus.close()
        assert rounds.first_decision_at is not None
        return Paced(
            start_s=rounds.first_decision_at - running.started_at,
            latencies_ms=rounds.latencies_ms(),
            back_ms=report.first_output_ms,
            lost=report.outputs_lost,
            state=KEPT if report.outcome == "recovered" and report.ok else report.outcome,
        )


async def swarm_rate(measured: int) -> float:
    rounds = Rounds(UNPACED + 1, UNPACED + measured)
    await run_swarm(0, rounds, with_ticks=False)
    return rounds.rate()


async def peer_paced(peer: Peer, python: Path, measured: int, sizes: dict[str, int]) -> Paced:
    """A paced run of `peer` by the interpreter `python`, and the SIGKILL of a voter at its end."""
    last = SKIPPED + measured - 1
    given = task(peer, SPEED, SKIPPED, last, sizes, rounds=last + round(SPEED * (BACK_S + 5)))
    async with pipeline(peer, python, given) as running:
        return await (_nats_paced(running, given) if peer.over_nats else _stamped_paced(running))


async def _nats_paced(running: Pipeline, given: work.Work) -> Paced:
    rounds = Observed(given.first, given.last)
    assert running.client is not None
    await running.client.subscribe(work.TICKS, cb=rounds.on_tick)
    await running.client.subscribe(work.DECISIONS, cb=rounds.on_decision)
    await running.client.subscribe(f"{work.VOTES}.{work.VOTERS[0]}", cb=rounds.on_vote)
    await running.client.flush()
    running.go()
    async with asyncio.timeout(WAIT_S):
        await rounds.done.wait()
    killed_at = _kill(running)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(NOTHING_S):
            await rounds.voted_again.wait()
    assert rounds.first_decision_at is not None
    return Paced(
        start_s=rounds.first_decision_at - running.started_at,
        latencies_ms=rounds.latencies_ms(),
        **after_kill(rounds.votes, killed_at, rounds.highest - rounds.decided),
    )


async def _stamped_paced(running: Pipeline) -> Paced:
    running.go()
    async with asyncio.timeout(WAIT_S):
        found = await running.measured()
    killed_at = _kill(running)
    await asyncio.sleep(BACK_S / 2)
    after = await running.processes()
    votes = {int(pid): (at, seen) for pid, (at, seen) in after["processes"].items()}
    return Paced(
        start_s=found["first_decided_at"] - running.started_at,
        latencies_ms=[(decided - sent) * 1000 for sent, decided in found["rounds"].values()],
        **after_kill(votes, killed_at, after["undecided"]),
    )


def _kill(running: Pipeline) -> float:
    at = time.monotonic()
    os.kill(running.voter_pid, signal.SIGKILL)
    return at


def after_kill(votes: dict[int, tuple[float, int]], killed_at: float, undecided: int) -> dict[str, Any]:
    """`back_ms`, `lost` and `state` of Paced; `votes` has the first vote of each process of the voter."""
    later = [(at, seen) for at, seen in votes.values() if at > killed_at]
    if not later:
        return {"back_ms": None, "lost": None, "state": NONE}
    at, seen = min(later)
    return {"back_ms": (at - killed_at) * 1000, "lost": undecided, "state": LOST if seen == 1 else KEPT}


async def peer_rate(peer: Peer, python: Path, measured: int, window: int, sizes: dict[str, int]) -> float:
    """Decisions a second with at most `window` undecided rounds."""
    last = UNPACED + measured
    given = task(peer, 0, UNPACED + 1, last, sizes, rounds=last, open_rounds=window)
    async with pipeline(peer, python, given) as running:
        if not peer.over_nats:
            running.go()
            async with asyncio.timeout(WAIT_S):
                decided: list[float] = [at for _, at in (await running.measured())["rounds"].values()]
            return (len(decided) - 1) / (max(decided) - min(decided))
        rounds = Rounds(given.first, given.last)
        assert running.client is not None
        await running.client.subscribe(work.DECISIONS, cb=rounds.on_decision)
        await running.client.flush()
        running.go()
        async with asyncio.timeout(WAIT_S):
            await rounds.done.wait()
        return rounds.rate()


def task(
    peer: Peer,
    speed: float,
    first: int,
    last: int,
    sizes: dict[str, int],
    *,
    rounds: int,
    open_rounds: int = work.OPEN_ROUNDS,
) -> work.Work:
    return work.Work(
        address="",
        way=peer.way,
        speed=speed,
        first=first,
        last=last,
        rounds=rounds,
        sizes=sizes,
        open_rounds=open_rounds,
    )


async def peers(*, quick: bool) -> Result:
    """Each turn begins with another system; the swarm's first run tells the peers how large payloads are."""
    measured, turns, share = (100, 1, 10) if quick else (300, 5, 1)
    sizes = dict(SIZES)
    absent = {peer.name: why for peer in PEERS if (why := environments.why_not(peer.environment))}
    present = {peer.name: peer for peer in PEERS if peer.name not in absent}
    found = {SWARM: Turns(versions={}, lacks=SWARM_LACKS)}
    for name, peer in present.items():
        found[name] = Turns(versions=environments.versions_in(peer.environment, peer.distributions), lacks=peer.lacks)
    await swarm_paced(10, sizes)
    names, busy = list(found), list[float]()
    for turn in range(turns):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            busy.append(await asyncio.to_thread(psutil.cpu_percent, BUSY_S))
            await _one_turn(turn, found[name], present.get(name), measured, share, sizes)
            print(f"turn {turn + 1} of {turns}: {name}", flush=True)
    rows = rows_of(found)
    rows += [{"system": name, "failed": why} for name, why in absent.items()]
    return Result(
        name="peers",
        title="Beside other software",
        conditions=conditions(measured, turns, sizes),
        rows=rows,
        notes=[f"{name}, limits: {of.lacks}" for name, of in found.items() if name != SWARM]
        + [SWARM_LACKS]
        + [f"{name}: {why}." for name, why in absent.items()]
        + [other_load(busy)],
        raw={**{name: raw_of(of) for name, of in found.items()}, "busy_before_percent": busy},
    )


async def _one_turn(turn: int, of: Turns, peer: Peer | None, measured: int, share: int, sizes: dict[str, int]) -> None:
    """Both runs of one system. A run that fails is a result of the peer's: it is counted, and its error kept."""
    paced: Callable[[], Any] = partial(swarm_paced, measured, sizes)
    rates: dict[int, Callable[[], Any]] = {work.OPEN_ROUNDS: partial(swarm_rate, SWARM_ROUNDS // share)}
    if peer is not None:
        python = environments.python_of(peer.environment)
        paced = partial(peer_paced, peer, python, measured, sizes)
        rates = {
            window: partial(peer_rate, peer, python, peer.rounds // share, window, sizes) for window in peer.windows
        }
    try:
        of.paced[turn] = await paced()
        for window, rate in rates.items():
            of.rates.setdefault(window, {})[turn] = await rate()
    except (TimeoutError, RuntimeError, OSError, ExceptionGroup) as error:
        if peer is None:
            raise
        of.failed.append(f"{type(error).__name__}: {error}"[:300])


def other_load(busy: list[float]) -> str:
    """What else the machine did; `busy` are percents of its processor time while nothing of the benchmark ran."""
    return (
        "Before each system's turn, with nothing of the benchmark running, other programs took "
        f"{statistics.median(busy):.0f} % of the processor time (median; at most {max(busy):.0f} %)."
    )


def conditions(measured: int, turns: int, sizes: dict[str, int]) -> str:
    return (
        f"{turns} turns, each begun by another system. Each run has processes of its own, and a nats-server of its own "
        "where it uses one. Source, three voters and coordinator are five processes everywhere; payloads have "
        f"{sizes['tick']} (tick), {sizes['signal']} (vote) and {sizes['decision']} bytes (decision). Tick to decision: "
        f"{measured} rounds a turn at {SPEED:.0f} ticks/s. Decisions/s: unpaced, at most {work.OPEN_ROUNDS} undecided "
        f"rounds, and {DEEP:,} in the deep pipeline. Start: from the start of the first process to the first decision. "
        f"SIGKILL: of one voter at {SPEED:.0f} ticks/s, to its next vote; where none came, {NOTHING_S:.0f} s were "
        f"waited ({BACK_S / 2:.0f} s for autogen-core). On NATS an outside core subscriber takes all times. "
        "autogen-core and Ray have no bus: there a time is from just before the source sends the tick to the "
        "coordinator's decision, by CLOCK_MONOTONIC in these two processes. Ratios are medians of the turns' ratios to "
        "signalmesh."
    )


def rows_of(found: dict[str, Turns]) -> list[dict[str, Any]]:
    """A row for each system, with its ratios to the swarm's in the same turn."""
    ours = found[SWARM]
    return [{"system": name, **_row(of, ours)} for name, of in found.items()]


def _row(of: Turns, ours: Turns) -> dict[str, Any]:
    runs = list(of.paced.values())
    ms = percentiles(value for run in runs for value in run.latencies_ms)
    rates, deep = of.rates.get(work.OPEN_ROUNDS, {}), of.rates.get(DEEP, {})
    back = percentiles(run.back_ms for run in runs if run.back_ms is not None)
    lost = [run.lost for run in runs if run.lost is not None]
    return {
        "p50, ms": ms.get("p50"),
        "p99, ms": ms.get("p99"),
        "p50 / ours": ratio(_p50s(of), _p50s(ours)),
        "decisions/s": _median(rates),
        "decisions/s / ours": ratio(rates, ours.rates.get(work.OPEN_ROUNDS, {})),
        "deep pipeline, decisions/s": _median(deep),
        "start, s": _median(_starts(of)),
        "start / ours": ratio(_starts(of), _starts(ours)),
        "SIGKILL to vote p50, ms": back.get("p50"),
        "SIGKILL to vote p99, ms": back.get("p99"),
        "voted again": f"{back['n']:.0f} of {len(runs)}",
        "rounds lost": sum(lost) if lost else None,
        "state": ", ".join(sorted({run.state for run in runs})) or NONE,
        "runs failed": len(of.failed),
    }


def _p50s(of: Turns) -> dict[int, float]:
    return {turn: percentiles(run.latencies_ms)["p50"] for turn, run in of.paced.items()}


def _starts(of: Turns) -> dict[int, float]:
    return {turn: run.start_s for turn, run in of.paced.items()}


def _median(values: dict[int, float]) -> float | None:
    return statistics.median(values.values()) if values else None


def ratio(values: dict[int, float], ours: dict[int, float]) -> float | None:
    """Median of the ratios of those turns that both ended."""
    return _median({turn: values[turn] / ours[turn] for turn in values if turn in ours})


def raw_of(of: Turns) -> dict[str, Any]:
    runs = list(of.paced.values())
    return {
        "versions": of.versions,
        "lacks": of.lacks,
        "failed": of.failed,
        "start_s": list(_starts(of).values()),
        "p50_ms_of_turns": list(_p50s(of).values()),
        "p99_ms_of_turns": [percentiles(run.latencies_ms)["p99"] for run in runs],
        "decisions_per_s": {str(window): list(rates.values()) for window, rates in of.rates.items()},
        "back_ms": [run.back_ms for run in runs],
        "lost": [run.lost for run in runs],
        "state": [run.state for run in runs],
    }
