"""10 to 500 agents on this machine: start, memory, CPU, heartbeats, false deaths, recoveries."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import random
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import psutil
from nats.aio.msg import Msg

from benchmarks.report import Result, percentiles
from benchmarks.swarm import DECISIONS, Swarm, swarm
from coordinator.config.loader import load_swarm
from coordinator.config.scaling import SUSPECT_HEARTBEATS, with_agents
from coordinator.control.kill import KillReport
from coordinator.control.kill import kill as kill_agent

COUNTS, QUICK_COUNTS = (10, 50, 200), (10, 20)
MOST, QUICK_MOST = 500, 30
"""Agents that are only started: so many are more work than two cores can do."""
SPEED = 2.0
HISTORY = 250
START_S, HISTORY_S = 120.0, 600.0
STEADY_S, QUICK_S = 30.0, 5.0
KILLS, QUICK_KILLS = 20, 3
REST_S = 0.5
"""Pause between two kills; each kills another agent."""
KILL_WAIT_S = 30.0
SEED = 7
MIB = 1 << 20
MOST_LIVE_S, MOST_GIB = 15.0, 5.0
"""Goals for the largest number of agents."""


@dataclass(slots=True)
class Subscriber:
    """Heartbeats, lifecycle events and decisions that an outside core subscriber receives (monotonic seconds)."""

    live: dict[str, float] = field(default_factory=dict)
    last: dict[str, tuple[int, int, float]] = field(default_factory=dict)
    """Agent -> epoch, number and time of its newest heartbeat."""
    late: list[float] = field(default_factory=list)
    """Time between two heartbeats of an incarnation, in intervals: 1 is on time."""
    missed: int = 0
    events: collections.Counter[str] = field(default_factory=collections.Counter)
    dead: collections.Counter[str] = field(default_factory=collections.Counter)
    claimed: dict[tuple[str, int], float] = field(default_factory=dict)
    starts: list[float] = field(default_factory=list)
    """From receiving a claim to receiving the agent's `ready`, seconds."""
    round: int = 0
    voters: int = 0

    async def on_heartbeat(self, msg: Msg) -> None:
        at, heartbeat = time.monotonic(), orjson.loads(msg.data)
        if heartbeat.get("role", "agent") != "agent":
            return
        name = heartbeat["agent"]
        if heartbeat["status"] in ("live", "finished"):
            self.live.setdefault(name, at)
        before = self.last.get(name)
        if before is not None and before[0] == heartbeat["epoch"]:
            self.late.append((at - before[2]) / (heartbeat["interval_ms"] / 1000))
            self.missed += heartbeat["sequence"] - before[1] - 1
        self.last[name] = (heartbeat["epoch"], heartbeat["sequence"], at)

    async def on_lifecycle(self, msg: Msg) -> None:
        event = orjson.loads(msg.data)
        self.events[event["event"]] += 1
        if event["event"] == "declared_dead":
            self.dead[event["agent"]] += 1
        claimed = self.claimed.get((event["agent"], event.get("epoch") or 0))
        if event["event"] == "ready" and claimed is not None:
            self.starts.append(time.monotonic() - claimed)

    async def on_claim(self, msg: Msg) -> None:
        assert msg.headers is not None
        self.claimed[msg.subject.rpartition(".")[2], int(msg.headers["Nats-Sequence"])] = time.monotonic()

    async def on_decision(self, msg: Msg) -> None:
        decision = orjson.loads(msg.data)
        self.round, self.voters = decision["round"], len(decision["agents_consulted"])

    async def until(self, what: str, done: Any, within_s: float) -> None:
        """Wait until `done()`; after a timeout the error names `what`."""
        try:
            async with asyncio.timeout(within_s):
                while not done():  # noqa: ASYNC110 - several things make it true
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise RuntimeError(f"not within {within_s:.0f} s: {what}") from None


async def measure(count: int, steady_s: float, kills: int) -> dict[str, Any]:
    """Results of a swarm of `count` agents."""
    subscriber = Subscriber()
    async with swarm(SPEED, agents=count) as running:
        for subject, on_msg in (
            ("swarm.heartbeat.*", subscriber.on_heartbeat), ("swarm.epoch.*", subscriber.on_claim),
            ("swarm.lifecycle.*.*", subscriber.on_lifecycle), (DECISIONS, subscriber.on_decision),
        ):  # fmt: skip
            await running.client.subscribe(subject, cb=on_msg)
        await running.client.flush()
        await subscriber.until(f"{count} live agents", lambda: len(subscriber.live) >= count, START_S)
        live_s = max(subscriber.live.values()) - running.started_at
        started_at = time.monotonic()
        await subscriber.until(f"round {HISTORY}", lambda: subscriber.round > HISTORY, HISTORY_S)
        history_s = time.monotonic() - started_at
        starts = percentiles(subscriber.starts)
        false_before = sum(subscriber.dead.values())
        subscriber.late.clear()
        subscriber.missed, suspected = 0, subscriber.events["suspected"]
        used = await cpu(running, steady_s)
        heartbeats, missed = percentiles(subscriber.late), subscriber.missed
        memory = await asyncio.to_thread(total_memory, running)
        done = await kill_some(running, count, kills)
        killed = collections.Counter(kill_report.agent for kill_report in done)
        false = sum((subscriber.dead - killed).values())
        ready = percentiles(k.ready_ms for k in done if k.ready_ms is not None)
        detected = percentiles(k.detected_ms for k in done if k.detected_ms is not None)
    return {
        "agents": count,
        "all live, s": live_s,
        "start p50, s": starts.get("p50"),
        "start p99, s": starts.get("p99"),
        "250 rounds, s": history_s,
        "voters": subscriber.voters,
        "memory, MiB": memory / MIB,
        "CPU, %": used,
        "heartbeat p50": heartbeats.get("p50"),
        "heartbeat p99": heartbeats.get("p99"),
        "heartbeat max": heartbeats.get("max"),
        "heartbeats missed": missed,
        "kills": len(done),
        "recovered": sum(k.outcome == "recovered" for k in done),
        "lost or duplicated": sum((k.outputs_lost or 0) + (k.outputs_duplicated or 0) for k in done),
        "detected p50, ms": detected.get("p50"),
        "ready p50, ms": ready.get("p50"),
        "ready p90, ms": ready.get("p90"),
        "ready max, ms": ready.get("max"),
        "false deaths, start": false_before,
        "false deaths, later": false - false_before,
        "suspected": subscriber.events["suspected"] - suspected,
    }


async def measure_start(count: int) -> dict[str, Any]:
    """How long `count` agents take to be live, and their memory then."""
    subscriber = Subscriber()
    async with swarm(SPEED, agents=count) as running:
        await running.client.subscribe("swarm.heartbeat.*", cb=subscriber.on_heartbeat)
        await running.client.flush()
        await subscriber.until(f"{count} live agents", lambda: len(subscriber.live) >= count, START_S)
        live_s = max(subscriber.live.values()) - running.started_at
        memory = await asyncio.to_thread(total_memory, running)
    return {"agents": count, "all live, s": live_s, "memory, MiB": memory / MIB}


def processes(running: Swarm) -> list[psutil.Process]:
    """All processes of the swarm."""
    root = psutil.Process(running.process.pid)
    return [root, *root.children(recursive=True)]


async def cpu(running: Swarm, wait_s: float) -> float:
    """Percent of one core that all processes together used over `wait_s` seconds."""

    def total() -> float:
        seconds = 0.0
        for process in processes(running):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                seconds += times.user + times.system + times.children_user + times.children_system
        return seconds

    before, started_at = await asyncio.to_thread(total), time.monotonic()
    await asyncio.sleep(wait_s)
    duration_s = time.monotonic() - started_at
    return (await asyncio.to_thread(total) - before) / duration_s * 100


def total_memory(running: Swarm) -> int:
    """Proportional set size of all processes, bytes: shared pages are counted once."""
    found = 0
    for process in processes(running):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += process.memory_full_info().pss
    return found


async def kill_some(running: Swarm, count: int, kills: int) -> list[KillReport]:
    """SIGKILL to agents drawn without repetition, one after the other."""
    names = [item.spec.name for item in with_agents(load_swarm(directory=Path("/")), count).agents]
    drawn = random.Random(SEED).sample(names, min(kills, count))  # noqa: S311 - it must be repeatable
    bus = await running.connect()
    done = []
    try:
        for name in drawn:
            done.append(await kill_agent(bus, name, signal.SIGKILL, KILL_WAIT_S))
            await asyncio.sleep(REST_S)
    finally:
        await bus.close()
    return done


async def scale(*, quick: bool) -> Result:
    counts, most = (QUICK_COUNTS, QUICK_MOST) if quick else (COUNTS, MOST)
    steady_s, kills = (QUICK_S, QUICK_KILLS) if quick else (STEADY_S, KILLS)
    rows = [await measure(count, steady_s, kills) for count in counts]
    false = sum(row["false deaths, start"] + row["false deaths, later"] for row in rows)
    back, killed = sum(row["recovered"] for row in rows), sum(row["kills"] for row in rows)
    missed, latest = sum(row["heartbeats missed"] for row in rows), max(row["heartbeat max"] for row in rows)
    met = false == 0 and back == killed and missed == 0 and latest < SUSPECT_HEARTBEATS
    started = await measure_start(most)
    live_s, memory_gib = started["all live, s"], started["memory, MiB"] / 1024
    rows.append({**dict.fromkeys(rows[0]), **started})
    in_time = live_s <= MOST_LIVE_S and memory_gib <= MOST_GIB
    return Result(
        name="scale",
        title="Many agents",
        conditions=f"`signalmesh up --agents N` at {SPEED:.0f} ticks/s: strategies that all vote, over three "
        "sandboxes. Start: from receiving a claim to receiving the agent's `ready`. CPU of all processes in "
        f"percent of one core, over {steady_s:.0f} s after the first {HISTORY} rounds (not paced); memory of all of "
        "them, PSS. Heartbeat: time between two heartbeats of an agent, divided by its interval (1 is on time). Then "
        f"{kills} SIGKILLs (or one for each agent), {REST_S} s apart, each to another agent. {most} agents are only "
        "started.",
        rows=rows,
        goal="every heartbeat on time, no false death, every kill recovered; "
        f"{most} agents live within {MOST_LIVE_S:.0f} s in {MOST_GIB:.0f} GiB",
        verdict=f"{missed} heartbeats missed, the latest after {latest:.2f} intervals (suspect after "
        f"{SUSPECT_HEARTBEATS}); "
        f"{false} false deaths; {back} of {killed} recovered: {'met' if met else 'missed'}. "
        f"{most} agents live after {live_s:.1f} s, in {memory_gib:.1f} GiB: {'met' if in_time else 'missed'}.",
        raw={"rows": rows},
    )
