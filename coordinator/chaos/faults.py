"""Each kind of fault: how it is injected, and which messages must be received until it counts as recovered."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import msgspec
import orjson

from bus.errors import BusError, MeshError
from bus.nats.bus import NatsBus
from bus.utils.processes import wait_pid_exit
from coordinator.chaos.plan import EVERY_AGENT, POLL_INTERVAL_S, FaultRun, eventually
from coordinator.chaos.processes import Member, Processes, TargetUnavailable
from coordinator.doctor.mirror_checks import check_mirror_position
from coordinator.monitor.observer import Observer
from coordinator.runner.proxy_role import NAME as PROXY
from coordinator.runner.proxy_role import Affected, BadNetwork
from coordinator.runner.run_record import Recorded

__all__ = ["FaultInjector"]

DELAY_S = 0.1
"""The delay of a slow connection, each way."""
REPORT_S = 1.0
"""How long after the recovery the report of a death is waited for."""
HEARTBEATS_IN_FLIGHT = 2
"""Heartbeats sent before a connection was cut that may be received after it."""
WATCHDOG = "watchdog"


class FaultInjector:
    """Injects faults into the swarm on `bus`.

    Every method of a kind raises TargetUnavailable if there is no process to hit, and TimeoutError if the swarm has not
    recovered in time.
    """

    def __init__(
        self,
        bus: NatsBus,
        observer: Observer,
        processes: Processes,
        agents: Iterable[str],
        state_dir: Path,
        timeout_s: float,
    ) -> None:
        self._bus, self._observer, self._processes = bus, observer, processes
        self._agents, self._state_dir, self._timeout_s = tuple(agents), state_dir, timeout_s
        self._kinds: dict[str, Callable[[FaultRun], Awaitable[None]]] = {
            "kill-agent": self._kill_agents,
            "kill-agents": self._kill_agents,
            "stop-agent": self._stop_agent,
            "pause-agent": self._pause_agent,
            "kill-host": self._kill_host,
            "freeze-sandbox": self._freeze_sandbox,
            "kill-watchdog": self._kill_watchdog,
            "stop-watchdog": self._stop_watchdog,
            "kill-standby": self._kill_standby,
            "kill-mirror": self._kill_child,
            "stop-mirror": self._stop_mirror,
            "kill-nats": self._kill_nats,
            "stop-nats": self._stop_nats,
            "kill-proxy": self._kill_child,
            "reset": self._break_links,
            "blackhole": self._break_links,
            "delay": self._delay_links,
        }

    async def inject(self, fault_run: FaultRun) -> None:
        """Inject the fault and wait for the recovery."""
        await self._kinds[fault_run.fault.kind](fault_run)

    # -- agents

    def _take(self, agents: Iterable[str]) -> dict[str, tuple[Member, int]]:
        """Agent -> its process and epoch, of those that run on this machine under a host of this run."""
        found = {}
        for name in agents:
            child = self._observer.inventory(name)
            if child is not None:
                found[name] = (self._processes.open_agent(child), child.epoch)
        if not found:
            raise TargetUnavailable(f"no process of {', '.join(agents)} is in a host's inventory now")
        return found

    async def _back(self, fault_run: FaultRun, epochs: dict[str, int]) -> None:
        """Wait until all are live in newer epochs; the time is that of the last `ready` event."""
        observer, started_at = self._observer, fault_run.started_at

        def back() -> bool:
            return all(
                observer.lives(n, started_at) and observer.agents[n].heartbeat.epoch > e for n, e in epochs.items()
            )

        await observer.until(back, self._timeout_s)
        ready = [
            observer.event_at("ready", name, started_at, above=epoch + 1) or observer.agents[name].at
            for name, epoch in epochs.items()
        ]
        fault_run.recovered = max(fault_run.recovered or 0.0, *ready)
        dead = [observer.event_at("declared_dead", name, started_at, epoch=epoch) for name, epoch in epochs.items()]
        if all(at is not None for at in dead):
            fault_run.noticed(max(at for at in dead if at is not None))

    async def _wait_alive(self, fault_run: FaultRun, names: Iterable[str], since: float) -> None:
        """Wait for a live heartbeat of each that was sent after `since`."""
        observer = self._observer
        before = {name: observer.agents[name].heartbeat.sequence for name in names if name in observer.agents}
        epochs = {name: observer.agents[name].heartbeat.epoch for name in before}
        received: dict[str, float] = {}

        def all_alive() -> bool:
            for name, sequence in before.items():
                heartbeat = observer.agents[name]
                fresh = (
                    heartbeat.heartbeat.epoch > epochs[name]
                    or heartbeat.heartbeat.sequence > sequence + HEARTBEATS_IN_FLIGHT
                )
                if name not in received and fresh and observer.lives(name, since):
                    received[name] = heartbeat.at
            return len(received) == len(before)

        await observer.until(all_alive, self._timeout_s)
        fault_run.recovered = max(received.values(), default=time.monotonic())

    async def _kill_agents(self, fault_run: FaultRun) -> None:
        taken = self._take(fault_run.fault.targets)
        fault_run.begin()
        for member, _ in taken.values():
            member.send(signal.SIGKILL)
        fault_run.injected.set()
        await self._back(fault_run, {name: epoch for name, (_, epoch) in taken.items()})
        self._processes.release(*(member for member, _ in taken.values()))

    async def _stop_agent(self, fault_run: FaultRun) -> None:
        [(name, (member, epoch))] = self._take(fault_run.fault.targets).items()
        fault_run.begin()
        member.send(signal.SIGSTOP)
        fault_run.injected.set()
        await self._back(fault_run, {name: epoch})
        self._processes.release(member)  # if it still exists, it continues and is fenced

    async def _pause_agent(self, fault_run: FaultRun) -> None:
        [(name, (member, _))] = self._take(fault_run.fault.targets).items()
        fault_run.begin()
        member.send(signal.SIGSTOP)
        fault_run.injected.set()
        await asyncio.sleep(fault_run.fault.fault_s)
        self._processes.release(member)
        await self._wait_alive(fault_run, [name], time.monotonic())
        fault_run.noticed(self._observer.event_at("suspected", name, fault_run.started_at))

    # -- sandboxes

    def _living_in(self, sandbox: str) -> list[str]:
        found = [name for name, heartbeat in self._observer.agents.items() if heartbeat.heartbeat.sandbox == sandbox]
        return [name for name in found if self._observer.inventory(name) is not None]

    async def _kill_host(self, fault_run: FaultRun) -> None:
        [sandbox] = fault_run.fault.targets
        host = self._processes.open_child(self._processes.child("sandbox", name=sandbox))
        agents = {name: self._observer.agents[name].heartbeat.epoch for name in self._living_in(sandbox)}
        fault_run.begin()
        host.send(signal.SIGKILL)
        fault_run.injected.set()
        await self._host_back(fault_run, sandbox, host.pid)
        if agents:
            await self._back(fault_run, agents)
        fault_run.noticed(self._observer.event_at("exited", sandbox, fault_run.started_at))
        self._processes.release(host)

    async def _host_back(self, fault_run: FaultRun, sandbox: str, other_than: int | None) -> None:
        def back() -> float | None:
            heartbeat = self._observer.hosts.get(sandbox)
            good = (
                heartbeat is not None and heartbeat.heartbeat.status == "live" and heartbeat.at > fault_run.started_at
            )
            return heartbeat.at if good and heartbeat is not None and heartbeat.heartbeat.pid != other_than else None

        fault_run.recovered = max(fault_run.recovered or 0.0, await self._observer.until(back, self._timeout_s))

    async def _freeze_sandbox(self, fault_run: FaultRun) -> None:
        """The resumed processes have unanswered inputs and live successors: they must end."""
        [sandbox] = fault_run.fault.targets
        host = self._processes.open_child(self._processes.child("sandbox", name=sandbox))
        agents = self._living_in(sandbox)
        taken = self._take(agents) if agents else {}
        fault_run.begin()
        for member in (host, *(member for member, _ in taken.values())):
            member.send(signal.SIGSTOP)
        fault_run.injected.set()
        epochs = {name: epoch for name, (_, epoch) in taken.items()}
        if epochs:
            await self._back(fault_run, epochs)
        else:
            await asyncio.sleep(fault_run.fault.fault_s)
        resumed = time.monotonic()
        ends = [asyncio.create_task(wait_pid_exit(member.pid)) for member, _ in taken.values()]
        self._processes.release(*(member for member, _ in taken.values()), host)
        async with asyncio.timeout(self._timeout_s):
            await asyncio.gather(*ends)
        after = FaultRun(fault_run.fault, started_at=resumed)
        await self._host_back(after, sandbox, None)
        if not epochs:
            fault_run.recovered = after.recovered

    # -- the watchdogs

    def _leader(self) -> tuple[int, int]:
        leader = self._observer.leader
        if leader is None:
            raise TargetUnavailable("there is no heartbeat of a leading watchdog")
        return leader.heartbeat.pid, leader.heartbeat.epoch

    async def _newer_term(self, fault_run: FaultRun, term: int) -> None:
        def led() -> float | None:
            leader = self._observer.leader
            return leader.at if leader is not None and leader.heartbeat.epoch > term else None

        fault_run.recovered = await self._observer.until(led, self._timeout_s)
        sequence, claimed_at = self._observer.claims.get(WATCHDOG, (0, 0.0))
        fault_run.noticed(claimed_at if sequence > term and claimed_at >= fault_run.started_at else None)
        fault_run.noticed(self._observer.alert_at("watchdog_died", fault_run.started_at))

    async def _kill_watchdog(self, fault_run: FaultRun) -> None:
        pid, term = self._leader()
        member = self._processes.open_child(self._processes.child(WATCHDOG, pid=pid))
        fault_run.begin()
        member.send(signal.SIGKILL)
        fault_run.injected.set()
        await self._newer_term(fault_run, term)
        self._processes.release(member)

    async def _stop_watchdog(self, fault_run: FaultRun) -> None:
        pid, term = self._leader()
        member = self._processes.open_child(self._processes.child(WATCHDOG, pid=pid))
        another = any(child.kind == WATCHDOG and child.pid != pid for child in self._processes.children)
        fault_run.begin()
        member.send(signal.SIGSTOP)
        fault_run.injected.set()
        if another:
            await self._newer_term(fault_run, term)
            self._processes.release(member)
            return
        await asyncio.sleep(fault_run.fault.fault_s)
        self._processes.release(member)
        since = time.monotonic()

        def leads() -> float | None:
            leader = self._observer.leader
            return leader.at if leader is not None and leader.at > since else None

        fault_run.recovered = await self._observer.until(leads, self._timeout_s)

    async def _kill_standby(self, fault_run: FaultRun) -> None:
        pid, _ = self._leader()
        others = [child for child in self._processes.children if child.kind == WATCHDOG and child.pid != pid]
        if not others:
            raise TargetUnavailable("there is no standby watchdog")
        await self._kill_recorded(fault_run, WATCHDOG, others[0].name)

    # -- other children of `up`

    async def _kill_child(self, fault_run: FaultRun) -> None:
        await self._kill_recorded(fault_run, fault_run.fault.targets[0], None)

    async def _kill_recorded(self, fault_run: FaultRun, kind: str, name: str | None) -> None:
        """SIGKILL; recovered when the record names another process, with a heartbeat if the former one had any."""
        child = self._processes.child(kind, name=name)
        member = self._processes.open_child(child)
        heartbeats = child.pid in self._observer.by_pid
        fault_run.begin()
        member.send(signal.SIGKILL)
        fault_run.injected.set()

        def back() -> float | None:
            now = self._successor(child)
            if now is None or not heartbeats:
                return None if now is None else time.monotonic()
            heartbeat = self._observer.by_pid.get(now)
            return None if heartbeat is None else heartbeat.at

        fault_run.recovered = await eventually(back, self._timeout_s)
        self._processes.release(member)
        if kind == "mirror":
            await self._mirrored(fault_run)
        elif kind == PROXY:
            await self._wait_alive(fault_run, self._agents, fault_run.recovered)
        with contextlib.suppress(TimeoutError):  # `up` may have started it before its report of the death was stored
            died = lambda: self._observer.alert_at(f"{kind}_died", fault_run.started_at)  # noqa: E731
            fault_run.noticed(await self._observer.until(died, REPORT_S))

    def _successor(self, before: Recorded) -> int | None:
        for child in self._processes.children:
            if (child.kind, child.name) == (before.kind, before.name) and child.pid != before.pid and child.alive():
                return child.pid
        return None

    async def _stop_mirror(self, fault_run: FaultRun) -> None:
        member = self._processes.open_child(self._processes.child("mirror"))
        fault_run.begin()
        member.send(signal.SIGSTOP)
        fault_run.injected.set()
        await asyncio.sleep(fault_run.fault.fault_s)
        self._processes.release(member)
        await self._mirrored(fault_run)

    async def _mirrored(self, fault_run: FaultRun) -> None:
        """Wait until the mirror has what the stream had."""

        async def mirrored() -> bool:
            found = await check_mirror_position(self._bus, self._state_dir)
            return not found.skipped and found.level == "ok"

        async with asyncio.timeout(self._timeout_s):
            while not await mirrored():  # noqa: ASYNC110 - it has no event of its own
                await asyncio.sleep(POLL_INTERVAL_S)
        fault_run.recovered = time.monotonic()

    # -- the server

    async def _kill_nats(self, fault_run: FaultRun) -> None:
        child = self._processes.child("nats-server")
        member = self._processes.open_child(child)
        fault_run.begin()
        member.send(signal.SIGKILL)
        fault_run.injected.set()
        await self._observer.until(lambda: (self._observer.down_at or 0.0) > fault_run.started_at, self._timeout_s)
        fault_run.noticed(self._observer.down_at)
        await self._wait_alive(fault_run, self._agents, fault_run.started_at)
        await eventually(lambda: self._successor(child), self._timeout_s)
        self._processes.release(member)

    async def _stop_nats(self, fault_run: FaultRun) -> None:
        member = self._processes.open_child(self._processes.child("nats-server"))
        fault_run.begin()
        member.send(signal.SIGSTOP)
        fault_run.injected.set()
        await asyncio.sleep(fault_run.fault.fault_s)
        self._processes.release(member)
        since = time.monotonic()
        await self._wait_alive(fault_run, self._agents, since)
        down_at = self._observer.down_at
        fault_run.noticed(down_at if down_at is not None and down_at > fault_run.started_at else None)

    # -- the network

    def _linked(self, fault_run: FaultRun) -> tuple[str, ...]:
        return self._agents if fault_run.fault.targets == (EVERY_AGENT,) else fault_run.fault.targets

    async def _request_proxy(self, command: str, network: BadNetwork) -> None:
        self._processes.child(PROXY)
        reply = orjson.loads(await self._bus.request(self._bus.subjects.control(PROXY, command), orjson.dumps(network)))
        if "error" in reply:
            raise MeshError(reply["error"])
        if not msgspec.convert(reply, Affected).connections:
            raise TargetUnavailable(f"no connection of {', '.join(network.agents)} goes through the proxy now")

    async def _break_links(self, fault_run: FaultRun) -> None:
        agents = self._linked(fault_run)
        fault_run.begin()
        try:
            await self._request_proxy(fault_run.fault.kind, BadNetwork(agents=agents))
        except BusError as error:  # an overlapping fault may have hit the bus
            raise TargetUnavailable(f"the proxy did not answer: {error}") from None
        fault_run.injected.set()
        await self._wait_alive(fault_run, agents, fault_run.started_at)
        for name in agents:
            fault_run.noticed(self._observer.event_at("suspected", name, fault_run.started_at))
            fault_run.noticed(self._observer.event_at("declared_dead", name, fault_run.started_at))

    async def _delay_links(self, fault_run: FaultRun) -> None:
        agents, fault_s = self._linked(fault_run), fault_run.fault.fault_s
        fault_run.begin()
        try:
            await self._request_proxy("delay", BadNetwork(agents=agents, delay_s=DELAY_S, for_s=fault_s))
        except BusError as error:
            raise TargetUnavailable(f"the proxy did not answer: {error}") from None
        fault_run.injected.set()
        await asyncio.sleep(fault_s)
        await self._wait_alive(fault_run, agents, time.monotonic())
        for name in agents:
            fault_run.noticed(self._observer.event_at("suspected", name, fault_run.started_at))
