"""`status`: what the bus alone shows of a swarm.

`collect` listens to heartbeats and reads the registry, the claims and the decisions. Everything else here is pure: it
derives the fields of `status --json` from these facts.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from time import monotonic

from bus.durable.fencing import last_claim
from bus.durable.registry import Record, read_records
from bus.errors import MessageError
from bus.heartbeats import LISTEN_S, HeartbeatListener, HeartbeatTable, ReceivedHeartbeat
from bus.messages import FAILED, Alert, Decision, Heartbeat, Lifecycle, VotingConfig, decode
from bus.messages.headers import STORED_AT
from bus.messages.subjects import PROVIDER
from bus.nats.bus import NatsBus
from coordinator.config.changes import ChangedAgent
from coordinator.monitor.models import (
    NOT_RUNNING,
    AgentStatus,
    DashboardStatus,
    DecisionCount,
    MirrorStatus,
    ProviderStatus,
    Refusals,
    SandboxStatus,
    Status,
    WatchdogStatus,
)
from coordinator.monitor.run_files import RunFiles
from coordinator.sandboxes.health import SandboxHealth, health_of
from coordinator.security.refusals import RefusalCounts
from coordinator.supervisor.config_publisher import changes_in, read_config

OLDER_BY_S = {"waiting": 0.0, "restarting": 0.0, "backoff": 0.0, "drained": 0.25, "quarantined": 0.25, "external": 1.0}
"""By the phase that the watchdog reports: how much older than that report an agent's heartbeat may be to count still.

An agent in one of the last three phases may have been started manually, and then has a heartbeat of its own.
"""
NO_FILES = RunFiles()
ALERTS_LOOKBACK = 200_000
"""Messages before the end of the stream among which alerts about refused attempts are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was received and read of a swarm."""

    swarm: str
    nats: str
    at: float
    """When the heartbeats were read, seconds of the monotonic clock."""
    heartbeats: HeartbeatTable
    records: Mapping[str, Record] = field(default_factory=dict)
    """Agent -> its record in the registry."""
    claims: Mapping[str, int] = field(default_factory=dict)
    """Agent -> how many of its claims the stream holds, since it was added if that was at run time."""
    newest_claims: Mapping[str, int] = field(default_factory=dict)
    """Agent without a current heartbeat -> the epoch of its newest claim."""
    config: VotingConfig | None = None
    decisions: Mapping[str, int] = field(default_factory=dict)
    """Subject of decisions -> how many messages the stream holds of it."""
    newest_decision: Decision | None = None
    """Of the deciders that `config` names."""
    external_outputs: Mapping[str, tuple[int, datetime | None]] = field(default_factory=dict)
    """External agent -> how many of its messages the stream holds, and when the newest was stored."""
    failure_reasons: Mapping[str, str | None] = field(default_factory=dict)
    """Failed sandbox -> the reason that its provider reported, if the stream holds it."""
    remote_sandboxes: Sequence[str] = ()
    """Those with provider e2b in the configuration, if it is known."""
    differences: Sequence[ChangedAgent] = ()
    """How the swarm differs from its configuration."""
    refusals: RefusalCounts | None = None
    """What alerts report as refused; None: they were not read."""

    def agent_names(self) -> list[str]:
        """Every agent with a record, a heartbeat, a phase or a vote; none of which a removal has left nothing."""
        voters = self.config.voters if self.config else ()
        gone = changes_in(self.config).removed.keys() - self.records.keys()
        return sorted({*self.records, *self.heartbeats.agents, *self.heartbeats.phases, *voters} - gone)


# -- reading


async def collect(bus: NatsBus, listen_s: float = LISTEN_S, files: RunFiles = NO_FILES) -> Facts:
    """Listen for `listen_s` seconds, and read the rest, also of the `files` of the run.

    Raises:
        Refused: there is no such swarm on this server.
    """
    async with HeartbeatListener(bus) as listener:
        await asyncio.sleep(listen_s)
        facts = await read_facts(bus, listener, files)
        refusals = await read_refusals(bus, facts.agent_names())
    return replace(facts, refusals=refusals, at=monotonic())  # heartbeats were received until now


async def read_facts(bus: NatsBus, heartbeats: HeartbeatTable, files: RunFiles = NO_FILES) -> Facts:
    """Read what is stored, beside the `heartbeats` received so far, and the `files` of the run.

    Raises:
        Refused: there is no such swarm on this server.
    """
    subjects = bus.subjects
    records = await read_records(bus)
    config = await read_config(bus)
    claims = await _claims(bus, config)
    decisions = await bus.subject_counts(subjects.all_of("decision"))
    newest_decision = await _newest_decision(bus, of_deciders(decisions, config))
    external = [name for name, phase in heartbeats.phases.items() if phase == "external"]
    external_outputs = {name: await _stored_outputs(bus, name) for name in external}
    failure_reasons = await read_failure_reasons(bus, heartbeats)
    facts = Facts(
        swarm=subjects.ns,
        nats=bus.url,
        at=monotonic(),
        heartbeats=heartbeats,
        records=records,
        claims=claims,
        config=config,
        decisions=decisions,
        newest_decision=newest_decision,
        external_outputs=external_outputs,
        failure_reasons=failure_reasons,
        remote_sandboxes=await asyncio.to_thread(files.remote_sandboxes),
        differences=await asyncio.to_thread(files.differences, changes_in(config)),
    )
    silent = [name for name in facts.agent_names() if current_heartbeat(name, heartbeats) is None]
    newest = {name: stored.sequence for name in silent if (stored := await last_claim(bus, name)) is not None}
    return replace(facts, newest_claims=newest)


def added_after(config: VotingConfig | None) -> dict[str, int]:
    """Agent that was added at run time -> the message after which that was. Claims before it are of an earlier one."""
    return {name: added.after for name, added in changes_in(config).agents.items() if added.after}


async def _claims(bus: NatsBus, config: VotingConfig | None) -> dict[str, int]:
    subjects = await bus.subject_counts(bus.subjects.epoch("*"))
    counts = {subject.rpartition(".")[2]: count for subject, count in subjects.items()}
    since = {name: after for name, after in added_after(config).items() if counts.get(name, 0) > 1}
    if since:
        counts |= dict.fromkeys(since, 0)
        for stored in await bus.read_back(tuple(map(bus.subjects.epoch, since)), min(since.values()) + 1):
            name = stored.subject.rpartition(".")[2]
            counts[name] += stored.sequence > since[name]
    return counts


async def collect_status(bus: NatsBus, listen_s: float = LISTEN_S, files: RunFiles = NO_FILES) -> Status:
    """Listen for `listen_s` seconds, read the rest, and make the status of it. `files` as in `collect`.

    Raises:
        Refused: there is no such swarm on this server.
    """
    return status_of(await collect(bus, listen_s, files))


async def read_refusals(bus: NatsBus, agents: Sequence[str]) -> RefusalCounts:
    """What the stream's alerts report as refused; those of `agents` may not, and are not read.

    Raises:
        Refused: there is no such swarm on this server.
    """
    stored = await bus.subject_counts(bus.subjects.alert(severity="warning", writer="*"))
    written = tuple(subject for subject in stored if subject.rpartition(".")[2] not in agents)
    bounds = await bus.bounds()
    counts = RefusalCounts(max(bounds.first, bounds.last - ALERTS_LOOKBACK + 1))
    for found in await bus.read_back(written, counts.since) if written else ():
        with contextlib.suppress(MessageError):
            if isinstance(alert := found.decode(bus.subjects), Alert):
                counts.take(alert, found.subject.rpartition(".")[2])
    return counts


async def read_failure_reasons(bus: NatsBus, heartbeats: HeartbeatTable) -> dict[str, str | None]:
    """Why its provider failed to create each failed sandbox; None where the stream does not hold the reason."""
    phases = (heartbeats.provider.heartbeat.phases if heartbeats.provider else None) or {}
    return {name: await _failure_reason(bus, name) for name, phase in phases.items() if phase == FAILED}


async def _failure_reason(bus: NatsBus, sandbox: str) -> str | None:
    subject = bus.subjects.lifecycle(sandbox, PROVIDER)
    stored = await bus.last(subject)
    if stored is not None:
        with contextlib.suppress(MessageError):
            message = decode(bus.subjects.parse(subject), subject, stored.data)
            return message.reason if isinstance(message, Lifecycle) and message.event == "exited" else None
    return None


async def _newest_decision(bus: NatsBus, decisions: Mapping[str, int]) -> Decision | None:
    newest: Decision | None = None
    newest_sequence = 0
    for subject in decisions:
        stored = await bus.last(subject)
        if stored is not None and stored.sequence > newest_sequence:
            with contextlib.suppress(MessageError):
                message = decode(bus.subjects.parse(subject), subject, stored.data)
                if isinstance(message, Decision):
                    newest, newest_sequence = message, stored.sequence
    return newest


async def _stored_outputs(bus: NatsBus, name: str) -> tuple[int, datetime | None]:
    """How many messages of `name` the stream holds, and when the newest was stored."""
    counts = await bus.subject_counts(f"{bus.subjects.ns}.*.*.{name}")
    stored = [message for subject in counts if (message := await bus.last(subject)) is not None]
    newest = max(stored, key=lambda message: message.sequence, default=None)
    return sum(counts.values()), None if newest is None else datetime.fromisoformat(newest.headers[STORED_AT])


# -- what follows from the facts


def status_of(facts: Facts) -> Status:
    """All of `status --json`."""
    heartbeats = facts.heartbeats
    agents = [agent_status(name, facts) for name in facts.agent_names()]
    sandboxes = [sandbox_status(name, facts, agents) for name in sorted(heartbeats.hosts)]
    sandboxes += sandboxes_without_host(heartbeats, facts.failure_reasons, facts.remote_sandboxes)
    leaders = [heartbeats.leader] if heartbeats.leader else []
    return Status(
        swarm=facts.swarm,
        nats=facts.nats,
        active_agents=sum(agent.status in ("active", "finished") for agent in agents),
        processes=sum(agent.pid is not None for agent in agents),
        watchdog_term=heartbeats.leader.heartbeat.epoch if heartbeats.leader else None,
        watchdogs=[_watchdog_status(received, facts.at) for received in (*leaders, *heartbeats.standbys.values())],
        sandboxes=sandboxes,
        agents=agents,
        changes=list(facts.differences),
        decisions=decision_count(facts),
        mirror=None if heartbeats.mirror is None else _mirror_status(heartbeats.mirror.heartbeat),
        provider=None if heartbeats.provider is None else _provider_status(heartbeats.provider.heartbeat),
        dashboard=None if heartbeats.dashboard is None else _dashboard_status(heartbeats.dashboard, facts.at),
        refused=_refused(facts),
    )


def current_heartbeat(name: str, heartbeats: HeartbeatTable) -> ReceivedHeartbeat | None:
    """The heartbeat of agent `name`; None too if it was the last one of a process that has ended."""
    received = heartbeats.agents.get(name)
    phase, leader = heartbeats.phases.get(name), heartbeats.leader
    if received is None or phase is None or leader is None:
        return received
    return None if leader.at - received.at > OLDER_BY_S.get(phase, 0.0) else received


def agent_status(name: str, facts: Facts) -> AgentStatus:
    """The status of one agent; its process, if it has a current heartbeat, else by its record."""
    record = facts.records.get(name)
    received = current_heartbeat(name, facts.heartbeats)
    heartbeat = None if received is None else received.heartbeat
    outputs, last_output_at = facts.external_outputs.get(name, (None, None))
    if heartbeat is not None and name not in facts.external_outputs:
        outputs = heartbeat.outputs
    if heartbeat is not None:
        epoch = heartbeat.epoch
    else:
        # The record may be older than the newest claim: an agent that dies before it is ready writes none.
        epoch = facts.newest_claims.get(name) or (record.epoch if record else 0)
    known = heartbeat or record
    return AgentStatus(
        name=name,
        kind=record.kind if record else "",
        agent_id=known.agent_id if known else "",
        status=_status_word(name, facts, heartbeat),
        epoch=epoch,
        pid=heartbeat.pid if heartbeat else None,
        sandbox=known.sandbox if known else "",
        capabilities=list(record.capabilities) if record else [],
        restarts=max(0, facts.claims.get(name, 0) - 1),
        heartbeat_age_ms=None if received is None else _age_ms(received, facts.at),
        cursor=heartbeat.cursor if heartbeat else None,
        lag=heartbeat.lag if heartbeat else None,
        outputs=outputs,
        poison=heartbeat.poison if heartbeat else None,
        skipped=heartbeat.skipped if heartbeat else None,
        last_output_at=last_output_at,
    )


def _status_word(name: str, facts: Facts, heartbeat: Heartbeat | None) -> str:
    """The first of these that is known: external, its heartbeat, the watchdog's phase, its record."""
    phase, record = facts.heartbeats.phases.get(name), facts.records.get(name)
    if phase == "external":
        return phase
    if heartbeat is not None:
        return "active" if heartbeat.status == "live" else heartbeat.status
    if phase is not None:
        return phase
    if record is None:
        return "unknown"
    return "silent" if record.status == "active" else record.status


def sandbox_status(name: str, facts: Facts, agents: Sequence[AgentStatus]) -> SandboxStatus:
    """The status of the sandbox whose host is `name`, with the processes of `agents` that run in it."""
    hosts, leader = facts.heartbeats.hosts, facts.heartbeats.leader
    heartbeat = hosts[name].heartbeat
    accounts = (leader.heartbeat.accounts if leader else None) or {}
    usages = {host: received.heartbeat.usage for host, received in hosts.items()}
    return SandboxStatus(
        name=name,
        provider=heartbeat.provider,
        endpoint=heartbeat.endpoint,
        status="active" if heartbeat.status == "live" else heartbeat.status,
        agents=[agent.name for agent in agents if agent.sandbox == name and agent.pid is not None],
        uptime_s=heartbeat.uptime_s,
        pid=heartbeat.pid,
        health=health_of(heartbeat, accounts.get(name), usages),
    )


def sandboxes_without_host(
    heartbeats: HeartbeatTable, reasons: Mapping[str, str | None], configured: Sequence[str]
) -> list[SandboxStatus]:
    """The sandboxes that their provider reports or that are `configured` at one, and of which no host has sent a
    heartbeat.
    """
    provider = heartbeats.provider.heartbeat if heartbeats.provider else None
    phases = (provider.phases if provider else None) or {}
    served = {received.heartbeat.group or name for name, received in heartbeats.hosts.items()}
    otherwise = "its host sends no heartbeat" if provider else "no provider is running"
    return [
        SandboxStatus(
            name=name,
            provider=provider.provider if provider else "e2b",
            endpoint=provider.endpoint if provider else None,
            status=phases.get(name, NOT_RUNNING),
            agents=[],
            uptime_s=None,
            pid=None,
            health=SandboxHealth(),
            reason=reasons.get(name) if name in phases else otherwise,
        )
        for name in sorted({*phases, *configured} - served)
    ]


def of_deciders(decisions: Mapping[str, int], config: VotingConfig | None) -> dict[str, int]:
    """Those of `decisions` (by subject) of the agents that `config` names as deciders; all, if it names none."""
    deciders = config.deciders if config else ()
    return {s: count for s, count in decisions.items() if not deciders or s.rpartition(".")[2] in deciders}


def decision_count(facts: Facts) -> DecisionCount:
    """How many decisions of the deciders the stream holds, and how many of other writers."""
    count = sum(of_deciders(facts.decisions, facts.config).values())
    return DecisionCount(
        count=count,
        last_at=facts.newest_decision.timestamp if facts.newest_decision else None,
        from_other_writers=sum(facts.decisions.values()) - count,
    )


def _age_ms(received: ReceivedHeartbeat, at: float) -> int:
    return round((at - received.at) * 1000)


def _watchdog_status(received: ReceivedHeartbeat, at: float) -> WatchdogStatus:
    heartbeat = received.heartbeat
    return WatchdogStatus(
        pid=heartbeat.pid,
        machine=heartbeat.machine,
        term=None if heartbeat.status == "standby" else heartbeat.epoch,
        heartbeat_age_ms=_age_ms(received, at),
    )


def _provider_status(heartbeat: Heartbeat) -> ProviderStatus:
    return ProviderStatus(pid=heartbeat.pid, status=heartbeat.status, endpoint=heartbeat.endpoint)


def _dashboard_status(received: ReceivedHeartbeat, at: float) -> DashboardStatus:
    heartbeat = received.heartbeat
    return DashboardStatus(
        pid=heartbeat.pid,
        machine=heartbeat.machine,
        status=heartbeat.status,
        lag=heartbeat.lag,
        heartbeat_age_ms=_age_ms(received, at),
    )


def _refused(facts: Facts) -> Refusals | None:
    counts = facts.refusals
    if counts is None or not (by := counts.found(facts.agent_names())):
        return None
    return Refusals(count=sum(one.count for one in by), since=counts.since, by=by)


def _mirror_status(heartbeat: Heartbeat) -> MirrorStatus:
    return MirrorStatus(
        file=heartbeat.file or "",
        cursor=heartbeat.cursor,
        lag=heartbeat.lag,
        lag_ms=heartbeat.lag_ms or 0,
        status=heartbeat.status,
        pid=heartbeat.pid,
    )
