"""The watchdog's policy: observations in, actions out. Pure: time is passed in.

It observes the hosts' exit reports, which cause an action at once, and heartbeats. After a silence it suspects the
process and probes it through its host: a process that is gone or stopped is dead, one that uses a CPU or waits for one
may go on for a while. Its own delays do not count as silence, and while the bus is unhealthy it declares no agent dead.

All times are seconds of one monotonic clock.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterable

from bus.errors import EXIT_USAGE
from bus.messages import Child, Heartbeat
from coordinator.supervisor.failure_detector import HOST_LOST_S, THROTTLED_S, is_lost, judge
from coordinator.supervisor.model import (
    Action,
    AgentState,
    CpuTimes,
    Dead,
    Drained,
    HostState,
    Joined,
    Leftover,
    ProbeProcess,
    ProviderState,
    Quarantine,
    SandboxLost,
    Spawn,
    StoppedPhase,
    Suspect,
    Timeouts,
    UnreportedExit,
    VerifyDrain,
)

RESET_AFTER_S = 10.0
"""The crash history is reset after an agent was live for so long and progressed beyond its earlier deaths."""
REPORT_S = 0.25
"""How much later than the exit report the drain report may arrive, before it is looked up in the stream."""
PROBE_INTERVAL_S = 0.2
STALLED_S = 60.0
"""An agent with heartbeats and pending inputs, but without progress for so long, is dead."""
NEVER_READY_S = 60.0
"""An agent with heartbeats that is not live, without progress for so long, is dead."""
SOURCES_WAIT_S = 5.0
"""Sources start when all other agents are live, or when no agent has become live for so long."""
TAKEN_OVER_S = 1.5
"""How long an incarnation that another process claimed may take to send its first heartbeat."""
JOINED_LAG = 16
"""Unread inputs with which an added agent votes in time for the next rounds."""
STARTS_AT_ONCE = 4
"""Most processes of a host without a first heartbeat. It starts them one by one, and an order times out after 2 s."""
OWN_LAG_S = 0.05
"""A longer delay of the watchdog itself does not count as silence of the agents."""


class Policy:
    """The state of all agents and hosts, changed by observations; `decide` returns the actions."""

    def __init__(
        self, agents: Iterable[AgentState], sandboxes: Iterable[str], timeouts: Timeouts, rng: random.Random, now: float
    ) -> None:
        self.agents = {agent.name: agent for agent in agents}
        self.hosts = {name: HostState(name, name) for name in sandboxes}
        self.leftovers: dict[str, Leftover] = {}
        """Agent that is not in the swarm -> its process, until its host has reported the end."""
        self.provider = ProviderState()
        self.closed: set[str] = set()
        """Sandboxes that were removed: no agent is started there, whatever hosts they still have."""
        self._timeouts = timeouts
        self._rng = rng
        self._started_at: float | None = None
        self._last_live_at = now
        """When an agent last became live."""
        self._decided_at = now
        self._bus_unhealthy = False
        self._actions: list[Action] = []

    @property
    def unserved(self) -> set[str]:
        """The sandboxes without a live host."""
        hosts = self.hosts.values()
        return {host.group for host in hosts} - {host.group for host in hosts if host.alive}

    @property
    def any_process_runs(self) -> bool:
        """Whether an agent is known to run."""
        return any(agent.phase in ("starting", "running") for agent in self.agents.values())

    @property
    def is_restarting(self) -> bool:
        """Whether an agent was requested to drain in order to be started again, and has not ended."""
        return any(
            agent.epoch == agent.requested_epoch and agent.phase in ("starting", "running")
            for agent in self.agents.values()
        )

    # -- observations

    def heartbeat(self, now: float, heartbeat: Heartbeat) -> None:
        """An agent's heartbeat arrived."""
        agent = self.agents.get(heartbeat.agent)
        if agent is None or heartbeat.epoch < agent.epoch or agent.phase == "external":
            return
        if heartbeat.epoch > agent.epoch:
            if agent.phase in ("restarting", "drained", "quarantined"):
                return  # ours, started before its host has answered; or one that must stay stopped
            self.spawned(now, heartbeat.agent, heartbeat.sandbox, heartbeat.pid, heartbeat.epoch, heartbeat.agent_id)
        agent.heartbeat_at = now
        agent.has_heartbeat = True
        agent.suspected = False
        agent.probes = None
        agent.lag, agent.cursor, agent.outputs = heartbeat.lag, heartbeat.cursor, heartbeat.outputs
        if heartbeat.progress != agent.progress or heartbeat.status != agent.status:
            agent.progress, agent.progress_at = heartbeat.progress, now
        agent.status, agent.doing = heartbeat.status, heartbeat.doing or ""
        if agent.phase == "starting" and heartbeat.status in ("live", "finished"):
            agent.phase = "running"
            agent.healthy_since = self._last_live_at = now
        if agent.joining and agent.phase == "running" and agent.lag <= JOINED_LAG:
            agent.joining = False
            self._actions.append(Joined(agent.name))

    def host_heartbeat(self, now: float, heartbeat: Heartbeat) -> None:
        """A sandbox host's heartbeat arrived, with its inventory."""
        host = self.hosts.setdefault(heartbeat.agent, HostState(heartbeat.agent, heartbeat.group or heartbeat.agent))
        if host.alive and host.host_id != heartbeat.agent_id:
            self._host_lost(now, host, "its sandbox host was replaced")
        if host.alive and heartbeat.status != "live" and host.group not in self.closed:
            self._actions.append(SandboxLost(host.name, self.running_in(host.name)))  # its agents drain, then move
        if heartbeat.status == "live" and not host.alive:
            host.live_since = now
        host.alive = heartbeat.status == "live"
        if heartbeat.usage is not None:
            periods = heartbeat.usage.throttled_periods
            if host.host_id == heartbeat.agent_id and periods > (host.throttled_periods or 0):
                host.throttled_at = now if host.throttled_periods is not None else host.throttled_at
            host.throttled_periods = periods
        host.host_id, host.heartbeat_at = heartbeat.agent_id, now
        if heartbeat.inventory is not None:
            running = {child.agent for child in heartbeat.inventory if child.exit_code is None}
            for name, left in list(self.leftovers.items()):
                if left.sandbox == host.name and name not in running:
                    del self.leftovers[name]
            for child in heartbeat.inventory:
                self._child_reported(now, heartbeat.agent, child)

    def _child_reported(self, now: float, sandbox: str, child: Child) -> None:
        agent = self.agents.get(child.agent)
        if agent is None:
            self._leftover_reported(sandbox, child)
            return
        if child.exit_code is not None:
            if self._started_at is None and (
                agent.unreported_exit is None or child.epoch > agent.unreported_exit.epoch
            ):
                agent.unreported_exit = UnreportedExit(
                    child.epoch, sandbox, child.pid, child.agent_id, child.exit_code, now, child.error
                )
            self.exited(now, child.agent, child.epoch, child.exit_code, child.error)
        elif child.epoch > agent.epoch and agent.phase not in ("restarting", "drained", "quarantined"):
            self.spawned(now, child.agent, sandbox, child.pid, child.epoch, child.agent_id)

    def _leftover_reported(self, sandbox: str, child: Child) -> None:
        known = self.leftovers.get(child.agent)
        if child.exit_code is None and (known is None or child.epoch >= known.epoch):
            self.leftovers[child.agent] = Leftover(sandbox, child.pid, child.epoch)

    def unreported_exit_found(self, now: float, name: str, unreported_exit: UnreportedExit) -> None:
        """This incarnation, the newest claimed one, died while there was no leader: it is declared dead now.

        To be called before the first decision. No effect if a running incarnation has been reported.
        """
        agent = self.agents[name]
        if agent.phase != "waiting":
            return
        self.spawned(
            now, name, unreported_exit.sandbox, unreported_exit.pid, unreported_exit.epoch, unreported_exit.agent_id
        )
        agent.heartbeat_at = unreported_exit.since
        if unreported_exit.exit_code is None:
            self._declare_dead(now, agent, "its sandbox host is gone; it ended while there was no leader", counts=False)
        else:
            self.exited(now, name, unreported_exit.epoch, unreported_exit.exit_code, unreported_exit.error)

    def mark_stopped(self, name: str, phase: StoppedPhase, epoch: int, sandbox: str) -> None:
        """An earlier term left the agent in this phase, with its incarnation `epoch` in `sandbox`: it is not started.

        No effect on an agent that runs, or that this swarm does not have.
        """
        agent = self.agents.get(name)
        if agent is not None and agent.phase == "waiting":
            agent.phase, agent.epoch, agent.sandbox = phase, epoch, sandbox

    def spawned(self, now: float, name: str, sandbox: str, pid: int, epoch: int, agent_id: str) -> None:
        """An incarnation was started, or was found running."""
        agent = self.agents[name]
        self.leftovers.pop(name, None)
        agent.phase = "starting"
        agent.sandbox, agent.pid, agent.epoch, agent.agent_id = sandbox, pid, epoch, agent_id
        agent.known_epoch = epoch
        agent.started_at = agent.heartbeat_at = agent.progress_at = now
        agent.has_heartbeat = agent.suspected = False
        agent.status, agent.doing, agent.progress, agent.probes = "", "", 0, None
        agent.lag = agent.cursor = agent.outputs = 0
        agent.healthy_since = agent.ended_at = None

    def claimed(self, name: str, epoch: int) -> None:
        """The watchdog has claimed `epoch` for the incarnation that it is about to start."""
        if (agent := self.agents.get(name)) is not None:
            agent.known_epoch = epoch

    def superseded(self, now: float, name: str) -> None:
        """Another process has claimed the agent, probably one started manually.

        If no heartbeat of it arrives, the watchdog starts its own.
        """
        if (agent := self.agents.get(name)) is None:
            return
        agent.known_epoch = None
        agent.phase = "backoff"
        agent.retry_at = now + TAKEN_OVER_S

    def spawn_failed(self, now: float, name: str, reason: str) -> None:
        """An incarnation could not be started: tried again after a pause, without counting as a death."""
        if (agent := self.agents.get(name)) is None:
            return
        agent.phase = "backoff"
        agent.reason = reason
        agent.retry_at = now + agent.deaths.back_off(self._rng)

    def exited(self, now: float, name: str, epoch: int, exit_code: int, error: str | None = None) -> None:
        """A host reported the end of a process; `error` is the exception that ended it, if one did."""
        agent = self.agents.get(name)
        if agent is None or agent.epoch != epoch or agent.phase not in ("starting", "running"):
            return
        host = self.hosts.get(agent.sandbox)
        if exit_code == 0 and host is not None and not host.alive:
            self._declare_dead(now, agent, "its sandbox host is ending", counts=False)
        elif exit_code == 0:
            if epoch in (agent.drained_epoch, agent.requested_epoch):
                self._drain(agent)
            elif agent.ended_at is None:
                agent.ended_at = now  # its drain report, published before its end, may arrive a little later
        elif exit_code == EXIT_USAGE:
            reason = f"it ended with exit code 2, an error that a restart does not fix{f': {error}' if error else ''}"
            self._declare_dead(now, agent, reason, permanent=True)
        else:
            reason = f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
            self._declare_dead(now, agent, f"{reason}: {error}" if error else reason)

    def probed(self, now: float, name: str, epoch: int, state: str, cpu: CpuTimes, place: str = "") -> None:
        """A host answered a probe of a silent agent's process (see failure_detector.judge)."""
        agent = self.agents.get(name)
        if agent is None or agent.epoch != epoch or agent.phase not in ("starting", "running"):
            return
        silent_s = now - agent.heartbeat_at
        if silent_s < self._timeouts.dead_s or agent.ended_at is not None:
            return
        verdict, agent.probes = judge(agent.probes, self._timeouts, silent_s, state, cpu, place)
        if verdict is not None:
            self._declare_dead(now, agent, verdict.reason, unresponsive=verdict.unresponsive)

    def drained(self, now: float, name: str, epoch: int) -> None:
        """An agent has reported that it drained.

        No host reports the end of an agent that ran outside the supervisor: the watchdog starts its own in its place.
        """
        agent = self.agents.get(name)
        if agent is None:
            return
        agent.drained_epoch = max(agent.drained_epoch, epoch)
        if agent.epoch != epoch or agent.phase not in ("starting", "running"):
            return
        if agent.sandbox not in self.hosts:
            self._declare_dead(now, agent, "it ran outside the supervisor and was stopped", counts=False)
        elif agent.ended_at is not None:
            self._drain(agent)

    def not_drained(self, now: float, name: str, epoch: int) -> None:
        """The stream holds no report that this incarnation, which has ended, drained."""
        agent = self.agents.get(name)
        if agent is None or agent.epoch != epoch:
            return
        if agent.ended_at is not None and agent.phase in ("starting", "running"):
            self._declare_dead(now, agent, "it ended with exit code 0 but has not drained")

    def _drain(self, agent: AgentState) -> None:
        agent.ended_at = None
        if agent.epoch == agent.requested_epoch:
            agent.phase, agent.reason = "waiting", "restart"
            agent.is_source = False  # it need not wait for the others
        else:
            agent.phase = "drained"
            self._actions.append(Drained(agent.name))

    def host_gone(self, now: float, sandbox: str, reason: str) -> None:
        """A sandbox host was reported dead."""
        if (host := self.hosts.get(sandbox)) is not None and host.alive:
            self._host_lost(now, host, reason)

    def bus_checked(self, now: float, unhealthy: bool) -> None:
        """Whether the bus or the watchdog's connection is unhealthy; when it recovers, all timeouts start again."""
        if self._bus_unhealthy and not unhealthy:
            self._reset_timeouts(now)
        self._bus_unhealthy = unhealthy

    def _reset_timeouts(self, now: float) -> None:
        for agent in self.agents.values():
            agent.heartbeat_at = max(agent.heartbeat_at, now)
            agent.progress_at = max(agent.progress_at, now)
            agent.probes = None
            agent.suspected = False
        for host in self.hosts.values():
            if host.alive:
                host.heartbeat_at = max(host.heartbeat_at, now)

    # -- requests

    def add(self, agent: AgentState) -> None:
        """Have an agent that was added started."""
        self.agents[agent.name] = agent

    def remove(self, name: str) -> None:
        """Forget an agent that was removed; its process, if it has one, is a leftover."""
        agent = self.agents.pop(name)
        if agent.phase in ("starting", "running"):
            self.leftovers[name] = Leftover(agent.sandbox, agent.pid, agent.epoch)
        self._actions = [action for action in self._actions if getattr(action, "agent", None) != name]

    def open_sandbox(self, name: str) -> None:
        """Have agents started in a sandbox that was added, once it has a host."""
        self.closed.discard(name)
        self.hosts.setdefault(name, HostState(name, name))

    def close_sandbox(self, name: str) -> None:
        """Start no agent any more in a sandbox that was removed; those that run there are not touched."""
        self.closed.add(name)

    def forget_sandbox(self, name: str) -> None:
        """Forget the hosts of a sandbox that was removed; no agent runs there."""
        self.hosts = {host: state for host, state in self.hosts.items() if state.group != name}

    def runs_host(self, sandbox: str) -> bool:
        """Whether a host of `sandbox` runs, open for agents or not."""
        return any(host.alive and host.group == sandbox for host in self.hosts.values())

    def revive(self, now: float, name: str) -> bool:
        """Have a quarantined or drained agent started again; False if it is neither."""
        agent = self.agents[name]
        if agent.phase not in ("quarantined", "drained"):
            return False
        agent.deaths.reset()
        agent.reason = None
        agent.phase = "waiting"
        agent.is_source = False  # it need not wait for the others
        return True

    def quarantine(self, now: float, name: str, reason: str) -> None:
        """End the agent, if it runs, and do not start it again until it is revived."""
        agent = self.agents[name]
        if agent.phase in ("starting", "running"):
            self._declare_dead(now, agent, reason, counts=False, permanent=True)

    def restart(self, name: str) -> None:
        """Have the agent, which is about to be requested to drain, started again after its end."""
        agent = self.agents[name]
        agent.requested_epoch = agent.epoch

    def move(self, name: str, sandbox: str) -> None:
        """Have the next incarnation of the agent started in `sandbox`, which is its home from now on."""
        agent = self.agents[name]
        agent.preferred, agent.moving = sandbox, True

    def serves(self, host: str, sandbox: str) -> bool:
        """Whether `host` is one of `sandbox`."""
        return host in self.hosts and self.hosts[host].group == sandbox

    def is_live(self, sandbox: str, since: float = math.inf) -> bool:
        """Whether a host of `sandbox` is live and takes agents, and has been live since then."""
        hosts = (host for host in self.hosts.values() if host.group not in self.closed)
        return any(host.alive and host.group == sandbox and host.live_since <= since for host in hosts)

    # -- decisions

    def decide(self, now: float) -> list[Action]:
        """The actions that follow now. To be called after every observation and at short intervals."""
        if self._started_at is None:
            self._started_at = self._decided_at = now
        lag_s = now - self._decided_at
        self._decided_at = now
        if lag_s > OWN_LAG_S + self._timeouts.suspect_s:
            self._reset_timeouts(now)  # the watchdog slept: heartbeats may have been missed
        if not self._bus_unhealthy:
            for host in self.hosts.values():
                of_agents = (now - self.agents[name].heartbeat_at for name in self.running_in(host.name))
                silent_s, throttled = now - host.heartbeat_at, host.heartbeat_at - host.throttled_at < THROTTLED_S
                if host.alive and is_lost(silent_s, of_agents, self._timeouts, throttled=throttled):
                    why = f"its sandbox host has been silent for {silent_s:.1f} s"
                    quota = "; its CPU quota held it back before: raise the quota, or run fewer agents there"
                    self._host_lost(now, host, why + (quota if throttled else ""))
            for agent in self.agents.values():
                self._check_agent(now, agent)
        actions, self._actions = self._actions, []
        return actions

    def _check_agent(self, now: float, agent: AgentState) -> None:
        if agent.phase in ("starting", "running") and agent.ended_at is not None:
            if now - agent.ended_at >= REPORT_S and now - agent.checked_at >= PROBE_INTERVAL_S:
                agent.checked_at = now
                self._actions.append(VerifyDrain(agent.name, agent.epoch))
        elif agent.phase == "starting" and agent.status == "starting":
            self._check_start(now, agent)
        elif agent.phase in ("starting", "running"):
            self._check_silence(now, agent)
            self._check_progress(now, agent)
        elif agent.phase == "backoff":
            if now >= agent.retry_at:
                self._start(now, agent)
        elif agent.phase == "waiting" and (not agent.is_source or self._others_live(now)):
            self._start(now, agent)

    def _check_start(self, now: float, agent: AgentState) -> None:
        """Code of users is imported or sets itself up: it may keep the process from sending heartbeats meanwhile."""
        lasted_s, limit_s = now - agent.started_at, self._timeouts.start_s
        if lasted_s > limit_s:
            reason = f"{agent.doing or 'its start'}: {lasted_s:.0f} s, longer than [watchdog] start_timeout_s"
            self._declare_dead(now, agent, f"{reason} = {limit_s:g}", unresponsive=True)

    def _check_silence(self, now: float, agent: AgentState) -> None:
        timeouts = self._timeouts
        silent_s = now - agent.heartbeat_at
        if not agent.has_heartbeat and now - agent.started_at < timeouts.grace_s:
            return
        if silent_s >= timeouts.dead_s:
            host = self.hosts.get(agent.sandbox)
            if host is None or not host.alive:
                if silent_s >= HOST_LOST_S:
                    self._declare_dead(now, agent, f"silent for {silent_s * 1000:.0f} ms, no live host to probe it")
            elif now - agent.checked_at >= PROBE_INTERVAL_S:
                agent.checked_at = now
                self._actions.append(ProbeProcess(agent.name, agent.sandbox, agent.epoch))
        elif silent_s >= timeouts.suspect_s and not agent.suspected:
            agent.suspected = True
            self._actions.append(Suspect(agent.name, int(silent_s * 1000)))

    def _check_progress(self, now: float, agent: AgentState) -> None:
        healthy_s = 0.0 if agent.healthy_since is None else agent.heartbeat_at - agent.healthy_since
        if healthy_s > RESET_AFTER_S and (agent.lag == 0 or agent.deaths.is_beyond(agent.cursor, agent.outputs)):
            agent.deaths.reset()
        if agent.phase not in ("starting", "running") or now - agent.heartbeat_at >= self._timeouts.suspect_s:
            return
        idle_s = now - agent.progress_at
        if agent.phase == "starting" and idle_s > NEVER_READY_S:
            self._declare_dead(now, agent, f"never became ready: no progress for {idle_s:.0f} s")
        elif agent.phase == "running" and agent.lag > 0 and idle_s > STALLED_S:
            self._declare_dead(now, agent, f"{agent.lag} inputs are pending, but no progress for {idle_s:.0f} s")

    def _others_live(self, now: float) -> bool:
        if self._started_at is not None and now - max(self._started_at, self._last_live_at) > SOURCES_WAIT_S:
            return True
        return all(
            other.is_source or other.phase in ("running", "quarantined", "drained", "external")
            for other in self.agents.values()
        )

    def _start(self, now: float, agent: AgentState) -> None:
        agents = self.agents.values()
        hosts = [host for host in self.hosts.values() if host.group not in self.closed]
        sandbox = choose_sandbox(agent, agents, hosts)
        if sandbox is None or starting_count(now, sandbox, agents, self._timeouts.grace_s) >= STARTS_AT_ONCE:
            return
        moved_from = agent.sandbox if agent.sandbox and agent.sandbox != sandbox else None
        agent.phase, agent.sandbox = "restarting", sandbox  # so that the next placements count it
        agent.moving = False
        self._actions.append(Spawn(agent.name, sandbox, agent.reason, moved_from))

    def _host_lost(self, now: float, host: HostState, reason: str) -> None:
        host.alive = False
        affected = self.running_in(host.name)
        self._actions.append(SandboxLost(host.name, affected))
        for name in affected:
            self._declare_dead(now, self.agents[name], reason, counts=False)

    def running_in(self, sandbox: str) -> tuple[str, ...]:
        """The agents that are known to run there."""
        return tuple(
            agent.name
            for agent in self.agents.values()
            if agent.sandbox == sandbox and agent.phase in ("starting", "running")
        )

    def _declare_dead(
        self,
        now: float,
        agent: AgentState,
        reason: str,
        *,
        counts: bool = True,
        permanent: bool = False,
        unresponsive: bool = False,
    ) -> None:
        self._actions.append(Dead(agent.name, agent.epoch, agent.sandbox, agent.pid, reason, unresponsive))
        agent.healthy_since = agent.ended_at = None
        agent.reason = reason
        too_many = None
        if counts:
            too_many = agent.deaths.add(
                now,
                self._timeouts.window_s,
                self._timeouts.deaths,
                cursor=agent.cursor,
                outputs=agent.outputs,
                unresponsive=unresponsive,
            )
        quarantine = reason if permanent else too_many and f"{too_many}, the last one: {reason}"
        if quarantine is not None:
            agent.phase = "quarantined"
            self._actions.append(Quarantine(agent.name, agent.epoch, agent.sandbox, quarantine))
            return
        agent.phase = "backoff"
        agent.retry_at = now + agent.deaths.next_pause_s(self._rng)
        self._check_agent(now, agent)


def choose_sandbox(agent: AgentState, agents: Iterable[AgentState], hosts: Collection[HostState]) -> str | None:
    """The sandbox to start `agent` in: its last one, else the preferred one, else any; None if no host is live.

    Among several live hosts it is the one with the fewest agents. An agent that moves does not return to its last one,
    unless that serves the preferred sandbox.
    """
    alive = {host.name: host for host in hosts if host.alive}
    if agent.sandbox in alive and (not agent.moving or alive[agent.sandbox].group == agent.preferred):
        return agent.sandbox
    names = [name for name, host in alive.items() if host.group == agent.preferred] or [*alive]
    load = dict.fromkeys(names, 0)
    for other in agents:
        if other.sandbox in load and other is not agent:
            load[other.sandbox] += 1
    return min(names, key=lambda name: (load[name], names.index(name)), default=None)


def starting_count(now: float, sandbox: str, agents: Iterable[AgentState], grace_s: float) -> int:
    """How many agents were ordered to start there and have sent no heartbeat, without those that are overdue."""
    there = [other for other in agents if other.sandbox == sandbox]
    young = [other for other in there if other.phase == "starting" and not other.has_heartbeat]
    late = sum(now - other.started_at >= grace_s for other in young)
    return sum(other.phase == "restarting" for other in there) + len(young) - late
