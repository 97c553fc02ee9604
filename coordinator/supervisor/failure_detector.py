"""Whether a process or host without heartbeats is dead. Pure: stores nothing, and time is passed in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from coordinator.supervisor.model import CpuTimes, ProbeHistory, Timeouts

HOST_LOST_S = 1.0
"""A host silent for so long is lost and its agents are moved, unless one of them still publishes heartbeats."""
THROTTLED_S = 10.0
"""A host whose CPU quota held it back so shortly before its silence may still be held back. Measured every 2 s."""
ENOUGH_CPU_S = 0.1
"""A silent process that used so much CPU is not starved: a heartbeat needs a hundredth of it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The process is dead. `unresponsive`: it ran, but a handler did not return in time."""

    reason: str
    unresponsive: bool = False


def judge(
    earlier: ProbeHistory | None, timeouts: Timeouts, silent_s: float, state: str, now: CpuTimes, place: str = ""
) -> tuple[Verdict | None, ProbeHistory]:
    """The verdict on a process without heartbeats for `silent_s` seconds, and what to pass as `earlier` next time.

    The verdict is None while the process may still recover. `earlier` are the earlier probes during this silence.
    `state` is the process's letter in the kernel's table, or "gone"; `place` is the line of code at which it is, if
    its host knows that.
    """
    history = ProbeHistory(now, now) if earlier is None else ProbeHistory(earlier.first, now)
    last = None if earlier is None else earlier.last
    return _verdict(history, last, timeouts, silent_s, state, place), history


def _verdict(
    history: ProbeHistory, last: CpuTimes | None, timeouts: Timeouts, silent_s: float, state: str, place: str
) -> Verdict | None:
    silence = f"silent for {silent_s * 1000:.0f} ms"
    if state in ("gone", "Z", "X"):
        return Verdict("its process is gone")
    if state in ("T", "t"):
        return Verdict(f"stopped, and {silence}")
    if silent_s >= timeouts.starved_s:
        limit = f"[watchdog] starved_ms = {timeouts.starved_s * 1000:.0f}"
        if history.last.used_s - history.first.used_s < ENOUGH_CPU_S:
            if (periods := history.last.throttled_periods - history.first.throttled_periods) > 0:
                held_back_s = history.last.throttled_s - history.first.throttled_s
                at = f", at {place}" if place else ""
                why = f"{silence}{at}, while its CPU quota held its container back in {periods} periods"
                why += f", {held_back_s:.1f} s over all CPUs ({limit})"
                return Verdict(f"{why}: raise the quota, or run fewer agents there")
            return Verdict(f"{silence} because it got no CPU ({limit}): this machine is overloaded")
        why = f"{silence}: it computed for longer than {limit}{f', now at {place}' if place else ''}"
        return Verdict(f"{why}; split the work of its handlers, or raise the limit", unresponsive=True)
    # Linux adds a wait for a CPU when the wait is over: until then only the letter R shows it. Of a process whose main
    # thread waits for another one that the quota holds back, only the time of its control group moves.
    if history.last == last and state != "R":
        limit = f"[watchdog] dead_ms = {timeouts.dead_s * 1000:.0f}"
        why = f"{silence} without using or waiting for a CPU, longer than {limit}"
        if place:
            return Verdict(f"{why}: it blocks at {place}; await there, or use a thread", unresponsive=True)
        return Verdict(f"{why}: a handler must not block; make it `async def` and await", unresponsive=True)
    return None


def is_lost(silent_s: float, of_agents: Iterable[float], timeouts: Timeouts, *, throttled: bool) -> bool:
    """Whether a host without heartbeats for `silent_s` seconds is lost; `of_agents` are the silences of its agents.

    While an agent publishes heartbeats the sandbox exists, and its host may only be waiting for a CPU. It may do so as
    long as an agent may: moving the agents would add load to a busy machine. A CPU quota holds back the agents as well:
    `throttled` is whether it did so shortly before the silence.
    """
    if silent_s <= HOST_LOST_S:
        return False
    if throttled:
        return silent_s > timeouts.starved_s
    return silent_s > timeouts.starved_s or all(each > HOST_LOST_S for each in of_agents)
