"""Each kind of fault: how it is done to a running swarm, and what must be heard until it counts as recovered."""

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
from coordinator.chaos.plan import EVERYBODY, LOOK_S, Happening, eventually
from coordinator.chaos.processes import Member, NotOurs, Processes
from coordinator.doctor.mirror_checks import check_mirror_position
from coordinator.monitor.observer import Observer
from coordinator.runner.proxy_role import NAME as PROXY
from coordinator.runner.proxy_role import Affected, BadNetwork
from coordinator.runner.run_record import Recorded

__all__ = ["Deeds"]

DELAY_S = 0.1
"""By how much a slow connection is slowed down, each way."""
TOLD_S = 1.0
"""A report of a death that has not come by so long after the recovery was lost."""
BEATS_UNDER_WAY = 2
"""Heartbeats sent before a connection was cut that may be heard after it."""
WATCHDOG = "watchdog"


class Deeds:
    """Does faults to the swarm on `bus`. Every method of a kind raises NotOurs where there is nobody to be hit, and
    TimeoutError where the swarm has not recovered in time.
    """

    def __init__(
        self,
        bus: NatsBus,
        observer: Observer,
        processes: Processes,
        agents: Iterable[str],
        state_dir: Path,
        patience_s: float,
    ) -> None:
        self._bus, self._observer, self._processes = bus, observer, processes
        self._agents, self._state_dir, self._patience_s = tuple(agents), state_dir, patience_s
        self._kinds: dict[str, Callable[[Happening], Awaitable[None]]] = {
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

    async def do(self, happening: Happening) -> None:
        """Do it and wait for the recovery."""
        await self._kinds[happening.fault.kind](happening)

    # -- agents

    def _take(self, agents: Iterable[str]) -> dict[str, tuple[Member, int]]:
        """Agent -> its process and epoch, of those that run on this machine under a host of this run."""
        found = {}
        for name in agents:
            child = self._observer.inventory(name)
            if child is not None:
                found[name] = (self._processes.hold_agent(child), child.epoch)
        if not found:
            raise NotOurs(f"no process of {', '.join(agents)} is in a host's inventory now")
        return found

    async def _back(self, happening: Happening, epochs: dict[str, int]) -> None:
        """Wait until all are live in newer epochs; the time is when the last of them was heard to be ready."""
        observer, began = self._observer, happening.began

        def back() -> bool:
            return all(observer.lives(n, began) and observer.agents[n].said.epoch > e for n, e in epochs.items())

        await observer.until(back, self._patience_s)
        ready = [
            observer.event_at("ready", name, began, above=epoch + 1) or observer.agents[name].at
            for name, epoch in epochs.items()
        ]
        happening.recovered = max(happening.recovered or 0.0, *ready)
        dead = [observer.event_at("declared_dead", name, began, epoch=epoch) for name, epoch in epochs.items()]
        if all(at is not None for at in dead):
            happening.noticed(max(at for at in dead if at is not None))

    async def _beating(self, happening: Happening, names: Iterable[str], since: float) -> None:
        """Wait until all are heard at work after `since`, by beats that cannot have been under way by then."""
        observer = self._observer
        before = {name: observer.agents[name].said.sequence for name in names if name in observer.agents}
        epochs = {name: observer.agents[name].said.epoch for name in before}
        heard: dict[str, float] = {}

        def beating() -> bool:
            for name, sequence in before.items():
                beat = observer.agents[name]
                fresh = beat.said.epoch > epochs[name] or beat.said.sequence > sequence + BEATS_UNDER_WAY
                if name not in heard and fresh and observer.lives(name, since):
                    heard[name] = beat.at
            return len(heard) == len(before)

        await observer.until(beating, self._patience_s)
        happening.recovered = max(heard.values(), default=time.monotonic())

    async def _kill_agents(self, happening: Happening) -> None:
        taken = self._take(happening.fault.targets)
        happening.begin()
        for member, _ in taken.values():
            member.send(signal.SIGKILL)
        happening.injected.set()
        await self._back(happening, {name: epoch for name, (_, epoch) in taken.items()})
        self._processes.release(*(member for member, _ in taken.values()))

    async def _stop_agent(self, happening: Happening) -> None:
        [(name, (member, epoch))] = self._take(happening.fault.targets).items()
        happening.begin()
        member.send(signal.SIGSTOP)
        happening.injected.set()
        await self._back(happening, {name: epoch})
        self._processes.release(member)  # if it is still there, it goes on and finds itself fenced

    async def _pause_agent(self, happening: Happening) -> None:
        [(name, (member, _))] = self._take(happening.fault.targets).items()
        happening.begin()
        member.send(signal.SIGSTOP)
        happening.injected.set()
        await asyncio.sleep(happening.fault.hold_s)
        self._processes.release(member)
        await self._beating(happening, [name], time.monotonic())
        happening.noticed(self._observer.event_at("suspected", name, happening.began))

    # -- sandboxes

    def _living_in(self, sandbox: str) -> list[str]:
        found = [name for name, beat in self._observer.agents.items() if beat.said.sandbox == sandbox]
        return [name for name in found if self._observer.inventory(name) is not None]

    async def _kill_host(self, happening: Happening) -> None:
        [sandbox] = happening.fault.targets
        host = self._processes.hold_child(self._processes.child("sandbox", name=sandbox))
        agents = {name: self._observer.agents[name].said.epoch for name in self._living_in(sandbox)}
        happening.begin()
        host.send(signal.SIGKILL)
        happening.injected.set()
        await self._host_back(happening, sandbox, host.pid)
        if agents:
            await self._back(happening, agents)
        happening.noticed(self._observer.event_at("exited", sandbox, happening.began))
        self._processes.release(host)

    async def _host_back(self, happening: Happening, sandbox: str, other_than: int | None) -> None:
        def back() -> float | None:
            beat = self._observer.hosts.get(sandbox)
            good = beat is not None and beat.said.status == "live" and beat.at > happening.began
            return beat.at if good and beat is not None and beat.said.pid != other_than else None

        happening.recovered = max(happening.recovered or 0.0, await self._observer.until(back, self._patience_s))

    async def _freeze_sandbox(self, happening: Happening) -> None:
        """The zombies wake with unanswered inputs when their successors are at work already; they must end."""
        [sandbox] = happening.fault.targets
        host = self._processes.hold_child(self._processes.child("sandbox", name=sandbox))
        agents = self._living_in(sandbox)
        taken = self._take(agents) if agents else {}
        happening.begin()
        for member in (host, *(member for member, _ in taken.values())):
            member.send(signal.SIGSTOP)
        happening.injected.set()
        epochs = {name: epoch for name, (_, epoch) in taken.items()}
        if epochs:
            await self._back(happening, epochs)
        else:
            await asyncio.sleep(happening.fault.hold_s)
        thawed = time.monotonic()
        ends = [asyncio.create_task(wait_pid_exit(member.pid)) for member, _ in taken.values()]
        self._processes.release(*(member for member, _ in taken.values()), host)
        async with asyncio.timeout(self._patience_s):
            await asyncio.gather(*ends)
        after = Happening(happening.fault, began=thawed)
        await self._host_back(after, sandbox, None)
        if not epochs:
            happening.recovered = after.recovered

    # -- the watchdogs

    def _leader(self) -> tuple[int, int]:
        leader = self._observer.leader
        if leader is None:
            raise NotOurs("no leading watchdog was heard")
        return leader.said.pid, leader.said.epoch

    async def _newer_term(self, happening: Happening, term: int) -> None:
        def led() -> float | None:
            leader = self._observer.leader
            return leader.at if leader is not None and leader.said.epoch > term else None

        happening.recovered = await self._observer.until(led, self._patience_s)
        sequence, claimed_at = self._observer.claims.get(WATCHDOG, (0, 0.0))
        happening.noticed(claimed_at if sequence > term and claimed_at >= happening.began else None)
        happening.noticed(self._observer.alert_at("watchdog_died", happening.began))

    async def _kill_watchdog(self, happening: Happening) -> None:
        pid, term = self._leader()
        member = self._processes.hold_child(self._processes.child(WATCHDOG, pid=pid))
        happening.begin()
        member.send(signal.SIGKILL)
        happening.injected.set()
        await self._newer_term(happening, term)
        self._processes.release(member)

    async def _stop_watchdog(self, happening: Happening) -> None:
        pid, term = self._leader()
        member = self._processes.hold_child(self._processes.child(WATCHDOG, pid=pid))
        another = any(child.kind == WATCHDOG and child.pid != pid for child in self._processes.children)
        happening.begin()
        member.send(signal.SIGSTOP)
        happening.injected.set()
        if another:
            await self._newer_term(happening, term)
            self._processes.release(member)
            return
        await asyncio.sleep(happening.fault.hold_s)
        self._processes.release(member)
        since = time.monotonic()

        def leads() -> float | None:
            leader = self._observer.leader
            return leader.at if leader is not None and leader.at > since else None

        happening.recovered = await self._observer.until(leads, self._patience_s)

    async def _kill_standby(self, happening: Happening) -> None:
        pid, _ = self._leader()
        others = [child for child in self._processes.children if child.kind == WATCHDOG and child.pid != pid]
        if not others:
            raise NotOurs("no watchdog stands by")
        await self._kill_recorded(happening, WATCHDOG, others[0].name)

    # -- other children of `up`

    async def _kill_child(self, happening: Happening) -> None:
        await self._kill_recorded(happening, happening.fault.targets[0], None)

    async def _kill_recorded(self, happening: Happening, kind: str, name: str | None) -> None:
        """SIGKILL; back when the record names another process, and it beats if the one before did."""
        child = self._processes.child(kind, name=name)
        member = self._processes.hold_child(child)
        beats = child.pid in self._observer.by_pid
        happening.begin()
        member.send(signal.SIGKILL)
        happening.injected.set()

        def back() -> float | None:
            now = self._successor(child)
            if now is None or not beats:
                return None if now is None else time.monotonic()
            beat = self._observer.by_pid.get(now)
            return None if beat is None else beat.at

        happening.recovered = await eventually(back, self._patience_s)
        self._processes.release(member)
        if kind == "mirror":
            await self._mirrored(happening)
        elif kind == PROXY:
            await self._beating(happening, self._agents, happening.recovered)
        with contextlib.suppress(TimeoutError):  # `up` may have started it before its report of the death was stored
            told = lambda: self._observer.alert_at(f"{kind}_died", happening.began)  # noqa: E731
            happening.noticed(await self._observer.until(told, TOLD_S))

    def _successor(self, before: Recorded) -> int | None:
        for child in self._processes.children:
            if (child.kind, child.name) == (before.kind, before.name) and child.pid != before.pid and child.alive():
                return child.pid
        return None

    async def _stop_mirror(self, happening: Happening) -> None:
        member = self._processes.hold_child(self._processes.child("mirror"))
        happening.begin()
        member.send(signal.SIGSTOP)
        happening.injected.set()
        await asyncio.sleep(happening.fault.hold_s)
        self._processes.release(member)
        await self._mirrored(happening)

    async def _mirrored(self, happening: Happening) -> None:
        """Wait until the mirror has what the stream had."""

        async def mirrored() -> bool:
            found = await check_mirror_position(self._bus, self._state_dir)
            return found.made and found.level == "ok"

        async with asyncio.timeout(self._patience_s):
            while not await mirrored():  # noqa: ASYNC110 - it has no event of its own
                await asyncio.sleep(LOOK_S)
        happening.recovered = time.monotonic()

    # -- the server

    async def _kill_nats(self, happening: Happening) -> None:
        child = self._processes.child("nats-server")
        member = self._processes.hold_child(child)
        happening.begin()
        member.send(signal.SIGKILL)
        happening.injected.set()
        await self._observer.until(lambda: (self._observer.down_at or 0.0) > happening.began, self._patience_s)
        happening.noticed(self._observer.down_at)
        await self._beating(happening, self._agents, happening.began)
        await eventually(lambda: self._successor(child), self._patience_s)
        self._processes.release(member)

    async def _stop_nats(self, happening: Happening) -> None:
        member = self._processes.hold_child(self._processes.child("nats-server"))
        happening.begin()
        member.send(signal.SIGSTOP)
        happening.injected.set()
        await asyncio.sleep(happening.fault.hold_s)
        self._processes.release(member)
        since = time.monotonic()
        await self._beating(happening, self._agents, since)
        down_at = self._observer.down_at
        happening.noticed(down_at if down_at is not None and down_at > happening.began else None)

    # -- the network

    def _linked(self, happening: Happening) -> tuple[str, ...]:
        return self._agents if happening.fault.targets == (EVERYBODY,) else happening.fault.targets

    async def _ask_proxy(self, verb: str, asked: BadNetwork) -> None:
        self._processes.child(PROXY)
        reply = orjson.loads(await self._bus.request(self._bus.subjects.control(PROXY, verb), orjson.dumps(asked)))
        if "error" in reply:
            raise MeshError(reply["error"])
        if not msgspec.convert(reply, Affected).connections:
            raise NotOurs(f"no connection of {', '.join(asked.agents)} goes through the proxy now")

    async def _break_links(self, happening: Happening) -> None:
        agents = self._linked(happening)
        happening.begin()
        try:
            await self._ask_proxy(happening.fault.kind, BadNetwork(agents=agents))
        except BusError as error:  # of an overlapping fault that ails the bus itself
            raise NotOurs(f"the proxy did not answer: {error}") from None
        happening.injected.set()
        await self._beating(happening, agents, happening.began)
        for name in agents:
            happening.noticed(self._observer.event_at("suspected", name, happening.began))
            happening.noticed(self._observer.event_at("declared_dead", name, happening.began))

    async def _delay_links(self, happening: Happening) -> None:
        agents, hold_s = self._linked(happening), happening.fault.hold_s
        happening.begin()
        try:
            await self._ask_proxy("delay", BadNetwork(agents=agents, delay_s=DELAY_S, for_s=hold_s))
        except BusError as error:
            raise NotOurs(f"the proxy did not answer: {error}") from None
        happening.injected.set()
        await asyncio.sleep(hold_s)
        await self._beating(happening, agents, time.monotonic())
        for name in agents:
            happening.noticed(self._observer.event_at("suspected", name, happening.began))
