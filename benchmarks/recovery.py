"""First decision of a fresh swarm; SIGKILL to ready with state; SIGSTOP to replaced."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from typing import Any

import orjson
from nats.aio.msg import Msg

from benchmarks.report import Result, percentiles
from benchmarks.swarm import AGENTS, DECISIONS, Swarm, first_message, swarm
from coordinator.control.kill import KillReport
from coordinator.control.kill import kill as kill_agent
from coordinator.runner.run_record import read_run

SPEED = 50.0
AGENT_REST_S = 11.5
"""Pause between two kills of the same agent: 10 s of progress reset its death counter, so the next restart has no
backoff either."""
SETTLE_S = 3.0
FIRST_DECISION_S, READY_MS, ROLE_READY_MS = 1.2, 25.0, 150.0
"""Goals, for the median."""
ROLES = {"host": "base", "watchdog": "watchdog", "mirror": "mirror"}
"""A process of each kind that `up` restarts, by its name."""
ROLE_REST_S = 12.0
"""Between two kills of the same process: `up` restarts it without a pause after 10 s."""
PHASES = ("detected", "claimed", "spawned", "restored", "ready", "first_output")


async def first_decision(*, quick: bool) -> Result:
    decisions, servers = [], []
    for _ in range(2 if quick else 6):
        async with swarm(2.0) as running:
            received = await first_message(running.client, DECISIONS)
            decisions.append(await received() - running.started_at)
            servers.append(running.server_up_s)
    first_s = percentiles(decisions)
    return Result(
        name="first-decision",
        title="First decision",
        conditions="Seconds from the start of the process `signalmesh up --port 0` (a fresh state directory) to the "
        "first decision received by an outside core subscriber.",
        rows=[
            {"s": "server up, streams created, roles started", **percentiles(servers)},
            {"s": "first decision", **first_s},
        ],
        goal=f"p50 within {FIRST_DECISION_S} s",
        verdict=f"p50 {first_s['p50']:.2f} s, max {first_s['max']:.2f} s: "
        f"{'met' if first_s['p50'] <= FIRST_DECISION_S else 'missed'}.",
        raw={"first_decision_s": decisions, "server_up_s": servers},
    )


async def rotate(running: Swarm, number: int, count: int) -> list[KillReport]:
    """Send signal `number` to one agent after another, each after a pause that resets its death counter."""
    bus = await running.connect()
    done: list[KillReport] = []
    try:
        for name in itertools.islice(itertools.cycle(AGENTS), count):
            started_at = time.monotonic()
            done.append(await kill_agent(bus, name, number, 10.0))
            await asyncio.sleep(max(0.0, AGENT_REST_S / len(AGENTS) - (time.monotonic() - started_at)))
    finally:
        await bus.close()
    return done


async def live(running: Swarm) -> None:
    """Wait until the swarm decides and its start is over."""
    received = await first_message(running.client, DECISIONS)
    await received()
    await asyncio.sleep(SETTLE_S)


def phases(done: list[KillReport], names: tuple[str, ...]) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    found = {name: [value for k in done if (value := getattr(k, f"{name}_ms")) is not None] for name in names}
    return [{"ms since the signal": name, **percentiles(values)} for name, values in found.items()], found


def outcome_note(done: list[KillReport]) -> str:
    lost = sum(k.outputs_lost or 0 for k in done)
    duplicated = sum(k.outputs_duplicated or 0 for k in done)
    back = sum(k.outcome == "recovered" for k in done)
    return f"{back} of {len(done)} recovered; outputs lost {lost}, duplicated {duplicated} (read back from the stream)."


async def kill(*, quick: bool) -> Result:
    count = 10 if quick else 55
    async with swarm(SPEED) as running:
        await live(running)
        done = await rotate(running, signal.SIGKILL, count)
    rows, found = phases(done, PHASES)
    by_agent = {
        name: percentiles(k.ready_ms for k in done if k.agent == name and k.ready_ms is not None) for name in AGENTS
    }
    rows += [{"ms since the signal": f"ready, {name}", **values} for name, values in by_agent.items()]
    ready = percentiles(found["ready"])
    met = ready["p50"] <= READY_MS
    return Result(
        name="kill",
        title="SIGKILL to ready with state",
        conditions=f"{count} SIGKILLs at {SPEED:.0f} ticks/s, the five agents in turn, each killed again after "
        f"{AGENT_REST_S} s at the earliest, so that every one is a first death without backoff. Times are when an "
        "outside observer (`signalmesh kill`) received each phase, from just before it requested the signal.",
        rows=rows,
        goal=f"p50 within {READY_MS:.0f} ms",
        verdict=f"p50 {ready['p50']:.1f} ms, p99 {ready['p99']:.1f} ms: {'met' if met else 'missed'}.",
        notes=[outcome_note(done)],
        raw={"ms": found, "replayed": [k.events_replayed for k in done]},
    )


class RoleWatch:
    """Heartbeats of hosts, watchdog and mirror that an outside core subscriber receives."""

    def __init__(self) -> None:
        self.newest: dict[str, dict[str, Any]] = {}
        self._received = asyncio.Condition()

    async def on_heartbeat(self, msg: Msg) -> None:
        heartbeat = orjson.loads(msg.data)
        if heartbeat["agent"] in ROLES.values() and heartbeat["status"] == "live":
            async with self._received:
                self.newest[heartbeat["agent"]] = {**heartbeat, "at": time.monotonic()}
                self._received.notify_all()

    async def other_than(self, name: str, pid: int) -> float:
        """When the first heartbeat of another process than `pid` arrived (monotonic seconds)."""
        async with asyncio.timeout(30), self._received:
            await self._received.wait_for(lambda: self.newest.get(name, {"pid": pid})["pid"] != pid)
            at: float = self.newest[name]["at"]
            return at


async def roles(*, quick: bool) -> Result:
    """SIGKILLs to processes that `up` restarts; ready is the new process's first heartbeat with the status live."""
    count = 2 if quick else 10
    found: dict[str, list[float]] = {role: [] for role in ROLES}
    async with swarm(SPEED) as running:
        watch = RoleWatch()
        await running.client.subscribe("swarm.heartbeat.*", cb=watch.on_heartbeat)
        await live(running)
        for _ in range(count):
            for role, name in ROLES.items():
                await asyncio.sleep(ROLE_REST_S / len(ROLES))
                record = read_run(running.state_dir)
                assert record is not None
                (pid,) = (process.pid for process in record.children if process.name == name)
                killed_at = time.monotonic()
                os.kill(pid, signal.SIGKILL)
                found[role].append((await watch.other_than(name, pid) - killed_at) * 1000)
    rows = [{"ms": role, **percentiles(values)} for role, values in found.items()]
    medians = {role: percentiles(values)["p50"] for role, values in found.items()}
    texts = ", ".join(f"{role} {value:.0f} ms" for role, value in medians.items())
    return Result(
        name="roles",
        title="SIGKILL of a host, the watchdog or the mirror",
        conditions=f"{count} SIGKILLs to each at {SPEED:.0f} ticks/s, one process {ROLE_REST_S:.0f} s apart at the "
        "least. From just before the signal until an outside core subscriber received the first heartbeat with the "
        "status live of the new process. That of a watchdog says that it leads; it starts agents after it has listened "
        "for two or three heartbeats of each. The agents of a host start after it.",
        rows=rows,
        goal=f"p50 within {ROLE_READY_MS:.0f} ms",
        verdict=f"p50: {texts}: {'met' if max(medians.values()) <= ROLE_READY_MS else 'missed'}.",
        raw={"ms": found},
    )


async def stop(*, quick: bool) -> Result:
    count = 3 if quick else 10
    async with swarm(SPEED) as running:
        await live(running)
        done = await rotate(running, signal.SIGSTOP, count)
    rows, found = phases(done, PHASES)
    ready = percentiles(found["ready"])
    return Result(
        name="stop",
        title="SIGSTOP to replaced",
        conditions=f"{count} SIGSTOPs, spaced like the kills: the process hangs without heartbeats. The watchdog "
        "declares it dead after 600 ms of silence, once its host has confirmed that it does not run.",
        rows=rows,
        goal="replaced within 1 s",
        verdict=f"p50 {ready['p50']:.0f} ms, max {ready['max']:.0f} ms: {'met' if ready['max'] < 1000 else 'missed'}.",
        notes=[outcome_note(done)],
        raw={"ms": found},
    )
