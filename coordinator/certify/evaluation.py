"""The rows of certify's report: what was heard of hosts and agents, and the targets beside what was measured."""

from __future__ import annotations

import time
from collections.abc import Mapping

from agents.host.probe import Probe
from bus.errors import MeshError
from bus.heartbeats import HeartbeatListener, ReceivedHeartbeat
from bus.interface import Closable
from bus.messages import Heartbeat
from bus.nats.bus import NatsBus
from coordinator.audit.models import Audit
from coordinator.certify.expected import ExpectedSwarm
from coordinator.certify.measurements import MS, RunRecording
from coordinator.certify.models import (
    LOST,
    AgentRow,
    Audited,
    CertifyTarget,
    MemoryKey,
    SandboxRow,
    SnapshotRow,
    active_sandboxes,
    judged,
)
from coordinator.control.kill import KillReport
from coordinator.monitor.observer import Observer
from coordinator.sandboxes.health import health_of
from coordinator.sandboxes.isolation import compare, probe_sandbox

__all__ = ["LOST_S", "HostReports", "agent_rows", "audited", "sandbox_rows", "served", "targets"]

LOST_S = 2.0
"""Who is silent for so long is lost: ten beats of a host, twenty of an agent."""


class HostReports:
    """What is heard of the sandboxes' hosts, and what they say of themselves. `since`: when the swarm was started."""

    def __init__(self, bus: NatsBus, since: float) -> None:
        self._bus, self.since = bus, since
        self.first: dict[str, float] = {}
        self.ended_at = 0.0
        self.listened_from = 0.0
        """When the last listening began in which everybody alive had the time to be heard."""
        self.probes: dict[str, tuple[float, float, Probe]] = {}
        """Name -> how long the probe's round trip took, ms, when it ended, ms since the start, and what it told."""
        self.failures: dict[str, str] = {}
        self._listening: Closable

    async def start(self) -> None:
        await HeartbeatListener(self._bus, on_heartbeat=self._on_heartbeat).start()

    def _on_heartbeat(self, received: ReceivedHeartbeat) -> None:
        if received.heartbeat.role == "sandbox" and not self.ended_at:
            self.first.setdefault(received.heartbeat.agent, received.at)

    def stop(self) -> None:
        """Hear no more: what is silent from now on was told to end."""
        self.ended_at = time.monotonic()

    @property
    def lost_before(self) -> float:
        """Who was last heard before this moment was lost at the run's end, monotonic seconds."""
        return max(self.listened_from, self.ended_at - LOST_S)

    async def probe(self, name: str) -> None:
        """Ask a host what it sees; a refusal or silence is noted as well."""
        started_at = time.monotonic()
        try:
            probe = await probe_sandbox(self._bus, name)
        except MeshError as error:
            self.failures[name] = str(error)
        else:
            ended = time.monotonic()
            self.probes[name] = ((ended - started_at) * 1000, (ended - self.since) * 1000, probe)


def served(observer: Observer, since: float | None = None) -> set[str]:
    """The sandboxes of which a live host was heard after `since` (monotonic seconds), or lately."""
    if since is None:
        since = time.monotonic() - LOST_S
    return {
        _sandbox_of(heartbeat.heartbeat)
        for heartbeat in observer.hosts.values()
        if heartbeat.heartbeat.status == "live" and heartbeat.at > since
    }


def _sandbox_of(said: Heartbeat) -> str:
    return said.group or said.agent


def sandbox_rows(wanted: ExpectedSwarm, hosts: HostReports, observer: Observer, here: Probe) -> list[SandboxRow]:
    """A row for each host that was heard, and for each sandbox that should be there and is not, at the run's end."""
    rows: list[SandboxRow] = []
    ended = hosts.ended_at
    lost = {name for name, heartbeat in observer.hosts.items() if heartbeat.at < hosts.lost_before}
    usages = {name: heartbeat.heartbeat.usage for name, heartbeat in observer.hosts.items() if name not in lost}
    accounts = (observer.leader.heartbeat.accounts if observer.leader else None) or {}
    received = {_sandbox_of(heartbeat.heartbeat) for heartbeat in observer.hosts.values()}
    rows += [
        SandboxRow(name=name, sandbox=name, why="no heartbeat of its host was heard")
        for name in wanted.sandboxes
        if name not in received
    ]
    for name, heartbeat in sorted(observer.hosts.items()):
        said = heartbeat.heartbeat
        took_ms, probed_ms, probe = hosts.probes.get(name, (None, None, None))
        why = hosts.failures.get(name, "")
        if name in lost:
            why = f"its host was last heard {ended - heartbeat.at:.1f} s before the end of the run; figures are of then"
        elif probe is None and not why:
            why = "it came after the probing"
        rows.append(
            SandboxRow(
                name=name,
                sandbox=_sandbox_of(said),
                provider=said.provider,
                state=LOST if name in lost else "active" if said.status == "live" else said.status,
                received_ms=(hosts.first[name] - hosts.since) * 1000 if name in hosts.first else None,
                probe_ms=took_ms,
                probed_ms=probed_ms,
                probe=probe,
                isolation=None if probe is None else compare(probe, here),
                agents=sorted(
                    agent
                    for agent, known in observer.agents.items()
                    if known.heartbeat.sandbox == name and known.at >= hosts.lost_before
                ),
                uptime_s=said.uptime_s,
                health=health_of(said, accounts.get(name), {**usages, name: said.usage}),
                why=why,
            )
        )
    return rows


def _status(heartbeat: ReceivedHeartbeat | None, lost_before: float) -> str:
    if heartbeat is None:
        return "not heard"
    if heartbeat.at < lost_before:
        return LOST
    return {"live": "active", "finished": "active"}.get(heartbeat.heartbeat.status, heartbeat.heartbeat.status)


def agent_rows(
    wanted: ExpectedSwarm,
    observer: Observer,
    recording: RunRecording,
    capabilities: Mapping[str, list[str]],
    hosts: HostReports,
) -> list[AgentRow]:
    """A row for each agent that should be there, as it was at the run's end; its times of starting are those of its
    first incarnation.
    """
    rows = []
    for name, kind in wanted.agents.items():
        heartbeat = observer.agents.get(name)
        said = None if heartbeat is None else heartbeat.heartbeat
        first = min(recording.claims.get(name, ()), default=0)
        rows.append(
            AgentRow(
                name=name,
                kind=kind,
                agent_id=said.agent_id if said else "",
                sandbox=said.sandbox if said else "",
                pid=said.pid if said else None,
                epoch=said.epoch if said else 0,
                capabilities=capabilities.get(name, []),
                status=_status(heartbeat, hosts.lost_before),
                spawn_ms=recording.since_claim_ms("spawned", name, first),
                ready_ms=recording.since_claim_ms("ready", name, first),
                outputs=said.outputs if said else None,
                rss_mb=said.rss_mb if said else None,
                cpu_s=said.cpu_s if said else None,
                why="" if said else "no heartbeat of it was heard",
            )
        )
    return rows


def audited(audit: Audit) -> Audited:
    """The audit in short."""
    agents = audit.agents.values()
    return Audited(
        ok=audit.ok,
        messages=audit.stream.messages,
        gaps=sum(agent.gaps for agent in agents),
        duplicated=sum(agent.duplicated for agent in agents),
        rounds_decided=audit.rounds.decided,
        rounds_missing=audit.rounds.missing,
        mirror_compared=audit.mirror.compared,
        mirror_missing=audit.mirror.missing,
        mirror_differing=audit.mirror.differing,
        problems=[problem.text for problem in audit.problems],
        notes=audit.notes,
    )


def targets(
    wanted: ExpectedSwarm,
    sandboxes: list[SandboxRow],
    agents: list[AgentRow],
    memory: list[MemoryKey],
    snapshots: list[SnapshotRow],
    fault: KillReport | None,
    before: RunRecording,
    after: RunRecording,
    audit: Audited | None,
    *,
    detection_s: float,
    recovery_s: float,
    downtime_s: float,
) -> list[CertifyTarget]:
    """All that must hold, beside what was measured."""
    no_fault = "no agent was killed" if fault is None else f"the kill's outcome: {fault.outcome}"
    detected = None if fault is None or fault.detected_ms is None else fault.detected_ms / 1000
    ready = None if fault is None or fault.ready_ms is None else fault.ready_ms / 1000
    away_s, back_s = _gap_s(fault, after)
    probed = {row.sandbox for row in sandboxes if row.probe}
    return [
        judged(
            "sandboxes deployed", float(len(active_sandboxes(sandboxes) & probed)), "sandboxes",
            float(len(wanted.sandboxes)),
            "their hosts beat at the end of the run, and answered a probe (or those did that they replaced)", "",
            exactly=True,
        ),
        judged(
            "agents active", float(sum(row.status == "active" for row in agents)), "agents",
            float(len(wanted.agents)), "their newest heartbeats say so at the end of the run", "", exactly=True,
        ),
        judged(
            "memory intact", _whole(sum(row.mirrored is True for row in memory), len(wanted.agents)), "%", 100.0,
            "memory keys whose digest is that of a message in the stream and in the mirror", "", exactly=True,
        ),
        judged(
            "snapshots intact", _whole(sum(row.mirrored is True for row in snapshots), len(wanted.agents)), "%", 100.0,
            "snapshots whose digest by the bus is that by the mirror", "", exactly=True,
        ),
        judged("detection", detected, "s", detection_s, "from the signal until the death was declared", no_fault),
        judged("recovery", ready, "s", recovery_s, "from the signal until it was live again with its state", no_fault),
        judged(
            "downtime", away_s, "s", downtime_s,
            "from its last output before the kill to its first after it, both by the server's clock", no_fault,
        ),
        judged(
            "rejoin", back_s, "s", downtime_s,
            "from its last output before the kill to the first decision on a tick of the new process", no_fault,
        ),
        judged(
            "data loss", _lost(fault, audit), "outputs", 0.0,
            "missing or repeated numbers of all agents' outputs, read back from the stream",
            "the stream was not audited" if audit is None else no_fault, exactly=True,
        ),
        judged(
            "restoration", _restored(fault, before, after), "%", 100.0,
            "outputs of before the kill that are stored after it with the same digest", no_fault, exactly=True,
        ),
    ]  # fmt: skip


def _whole(count: int, of: int) -> float:
    return 100.0 * count / of


def _lost(fault: KillReport | None, audit: Audited | None) -> float | None:
    if audit is None or fault is None or fault.outputs_lost is None or fault.outputs_duplicated is None:
        return None
    return float(
        max(fault.outputs_lost + fault.outputs_duplicated, audit.gaps + audit.duplicated) + audit.rounds_missing
    )


def _restored(fault: KillReport | None, before: RunRecording, after: RunRecording) -> float | None:
    known = {} if fault is None else before.outputs(fault.agent)
    if fault is None or not known or not after.messages:
        return None
    found = after.outputs(fault.agent)
    same = sum(at in found and found[at].sha256 == told.sha256 for at, told in known.items())
    return _whole(same, len(known))


def _gap_s(fault: KillReport | None, after: RunRecording) -> tuple[float | None, float | None]:
    """Seconds without an output of the killed agent, and until a tick of its successor was decided."""
    if fault is None or fault.epoch_after is None:
        return None, None
    outputs = after.outputs(fault.agent)
    old = [told.stored_ns for told in outputs.values() if told.epoch == fault.epoch_before]
    new = [told.stored_ns for told in outputs.values() if told.epoch == fault.epoch_after]
    ticks = {tick for tick, at in after.ticks.items() if at in outputs and outputs[at].epoch == fault.epoch_after}
    decided = [after.messages[at].stored_ns for at, (*tick, _) in after.decisions.items() if tuple(tick) in ticks]
    if not old:
        return None, None
    last = max(old)
    return (
        (min(new) - last) * MS / 1000 if new else None,
        (min(decided) - last) * MS / 1000 if decided else None,
    )
