"""What can be learnt of a swarm from its bus alone: every figure here was received or read, none is kept by us.

`status` listens to heartbeats for a moment, and reads the registry, the stream's counts and the last decision.
"""

from __future__ import annotations

import asyncio
import contextlib
from datetime import datetime
from time import monotonic

from bus.durable.fencing import last_claim
from bus.durable.registry import read_records
from bus.errors import MessageError
from bus.heartbeats import LISTEN_S, HeartbeatListener
from bus.messages import FAILED, Decision, Heartbeat, Lifecycle, decode
from bus.messages.headers import STORED_AT
from bus.messages.subjects import PROVIDER
from bus.nats.bus import NatsBus
from coordinator.monitor.models import (
    AgentStatus,
    DecisionCount,
    MirrorStatus,
    ProviderStatus,
    SandboxStatus,
    Status,
    WatchdogStatus,
)
from coordinator.sandboxes.health import SandboxHealth, health_of
from coordinator.supervisor.config_publisher import read_config

TIMEOUT_S = {"waiting": 0.0, "restarting": 0.0, "backoff": 0.0, "drained": 0.25, "quarantined": 0.25, "external": 1.0}
"""How much older than the watchdog's word a heartbeat may be that still counts: who is away may run by hand."""


async def said_by(bus: NatsBus, name: str) -> tuple[int, datetime | None]:
    """How many messages of `name` the stream holds, and when the newest was stored."""
    counts = await bus.subject_counts(f"{bus.subjects.ns}.*.*.{name}")
    stored = [kept for subject in counts if (kept := await bus.last(subject)) is not None]
    newest = max(stored, key=lambda kept: kept.sequence, default=None)
    return sum(counts.values()), None if newest is None else datetime.fromisoformat(newest.headers[STORED_AT])


async def failure_reason(bus: NatsBus, sandbox: str) -> str | None:
    """What the provider said when it gave up `sandbox`; None if the stream does not hold that."""
    subject = bus.subjects.lifecycle(sandbox, PROVIDER)
    stored = await bus.last(subject)
    if stored is not None:
        with contextlib.suppress(MessageError):
            message = decode(bus.subjects.parse(subject), subject, stored.data)
            return message.reason if isinstance(message, Lifecycle) and message.event == "exited" else None
    return None


async def without_host(bus: NatsBus, listener: HeartbeatListener) -> list[SandboxStatus]:
    """The sandboxes of which no host is heard, as their provider says."""
    said = None if listener.provider is None else listener.provider.heartbeat
    served = {heartbeat.group for _, heartbeat in listener.hosts.values()}
    return [
        SandboxStatus(
            name=name,
            provider=said.provider,
            endpoint=said.endpoint,
            status=phase,
            agents=[],
            uptime_s=None,
            pid=None,
            health=SandboxHealth(),
            reason=await failure_reason(bus, name) if phase == FAILED else None,
        )
        for name, phase in sorted((said.phases or {}).items() if said else ())
        if said is not None and name not in served
    ]


async def collect_status(bus: NatsBus, listen_s: float = LISTEN_S) -> Status:
    """Listen for `listen_s` seconds, then read the rest.

    Raises:
        Refused: there is no such swarm on this server.
    """
    listener = HeartbeatListener(bus)
    await listener.start()
    records = await read_records(bus)
    await asyncio.sleep(listen_s)
    subjects = bus.subjects
    claims = await bus.subject_counts(f"{subjects.ns}.epoch.*")
    config = await read_config(bus)
    decisions = await bus.subject_counts(subjects.all_of("decision"))
    deciders = config.deciders if config else ()  # none named: anybody's decisions are the swarm's
    counts = {s: n for s, n in decisions.items() if not deciders or s.rpartition(".")[2] in deciders}
    newest: Decision | None = None
    newest_sequence = 0
    for subject in counts:
        stored = await bus.last(subject)
        if stored is not None and stored.sequence > newest_sequence:
            with contextlib.suppress(MessageError):
                message = decode(subjects.parse(subject), subject, stored.data)
                if isinstance(message, Decision):
                    newest, newest_sequence = message, stored.sequence
    time = monotonic()
    agents = []
    led_at, leader = listener.leader or (0.0, None)
    phases = listener.phases
    externals = {name: await said_by(bus, name) for name, phase in phases.items() if phase == "external"}
    for name in sorted({*records, *listener.agents, *phases, *(config.voters if config else ())}):
        record = records.get(name)
        heartbeat_at, heartbeat = listener.agents.get(name, (None, None))
        outputs, last_output_at = externals.get(name, (None, None))
        if heartbeat_at is not None and name in phases and led_at - heartbeat_at > TIMEOUT_S.get(phases[name], 0.0):
            heartbeat_at, heartbeat = None, None  # that was the last heartbeat of a process that has ended
        if name in externals:
            status = "external"
        elif heartbeat is not None:
            outputs = heartbeat.outputs
            status = {"live": "active", "finished": "active"}.get(heartbeat.status, heartbeat.status)
        elif name in phases:
            status = phases[name]
        elif record is None:
            status = "unknown"
        else:
            status = "silent" if record.status == "active" else record.status
        # Its record may be of an earlier incarnation: who has died before it was ready has written none.
        claimed = None if heartbeat is not None else await last_claim(bus, name)
        agents.append(
            AgentStatus(
                name=name,
                kind=record.kind if record else "",
                agent_id=heartbeat.agent_id if heartbeat else record.agent_id if record else "",
                status=status,
                epoch=heartbeat.epoch if heartbeat else claimed.sequence if claimed else record.epoch if record else 0,
                pid=heartbeat.pid if heartbeat else None,
                sandbox=heartbeat.sandbox if heartbeat else record.sandbox if record else "",
                capabilities=list(record.capabilities) if record else [],
                restarts=max(0, claims.get(subjects.epoch(name), 0) - 1),
                heartbeat_age_ms=None if heartbeat_at is None else round((time - heartbeat_at) * 1000),
                cursor=heartbeat.cursor if heartbeat else None,
                lag=heartbeat.lag if heartbeat else None,
                outputs=outputs,
                poison=heartbeat.poison if heartbeat else None,
                skipped=heartbeat.skipped if heartbeat else None,
                last_output_at=last_output_at,
            )
        )
    usages = {name: heartbeat.usage for name, (_, heartbeat) in listener.hosts.items()}
    accounts = (leader.accounts if leader else None) or {}
    sandboxes = [
        SandboxStatus(
            name=name,
            provider=heartbeat.provider,
            endpoint=heartbeat.endpoint,
            status="active" if heartbeat.status == "live" else heartbeat.status,
            agents=[agent.name for agent in agents if agent.sandbox == name and agent.pid is not None],
            uptime_s=heartbeat.uptime_s,
            pid=heartbeat.pid,
            health=health_of(heartbeat, accounts.get(name), usages),
        )
        for name, (_, heartbeat) in sorted(listener.hosts.items())
    ]
    sandboxes += await without_host(bus, listener)
    return Status(
        swarm=subjects.ns,
        nats=bus.url,
        active_agents=sum(agent.status == "active" for agent in agents),
        processes=sum(agent.pid is not None for agent in agents),
        watchdog_term=leader.epoch if leader else None,
        watchdogs=[
            WatchdogStatus(
                pid=heartbeat.pid,
                machine=heartbeat.machine,
                term=None if heartbeat.status == "standby" else heartbeat.epoch,
                heartbeat_age_ms=round((time - heartbeat_at) * 1000),
            )
            for heartbeat_at, heartbeat in (
                *([listener.leader] if listener.leader else []),
                *listener.standbys.values(),
            )
        ],
        sandboxes=sandboxes,
        agents=agents,
        decisions=DecisionCount(
            count=sum(counts.values()),
            last_at=newest.timestamp if newest else None,
            from_other_writers=sum(decisions.values()) - sum(counts.values()),
        ),
        mirror=None if listener.mirror is None else _mirror_status(listener.mirror.heartbeat),
        provider=None if listener.provider is None else _provider_status(listener.provider.heartbeat),
    )


def _provider_status(heartbeat: Heartbeat) -> ProviderStatus:
    return ProviderStatus(pid=heartbeat.pid, status=heartbeat.status, endpoint=heartbeat.endpoint)


def _mirror_status(heartbeat: Heartbeat) -> MirrorStatus:
    return MirrorStatus(
        file=heartbeat.file or "",
        cursor=heartbeat.cursor,
        lag=heartbeat.lag,
        behind_ms=heartbeat.behind_ms or 0,
        status=heartbeat.status,
        pid=heartbeat.pid,
    )
