"""Tick to decision at 100 ticks/s, and decisions a second at full speed: the swarm beside bare nats-py, interleaved."""

from __future__ import annotations

import asyncio
import statistics
import sys
from pathlib import Path
from typing import Any

from nats.aio.msg import Msg

from benchmarks.peers import work
from benchmarks.peers.catalogue import PEERS
from benchmarks.peers.processes import pipeline
from benchmarks.report import Result, percentiles
from benchmarks.swarm import DECISIONS, TICKS, Rounds, swarm

SPEED = 100.0
HISTORY = 250
"""Candles of the recording that the swarm publishes unpaced."""
WAYS = {"core": "nats-py, core", "js": "nats-py, JetStream"}
SWARM = "signalmesh"
WAIT_S = 120.0
LATENCY_RATIO, THROUGHPUT_RATIO = 1.3, 0.25
"""Goals beside bare nats-py over JetStream."""
SIZES = {"tick": 180, "signal": 280, "decision": 330}
"""Payload bytes until the swarm's own are measured in this run."""
NO_WORK = (
    "The swarm computes indicators, scores headlines, validates, numbers, fences, stores, snapshots and deduplicates; "
    "the peers pass on payloads of the same sizes, keep no state and recover nothing."
)


async def run_swarm(
    speed: float, rounds: Rounds, *, with_ticks: bool = True, environment: dict[str, str] | None = None
) -> None:
    """Fill `rounds` from a fresh swarm; its `sizes` learn how large the payloads are."""
    async with swarm(speed, environment=environment) as running:
        signals = None

        async def on_signal(msg: Msg) -> None:
            rounds.sizes["signal"] = len(msg.data)

        if with_ticks:
            await running.client.subscribe(TICKS, cb=rounds.on_tick)
            signals = await running.client.subscribe("swarm.signal.*.*", cb=on_signal)
        await running.client.subscribe(DECISIONS, cb=rounds.on_decision)
        async with asyncio.timeout(WAIT_S):
            await rounds.started.wait()
            if signals is not None:
                await signals.unsubscribe()
            await rounds.done.wait()


async def run_bare(way: str, speed: float, rounds: Rounds, sizes: dict[str, int], *, with_ticks: bool = True) -> None:
    """Fill `rounds` from bare nats-py, run by this interpreter."""
    (peer,) = (peer for peer in PEERS if peer.name == WAYS[way])
    given = work.Work(
        address="", way=way, speed=speed, first=rounds.first, last=rounds.last, rounds=rounds.last, sizes=sizes
    )
    async with pipeline(peer, Path(sys.executable), given) as running:
        assert running.client is not None
        if with_ticks:
            await running.client.subscribe(work.TICKS, cb=rounds.on_tick)
        await running.client.subscribe(work.DECISIONS, cb=rounds.on_decision)
        await running.client.flush()
        running.go()
        async with asyncio.timeout(WAIT_S):
            await rounds.done.wait()


async def latency(*, quick: bool) -> Result:
    measured, turns = (200, 1) if quick else (500, 3)
    found: dict[str, list[float]] = {SWARM: [], **{name: [] for name in WAYS.values()}}
    medians: dict[str, list[float]] = {name: [] for name in found}
    sizes = dict(SIZES)

    def take(name: str, rounds: Rounds) -> None:
        values = rounds.latencies_ms()
        found[name] += values
        medians[name].append(percentiles(values)["p50"])

    for _ in range(turns):
        first = HISTORY + 151  # after the unpaced history and a second and a half of pacing
        rounds = Rounds(first, first + measured - 1)
        await run_swarm(SPEED, rounds)
        sizes.update(rounds.sizes)
        take(SWARM, rounds)
        for way, name in WAYS.items():
            rounds = Rounds(151, 150 + measured)
            await run_bare(way, SPEED, rounds, sizes)
            take(name, rounds)
    core = WAYS["core"]
    base = percentiles(found[core])["p50"]
    rows: list[dict[str, Any]] = []
    for name, values in found.items():
        values_ms = percentiles(values)
        relative = {"p50 / core": values_ms["p50"] / base, "p50 of each turn": _turns(medians[name])}
        rows.append({"ms": name, **values_ms, **relative})
    against_core, against_js = (
        statistics.median(a / b for a, b in zip(medians[SWARM], medians[name], strict=True)) for name in WAYS.values()
    )
    return Result(
        name="latency",
        title="Tick to decision at 100 ticks/s",
        conditions=f"From receiving a tick to receiving its decision, by an outside core subscriber; {turns} turns of "
        f"{measured} rounds each, swarm and peers taking turns, each with a nats-server of its own. Source, three "
        f"voters, coordinator: five processes on both sides; payloads {sizes} bytes on both.",
        rows=rows,
        goal=f"p50 within {LATENCY_RATIO}x of bare nats-py over JetStream",
        verdict=f"Median of the turns' ratios: {against_js:.2f}x, "
        f"{'met' if against_js <= LATENCY_RATIO else 'missed'}.",
        notes=[
            NO_WORK,
            (
                "The JetStream peer stores each message and its processes read what is stored (publish_async, ordered "
                "consumers); its outside subscriber receives a message when published, the swarm's when stored."
            ),
            f"Beside the core peer: {against_core:.2f}x (median of the turns' ratios).",
        ],
        raw={"ms": found, "p50_of_turns": medians, "ratio": against_js},
    )


def _turns(values: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


async def throughput(*, quick: bool) -> Result:
    measured, turns = (2000, 1) if quick else (5000, 2)
    rates: dict[str, list[float]] = {SWARM: [], **{name: [] for name in WAYS.values()}}
    for _ in range(turns):
        rounds = Rounds(501, 500 + measured)
        await run_swarm(0, rounds, with_ticks=False)
        rates[SWARM].append(rounds.rate())
        for way, name in WAYS.items():
            rounds = Rounds(501, 500 + measured)
            await run_bare(way, 0, rounds, SIZES, with_ticks=False)
            rates[name].append(rounds.rate())
    base = statistics.median(rates[WAYS["core"]])
    ratio = statistics.median(a / b for a, b in zip(rates[SWARM], rates[WAYS["js"]], strict=True))
    rows = [
        {
            "decisions/s": name,
            "median": statistics.median(values),
            "best": max(values),
            "of core": statistics.median(values) / base,
            "turns": ", ".join(f"{value:,.0f}" for value in values),
        }
        for name, values in rates.items()
    ]
    return Result(
        name="throughput",
        title="Full speed",
        conditions=f"Decisions a second over {measured:,} rounds after the first 500, --speed 0, at most 256 undecided "
        f"rounds in flight on both sides; {turns} turns, interleaved.",
        rows=rows,
        goal=f"at least {THROUGHPUT_RATIO}x bare nats-py over JetStream",
        verdict=f"Median of the turns' ratios: {ratio:.2f}x, {'met' if ratio >= THROUGHPUT_RATIO else 'missed'}.",
        notes=[NO_WORK],
        raw={"decisions_per_s": rates, "ratio": ratio},
    )
