"""What the coordinator and a sandbox host send each other: bodies of requests, and the intervals both rely on."""

from __future__ import annotations

from dataclasses import dataclass, field

from agents.runtime.output_rate import MAX_OUTPUTS_PER_S
from agents.spec import AgentSpec

HEARTBEAT_S = 0.2
"""Between two heartbeats of a sandbox host."""
FIRST_HEARTBEAT_S = 0.05
"""The same for its first FIRST_HEARTBEATS: a watchdog that starts with it waits for one."""
FIRST_HEARTBEATS = 20
DRAIN_GRACE_S = 6.0
"""From SIGTERM to SIGKILL for agents when their host is requested to end; a little longer than an agent's own drain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpawnOrder:
    """Start this incarnation; the same order again starts nothing new."""

    term: int
    spec: AgentSpec
    epoch: int
    agent_id: str
    heartbeat_s: float = 0.1
    starved_s: float = 5.0
    max_outputs_per_s: int = MAX_OUTPUTS_PER_S
    traceparent: str = ""
    """The span of the recovery that it is part of."""
    seed: str = field(default="", repr=False)
    """The nkey of this agent, a secret; empty: it connects as its host does."""
    jwt: str = ""
    """The JWT of the user with this nkey, where the server wants one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KillOrder:
    """SIGKILL the process of this agent if its epoch is at most `epoch`."""

    term: int
    agent: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalRequest:
    """Send a signal to the agent's process: a user's request, not the watchdog's order. `pid` None: the present one."""

    agent: str
    signal: int
    pid: int | None = None
