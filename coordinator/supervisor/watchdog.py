"""The watchdog: hears exits and heartbeats, lets the policy decide, and has it done by the sandbox hosts.

One leads, others stand by. Leading is a claim like an agent's: its sequence is the term that every order carries, and
a newer claim ends the older leader. A watchdog that starts adopts what the hosts report and starts only what is
missing. What it does not own: processes (the hosts'), and the policy (coordinator/supervisor/policy.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Mapping
from typing import Any

import structlog

from bus.durable.events import EventPublisher
from bus.durable.fencing import fence
from bus.durable.outbox import Outbox
from bus.durable.registry import Record, read_records
from bus.errors import BusError, Fenced, MeshError, MessageError
from bus.heartbeats import HeartbeatListener, ReceivedHeartbeat
from bus.interface import ReceivedMessage
from bus.messages import Lifecycle, SandboxAccount, failed_sandboxes_of
from bus.messages import headers as h
from bus.nats.bus import NatsBus
from bus.utils.aio import end_tasks
from coordinator.config.settings import SwarmConfig
from coordinator.supervisor.availability import AvailabilityTracker
from coordinator.supervisor.config_publisher import ConfigPublisher
from coordinator.supervisor.control_api import ControlApi
from coordinator.supervisor.executor import NAME, ActionExecutor
from coordinator.supervisor.host_client import HostClient
from coordinator.supervisor.leader_election import PAUSE_S, check_claim, send_heartbeats_as, stand_by
from coordinator.supervisor.model import Action, AgentState, Timeouts
from coordinator.supervisor.policy import Policy
from coordinator.supervisor.recovery_traces import RecoveryTraces, watchdog_tracer
from coordinator.supervisor.takeover import settle
from coordinator.supervisor.unknown_messages import UnknownMessageMonitor

TICK_S = 0.05
"""Between two decisions when nothing is observed."""
ECHO_LOST_S = 0.4
"""Not hearing one's own heartbeat for so long means that the bus is ill, not the agents."""
AWAY = ("waiting", "restarting", "backoff", "quarantined", "drained", "external")
"""Phases of agents that do not run, or not as ours."""
DISCOVERY_S = 1.5
AGENT_HEARTBEATS = 2.5
FIRST_DISCOVERY_S = 10.0
"""How long a new leader waits for all hosts to report before it starts what nobody reported: longer when no agent runs
at all, for then the hosts are only just being started as well, and an agent that starts elsewhere stays there."""
REMOTE_DISCOVERY_S = 180.0
"""The same at a first start where sandboxes are made elsewhere, and our program is installed in them."""

log = structlog.get_logger("signalmesh.watchdog")


class Watchdog:
    """Supervises the swarm of `config` over `bus`."""

    def __init__(
        self,
        bus: NatsBus,
        config: SwarmConfig,
        sources: set[str],
        *,
        clear_quarantine: bool = False,
        standby: bool = False,
    ) -> None:
        """`sources` are agents that produce; a `clear_quarantine` one gives quarantined and drained agents another
        chance.

        A `standby` lets others lead first.
        """
        self._bus, self._config, self._clear_quarantine, self._standby = bus, config, clear_quarantine, standby
        self._subjects = bus.subjects
        self._specs = {item.spec.name: item.spec for item in config.agents if not item.external}
        self._sources = sources
        self._stop = asyncio.Event()
        self._wake = asyncio.Event()
        self._fenced: MeshError | None = None
        self._availability = AvailabilityTracker(ECHO_LOST_S)
        self._echo_at = 0.0
        self._decided_at = 0.0
        self._unverified = True
        """Whether we may have missed that another one leads."""
        self._failed: set[str] = set()
        """Sandboxes that their provider says it cannot make: nobody waits for them."""
        self.term = 0
        self._policy: Policy
        self._recoveries = RecoveryTraces()

    def stop(self) -> None:
        """End; the agents live on. Safe to call from a signal handler of the loop."""
        self._stop.set()
        self._wake.set()

    async def run(self) -> None:
        """Stand by until there is no leader, then lead until stopped.

        Raises:
            Fenced: another watchdog has taken over.
        """
        term = await stand_by(self._bus, NAME, self._stop, patient=self._standby)
        if term is None:
            return
        self.term = term
        structlog.contextvars.bind_contextvars(term=self.term)
        log.info("became_leader", term=self.term)
        outbox = Outbox(self._bus, (f"{self._subjects.ns}.*.*.{NAME}",), self._on_fenced)
        outbox.stored_through = self.term
        reports = EventPublisher(self._bus, outbox, NAME, fence(self._bus, NAME, self.term))
        orders = HostClient(self._bus, self.term, self._config.watchdog.heartbeat_ms / 1000)
        policy = self._policy = self._make_policy()
        settings = ConfigPublisher(self._bus, self._config, outbox, reports, self._voters)
        control_api = ControlApi(self._bus, policy, orders, reports, settings, self._specs, self._wake.set)
        executor = ActionExecutor(
            self._bus, policy, orders, reports, settings, self._specs, self._wake.set, self._on_fenced
        )
        tracer = watchdog_tracer(self._subjects.ns, self.term)
        executor.recoveries = self._recoveries = RecoveryTraces(tracer)
        tasks = [asyncio.create_task(send_heartbeats_as(self._bus, NAME, self.term, self._says), name="beat")]
        self._bus.watch_connection(self._doubt, self._nothing)
        subjects = self._subjects
        listener = HeartbeatListener(
            self._bus, on_heartbeat=self._on_heartbeat, on_malformed=self._on_malformed_heartbeat
        )
        await listener.start()
        await self._bus.listen(f"{subjects.ns}.lifecycle.*.*", self._on_lifecycle)
        await self._bus.listen(subjects.epoch(NAME), self._on_epoch)
        await control_api.serve(NAME)
        try:
            records = {} if self._clear_quarantine else await read_records(self._bus)
            self._remember(records)
            await self._gather()
            while not self._clear_quarantine and not self._stop.is_set():
                try:
                    await settle(self._bus, policy, records)
                    break
                except BusError as error:
                    log.debug("takeover_retried", error=str(error))
                    await self._gather()  # who is there could not be heard meanwhile
            await settings.put()
            if not self._clear_quarantine:
                tasks.append(asyncio.create_task(self._take_up(), name="recovery-traces"))
            tasks.append(asyncio.create_task(settings.keep(), name="settings"))
            tasks.append(asyncio.create_task(UnknownMessageMonitor(self._bus, reports).keep(), name="strays"))
            while not self._stop.is_set():
                if await self._leads():
                    for action in self._decide():
                        executor.do(action)
                    control_api.look()
                self._wake.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TICK_S):
                        await self._wake.wait()
                outbox.check()
            if self._fenced is not None:
                raise self._fenced
        finally:
            await end_tasks(tasks)
            await control_api.end()
            await executor.end()
            with contextlib.suppress(TimeoutError, BusError):
                async with asyncio.timeout(1.0):
                    await outbox.flush()
            outbox.close()
            if tracer is not None:
                await asyncio.to_thread(tracer.queue.close)

    async def _take_up(self) -> None:
        """Beside leading: it is a picture of what was."""
        with contextlib.suppress(BusError):
            await self._recoveries.take_up(self._bus, self.term)

    def _make_policy(self) -> Policy:
        timeouts = self._config.watchdog
        return Policy(
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
            Timeouts(
                suspect_s=timeouts.suspect_ms / 1000,
                dead_s=timeouts.dead_ms / 1000,
                grace_s=timeouts.start_grace_ms / 1000,
                starved_s=timeouts.starved_ms / 1000,
                deaths=timeouts.quarantine_deaths,
                window_s=timeouts.quarantine_window_s,
            ),
            random.Random(),  # noqa: S311 - jitter of pauses
            time.monotonic(),
        )

    def _voters(self) -> Mapping[str, float]:
        """Who votes at the moment: those that are neither quarantined nor drained."""
        out = {name for name, state in self._policy.agents.items() if state.phase in ("quarantined", "drained")}
        return {name: weight for name, weight in self._config.voters.items() if name not in out}

    def _phases(self) -> dict[str, str]:
        """Of the agents that do not run, for our heartbeats: they cannot say so themselves."""
        return {name: state.phase for name, state in self._policy.agents.items() if state.phase in AWAY}

    def _says(self) -> dict[str, Any]:
        """What our heartbeats tell besides."""
        return {"phases": self._phases(), "accounts": self._accounts()}

    def _accounts(self) -> dict[str, SandboxAccount]:
        """Of every sandbox that was heard: how available it was, and its price."""
        specs = {spec.name: spec for spec in self._config.sandboxes}
        accounts = {}
        for name in self._availability.names:
            host, known = self._policy.hosts.get(name), self._availability.of(name, time.monotonic())
            spec = specs.get(host.group if host is not None else name)
            assert known is not None
            accounts[name] = SandboxAccount(
                seen_s=round(known.seen_s, 3),
                alive_s=round(known.alive_s, 3),
                price_per_hour=spec.price_per_hour if spec else None,
                price_source=spec.price_source or None if spec else None,
            )
        return accounts

    # -- leading

    def _doubt(self) -> None:
        self._unverified = True

    async def _nothing(self) -> None:
        """Subscriptions are renewed by the client itself, and the doubt is settled by the loop."""

    async def _leads(self) -> bool:
        """Whether we still lead, as far as we can know: after a pause or a broken connection the stream is asked.

        So a leader that was stopped, and succeeded meanwhile, orders nothing when it goes on.
        """
        time_s = time.monotonic()
        if time_s - self._decided_at > PAUSE_S:
            self._unverified = True
        if self._unverified:
            try:
                await check_claim(self._bus, NAME, self.term)
            except Fenced as error:
                self._on_fenced(error)
                return False
            except BusError as error:
                log.debug("claim_check_retried", error=str(error))
                return False
            self._unverified = not self._bus.live
            time_s = time.monotonic()
        self._decided_at = time_s
        return not self._unverified

    def _on_fenced(self, error: MeshError) -> None:
        self._fenced = error
        self.stop()

    async def _on_epoch(self, received: ReceivedMessage) -> None:
        if (h.number(received.headers, h.SEQUENCE) or 0) > self.term:
            self._on_fenced(Fenced(NAME, f"another watchdog leads, our term was {self.term}"))

    def _remember(self, records: Mapping[str, Record]) -> None:
        """Whoever the leader before us had quarantined or drained stays so."""
        for name, record in records.items():
            state = self._policy.agents.get(name)
            if state is not None and state.phase == "waiting" and record.status in ("quarantined", "drained"):
                state.phase = "quarantined" if record.status == "quarantined" else "drained"
                state.epoch, state.sandbox = record.epoch, record.sandbox

    async def _gather(self) -> None:
        """Wait for every configured host's first inventory, but not for ever.

        And for some heartbeats of agents: nobody reports those that run by hand but they themselves.
        """
        since = time.monotonic()
        if not self._clear_quarantine:
            await asyncio.sleep(AGENT_HEARTBEATS * self._config.watchdog.heartbeat_ms / 1000)
        while not self._stop.is_set() and self._awaited():
            starting = self._clear_quarantine or not self._policy.any_process_runs
            if time.monotonic() - since > (self._timeout_s() if starting else DISCOVERY_S):
                return
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._wake.wait()

    def _awaited(self) -> set[str]:
        """The sandboxes that are not there yet, but may come."""
        return self._policy.unserved - self._failed

    def _timeout_s(self) -> float:
        far = {sandbox.name for sandbox in self._config.sandboxes if sandbox.e2b is not None}
        return REMOTE_DISCOVERY_S if far & self._awaited() else FIRST_DISCOVERY_S

    # -- senses

    def _on_heartbeat(self, received: ReceivedHeartbeat) -> None:
        heartbeat, at = received.heartbeat, received.at
        if heartbeat.role == "watchdog":
            if heartbeat.epoch == self.term:
                self._echo_at = at
                self._availability.echo(at)
        elif heartbeat.role == "provider":
            self._failed = set(failed_sandboxes_of(heartbeat))
        elif heartbeat.role == "sandbox":
            self._availability.received(heartbeat.agent, at, heartbeat.agent_id, heartbeat.uptime_s or 0.0)
            self._policy.host_heartbeat(at, heartbeat)
        else:  # what follows from it can wait for the next tick: with many agents one always has just sent another
            self._policy.heartbeat(at, heartbeat)
            return
        self._wake.set()

    @staticmethod
    def _on_malformed_heartbeat(subject: str, error: MessageError) -> None:
        log.warning("poison_heartbeat", subject=subject, problem=error.problem)

    async def _on_lifecycle(self, received: ReceivedMessage) -> None:
        try:
            event = received.decode(self._subjects)
        except MessageError:
            return  # whoever reads the stream reports it
        assert isinstance(event, Lifecycle)
        if event.event == "drained" and event.epoch is not None:
            self._policy.drained(time.monotonic(), event.agent, event.epoch)
            self._wake.set()
        elif event.event == "exited":
            code = event.detail.get("exit_code")
            if event.agent in self._policy.hosts:
                for name in self._policy.living_in(event.agent):
                    self._recoveries.exited(name, self._policy.agents[name].epoch, event.timestamp)
                self._policy.host_gone(time.monotonic(), event.agent, f"its sandbox host ended ({event.reason})")
            elif event.epoch is not None and isinstance(code, int) and event.agent in self._policy.agents:
                self._recoveries.exited(event.agent, event.epoch, event.timestamp)
                self._policy.exited(time.monotonic(), event.agent, event.epoch, code)
            self._wake.set()

    def _decide(self) -> list[Action]:
        time_s = time.monotonic()
        unhealthy = not self._bus.live or time_s - self._echo_at > ECHO_LOST_S
        self._policy.bus_trouble(time_s, unhealthy)
        return self._policy.decide(time_s)
