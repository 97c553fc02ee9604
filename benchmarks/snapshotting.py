"""What snapshots cost at full speed: the same swarm with them and without, taking turns."""

from __future__ import annotations

import asyncio
import statistics

from benchmarks.report import Result
from benchmarks.swarm import DECISIONS, Rounds, swarm

GOAL = 0.05
WAIT_S = 120.0
WITH, WITHOUT = "with snapshots", "without"
CLASSES = {
    "research-1": "agents.builtin.market_data:MarketDataAgent",
    "research-2": "agents.builtin.sentiment:SentimentAgent",
    "strategy-momentum": "agents.builtin.momentum:MomentumAgent",
    "strategy-mean-reversion": "agents.builtin.mean_reversion:MeanReversionAgent",
    "coordinator": "coordinator.decisions.agent:CoordinatorAgent",
}
NO_SNAPSHOTS = """
import agents.runtime.checkpointer as checkpoint

checkpoint.SNAPSHOT_S = 1e6
checkpoint.Checkpointer.input_handled = lambda self, inputs: None
"""
"""A swarm has no setting for it: the module that the agents are loaded from disables snapshots."""


def files(way: str) -> dict[str, str]:
    """The default swarm, with classes from a module that can disable snapshots."""
    module = NO_SNAPSHOTS if way == WITHOUT else ""
    settings = ""
    for name, where in CLASSES.items():
        module_name, _, cls = where.partition(":")
        module += f"from {module_name} import {cls}\n"
        settings += f'[agents.{name}]\nclass = "agents_for_run:{cls}"\n'
        settings += "options = { speed = 0 }\n" if name == "research-1" else ""
    return {"agents_for_run.py": module, "swarm.toml": settings}


async def snapshotting(*, quick: bool) -> Result:
    measured, turns = (2000, 1) if quick else (6000, 4)
    rates: dict[str, list[float]] = {WITH: [], WITHOUT: []}
    for turn in range(turns):
        for way in (WITH, WITHOUT) if turn % 2 == 0 else (WITHOUT, WITH):
            rounds = Rounds(501, 500 + measured)
            async with swarm(0, files=files(way)) as running:
                await running.client.subscribe(DECISIONS, cb=rounds.on_decision)
                async with asyncio.timeout(WAIT_S):
                    await rounds.done.wait()
            rates[way].append(rounds.rate())
    shares = [1 - a / b for a, b in zip(rates[WITH], rates[WITHOUT], strict=True)]
    share = statistics.median(shares)
    return Result(
        name="snapshots",
        title="What snapshots cost",
        conditions=f"Decisions a second at full speed over {measured:,} rounds after the first 500, the default swarm "
        f"with its snapshots (every 64 inputs or second) and without any; {turns} turns, interleaved.",
        rows=[
            {
                "decisions/s": way,
                "median": statistics.median(found),
                "best": max(found),
                "turns": ", ".join(f"{value:,.0f}" for value in found),
            }
            for way, found in rates.items()
        ],
        goal=f"less than {GOAL:.0%} of the throughput",
        verdict=f"Median of the turns' shares {share:.1%} (from {min(shares):.1%} to {max(shares):.1%}): "
        f"{'met' if share < GOAL else 'missed'}.",
        raw={"decisions_per_s": rates, "shares": shares},
    )
