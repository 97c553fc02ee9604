"""False deaths while all cores are at 100 %: busy processes beside a running swarm, and the reports of its watchdog."""

from __future__ import annotations

import asyncio
import collections
import multiprocessing
import os
import time

import orjson
from nats.aio.msg import Msg

from benchmarks.report import Result
from benchmarks.swarm import DECISIONS, Rounds, swarm

SPEED = 20.0
SECONDS, QUICK_S, LONG_S = 60.0, 10.0, 600.0
WARM = 300
"""Rounds before the cores are loaded: the unpaced history is behind."""
EVENTS = ("suspected", "declared_dead", "exited", "spawned", "quarantined")


def burn() -> None:
    """Use a core until killed."""
    while True:
        pass


async def starving(*, quick: bool, long: bool = False) -> Result:
    seconds = QUICK_S if quick else LONG_S if long else SECONDS
    cores = os.cpu_count() or 1
    events: collections.Counter[str] = collections.Counter()
    received = 0

    async def on_lifecycle(msg: Msg) -> None:
        events[orjson.loads(msg.data)["event"]] += 1

    async with swarm(SPEED) as running:
        rounds = Rounds(WARM, 1 << 53)
        await running.client.subscribe(DECISIONS, cb=rounds.on_decision)
        async with asyncio.timeout(60):
            await rounds.started.wait()
        await running.client.subscribe("swarm.lifecycle.*.*", cb=on_lifecycle)
        await running.client.flush()
        context = multiprocessing.get_context("spawn")
        burners = [context.Process(target=burn, daemon=True) for _ in range(cores)]
        for burner in burners:
            burner.start()
        try:
            received, started_at = len(rounds.decisions), time.monotonic()
            await asyncio.sleep(seconds)
            received, duration_s = len(rounds.decisions) - received, time.monotonic() - started_at
            alive = sum(burner.is_alive() for burner in burners)
        finally:
            for burner in burners:
                burner.kill()
                burner.join()
    false = events["declared_dead"] + events["spawned"]
    return Result(
        name="starved",
        title="No false death under full load",
        conditions=f"The default swarm at {SPEED:.0f} ticks/s for {duration_s:.0f} s beside {alive} endless "
        f"loops, one a "
        "core, of the same priority. Nothing was killed: every restart is a false death. Suspicion alone does no harm.",
        rows=[{"received in that time": name, "count": events[name]} for name in EVENTS]
        + [{"received in that time": "decisions", "count": received}],
        goal="0 restarts",
        verdict=f"{events['suspected']} suspicions, {false} deaths declared and processes started: "
        f"{'met' if false == 0 else 'missed'}.",
        notes=["With `--long` it takes ten minutes."],
        raw={"lifecycle": dict(events), "decisions": received, "seconds": duration_s},
    )
