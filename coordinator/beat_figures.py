"""Figures that heartbeats carry, collected anew for each scrape: ages are those of the moment that somebody looks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bus.messages import Heartbeat
from coordinator.sandbox_health import health_of
from coordinator.stream_figures import OTHER, Names

FORGET_S = 900.0
"""Who was silent for so long is shown no more: a replica of a sandbox that was taken away."""
STATES = frozenset({
    "starting", "restoring", "live", "finished", "draining",
    "waiting", "restarting", "backoff", "quarantined", "drained", "external",
})  # fmt: skip
"""What heartbeats and the watchdog call an agent's state; a label for each."""
MIRROR_STATES = frozenset({"waiting", "catching-up", "live", "failing", "diverged", "draining"})
STANDBY_S = 5.0
"""A newcomer stands by for a moment before it leads; that is not shown for longer than this."""
MEBIBYTE = 1 << 20


class BeatFigures(Collector):
    """Keeps everybody's newest heartbeat. Scrapes come from another thread: each works on copies."""

    def __init__(self, registry: CollectorRegistry, names: Names, clock: Callable[[], float] = time.monotonic) -> None:
        self._names, self._clock = names, clock
        self._beats: dict[tuple[str, str], tuple[float, Heartbeat]] = {}
        self._heard = Counter(
            "signalmesh_heartbeats", "Heartbeats heard, by who beats.", ["agent", "role"], registry=registry
        )
        self._unreadable = Counter(
            "signalmesh_unreadable_heartbeats", "Heartbeats that could not be read.", registry=registry
        )
        registry.register(self)

    def take(self, beat: Heartbeat) -> None:
        """A heartbeat was heard just now."""
        name = self._names.label(beat.agent)
        self._heard.labels(name, beat.role).inc()
        if name == OTHER:
            return
        # One name can have two watchdogs that stand by, or a zombie beside its successor: the newest epoch counts.
        known = self._beats.get((beat.role, name))
        if known is None or beat.epoch >= known[1].epoch or self._clock() - known[0] > 1.0:
            self._beats[beat.role, name] = (self._clock(), beat)

    def take_unreadable(self) -> None:
        """What came as a heartbeat was none."""
        self._unreadable.inc()

    def describe(self) -> list[Metric]:
        return []  # else registering would collect, and every name is ours anyway

    def collect(self) -> Iterator[Metric]:
        time_s = self._clock()
        beats = {
            who: entry
            for who, entry in dict(self._beats).items()
            if time_s - entry[0] <= (STANDBY_S if entry[1].status == "standby" else FORGET_S)
        }
        age = _gauge("signalmesh_heartbeat_age_seconds", "Since the newest heartbeat was heard.", "agent", "role")
        for (role, name), (heard_at, _) in beats.items():
            age.add_metric([name, role], max(0.0, time_s - heard_at))
        yield age
        yield from self._agents({name: beat for (role, name), (_, beat) in beats.items() if role == "agent"})
        yield from self._sandboxes({name: beat for (role, name), (_, beat) in beats.items() if role == "sandbox"})
        yield from self._watchdogs([beat for (role, _), (_, beat) in beats.items() if role == "watchdog"])
        yield from self._mirror([beat for (role, _), (_, beat) in beats.items() if role == "mirror"])

    def _agents(self, agents: dict[str, Heartbeat]) -> Iterator[Metric]:
        lag = _gauge("signalmesh_agent_lag_messages", "Inputs in the stream that the agent has not handled.", "agent")
        outputs = _counter("signalmesh_agent_outputs", "Messages published since the agent's first start.")
        poison = _counter("signalmesh_agent_poison", "Inputs that it could not read, since its first start.")
        skipped = _counter("signalmesh_agent_skipped", "Events lost to a fault of a handler, since its first start.")
        cpu = _counter("signalmesh_agent_cpu_seconds", "Processor time that its process has used.")
        memory = _gauge("signalmesh_agent_resident_memory_bytes", "Physical memory of its process.", "agent")
        snapshot = _gauge(
            "signalmesh_snapshot_seconds", "From taking the newest snapshot to its being stored.", "agent"
        )
        place = _gauge("signalmesh_agent_sandbox", "1 for the sandbox that it runs in.", "agent", "sandbox")
        for name, beat in agents.items():
            lag.add_metric([name], beat.lag)
            outputs.add_metric([name], beat.outputs)
            poison.add_metric([name], beat.poison)
            skipped.add_metric([name], beat.skipped)
            place.add_metric([name, self._names.label(beat.sandbox) if beat.sandbox else ""], 1)
            if beat.cpu_s is not None:
                cpu.add_metric([name], beat.cpu_s)
            if beat.rss_mb is not None:
                memory.add_metric([name], beat.rss_mb * MEBIBYTE)
            if beat.snapshot_ms is not None:
                snapshot.add_metric([name], beat.snapshot_ms / 1000)
        yield from (lag, outputs, poison, skipped, cpu, memory, snapshot, place)
        states = {name: beat.status for name, beat in agents.items()}
        watchdog = self._leader()
        phases = (watchdog.phases if watchdog else None) or {}
        states |= {name: phase for name, phase in phases.items() if self._names.label(name) != OTHER}
        state = _gauge("signalmesh_agent_state", "1 for the state that the agent is in.", "agent", "state")
        for name, word in states.items():
            state.add_metric([name, word if word in STATES else OTHER], 1)
        yield state

    def _leader(self) -> Heartbeat | None:
        leading = [
            beat for (role, _), (_, beat) in dict(self._beats).items() if role == "watchdog" and beat.status == "live"
        ]
        return max(leading, key=lambda beat: beat.epoch, default=None)

    def _sandboxes(self, hosts: dict[str, Heartbeat]) -> Iterator[Metric]:
        agents = _gauge("signalmesh_sandbox_agents", "Agent processes that run in the sandbox.", "sandbox")
        uptime = _gauge("signalmesh_sandbox_uptime_seconds", "Since the sandbox's host was started.", "sandbox")
        for name, beat in hosts.items():
            agents.add_metric([name], sum(child.exit_code is None for child in beat.inventory or ()))
            uptime.add_metric([name], beat.uptime_s or 0.0)
        yield from (agents, uptime)
        yield from self._health(hosts)

    def _health(self, hosts: dict[str, Heartbeat]) -> Iterator[Metric]:
        processes = _gauge("signalmesh_sandbox_processes", "The host and all that descends from it.", "sandbox")
        cpu = _counter("signalmesh_sandbox_cpu_seconds", "Processor time that these have used.", "sandbox")
        memory = _gauge("signalmesh_sandbox_resident_memory_bytes", "Physical memory of these.", "sandbox")
        network = _counter(
            "signalmesh_sandbox_network_bytes", "Through a network that is the sandbox's own.", "sandbox", "direction"
        )
        available = _gauge(
            "signalmesh_sandbox_availability_ratio", "Time alive of the time since it was first heard.", "sandbox"
        )
        price = _gauge("signalmesh_sandbox_price_dollars_per_hour", "As configured.", "sandbox")
        cost = _gauge("signalmesh_sandbox_cost_dollars", "The price times the uptime of its host.", "sandbox")
        usages = {name: beat.usage for name, beat in hosts.items()}
        leader = self._leader()
        accounts = (leader.accounts if leader else None) or {}
        for name, beat in hosts.items():
            health = health_of(beat, accounts.get(name), usages)
            for family, value in (
                (processes, health.processes),
                (cpu, health.cpu_s),
                (memory, None if health.rss_mb is None else health.rss_mb * MEBIBYTE),
                (available, health.availability),
                (price, health.price_per_hour),
                (cost, health.cost),
            ):
                if value is not None:
                    family.add_metric([name], value)
            for direction, count in (("in", health.rx_bytes), ("out", health.tx_bytes)):
                if count is not None:
                    network.add_metric([name, direction], count)
        yield from (processes, cpu, memory, network, available, price, cost)

    def _watchdogs(self, beats: list[Heartbeat]) -> Iterator[Metric]:
        term = _gauge("signalmesh_watchdog_term", "The leading watchdog's term: the sequence of its claim.")
        leader = self._leader()
        if leader is not None:
            term.add_metric([], leader.epoch)
        standby = _gauge("signalmesh_watchdog_standby", "1 if a watchdog was heard that stands by.")
        standby.add_metric([], any(beat.status == "standby" for beat in beats))
        yield from (term, standby)

    def _mirror(self, beats: list[Heartbeat]) -> Iterator[Metric]:
        lag = _gauge("signalmesh_mirror_lag_messages", "Rows that the mirror's file does not hold yet.")
        behind = _gauge("signalmesh_mirror_lag_seconds", "Age of the oldest row that was read and is not in the file.")
        state = _gauge("signalmesh_mirror_state", "1 for the state that the mirror is in.", "state")
        for beat in beats:
            lag.add_metric([], beat.lag)
            behind.add_metric([], (beat.behind_ms or 0) / 1000)
            state.add_metric([beat.status if beat.status in MIRROR_STATES else OTHER], 1)
        yield from (lag, behind, state)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=labels)


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, labels=labels or ("agent",))
