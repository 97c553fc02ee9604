"""What to conclude from what a host knows of a silent agent's process. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from coordinator.supervisor.model import AgentState, Timeouts

HOST_LOST_S = 1.0
"""A host silent for so long is lost, and its agents are started elsewhere, unless one of them is heard."""
ENOUGH_CPU_S = 0.1
"""Who got so much of a CPU and did not beat is not starved: a heartbeat takes a hundredth of it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """It is dead, and why; `hung` if it ran, but a handler did not give it back in time."""

    reason: str
    unresponsive: bool = False


def judge(
    agent: AgentState, timeouts: Timeouts, silent_s: float, state: str, cpu_s: float, waited_s: float
) -> Verdict | None:
    """The verdict on `agent`, silent for `silent_s` seconds; None: it may still come back, and was noted in `agent`.

    `state` is the process's letter in the kernel's table, or "gone"; `cpu_s` and `waited_s` are the seconds that it
    has used a CPU and waited for one so far.
    """
    said = f"silent for {silent_s * 1000:.0f} ms"
    first = agent.first_probe = agent.first_probe or (cpu_s, waited_s)
    if state in ("gone", "Z", "X"):
        return Verdict("its process is gone")
    if state in ("T", "t"):
        return Verdict(f"stopped, and {said}")
    if silent_s >= timeouts.starved_s:
        limit = f"[watchdog] starved_ms = {timeouts.starved_s * 1000:.0f}"
        if cpu_s - first[0] < ENOUGH_CPU_S:
            return Verdict(f"{said} for want of a CPU ({limit}): this machine has too much to do")
        why = f"{said}: it computed for longer than {limit} allows"
        return Verdict(f"{why}; have its handlers do less at a time, or raise the limit", unresponsive=True)
    # Linux counts a wait for a CPU when it is over: of one that still waits only the letter says so.
    if (cpu_s, waited_s) == agent.last_probe and state != "R":
        limit = f"[watchdog] dead_ms = {timeouts.dead_s * 1000:.0f}"
        why = f"{said} without using or awaiting a CPU, longer than {limit} allows"
        return Verdict(f"{why}: a handler must not block; make it `async def` and await", unresponsive=True)
    agent.last_probe = (cpu_s, waited_s)
    return None


def is_lost(silent_s: float, of_agents: Iterable[float], timeouts: Timeouts) -> bool:
    """Whether a host, silent for `silent_s` seconds, is to be given up; `of_agents` are the silences of its agents.

    While one of these is heard the sandbox is there, and its host may merely wait for a CPU: for as long as an agent
    might. Whoever moves its agents without need makes a busy machine busier.
    """
    if silent_s <= HOST_LOST_S:
        return False
    return silent_s > timeouts.starved_s or all(each > HOST_LOST_S for each in of_agents)
