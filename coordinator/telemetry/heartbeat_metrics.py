"""Metrics from heartbeats, collected for each scrape.

Series from a heartbeat end RECENT_HEARTBEAT_S after it. The age of the heartbeat itself keeps growing for each process
that must be there, so that its silence is noticed: each agent of the swarm, the roles, and of each of its sandboxes the
host with the newest heartbeat. Any other age series ends, such as that of a replica that was scaled away.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bus.messages import Heartbeat, failed_sandboxes_of
from coordinator.sandboxes.health import availability_of, health_of
from coordinator.telemetry.labels import OTHER, Names

RECENT_HEARTBEAT_S = 10.0
"""A process that was silent for longer counts as gone; its last values are not current."""
FORGET_S = 60.0
"""How long the age of a heartbeat is shown for a process that need not be there, such as a replaced host."""
STATES = frozenset({
    "starting", "restoring", "live", "finished", "draining",
    "waiting", "restarting", "backoff", "quarantined", "drained", "external",
})  # fmt: skip
"""The states of an agent in heartbeats and in the watchdog's phases; each is a label value."""
MIRROR_STATES = frozenset({"waiting", "catching-up", "live", "failing", "diverged", "draining"})
STANDBY_S = 5.0
"""A new watchdog is a standby for a moment before it leads; that is shown no longer than this."""
MEBIBYTE = 1 << 20


class HeartbeatMetrics(Collector):
    """Keeps the newest heartbeat of each process. Scrapes come from another thread: each works on copies."""

    def __init__(self, registry: CollectorRegistry, names: Names, clock: Callable[[], float] = time.monotonic) -> None:
        self._names, self._clock = names, clock
        self._heartbeats: dict[tuple[str, str], tuple[float, Heartbeat]] = {}
        self._received = Counter(
            "signalmesh_heartbeats", "Heartbeats received, by agent and role.", ["agent", "role"], registry=registry
        )
        self._unreadable = Counter(
            "signalmesh_unreadable_heartbeats", "Heartbeats that could not be read.", registry=registry
        )
        registry.register(self)

    def take(self, heartbeat: Heartbeat) -> None:
        """Record a heartbeat that was received just now."""
        name = self._names.label(heartbeat.agent)
        self._received.labels(name, heartbeat.role).inc()
        if name == OTHER:
            return
        # Two standby watchdogs may share a name, or a zombie and its successor: the newest epoch counts.
        known = self._heartbeats.get((heartbeat.role, name))
        if known is None or heartbeat.epoch >= known[1].epoch or self._clock() - known[0] > 1.0:
            self._heartbeats[heartbeat.role, name] = (self._clock(), heartbeat)

    def take_unreadable(self) -> None:
        """Count a heartbeat that could not be decoded."""
        self._unreadable.inc()

    def describe(self) -> list[Metric]:
        return []  # else registering would collect

    def collect(self) -> Iterator[Metric]:
        time_s = self._clock()
        heartbeats = dict(self._heartbeats)
        served = _newest_hosts(heartbeats)
        for key, (received_at, heartbeat) in list(heartbeats.items()):
            if not self._is_missed(heartbeat, served) and time_s - received_at > _retention_s(heartbeat):
                del heartbeats[key]
        received = [
            heartbeat for received_at, heartbeat in heartbeats.values() if time_s - received_at <= RECENT_HEARTBEAT_S
        ]
        leader = _leader(received)
        age = _gauge("signalmesh_heartbeat_age_seconds", "Seconds since the newest heartbeat.", "agent", "role")
        for (role, name), (received_at, _) in heartbeats.items():
            age.add_metric([name, role], max(0.0, time_s - received_at))
        yield age
        yield from self._agents([heartbeat for heartbeat in received if heartbeat.role == "agent"], leader)
        yield from self._sandboxes([heartbeat for heartbeat in received if heartbeat.role == "sandbox"], leader)
        yield self._availability([name for role, name in heartbeats if role == "sandbox"], leader)
        yield from self._watchdogs([heartbeat for heartbeat in received if heartbeat.role == "watchdog"], leader)
        yield from self._mirror([heartbeat for heartbeat in received if heartbeat.role == "mirror"])
        yield self._failed(received)

    def _is_missed(self, heartbeat: Heartbeat, served: Mapping[str, str]) -> bool:
        """Whether the silence of this process must be noticed, however long it lasts."""
        if heartbeat.status == "standby":
            return False
        if heartbeat.role != "sandbox":
            return self._is_expected(heartbeat.agent)
        sandbox = heartbeat.group or heartbeat.agent
        return self._is_expected(sandbox) and served[sandbox] == heartbeat.agent

    def _is_expected(self, name: str) -> bool:
        return name in self._names.known and name not in self._names.removed

    def _agents(self, agents: list[Heartbeat], leader: Heartbeat | None) -> Iterator[Metric]:
        lag = _gauge("signalmesh_agent_lag_messages", "Inputs in the stream that the agent has not handled.", "agent")
        outputs = _counter("signalmesh_agent_outputs", "Messages published since the agent's first start.")
        poison = _counter("signalmesh_agent_poison", "Inputs that the agent could not decode, since its first start.")
        skipped = _counter(
            "signalmesh_agent_skipped", "Events skipped because a handler failed, since its first start."
        )
        cpu = _counter("signalmesh_agent_cpu_seconds", "Processor time of the agent's process.")
        memory = _gauge("signalmesh_agent_resident_memory_bytes", "Physical memory of the agent's process.", "agent")
        snapshot = _gauge("signalmesh_snapshot_seconds", "From taking the newest snapshot to storing it.", "agent")
        sandbox = _gauge("signalmesh_agent_sandbox", "1 for the sandbox that the agent runs in.", "agent", "sandbox")
        for heartbeat in agents:
            name = heartbeat.agent
            lag.add_metric([name], heartbeat.lag)
            outputs.add_metric([name], heartbeat.outputs)
            poison.add_metric([name], heartbeat.poison)
            skipped.add_metric([name], heartbeat.skipped)
            sandbox.add_metric([name, self._names.label(heartbeat.sandbox) if heartbeat.sandbox else ""], 1)
            if heartbeat.cpu_s is not None:
                cpu.add_metric([name], heartbeat.cpu_s)
            if heartbeat.rss_mb is not None:
                memory.add_metric([name], heartbeat.rss_mb * MEBIBYTE)
            if heartbeat.snapshot_ms is not None:
                snapshot.add_metric([name], heartbeat.snapshot_ms / 1000)
        yield from (lag, outputs, poison, skipped, cpu, memory, snapshot, sandbox)
        states = {heartbeat.agent: heartbeat.status for heartbeat in agents}
        phases = (leader.phases if leader else None) or {}
        states |= {name: phase for name, phase in phases.items() if self._names.label(name) != OTHER}
        state = _gauge("signalmesh_agent_state", "1 for the state of the agent.", "agent", "state")
        for name, status in states.items():
            state.add_metric([name, status if status in STATES else OTHER], 1)
        yield state

    def _sandboxes(self, hosts: list[Heartbeat], leader: Heartbeat | None) -> Iterator[Metric]:
        agents = _gauge("signalmesh_sandbox_agents", "Agent processes in the sandbox.", "sandbox")
        uptime = _gauge(
            "signalmesh_sandbox_uptime_seconds", "Seconds since the start of the sandbox's host.", "sandbox"
        )
        for heartbeat in hosts:
            agents.add_metric([heartbeat.agent], sum(child.exit_code is None for child in heartbeat.inventory or ()))
            uptime.add_metric([heartbeat.agent], heartbeat.uptime_s or 0.0)
        yield from (agents, uptime)
        yield from self._health(hosts, leader)

    def _health(self, hosts: list[Heartbeat], leader: Heartbeat | None) -> Iterator[Metric]:
        processes = _gauge("signalmesh_sandbox_processes", "The sandbox host and its descendants.", "sandbox")
        cpu = _counter("signalmesh_sandbox_cpu_seconds", "Processor time of these processes.", "sandbox")
        resident = _gauge(
            "signalmesh_sandbox_resident_memory_bytes",
            "Physical memory of these, shared pages counted for each (RSS).",
            "sandbox",
        )
        memory = _gauge(
            "signalmesh_sandbox_memory_bytes",
            "Physical memory of these, shared pages divided among them (PSS).",
            "sandbox",
        )
        network = _counter(
            "signalmesh_sandbox_network_bytes", "Bytes through the sandbox's own network.", "sandbox", "direction"
        )
        price = _gauge("signalmesh_sandbox_price_dollars_per_hour", "The configured price.", "sandbox")
        cost = _gauge("signalmesh_sandbox_cost_dollars", "Price times age of the sandbox.", "sandbox")
        usages = {heartbeat.agent: heartbeat.usage for heartbeat in hosts}
        accounts = (leader.accounts if leader else None) or {}
        for heartbeat in hosts:
            name = heartbeat.agent
            health = health_of(heartbeat, accounts.get(name), usages)
            for family, value in (
                (processes, health.processes),
                (cpu, health.cpu_s),
                (resident, None if health.rss_mb is None else health.rss_mb * MEBIBYTE),
                (memory, None if health.pss_mb is None else health.pss_mb * MEBIBYTE),
                (price, health.price_per_hour),
                (cost, health.cost),
            ):
                if value is not None:
                    family.add_metric([name], value)
            for direction, count in (("in", health.rx_bytes), ("out", health.tx_bytes)):
                if count is not None:
                    network.add_metric([name, direction], count)
        yield from (processes, cpu, resident, memory, network, price, cost)

    def _availability(self, hosts: list[str], leader: Heartbeat | None) -> Metric:
        """The watchdog reports it, not the host: so there is a value for a dead host, too."""
        ratio = _gauge(
            "signalmesh_sandbox_availability_ratio",
            "Share of the time since its first heartbeat in which it was alive.",
            "sandbox",
        )
        accounts = (leader.accounts if leader else None) or {}
        for name in hosts:
            if (share := availability_of(accounts.get(name))) is not None:
                ratio.add_metric([name], share)
        return ratio

    def _failed(self, received: list[Heartbeat]) -> Metric:
        """For sandboxes without a host. The series ends when it is fixed, or without heartbeats of the provider."""
        failed = _gauge(
            "signalmesh_sandbox_failed",
            "1 for a sandbox that its provider cannot create until the cause is fixed.",
            "sandbox",
        )
        names = {self._names.label(name) for heartbeat in received for name in failed_sandboxes_of(heartbeat)}
        for name in sorted(names):  # several unknown names share a label
            failed.add_metric([name], 1)
        return failed

    def _watchdogs(self, heartbeats: list[Heartbeat], leader: Heartbeat | None) -> Iterator[Metric]:
        term = _gauge("signalmesh_watchdog_term", "Term of the leading watchdog: the sequence of its claim.")
        if leader is not None:
            term.add_metric([], leader.epoch)
        standby = _gauge("signalmesh_watchdog_standby", "1 if there is a standby watchdog.")
        standby.add_metric([], any(heartbeat.status == "standby" for heartbeat in heartbeats))
        yield from (term, standby)

    def _mirror(self, heartbeats: list[Heartbeat]) -> Iterator[Metric]:
        lag = _gauge("signalmesh_mirror_lag_messages", "Rows that are not in the mirror's file yet.")
        age = _gauge("signalmesh_mirror_lag_seconds", "Age of the oldest row that was read and is not in the file.")
        state = _gauge("signalmesh_mirror_state", "1 for the state of the mirror.", "state")
        for heartbeat in heartbeats:
            lag.add_metric([], heartbeat.lag)
            age.add_metric([], (heartbeat.lag_ms or 0) / 1000)
            state.add_metric([heartbeat.status if heartbeat.status in MIRROR_STATES else OTHER], 1)
        yield from (lag, age, state)


def _newest_hosts(heartbeats: Mapping[tuple[str, str], tuple[float, Heartbeat]]) -> dict[str, str]:
    """Sandbox -> its host with the newest heartbeat."""
    hosts = [
        (at, heartbeat.group or heartbeat.agent, heartbeat.agent)
        for at, heartbeat in heartbeats.values()
        if heartbeat.role == "sandbox"
    ]
    return {sandbox: name for _, sandbox, name in sorted(hosts)}


def _retention_s(heartbeat: Heartbeat) -> float:
    """Seconds for which the age of this heartbeat is shown, if the process need not be there."""
    if heartbeat.status == "standby":
        return STANDBY_S
    return RECENT_HEARTBEAT_S if heartbeat.status == "draining" else FORGET_S


def _leader(heartbeats: Iterable[Heartbeat]) -> Heartbeat | None:
    leading = (heartbeat for heartbeat in heartbeats if heartbeat.role == "watchdog" and heartbeat.status == "live")
    return max(leading, key=lambda heartbeat: heartbeat.epoch, default=None)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=labels)


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, labels=labels or ("agent",))
