"""What tracing costs: the same swarm without it, with its default sampling and with every trace, taking turns."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.pipeline import HISTORY, SPEED, run_swarm
from benchmarks.report import Result, percentiles
from benchmarks.sink import sink
from benchmarks.swarm import Rounds

GOAL = 0.05
OFF, DEFAULT, ALL = "off", "default (50 traces/s)", "every trace"
SAMPLERS = {OFF: None, DEFAULT: "", ALL: "always_on"}
FIRST = HISTORY + 151
"""First measured round at SPEED: after the unpaced history and a second and a half of pacing."""


def environment(way: str, url: str) -> dict[str, str]:
    sampler = SAMPLERS[way]
    if sampler is None:
        return {}
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": url,
        "OTEL_METRICS_EXPORTER": "none",
        **({"OTEL_TRACES_SAMPLER": sampler} if sampler else {}),
    }


async def tracing(*, quick: bool) -> Result:
    """Throughput at full speed and latency at SPEED, each way; a share is that of one turn against its own `off`."""
    measured, paced, turns = (300, 100, 1) if quick else (6000, 500, 4)
    rates: dict[str, list[float]] = {way: [] for way in SAMPLERS}
    latencies: dict[str, list[float]] = {way: [] for way in SAMPLERS}
    medians: dict[str, list[float]] = {way: [] for way in SAMPLERS}
    spans = dict.fromkeys(SAMPLERS, 0)
    order = list(SAMPLERS)
    for turn in range(turns):
        for way in order[turn % len(order) :] + order[: turn % len(order)]:
            with sink() as collector:
                variables = environment(way, collector.url)
                fast, slow = Rounds(501, 500 + measured), Rounds(FIRST, FIRST + paced - 1)
                await run_swarm(0, fast, with_ticks=False, environment=variables)
                await run_swarm(SPEED, slow, environment=variables)
                spans[way] += collector.spans()
            rates[way].append(fast.rate())
            latencies[way] += slow.latencies_ms()
            medians[way].append(percentiles(slow.latencies_ms())["p50"])
    costs = {way: [1 - a / b for a, b in zip(rates[way], rates[OFF], strict=True)] for way in SAMPLERS}
    slower = {way: [a / b for a, b in zip(medians[way], medians[OFF], strict=True)] for way in SAMPLERS}
    rows: list[dict[str, Any]] = []
    for way, found in rates.items():
        ms = percentiles(latencies[way])
        rows.append({
            "tracing": way, "decisions/s": statistics.median(found), "best": max(found),
            "cost of throughput": f"{statistics.median(costs[way]):.1%}",
            **{f"{name}, ms": ms[name] for name in ("p50", "p90", "p99", "max")},
            "p50 / off": statistics.median(slower[way]), "spans received": spans[way],
        })  # fmt: skip
    cost = statistics.median(costs[DEFAULT])
    shares = ", ".join(f"{share:.1%}" for share in costs[DEFAULT])
    return Result(
        name="tracing",
        title="What tracing costs",
        conditions=f"Decisions a second at full speed over {measured:,} rounds after the first 500, and milliseconds "
        f"from tick to decision at {SPEED:g} ticks/s over {paced:,} rounds, the default swarm; {turns} turns of each "
        "way, interleaved, in changing order. Spans go by OTLP over HTTP to a collector that only stores them, a "
        "process on the same machine: its work is part of the cost.",
        rows=rows,
        goal=f"the default costs less than {GOAL:.0%} of the throughput",
        verdict=f"Median of the turns' costs {cost:.1%} ({shares}): {'met' if cost < GOAL else 'missed'}.",
        raw={"decisions_per_s": rates, "costs": costs, "ms": latencies, "p50_of_turns": medians, "spans": spans},
    )
