"""The watchdog's policy among observations that are made up, with a clock of its own."""

from __future__ import annotations

import random
from typing import Any

from bus.messages import Child, Heartbeat, SandboxUsage
from coordinator.supervisor.model import (
    Action,
    AgentState,
    Dead,
    Spawn,
    Timeouts,
)
from coordinator.supervisor.policy import Policy


class World:
    """A policy, a clock, and the reports of hosts and agents."""

    def __init__(self, *agents: AgentState, sandboxes: tuple[str, ...] = ("base", "python")) -> None:
        self.now = 100.0
        self.policy = Policy(agents, sandboxes, Timeouts(), random.Random(1), self.now)
        self.epoch = 0
        self.sending: set[str] = set()
        self.stuck: set[str] = set()
        self.sandboxes: dict[str, int] = {}
        self.lag = self.cursor = 0
        self.progress = 0
        self.status = "live"
        self.throttled_periods = 0

    def host(self, name: str, *children: Child, pid: int = 1, status: str = "live", group: str | None = None) -> None:
        self.sandboxes[name] = pid
        self.policy.host_heartbeat(
            self.now,
            Heartbeat(
                agent=name, agent_id=f"h{pid}", epoch=0, sequence=1, progress=1, status=status, interval_ms=200,
                sandbox=name, pid=pid, role="sandbox", inventory=children, group=group,
                usage=SandboxUsage(processes=1, cpu_s=0.0, rss_mb=1.0, throttled_periods=self.throttled_periods),
            ),
        )  # fmt: skip

    def start(self, action: Spawn) -> int:
        self.epoch += 10
        self.policy.spawned(self.now, action.agent, action.sandbox, 1000 + self.epoch, self.epoch, "id")
        self.sending.add(action.agent)
        return self.epoch

    def heartbeat(self, name: str) -> None:
        state = self.policy.agents[name]
        self.policy.heartbeat(
            self.now,
            Heartbeat(
                agent=name, agent_id="id", epoch=state.epoch, sequence=1, progress=self.progress, status=self.status,
                interval_ms=100, sandbox=state.sandbox, pid=state.pid, lag=self.lag,
                cursor=self.cursor,
            ),
        )  # fmt: skip

    def run(self, seconds: float, *, bus: bool = True, hosts: bool = True, spawn: bool = True) -> list[Action]:
        """Let time pass in steps of 50 ms, with a heartbeat of each process that is alive."""
        done: list[Action] = []
        for step in range(round(seconds / 0.05)):
            self.now += 0.05
            if bus and hosts and step % 4 == 0:
                for name, pid in list(self.sandboxes.items()):
                    self.host(name, pid=pid)
            if bus and step % 2 == 0:
                if not self.stuck:
                    self.progress += 1
                for name in self.sending:
                    self.heartbeat(name)
            for action in self.policy.decide(self.now):
                done.append(action)
                if isinstance(action, Spawn) and spawn:
                    self.start(action)
                elif isinstance(action, Dead):
                    self.sending.discard(action.agent)
        return done


def a(name: str = "a", sandbox: str = "base", **more: Any) -> AgentState:
    return AgentState(name, sandbox, **more)


def ready(*agents: AgentState, **more: Any) -> World:
    world = World(*(agents or (a(),)), **more)
    for sandbox in world.policy.hosts:
        world.host(sandbox)
    world.run(0.5)
    assert all(state.phase == "running" for state in world.policy.agents.values())
    return world


def kinds(actions: list[Action]) -> list[str]:
    return [type(action).__name__ for action in actions]
