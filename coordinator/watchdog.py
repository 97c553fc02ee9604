"""The watchdog: hears exits and heartbeats, lets the policy decide, and has it done by the sandbox hosts.

One leads, others stand by. Leading is a claim like an agent's: its sequence is the term that every order carries, and
a newer claim ends the older leader. A watchdog that starts adopts what the hosts report and starts only what is
missing. What it does not own: processes (the hosts'), and the policy (coordinator/policy.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import msgspec
import orjson
import structlog

from bus.bus import Heard
from bus.claims import claim, fence, new_agent_id
from bus.errors import BusError, Fenced, MeshError, MessageError, WrongSequence
from bus.messages import Config, Heartbeat, Lifecycle, decode, encode, now
from bus.nats_bus import NatsBus
from bus.outbox import Outbox
from bus.process import MACHINE
from bus.registry import read_records, write_record
from bus.reports import Reporter
from bus.subjects import WATCHDOG
from bus.tasks import end_tasks
from coordinator.config import SwarmConfig, to_config_message
from coordinator.leadership import stand_by
from coordinator.orders import HostOrders
from coordinator.policy import Policy
from coordinator.supervision import (
    Action,
    AgentState,
    Dead,
    Drained,
    Look,
    Patience,
    Quarantine,
    SandboxLost,
    Spawn,
    Suspect,
)

NAME = WATCHDOG
HEARTBEAT_S = 0.1
TICK_S = 0.05
"""Between two decisions when nothing is observed."""
ECHO_LOST_S = 0.4
"""Not hearing one's own heartbeat for so long means that the bus is ill, not the agents."""
GATHER_S = 1.5
FIRST_GATHER_S = 10.0
"""How long a new leader waits for all hosts to report before it starts what nobody reported: longer when the hosts
are only just being started as well, for an agent that starts elsewhere stays there."""

log = structlog.get_logger("signalmesh.watchdog")


class Watchdog:
    """Supervises the swarm of `config` over `bus`."""

    def __init__(self, bus: NatsBus, config: SwarmConfig, sources: set[str], *, fresh: bool = False) -> None:
        """`sources` are agents that produce; a `fresh` one gives quarantined and drained agents another chance."""
        self._bus, self._config, self._fresh = bus, config, fresh
        self._subjects = bus.subjects
        self._specs = {item.spec.name: item.spec for item in config.agents if not item.external}
        self._sources = sources
        self._stop = asyncio.Event()
        self._wake = asyncio.Event()
        self._fenced: MeshError | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._echo_at = 0.0
        self._restarting: dict[str, asyncio.Future[None]] = {}
        self.term = 0
        self._policy: Policy
        self._orders: HostOrders
        self._reports: Reporter
        self._outbox: Outbox

    def stop(self) -> None:
        """End; the agents live on. Safe to call from a signal handler of the loop."""
        self._stop.set()
        self._wake.set()

    async def run(self) -> None:
        """Stand by until there is no leader, then lead until stopped.

        Raises:
            Fenced: another watchdog has taken over.
        """
        term = await stand_by(self._bus, NAME, HEARTBEAT_S, self._stop)
        if term is None:
            return
        self.term = term
        structlog.contextvars.bind_contextvars(term=self.term)
        log.info("leading", term=self.term)
        self._outbox = Outbox(self._bus, (f"{self._subjects.ns}.*.*.{NAME}",), self._on_fenced)
        self._outbox.stored_through = self.term
        self._reports = Reporter(self._bus, self._outbox, NAME, fence(self._bus, NAME, self.term))
        patience = self._config.watchdog
        self._orders = HostOrders(self._bus, self.term, patience.heartbeat_ms / 1000)
        self._policy = Policy(
            [
                AgentState(
                    item.spec.name,
                    item.spec.sandbox,
                    is_source=item.spec.name in self._sources,
                    phase="external" if item.external else "waiting",
                )
                for item in self._config.agents
            ],
            [sandbox.name for sandbox in self._config.sandboxes],
            Patience(
                suspect_s=patience.suspect_ms / 1000,
                dead_s=patience.dead_ms / 1000,
                grace_s=patience.start_grace_ms / 1000,
                starved_s=patience.starved_ms / 1000,
                deaths=patience.quarantine_deaths,
                window_s=patience.quarantine_window_s,
            ),
            random.Random(),  # noqa: S311 - jitter of pauses
            time.monotonic(),
        )
        subjects = self._subjects
        if not self._fresh:
            await self._remember()
        await self._bus.listen(f"{subjects.ns}.heartbeat.*", self._on_beat)
        await self._bus.listen(f"{subjects.ns}.lifecycle.*.*", self._on_lifecycle)
        await self._bus.listen(subjects.epoch(NAME), self._on_epoch)
        for verb, handler in {"restart": self._on_restart, "revive": self._on_revive}.items():
            await self._bus.answer(subjects.control(NAME, verb), handler)
        beating = asyncio.create_task(self._beat(), name="beat")
        try:
            await self._gather()
            await self._put_config()
            while not self._stop.is_set():
                for action in self._decide():
                    self._do(action)
                self._wake.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TICK_S):
                        await self._wake.wait()
                self._outbox.check()
            if self._fenced is not None:
                raise self._fenced
        finally:
            await end_tasks([beating, *self._tasks])
            with contextlib.suppress(TimeoutError, BusError):
                async with asyncio.timeout(1.0):
                    await self._outbox.flush()
            self._outbox.close()

    # -- leading

    def _on_fenced(self, error: MeshError) -> None:
        self._fenced = error
        self.stop()

    async def _on_epoch(self, heard: Heard) -> None:
        if int(heard.headers.get("Nats-Sequence", 0)) > self.term:
            self._on_fenced(Fenced(NAME, f"another watchdog leads, our term was {self.term}"))

    async def _beat(self) -> None:
        sequence = 0
        subject = self._subjects.heartbeat(NAME)
        while True:
            sequence += 1
            beat = Heartbeat(
                agent=NAME,
                agent_id=f"{NAME}_{os.getpid()}",
                epoch=self.term,
                sequence=sequence,
                progress=sequence,
                status="live",
                interval_ms=int(HEARTBEAT_S * 1000),
                sandbox="",
                pid=os.getpid(),
                role="watchdog",
                machine=MACHINE,
            )
            with contextlib.suppress(BusError):
                await self._bus.tell(subject, encode(beat))
            await asyncio.sleep(HEARTBEAT_S)

    async def _remember(self) -> None:
        """Whoever the leader before us had quarantined or drained stays so."""
        for name, record in (await read_records(self._bus)).items():
            state = self._policy.agents.get(name)
            if state is not None and state.phase == "waiting" and record.status in ("quarantined", "drained"):
                state.phase = "quarantined" if record.status == "quarantined" else "drained"
                state.epoch, state.sandbox = record.epoch, record.sandbox

    async def _gather(self) -> None:
        """Wait for every configured host's first inventory, but not for ever."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_GATHER_S if self._fresh else GATHER_S):
                while not self._stop.is_set() and not self._policy.every_sandbox_served:
                    self._wake.clear()
                    await self._wake.wait()

    # -- senses

    async def _on_beat(self, heard: Heard) -> None:
        try:
            beat = decode(self._subjects.parse(heard.subject), heard.subject, heard.data)
        except MessageError as error:
            log.warning("poison_heartbeat", subject=heard.subject, problem=error.problem)
            return
        assert isinstance(beat, Heartbeat)
        if beat.role == "watchdog":
            if beat.epoch == self.term:
                self._echo_at = time.monotonic()
        elif beat.role == "sandbox":
            self._policy.host_beat(time.monotonic(), beat)
        else:
            self._policy.beat(time.monotonic(), beat)
        self._wake.set()

    async def _on_lifecycle(self, heard: Heard) -> None:
        try:
            event = decode(self._subjects.parse(heard.subject), heard.subject, heard.data)
        except MessageError:
            return  # whoever reads the stream reports it
        assert isinstance(event, Lifecycle)
        if event.event == "drained" and event.epoch is not None:
            self._policy.left(time.monotonic(), event.agent, event.epoch)
            self._wake.set()
        elif event.event == "exited":
            code = event.detail.get("exit_code")
            if event.agent in self._policy.hosts:
                self._policy.host_gone(time.monotonic(), event.agent, f"its sandbox host ended ({event.reason})")
            elif event.epoch is not None and isinstance(code, int):
                self._policy.exited(time.monotonic(), event.agent, event.epoch, code)
            self._wake.set()

    def _decide(self) -> list[Action]:
        time_s = time.monotonic()
        ill = not self._bus.live or time_s - self._echo_at > ECHO_LOST_S
        self._policy.bus_trouble(time_s, ill)
        return self._policy.decide(time_s)

    # -- deeds

    def _do(self, action: Action) -> None:
        match action:
            case Spawn():
                self._run(self._spawn(action))
            case Look():
                self._run(self._look(action))
            case Suspect(agent, silent_ms):
                state = self._policy.agents[agent]
                self._reports.lifecycle(
                    "suspected", agent, epoch=state.epoch, sandbox=state.sandbox, pid=state.pid, silent_ms=silent_ms
                )
            case Dead(agent, epoch, sandbox, pid, reason):
                self._reports.lifecycle("declared_dead", agent, epoch=epoch, sandbox=sandbox, pid=pid, reason=reason)
            case Quarantine(agent, epoch, sandbox, reason):
                self._reports.lifecycle("quarantined", agent, epoch=epoch, sandbox=sandbox, reason=reason)
                self._reports.alert(
                    "critical",
                    "quarantined",
                    f"agent {agent} is quarantined: {reason}; its log is that of sandbox {sandbox} "
                    f"(logs/{sandbox}.log of the state directory); mend it, then `signalmesh revive {agent}`",
                    agent=agent,
                )
                self._run(self._set_status(agent, "quarantined"))
                self._run(self._kill(agent, sandbox, epoch))
                self._run(self._put_config())
            case Drained(agent):
                waiting = self._restarting.pop(agent, None)
                if waiting is not None:
                    self._policy.restart(agent)
                    waiting.set_result(None)
                    self._wake.set()
                else:
                    self._run(self._set_status(agent, "drained"))
                    self._run(self._put_config())
            case SandboxLost(sandbox, agents):
                self._reports.alert(
                    "warning",
                    "sandbox_lost",
                    f"sandbox {sandbox} is lost; started elsewhere: {', '.join(agents) or 'nobody, it had no agent'}",
                    sandbox=sandbox,
                    agents=list(agents),
                )

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._guard(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except BusError as error:
            log.warning("order_failed", problem=str(error))
        except Exception as error:
            log.exception("watchdog_failed")
            self._on_fenced(MeshError(f"the watchdog failed: {error!r}"))  # a fresh one adopts what runs

    async def _spawn(self, action: Spawn) -> None:
        name, sandbox = action.agent, action.sandbox
        agent_id = new_agent_id()
        known = self._policy.agents[name].known_epoch
        try:
            epoch = await claim(self._bus, name, agent_id=agent_id, claimed_by=NAME, sandbox=sandbox, expect=known)
            self._policy.claimed(name, epoch)
            pid = await self._orders.spawn(sandbox, self._specs[name], epoch, agent_id)
        except WrongSequence:
            log.info("claimed_by_another", of=name)
            self._policy.superseded(time.monotonic(), name)
        except BusError as error:
            log.warning("spawn_failed", of=name, sandbox=sandbox, problem=str(error))
            self._policy.spawn_failed(time.monotonic(), name, str(error))
        else:
            self._policy.spawned(time.monotonic(), name, sandbox, pid, epoch, agent_id)
            if action.moved_from is not None:
                detail = {"moved_from": action.moved_from}
                self._reports.lifecycle(
                    "moved", name, epoch=epoch, sandbox=sandbox, pid=pid, reason=action.reason, **detail
                )
        self._wake.set()

    async def _kill(self, agent: str, sandbox: str, epoch: int) -> None:
        if (host := self._policy.hosts.get(sandbox)) is not None and host.alive:
            await self._orders.kill(sandbox, agent, epoch)

    async def _look(self, action: Look) -> None:
        state, cpu_s, waited_s = await self._orders.look(action.sandbox, action.agent, action.epoch)
        self._policy.looked(time.monotonic(), action.agent, action.epoch, state, cpu_s, waited_s)
        self._wake.set()

    async def _set_status(self, agent: str, status: str) -> None:
        record = (await read_records(self._bus)).get(agent)
        if record is not None:
            await write_record(self._bus, replace(record, status=status))

    async def _put_config(self) -> None:
        """Put the voters that are neither quarantined nor drained in force, unless they are already."""
        out = {name for name, state in self._policy.agents.items() if state.phase in ("quarantined", "drained")}
        voters = {name: weight for name, weight in self._config.voters.items() if name not in out}
        wanted = to_config_message(self._config, voters, source=NAME)
        subject = self._subjects.config(NAME)
        await self._outbox.flush()
        last = await self._bus.last(subject)
        if last is not None:
            present: object = None
            with contextlib.suppress(MessageError):  # anything else there is replaced by what swarm.toml says
                present = decode(self._subjects.parse(subject), subject, last.data)
            if isinstance(present, Config) and replace(present, timestamp=wanted.timestamp) == wanted:
                return
        self._reports.config(wanted)
        await self._outbox.flush()
        log.info("config_in_force", voters=voters)

    # -- wishes

    async def _on_revive(self, heard: Heard) -> bytes:
        return await self._wish(heard, self._revive)

    async def _on_restart(self, heard: Heard) -> bytes:
        return await self._wish(heard, self._restart)

    async def _wish(self, heard: Heard, grant: Any) -> bytes:
        try:
            name = msgspec.json.decode(heard.data, type=dict[str, str]).get("agent", "")
            if name not in self._specs:
                raise MeshError(f"no agent {name!r} in this swarm; it has: {', '.join(self._specs)}")
            return orjson.dumps(await grant(name))
        except (MeshError, msgspec.DecodeError, TimeoutError) as error:
            return orjson.dumps({"error": str(error) or "it did not drain in time"})

    async def _revive(self, name: str) -> dict[str, Any]:
        before = self._policy.agents[name].phase
        if not self._policy.revive(time.monotonic(), name):
            raise MeshError(f"agent {name} is {before}, expected a quarantined or drained one")
        self._reports.lifecycle("revived", name, reason=f"was {before}")
        await self._put_config()
        self._wake.set()
        return {"agent": name, "was": before}

    async def _restart(self, name: str) -> dict[str, Any]:
        state = self._policy.agents[name]
        if state.phase in ("quarantined", "drained"):
            return await self._revive(name)
        if state.phase not in ("starting", "running"):
            raise MeshError(f"agent {name} is being restarted already")
        epoch = state.epoch
        waiting = self._restarting[name] = asyncio.get_running_loop().create_future()
        await self._orders.terminate(state.sandbox, name, state.pid)
        async with asyncio.timeout(10.0):
            await waiting
        return {"agent": name, "epoch_before": epoch, "at": now().isoformat()}
