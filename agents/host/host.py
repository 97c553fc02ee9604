"""The sandbox host: the only process that starts and ends agent processes in its sandbox.

It serves the commands spawn, kill, signal, check and probe over the bus and reports every exit at once. Its heartbeat
repeats the whole inventory, since a report can get lost. It decides nothing: every order carries the watchdog's term,
and an order with a lower term than the newest claimed one is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec
import orjson
import structlog

from agents.host.api_gateway import ApiGateway
from agents.host.forkserver import AgentProcess, ForkServer
from agents.host.probe import measure_memory, measure_usage, probe_sandbox
from agents.host.protocol import (
    DRAIN_GRACE_S,
    FIRST_HEARTBEAT_S,
    FIRST_HEARTBEATS,
    HEARTBEAT_S,
    KillOrder,
    SignalRequest,
    SpawnOrder,
)
from agents.runtime.process import Incarnation
from bus.durable.events import EventPublisher
from bus.durable.fencing import last_claim, new_agent_id
from bus.errors import BusError, MeshError, UsageError
from bus.interface import Bus, ReceivedMessage
from bus.messages import Child, Heartbeat, SandboxUsage, encode, now
from bus.messages import headers as h
from bus.messages.subjects import WATCHDOG
from bus.nats.credentials import Credentials, credentials_from, public_key_of
from bus.utils.aio import end_tasks
from bus.utils.processes import MACHINE, adopt_orphans, end_orphans

USAGE_S = 2.0
"""Between two measurements of usage; one costs some 30 microseconds for each process on the machine."""
MEMORY_S = 10.0
"""Between two measurements of shared memory, unless processes came or went; one costs 300 microseconds for each."""
KEEP_EXITS = 32
"""How many ended children the inventory still lists."""

log = structlog.get_logger("signalmesh.host")


@dataclass(slots=True)
class _Slot:
    child: AgentProcess
    order: SpawnOrder
    spawned_at: datetime = field(default_factory=now)
    exit_code: int | None = None

    def describe(self) -> Child:
        return Child(
            agent=self.order.spec.name,
            agent_id=self.order.agent_id,
            epoch=self.order.epoch,
            pid=self.child.pid,
            spawned_at=self.spawned_at,
            exit_code=self.exit_code,
            error=self.child.error,
            started=self.child.started,
        )


class Host:
    """Serves sandbox `name` over `bus`; its agents connect to `url`.

    `group` is the sandbox that agents are configured for, where several hosts of other names serve it together.
    """

    def __init__(
        self,
        bus: Bus,
        name: str,
        url: str,
        reports: EventPublisher,
        fork_server: ForkServer,
        *,
        provider: str = "local",
        endpoint: str | None = None,
        age_s: float | None = None,
        group: str | None = None,
        log_level: str = "info",
        credentials: Credentials | None = None,
        files: str | None = None,
        gateway: ApiGateway,
    ) -> None:
        """`endpoint` is where `provider` created this sandbox, `age_s` how many seconds ago. `credentials` are those of
        its agents (None: the environment's); `files` is the directory of their files here, if not that of swarm.toml.
        Agents with a key of their own request JetStream's API of the `gateway`.
        """
        self._bus, self.name, self._url, self._reports, self._provider = bus, name, url, reports, provider
        self._endpoint, self._age_s = endpoint, age_s
        self._group, self._credentials, self._files, self._gateway = group, credentials, files, gateway
        self._host_id = f"host_{new_agent_id().removeprefix('agent_')}"
        self._log_level = log_level
        self._fork_server = fork_server
        self._running: dict[str, _Slot] = {}
        self._ended: list[_Slot] = []
        self._term = 0
        self._heartbeats = 0
        self._usage: SandboxUsage | None = None
        self._started = time.monotonic()
        self._stop = asyncio.Event()
        self._orders = asyncio.Lock()
        self._orphans = asyncio.Lock()
        self._waits: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        """Drain the agents, then end the host. May be called from a signal handler of the loop."""
        self._stop.set()

    async def run(self) -> None:
        """Serve until `stop`."""
        subjects = self._bus.subjects
        adopt_orphans(True)  # what the handlers of an agent have forked is ended after it
        await self._fork_server.start()
        commands: dict[str, Callable[[bytes], Awaitable[dict[str, Any]]]] = {
            "spawn": self._spawn,
            "kill": self._kill,
            "signal": self._signal,
            "check": self._probe_process,
            "probe": self._probe,
        }
        await self._bus.listen(subjects.epoch(WATCHDOG), self._on_term)
        self._bus.watch_connection(lambda: None, self._read_term)
        with contextlib.suppress(BusError):  # there may be no stream yet, and so no watchdog either
            await self._read_term()
        for command, handler in commands.items():
            await self._bus.answer(subjects.control(self.name, command), self._served(command, handler))
        tasks = [
            asyncio.create_task(self._heartbeat(), name="heartbeats"),
            asyncio.create_task(self._measure(), name="usage"),
        ]
        log.info("host_ready", sandbox=self.name, provider=self._provider, pid=os.getpid())
        try:
            async with self._reports:
                await self._stop.wait()
                await self._drain_all()
        finally:
            await end_tasks(tasks)
            await self._fork_server.stop()

    def _served(
        self, command: str, handler: Callable[[bytes], Awaitable[dict[str, Any]]]
    ) -> Callable[[ReceivedMessage], Awaitable[bytes]]:
        async def serve(received: ReceivedMessage) -> bytes:
            try:
                return orjson.dumps(await handler(received.data))
            except (MeshError, msgspec.ValidationError, orjson.JSONDecodeError, OSError) as error:
                log.warning("request_refused", command=command, problem=str(error))
                return orjson.dumps({"error": f"sandbox {self.name}, {command}: {error}"})

        return serve

    # -- terms

    async def _on_term(self, received: ReceivedMessage) -> None:
        """A watchdog has claimed: orders of its predecessor are refused from now on."""
        self._term = max(self._term, h.number(received.headers, h.SEQUENCE) or 0)

    async def _read_term(self) -> None:
        last = await last_claim(self._bus, WATCHDOG)
        if last is not None:
            self._term = max(self._term, last.sequence)

    def _check_term(self, term: int) -> None:
        if term < self._term:
            raise MeshError(f"this order has term {term}, a watchdog of term {self._term} has taken over")
        self._term = term

    # -- requests

    async def _spawn(self, data: bytes) -> dict[str, Any]:
        order = msgspec.convert(orjson.loads(data), SpawnOrder)
        async with self._orders:
            self._check_term(order.term)
            name = order.spec.name
            present = self._running.get(name)
            if present is not None:
                if present.order.epoch == order.epoch:
                    return {"pid": present.child.pid, "new": False}
                if present.order.epoch > order.epoch:
                    raise MeshError(f"agent {name} runs here with epoch {present.order.epoch} already")
                await self._end(present, signal.SIGKILL)
            spec = order.spec
            if self._files is not None and spec.search_path:
                spec = dataclasses.replace(spec, search_path=self._files)
            incarnation = Incarnation(
                spec=spec,
                url=self._url,
                sandbox=self.name,
                epoch=order.epoch,
                agent_id=order.agent_id,
                heartbeat_s=order.heartbeat_s,
                starved_s=order.starved_s,
                max_outputs_per_s=order.max_outputs_per_s,
                log_level=self._log_level,
                traceparent=order.traceparent,
                credentials=await self._admit(order),
            )
            child = await self._fork_server.spawn(incarnation, self._stop.is_set)
            slot = _Slot(child, dataclasses.replace(order, seed=""))  # the process alone keeps it
            self._running[name] = slot
            wait = asyncio.create_task(self._await_exit(slot), name=f"exit-{name}")
            self._waits.add(wait)
            wait.add_done_callback(self._waits.discard)
        self._reports.lifecycle("spawned", name, epoch=order.epoch, sandbox=self.name, pid=child.pid)
        return {"pid": child.pid, "new": True}

    async def _admit(self, order: SpawnOrder) -> Credentials | None:
        """The credentials of the new process.

        Raises:
            UsageError: its key is none.
        """
        if not order.seed:
            return self._credentials
        try:
            public_key = public_key_of(order.seed)
        except ValueError as error:
            raise UsageError(f"the order's key: expected a user's nkey seed, not {error}") from None
        await self._gateway.admit(order.spec, public_key, order.epoch)
        return dataclasses.replace(
            self._credentials or credentials_from(),
            creds="",
            nkey_seed=order.seed,
            jwt=order.jwt,
            api=self._bus.subjects.api(order.spec.name),
            api_host=self.name,
        )

    async def _await_exit(self, slot: _Slot) -> None:
        slot.exit_code = await slot.child.wait()
        name = slot.order.spec.name
        if self._running.get(name) is slot:
            del self._running[name]
            await self._gateway.dismiss(name)
        self._ended = [*self._ended, slot][-KEEP_EXITS:]
        code, error = slot.exit_code, slot.child.error
        reason = f"signal {-code}" if code < 0 else f"exit code {code}"
        self._reports.lifecycle(
            "exited",
            name,
            epoch=slot.order.epoch,
            sandbox=self.name,
            pid=slot.child.pid,
            reason=f"{reason}: {error}" if error else reason,
            exit_code=code,
            **({"error": error} if error else {}),
        )
        async with self._orphans:
            await end_orphans()

    async def _kill(self, data: bytes) -> dict[str, Any]:
        order = msgspec.convert(orjson.loads(data), KillOrder)
        async with self._orders:
            self._check_term(order.term)
            slot = self._running.get(order.agent)
            if slot is None or slot.order.epoch > order.epoch:
                return {"killed": False}
            await self._end(slot, signal.SIGKILL)
            return {"killed": True, "pid": slot.child.pid}

    async def _end(self, slot: _Slot, number: int) -> None:
        slot.child.send_signal(number)
        await slot.child.wait()
        if self._running.get(slot.order.spec.name) is slot:
            del self._running[slot.order.spec.name]

    async def _signal(self, data: bytes) -> dict[str, Any]:
        request = msgspec.convert(orjson.loads(data), SignalRequest)
        slot = self._running.get(request.agent)
        if slot is None or (request.pid is not None and slot.child.pid != request.pid):
            raise MeshError(
                f"agent {request.agent} has no running process here"
                + (f" of pid {request.pid}" if request.pid is not None else "")
            )
        sent_at = time.time_ns()
        slot.child.send_signal(request.signal)
        return {"pid": slot.child.pid, "epoch": slot.order.epoch, "sent_at_ns": sent_at}

    async def _probe_process(self, data: bytes) -> dict[str, Any]:
        request = msgspec.convert(orjson.loads(data), KillOrder)
        slot = self._running.get(request.agent)
        if slot is None or slot.order.epoch != request.epoch:
            return {"state": "gone", "cpu_s": 0.0, "waited_s": 0.0}
        found = slot.child.probe()
        if found["state"] not in ("T", "t", "Z", "X", "gone"):
            found["place"] = await slot.child.find_place()
        return found

    async def _probe(self, _: bytes) -> dict[str, Any]:
        seen = await asyncio.to_thread(probe_sandbox)
        return {"sandbox": self.name, "provider": self._provider, **dataclasses.asdict(seen)}

    # -- heartbeats

    async def _heartbeat(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            await self._heartbeat_once()
            self._reports.check()
            self._gateway.check()
            due = max(due + self._interval_s, loop.time())
            await asyncio.sleep(due - loop.time())

    @property
    def _interval_s(self) -> float:
        return FIRST_HEARTBEAT_S if self._heartbeats < FIRST_HEARTBEATS else HEARTBEAT_S

    async def _measure(self) -> None:
        memory_mb: float | None = None
        processes, due = 0, 0.0
        while True:
            usage = await asyncio.to_thread(measure_usage)
            if usage.processes != processes or time.monotonic() >= due:
                memory_mb = await asyncio.to_thread(measure_memory)
                processes, due = usage.processes, time.monotonic() + MEMORY_S
            self._usage = dataclasses.replace(usage, pss_mb=memory_mb)
            await asyncio.sleep(USAGE_S)

    async def _heartbeat_once(self) -> None:
        self._heartbeats += 1
        slots = [*self._running.values(), *self._ended]
        uptime_s = round(time.monotonic() - self._started, 3)
        heartbeat = Heartbeat(
            agent=self.name,
            agent_id=self._host_id,
            epoch=self._term,
            sequence=self._heartbeats,
            progress=self._heartbeats,
            status="draining" if self._stop.is_set() else "live",
            interval_ms=int(self._interval_s * 1000),
            sandbox=self.name,
            pid=os.getpid(),
            role="sandbox",
            provider=self._provider,
            endpoint=self._endpoint,
            uptime_s=uptime_s,
            age_s=None if self._age_s is None else round(self._age_s + uptime_s, 3),
            inventory=tuple(slot.describe() for slot in slots),
            group=self._group,
            machine=MACHINE,
            usage=self._usage,
        )
        with contextlib.suppress(BusError):
            await self._bus.notify(self._bus.subjects.heartbeat(self.name), encode(heartbeat))

    async def _drain_all(self) -> None:
        await self._heartbeat_once()  # with the status draining: the watchdog expects the exits
        async with self._orders:
            slots = list(self._running.values())
            for slot in slots:
                slot.child.send_signal(signal.SIGTERM)
                slot.child.send_signal(signal.SIGCONT)  # a stopped process does not receive SIGTERM
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_GRACE_S):
                    await asyncio.gather(*(slot.child.wait() for slot in slots))
            for slot in slots:
                slot.child.send_signal(signal.SIGKILL)
                await slot.child.wait()
        await asyncio.gather(*self._waits, return_exceptions=True)
