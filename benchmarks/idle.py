"""Cost of a swarm: unshared memory of an agent, CPU of every process, idle and at 100 ticks/s."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import psutil

from benchmarks.report import Result
from benchmarks.swarm import AGENTS, DECISIONS, Rounds, Swarm, swarm
from bus.durable.registry import read_records

SPEED = 100.0
BUSY_S, IDLE_S = 6.0, 10.0
WARM = 400
"""Rounds before CPU is measured: the unpaced history, and a while of pacing."""
MIB = 2**20
IDLE_PERCENT = 6.0
PSS_MIB = 188.0
"""Goals: the latter is half of the 376 MiB that the swarm took when each process imported its libraries itself."""


async def processes(running: Swarm) -> dict[str, psutil.Process]:
    """Every process of the swarm by its role; agents by name."""
    bus = await running.connect()
    try:
        agents = {record.pid: name for name, record in (await read_records(bus)).items()}
    finally:
        await bus.close()
    root = psutil.Process(running.process.pid)
    found = {"up": root}
    for process in root.children(recursive=True):
        line = " ".join(process.cmdline()).split()
        if process.pid in agents:
            role = f"agent {agents[process.pid]}"
        elif "nats-server" in process.name():
            role = "nats-server"
        elif found_role := next((role for role in ("watchdog", "mirror") if role in line), ""):
            role = found_role
        elif "sandbox" in line:
            role = f"host {line[line.index('sandbox') + 1]}"
        else:
            parent = " ".join(psutil.Process(process.ppid()).cmdline()).partition("sandbox ")[2].split(" ")[0]
            role = " ".join((*line[1:2], parent)).strip()
        found[role] = process
    return found


async def cpu(found: dict[str, psutil.Process], wait_s: float) -> dict[str, float]:
    """Percent of one core that each used over `wait_s` seconds."""
    before = {role: process.cpu_times() for role, process in found.items()}
    started_at = time.monotonic()
    await asyncio.sleep(wait_s)
    duration_s = time.monotonic() - started_at
    used = {}
    for role, process in found.items():
        now, then = process.cpu_times(), before[role]
        used[role] = (now.user + now.system - then.user - then.system) / duration_s * 100
    return used


async def idle(*, quick: bool) -> Result:
    idle_s, busy_s = (4.0, 3.0) if quick else (IDLE_S, BUSY_S)
    limit = WARM + int((busy_s + 2) * SPEED)
    async with swarm(SPEED, limit=limit) as running:
        rounds = Rounds(WARM, limit)
        await running.client.subscribe(DECISIONS, cb=rounds.on_decision)
        async with asyncio.timeout(60):
            await rounds.started.wait()
        found = await processes(running)
        busy = await cpu(found, busy_s)
        async with asyncio.timeout(60):
            await rounds.done.wait()
        await running.client.close()
        await asyncio.sleep(2)
        idling = await cpu(found, idle_s)
        memory = {role: process.memory_full_info() for role, process in found.items()}
    rows: list[dict[str, Any]] = [
        {
            "process": role,
            "idle CPU %": idling[role],
            f"CPU % at {SPEED:.0f} ticks/s": busy[role],
            "unshared MiB": memory[role].uss / MIB,
            "proportional MiB": memory[role].pss / MIB,
            "resident MiB": memory[role].rss / MIB,
        }
        for role in sorted(found)
    ]
    rows.append(
        {
            "process": "all",
            "idle CPU %": sum(idling.values()),
            f"CPU % at {SPEED:.0f} ticks/s": sum(busy.values()),
            "unshared MiB": sum(info.uss for info in memory.values()) / MIB,
            "proportional MiB": sum(info.pss for info in memory.values()) / MIB,
        }
    )
    largest = max(memory[f"agent {name}"].uss for name in AGENTS) / 1e6
    total = sum(idling.values())
    pss = sum(info.pss for info in memory.values()) / MIB
    return Result(
        name="idle",
        title="Memory and CPU",
        conditions=f"The default swarm (five agents, three hosts, watchdog, nats-server, `up`). CPU as a share of one "
        f"core, by psutil's cpu_times over {busy_s:.0f} s at {SPEED:.0f} ticks/s and over {idle_s:.0f} s idle (the "
        "recording has ended, only heartbeats are sent). Unshared memory is USS, proportional PSS (a page "
        "of several processes counts a share for each), at the end of the idle phase.",
        rows=rows,
        goal=f"an agent's unshared memory < 15 MB, the idle swarm < {IDLE_PERCENT:.0f} % of one core and < "
        f"{PSS_MIB:.0f} MiB (PSS)",
        verdict=f"Largest agent {largest:.1f} MB: {'met' if largest < 15 else 'missed'}. "
        f"Idle {total:.1f} %: {'met' if total < IDLE_PERCENT else 'missed'}. "
        f"{pss:.0f} MiB: {'met' if pss < PSS_MIB else 'missed'}.",
        raw={
            "idle_cpu_percent": idling,
            "busy_cpu_percent": busy,
            "uss_bytes": {role: info.uss for role, info in memory.items()},
            "pss_bytes": {role: info.pss for role, info in memory.items()},
        },
    )
