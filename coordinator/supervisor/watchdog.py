"""The watchdog process: stands by until it is elected, then leads for one term.

`Leadership` is one term: it passes exits and heartbeats to the policy, and executes the policy's actions.
The sandbox hosts own the processes, coordinator/supervisor/policy.py the decisions.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import structlog

from bus.durable.events import EventPublisher
from bus.durable.fencing import fence, last_claim
from bus.durable.leader_election import PAUSE_S, check_claim, send_heartbeats_as, stand_by
from bus.durable.outbox import Outbox, can_pipeline
from bus.durable.registry import Record, read_records
from bus.errors import BusError, Fenced, MeshError, MessageError
from bus.heartbeats import HeartbeatListener, ReceivedHeartbeat
from bus.interface import ReceivedMessage
from bus.messages import Lifecycle, SandboxAccount, failed_sandboxes_of
from bus.messages import headers as h
from bus.messages.reporters import HOST_KEEPERS
from bus.nats.bus import NatsBus
from bus.utils.aio import end_tasks
from coordinator.config.changes import NO_CHANGES, Changes
from coordinator.config.live_swarm import LiveSwarm
from coordinator.config.settings import ResolvedAgent, ResolvedSwarm
from coordinator.supervisor.agent_keys import AgentKeys
from coordinator.supervisor.availability import AvailabilityTracker
from coordinator.supervisor.config_publisher import ConfigPublisher, read_config, read_live_swarm
from coordinator.supervisor.control_api import ControlApi
from coordinator.supervisor.executor import NAME, ActionExecutor
from coordinator.supervisor.host_client import HostClient
from coordinator.supervisor.model import Action, AgentState, Phase, StoppedPhase, Timeouts
from coordinator.supervisor.policy import Policy
from coordinator.supervisor.recovery_traces import RecoveryTraces, watchdog_tracer
from coordinator.supervisor.renewal import Renewal
from coordinator.supervisor.takeover import resolve_unreported_exits
from coordinator.supervisor.unknown_messages import HostCheck, RefusedHeartbeats, UnknownMessageMonitor

TICK_S = 0.05
"""Seconds between two decisions when nothing is observed."""
OWN_HEARTBEAT_LOST_S = 0.4
"""If the watchdog has not received its own heartbeats for this long, the bus is unhealthy, not the agents."""
NOT_SUPERVISED = ("waiting", "restarting", "backoff", "quarantined", "drained", "external")
"""Phases of agents that do not run, or run outside the supervisor."""
DISCOVERY_S = 1.5
AGENT_HEARTBEATS = 2.5
FIRST_DISCOVERY_S = 10.0
"""How long a new leader waits for every host to report before it starts the agents that no host reported. It waits
longer if no agent runs at all: the hosts are then starting too, and an agent started on another host stays there."""
REMOTE_DISCOVERY_S = 180.0
"""The same at a first start with remote sandboxes, which are created and installed first."""

log = structlog.get_logger("signalmesh.watchdog")


class ChangeHandler(Protocol):
    """Changes the swarm on request: `check` is called by the loop of the leader, `resume` when it knows what runs."""

    async def serve(self, name: str) -> None: ...
    def resume(self) -> None: ...
    def check(self) -> None: ...
    async def end(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderParts:
    """What a ChangeHandler acts on. `wake` runs the loop of the leader, `keys` are those of the agents."""

    bus: NatsBus
    keys: AgentKeys | None
    swarm: LiveSwarm
    term: int
    policy: Policy
    hosts: HostClient
    reports: EventPublisher
    config_publisher: ConfigPublisher
    wake: Callable[[], None]


MakeChangeHandler = Callable[[LeaderParts], ChangeHandler]


class TermSignals:
    """Wakes or ends the loop of a leader, and stores the error that ended it."""

    def __init__(self) -> None:
        self.term_is_old = False
        self.stopped = asyncio.Event()
        self.woken = asyncio.Event()
        self.error: MeshError | None = None

    def wake(self) -> None:
        """Run the loop again now."""
        self.woken.set()

    def end_term(self) -> None:
        """End the loop, for a new term of this process."""
        self.term_is_old = True
        self.woken.set()

    def stop(self) -> None:
        """End the loop."""
        self.stopped.set()
        self.woken.set()

    def fail(self, error: MeshError) -> None:
        """End the loop with `error`."""
        self.error = error
        self.stop()

    async def wait(self, timeout_s: float) -> None:
        """Wait until woken, at most `timeout_s` seconds."""
        self.woken.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self.woken.wait()


class Watchdog:
    """Supervises the swarm of `config` over `bus`."""

    def __init__(
        self,
        bus: NatsBus,
        config: ResolvedSwarm,
        *,
        clear_quarantine: bool = False,
        standby: bool = False,
        alone: bool = False,
        keys: Path | None = None,
        changes: Changes = NO_CHANGES,
        change_handler: MakeChangeHandler | None = None,
    ) -> None:
        """`clear_quarantine` starts quarantined and drained agents again. `standby` waits longer for another leader
        before it claims the first term. `alone` waits for none: no other watchdog of the swarm runs. `keys` is the
        directory with the keys of the agents; None: they connect as their hosts do. `changes` are those of the
        state directory. `change_handler` makes what changes the swarm on request; None: nothing does.
        """
        self._bus, self._config = bus, config
        self._clear_quarantine, self._standby, self._alone = clear_quarantine, standby, alone
        self._keys, self._changes, self._change_handler = keys, changes, change_handler
        self._signals = TermSignals()
        self._is_stopped = False

    def stop(self) -> None:
        """Stop leading; the agents keep running. May be called from a signal handler of the loop."""
        self._is_stopped = True
        self._signals.stop()

    async def run(self) -> bool:
        """Stand by until there is no leader, then lead until stopped or until the term is old.

        True: it is old, or the stream has removed its claim. Another Watchdog, with a connection of its own, is to
        claim the next one.

        Raises:
            Fenced: another watchdog has taken over.
        """
        term = await stand_by(self._bus, NAME, self._signals.stopped, standby=self._standby, alone=self._alone)
        if term is None:
            return False
        try:
            async with build_leadership(
                self._bus,
                self._config,
                term,
                signals=self._signals,
                clear_quarantine=self._clear_quarantine,
                keys=self._keys,
                changes=self._changes,
                change_handler=self._change_handler,
            ) as leader:
                await leader.adopt()
                await leader.lead()
        except Fenced as error:
            if await last_claim(self._bus, NAME) is not None:
                raise
            log.warning("claim_removed", problem=str(error))
        return not self._is_stopped


@contextlib.asynccontextmanager
async def build_leadership(
    bus: NatsBus,
    base: ResolvedSwarm,
    term: int,
    *,
    signals: TermSignals,
    clear_quarantine: bool = False,
    keys: Path | None = None,
    changes: Changes = NO_CHANGES,
    change_handler: MakeChangeHandler | None = None,
) -> AsyncIterator[Leadership]:
    """The leadership of `term` over the swarm of `base`, already listening; it is closed at the end of the block.

    `changes` are those of the state directory, which count unless the stream has newer ones.

    Raises:
        BusError: the bus does not accept its subscriptions.
        ConfigError: the changes that were made at run time do not fit `base`.
    """
    structlog.contextvars.bind_contextvars(term=term)
    log.info("became_leader", term=term)
    written_by = (f"{bus.subjects.ns}.*.*.{NAME}",)
    outbox = Outbox(bus, written_by, signals.fail, pipelined=await can_pipeline(bus))
    outbox.stored_through = term
    reports = EventPublisher(bus, outbox, NAME, fence(bus, NAME, term))
    settings = base.watchdog
    stored = await read_config(bus)
    swarm = read_live_swarm(base, stored, changes)
    hosts = HostClient(bus, term, settings.heartbeat_ms / 1000, settings.starved_ms / 1000, settings.max_outputs_per_s)
    policy = make_policy(swarm.config)
    policy.closed.update(swarm.changes.removed_sandboxes)
    if not clear_quarantine and stored is not None:
        for name in swarm.changes.agents.keys() - stored.voters.keys():
            policy.agents[name].joining = True
    publisher = ConfigPublisher(bus, swarm, reports, lambda config: current_voters(config, policy))
    recoveries = RecoveryTraces(watchdog_tracer(bus.subjects.ns, term))
    agent_keys = None if keys is None else AgentKeys(keys)
    refused = RefusedHeartbeats(policy, reports)
    parts = LeaderParts(
        bus=bus,
        keys=agent_keys,
        swarm=swarm,
        term=term,
        policy=policy,
        hosts=hosts,
        reports=reports,
        config_publisher=publisher,
        wake=signals.wake,
    )
    leader = Leadership(
        bus,
        swarm,
        term,
        signals=signals,
        clear_quarantine=clear_quarantine,
        policy=policy,
        reports=reports,
        config_publisher=publisher,
        executor=ActionExecutor(
            bus,
            policy=policy,
            hosts=hosts,
            reports=reports,
            config_publisher=publisher,
            specs=swarm.specs,
            recoveries=recoveries,
            keys=agent_keys,
            on_change=signals.wake,
            on_failure=signals.fail,
        ),
        control_api=ControlApi(
            bus,
            policy=policy,
            hosts=hosts,
            reports=reports,
            config_publisher=publisher,
            specs=swarm.specs,
            on_change=signals.wake,
        ),
        changes=None if change_handler is None else change_handler(parts),
        recoveries=recoveries,
        unknown_messages=UnknownMessageMonitor(bus, reports),
        renewal=Renewal(bus, term, policy, hosts, publisher, signals.end_term),
        refused_heartbeats=refused,
        is_host=HostCheck(swarm, policy, refused, keyed=keys is not None),
    )
    try:
        await leader.listen()
        yield leader
    finally:
        await leader.close()


class Leadership:
    """One term as the leader: adopts the running agents, then executes the policy's actions until the term ends."""

    def __init__(
        self,
        bus: NatsBus,
        swarm: LiveSwarm,
        term: int,
        *,
        signals: TermSignals,
        clear_quarantine: bool,
        policy: Policy,
        reports: EventPublisher,
        config_publisher: ConfigPublisher,
        executor: ActionExecutor,
        control_api: ControlApi,
        changes: ChangeHandler | None,
        recoveries: RecoveryTraces,
        unknown_messages: UnknownMessageMonitor,
        renewal: Renewal,
        refused_heartbeats: RefusedHeartbeats,
        is_host: HostCheck,
    ) -> None:
        self._bus, self._swarm, self.term = bus, swarm, term
        self._subjects = bus.subjects
        self._signals = signals
        self._clear_quarantine = clear_quarantine
        self._policy, self._reports, self._config_publisher = policy, reports, config_publisher
        self._executor, self._control_api, self._changes = executor, control_api, changes
        self._recoveries, self._unknown_messages = recoveries, unknown_messages
        self._renewal = renewal
        self._refused_heartbeats, self._is_host = refused_heartbeats, is_host
        self._availability = AvailabilityTracker(OWN_HEARTBEAT_LOST_S)
        self._own_heartbeat_at = 0.0
        self._verified_at = 0.0
        """When this process last knew that it leads (monotonic seconds)."""
        self._unverified = True
        """Whether a newer claim may have been missed."""
        self._tasks: list[asyncio.Task[None]] = []

    async def listen(self) -> None:
        """Publish heartbeats, and receive those of the swarm, its lifecycle events, claims and requests.

        Raises:
            BusError: the bus does not accept a subscription.
        """
        self._start("heartbeats", send_heartbeats_as(self._bus, NAME, self.term, self._status_fields))
        self._bus.watch_connection(self._on_disconnect, self._on_reconnect)
        subjects = self._subjects
        listener = HeartbeatListener(
            self._bus, on_heartbeat=self._on_heartbeat, on_malformed=self._on_malformed_heartbeat
        )
        await listener.start()
        await self._bus.listen(f"{subjects.ns}.lifecycle.*.*", self._on_lifecycle)
        await self._bus.listen(subjects.epoch(NAME), self._on_epoch)
        await self._control_api.serve(NAME)
        if self._changes is not None:
            await self._changes.serve(NAME)

    async def adopt(self) -> None:
        """Discover what runs and what ended before this term, and publish the active VotingConfig.

        Raises:
            BusError: the bus does not answer.
        """
        records = {} if self._clear_quarantine else await read_records(self._bus)
        self._restore_phases(records)
        await self._discover()
        while not self._clear_quarantine and not self._signals.stopped.is_set():
            try:
                await resolve_unreported_exits(self._bus, self._policy, records)
                break
            except BusError as error:
                log.debug("takeover_retried", error=str(error))
                await self._discover()  # heartbeats may have been lost meanwhile
        if self._changes is not None:
            self._changes.resume()
        await self._config_publisher.publish()

    async def lead(self) -> None:
        """Execute the policy's actions until stopped, or until the term is old.

        Raises:
            Fenced: another watchdog leads; MeshError: the executor failed.
        """
        if not self._clear_quarantine:
            self._start("recovery-traces", self._resume_traces())
        self._start("config", self._config_publisher.run())
        self._start("unknown-messages", self._unknown_messages.run())
        self._start("renewal", self._renewal.run())
        while not self._signals.stopped.is_set() and not self._signals.term_is_old:
            if await self._still_leads():
                for action in self._decide():
                    self._executor.execute(action)
                self._control_api.check_restarts()
                self._refused_heartbeats.check()
                if self._changes is not None:
                    self._changes.check()
            await self._signals.wait(TICK_S)
            self._reports.check()
        if self._signals.error is not None:
            raise self._signals.error

    async def close(self) -> None:
        """End the background tasks and store the last reports."""
        await end_tasks(self._tasks)
        await self._control_api.end()
        if self._changes is not None:
            await self._changes.end()
        await self._executor.end()
        await self._reports.finish()
        await asyncio.to_thread(self._recoveries.close)

    def _start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(work, name=name))

    async def _resume_traces(self) -> None:
        # A task of its own: the traces describe the past, and leading does not wait for them.
        with contextlib.suppress(BusError):
            await self._recoveries.resume(self._bus, self.term)

    # -- the content of its heartbeats

    def _status_fields(self) -> dict[str, Any]:
        # The phases of agents that do not run: these agents publish no heartbeats of their own.
        phases = {name: state.phase for name, state in self._policy.agents.items() if state.phase in NOT_SUPERVISED}
        return {"phases": phases, "accounts": self._accounts()}

    def _accounts(self) -> dict[str, SandboxAccount]:
        """Availability and price of every sandbox from which a heartbeat was received."""
        specs = {spec.name: spec for spec in self._swarm.config.sandboxes}
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

    # -- whether this process still leads

    def _on_disconnect(self) -> None:
        self._unverified = True

    async def _on_reconnect(self) -> None:
        """Nothing to do: the client renews the subscriptions, and the loop checks the claim."""

    async def _still_leads(self) -> bool:
        """Whether this process still leads, as far as it can know."""
        # After a pause or a disconnect another watchdog may lead: the stream confirms the claim before the next order.
        time_s = time.monotonic()
        if time_s - self._verified_at > PAUSE_S:
            self._unverified = True
        if self._unverified:
            try:
                await check_claim(self._bus, NAME, self.term)
            except Fenced as error:
                self._signals.fail(error)
                return False
            except BusError as error:
                log.debug("claim_check_retried", error=str(error))
                return False
            self._unverified = not self._bus.is_ready
            time_s = time.monotonic()
        self._verified_at = time_s
        return not self._unverified

    async def _on_epoch(self, received: ReceivedMessage) -> None:
        if (h.number(received.headers, h.SEQUENCE) or 0) > self.term:
            self._signals.fail(Fenced(NAME, f"another watchdog leads; this process had term {self.term}"))

    # -- adopting

    def _restore_phases(self, records: Mapping[str, Record]) -> None:
        """Restore the quarantined and drained agents of an earlier term."""
        for name, record in records.items():
            if record.status in ("quarantined", "drained"):
                phase: StoppedPhase = "quarantined" if record.status == "quarantined" else "drained"
                self._policy.mark_stopped(name, phase, record.epoch, record.sandbox)

    async def _discover(self) -> None:
        """Wait, with a limit, for the first inventory of every configured host, and for some heartbeats of agents.

        Only heartbeats report agents that were started manually: no host lists them.
        """
        since = time.monotonic()
        if not self._clear_quarantine:
            await asyncio.sleep(AGENT_HEARTBEATS * self._swarm.base.watchdog.heartbeat_ms / 1000)
        while not self._signals.stopped.is_set() and self._missing_sandboxes():
            starting = self._clear_quarantine or not self._policy.any_process_runs
            if time.monotonic() - since > (self._first_discovery_s() if starting else DISCOVERY_S):
                return
            await self._signals.wait(TICK_S)

    def _missing_sandboxes(self) -> set[str]:
        """The sandboxes that have no live host yet, but may get one."""
        return self._policy.unserved - self._policy.provider.failed

    def _first_discovery_s(self) -> float:
        remote = {sandbox.name for sandbox in self._swarm.config.sandboxes if sandbox.e2b is not None}
        return REMOTE_DISCOVERY_S if remote & self._missing_sandboxes() else FIRST_DISCOVERY_S

    # -- observing and deciding

    def _on_heartbeat(self, received: ReceivedHeartbeat) -> None:
        heartbeat, at = received.heartbeat, received.at
        if heartbeat.role == "watchdog":
            if heartbeat.epoch == self.term:
                self._own_heartbeat_at = at
                self._availability.own_heartbeat(at)
        elif heartbeat.role == "provider":
            provider = self._policy.provider
            provider.heartbeat_at, provider.failed = at, frozenset(failed_sandboxes_of(heartbeat))
        elif heartbeat.role == "sandbox":
            if not self._is_host(heartbeat):
                return
            self._availability.received(heartbeat.agent, at, heartbeat.agent_id, heartbeat.uptime_s or 0.0)
            self._policy.host_heartbeat(at, heartbeat)
        else:
            agent = self._policy.agents.get(heartbeat.agent)
            phase = agent.phase if agent is not None else None
            self._policy.heartbeat(at, heartbeat)
            # With many agents every moment brings a heartbeat: the next tick is early enough for most of them.
            if agent is None or agent.phase == phase:
                return
        self._signals.wake()

    def _on_malformed_heartbeat(self, subject: str, error: MessageError) -> None:
        self._refused_heartbeats.add(subject.rpartition(".")[2], error.problem, as_host=False)

    async def _on_lifecycle(self, received: ReceivedMessage) -> None:
        try:
            event = received.decode(self._subjects)
        except MessageError:
            return  # the agents that read the stream report it
        assert isinstance(event, Lifecycle)
        if event.event == "drained" and event.epoch is not None:
            self._policy.drained(time.monotonic(), event.agent, event.epoch)
            self._signals.wake()
        elif event.event == "exited":
            code, error = event.detail.get("exit_code"), event.detail.get("error")
            error = error if isinstance(error, str) else None
            state = self._policy.agents.get(event.agent)
            if event.agent in self._policy.hosts and event.source in HOST_KEEPERS:
                for name in self._policy.running_in(event.agent):
                    self._recoveries.exited(name, self._policy.agents[name].epoch, event.timestamp)
                self._policy.host_gone(time.monotonic(), event.agent, f"its sandbox host ended ({event.reason})")
            elif state is None or state.sandbox != event.source:
                pass  # of a host that does not run it
            elif event.epoch is not None and isinstance(code, int):
                self._recoveries.exited(event.agent, event.epoch, event.timestamp)
                self._policy.exited(time.monotonic(), event.agent, event.epoch, code, error)
            self._signals.wake()

    def _decide(self) -> list[Action]:
        time_s = time.monotonic()
        unhealthy = not self._bus.is_ready or time_s - self._own_heartbeat_at > OWN_HEARTBEAT_LOST_S
        self._policy.bus_checked(time_s, unhealthy)
        return self._policy.decide(time_s)


def make_policy(config: ResolvedSwarm) -> Policy:
    """The policy for the agents and sandboxes of `config`; no agent runs yet."""
    timeouts = config.watchdog
    return Policy(
        [agent_state(config, item) for item in config.agents],
        [sandbox.name for sandbox in config.sandboxes],
        Timeouts(
            suspect_s=timeouts.suspect_ms / 1000,
            dead_s=timeouts.dead_ms / 1000,
            grace_s=timeouts.start_grace_ms / 1000,
            start_s=timeouts.start_timeout_s,
            starved_s=timeouts.starved_ms / 1000,
            deaths=timeouts.quarantine_deaths,
            window_s=timeouts.quarantine_window_s,
        ),
        random.Random(),  # noqa: S311 - jitter of pauses
        time.monotonic(),
    )


def agent_state(config: ResolvedSwarm, agent: ResolvedAgent) -> AgentState:
    """That of an agent of `config` that does not run yet."""
    name = agent.spec.name
    phase: Phase = "external" if agent.external else "waiting"
    return AgentState(name, agent.spec.sandbox, is_source=name in config.sources, phase=phase)


def current_voters(config: ResolvedSwarm, policy: Policy) -> dict[str, float]:
    """Agent -> weight of the voters of `config` that are expected to vote.

    Not those that are quarantined or drained, and not those that were added and were not live yet.
    """
    agents = policy.agents
    there = {
        name for name, state in agents.items() if state.phase not in ("quarantined", "drained") and not state.joining
    }
    return {name: weight for name, weight in config.voters.items() if name in there}
