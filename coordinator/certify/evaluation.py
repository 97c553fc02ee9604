"""The rows of certify's report: hosts and agents by their heartbeats, and the targets with the measured values."""

from __future__ import annotations

import time
from collections.abc import Mapping

from agents.host.probe import Probe
from bus.errors import MeshError
from bus.heartbeats import HeartbeatListener, ReceivedHeartbeat
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

__all__ = ["LOST_S", "HostReports", "agent_rows", "audited", "sandbox_of", "sandbox_rows", "served", "targets"]

LOST_S = 2.0
"""A process without heartbeats for this time is lost: ten heartbeats of a host, twenty of an agent."""


class HostReports:
    """First heartbeats and probes of the sandboxes' hosts. `since`: when the swarm was started, monotonic seconds."""

    def __init__(self, bus: NatsBus, since: float) -> None:
        self._bus, self.since = bus, since
        self.first: dict[str, float] = {}
        self.ended_at = 0.0
        self.listened_from = 0.0
        """Start of the last period in which all live processes had the time to send a heartbeat."""
        self.probes: dict[str, tuple[float, float, Probe]] = {}
        """Name -> round trip of the probe (ms), when it ended (ms since the start), and its result."""
        self.failures: dict[str, str] = {}

    async def start(self) -> None:
        await HeartbeatListener(self._bus, on_heartbeat=self._on_heartbeat).start()

    def _on_heartbeat(self, received: ReceivedHeartbeat) -> None:
        if received.heartbeat.role == "sandbox" and not self.ended_at:
            self.first.setdefault(received.heartbeat.agent, received.at)

    def stop(self) -> None:
        """Record no more heartbeats: the processes are ended from now on."""
        self.ended_at = time.monotonic()

    @property
    def lost_before(self) -> float:
        """A process with no heartbeat after this time was lost at the run's end; monotonic seconds."""
        return max(self.listened_from, self.ended_at - LOST_S)

    async def probe(self, name: str) -> None:
        """Probe a host; a failure is recorded as well."""
        started_at = time.monotonic()
        try:
            probe = await probe_sandbox(self._bus, name)
        except MeshError as error:
            self.failures[name] = str(error)
        else:
            ended = time.monotonic()
            self.probes[name] = ((ended - started_at) * 1000, (ended - self.since) * 1000, probe)


def served(observer: Observer, since: float | None = None) -> set[str]:
    """The sandboxes with a heartbeat of a live host after `since` (monotonic seconds; default: LOST_S ago)."""
    if since is None:
        since = time.monotonic() - LOST_S
    return {
        sandbox_of(heartbeat.heartbeat)
        for heartbeat in observer.hosts.values()
        if heartbeat.heartbeat.status == "live" and heartbeat.at > since
    }


def sandbox_of(heartbeat: Heartbeat) -> str:
    """The sandbox, by its name in the configuration, whose host has sent it."""
    return heartbeat.group or heartbeat.agent


def sandbox_rows(expected: ExpectedSwarm, hosts: HostReports, observer: Observer, here: Probe) -> list[SandboxRow]:
    """A row for each host with a heartbeat, and for each configured sandbox without one, at the run's end."""
    rows: list[SandboxRow] = []
    ended = hosts.ended_at
    lost = {name for name, heartbeat in observer.hosts.items() if heartbeat.at < hosts.lost_before}
    usages = {name: heartbeat.heartbeat.usage for name, heartbeat in observer.hosts.items() if name not in lost}
    accounts = (observer.leader.heartbeat.accounts if observer.leader else None) or {}
    received = {sandbox_of(heartbeat.heartbeat) for heartbeat in observer.hosts.values()}
    rows += [
        SandboxRow(name=name, sandbox=name, why="no heartbeat of its host was received")
        for name in expected.sandboxes
        if name not in received
    ]
    for name, heartbeat in sorted(observer.hosts.items()):
        newest = heartbeat.heartbeat
        duration_ms, probed_ms, probe = hosts.probes.get(name, (None, None, None))
        why = hosts.failures.get(name, "")
        if name in lost:
            why = (
                f"last heartbeat of its host {ended - heartbeat.at:.1f} s before the end of the run; values are of then"
            )
        elif probe is None and not why:
            why = "it started after the probing"
        rows.append(
            SandboxRow(
                name=name,
                sandbox=sandbox_of(newest),
                provider=newest.provider,
                state=LOST if name in lost else "active" if newest.status == "live" else newest.status,
                received_ms=(hosts.first[name] - hosts.since) * 1000 if name in hosts.first else None,
                probe_ms=duration_ms,
                probed_ms=probed_ms,
                probe=probe,
                isolation=None if probe is None else compare(probe, here),
                agents=sorted(
                    agent
                    for agent, known in observer.agents.items()
                    if known.heartbeat.sandbox == name and known.at >= hosts.lost_before
                ),
                uptime_s=newest.uptime_s,
                health=health_of(newest, accounts.get(name), {**usages, name: newest.usage}),
                why=why,
            )
        )
    return rows


def _status(heartbeat: ReceivedHeartbeat | None, lost_before: float) -> str:
    if heartbeat is None:
        return "no heartbeat"
    if heartbeat.at < lost_before:
        return LOST
    return {"live": "active", "finished": "active"}.get(heartbeat.heartbeat.status, heartbeat.heartbeat.status)


def agent_rows(
    expected: ExpectedSwarm,
    observer: Observer,
    recording: RunRecording,
    capabilities: Mapping[str, list[str]],
    hosts: HostReports,
) -> list[AgentRow]:
    """A row for each configured agent, as of the run's end; its start times are those of its first incarnation."""
    rows = []
    for name, kind in expected.agents.items():
        heartbeat = observer.agents.get(name)
        newest = None if heartbeat is None else heartbeat.heartbeat
        first = min(recording.claims.get(name, ()), default=0)
        rows.append(
            AgentRow(
                name=name,
                kind=kind,
                agent_id=newest.agent_id if newest else "",
                sandbox=newest.sandbox if newest else "",
                pid=newest.pid if newest else None,
                epoch=newest.epoch if newest else 0,
                capabilities=capabilities.get(name, []),
                status=_status(heartbeat, hosts.lost_before),
                spawn_ms=recording.since_claim_ms("spawned", name, first),
                ready_ms=recording.since_claim_ms("ready", name, first),
                outputs=newest.outputs if newest else None,
                rss_mb=newest.rss_mb if newest else None,
                cpu_s=newest.cpu_s if newest else None,
                why="" if newest else "no heartbeat was received",
            )
        )
    return rows


def audited(audit: Audit) -> Audited:
    """A summary of the audit."""
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
    expected: ExpectedSwarm,
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
    """All targets with their verdicts."""
    no_fault = "no agent was killed" if fault is None else f"the kill's outcome: {fault.outcome}"
    detected = None if fault is None or fault.detected_ms is None else fault.detected_ms / 1000
    ready = None if fault is None or fault.ready_ms is None else fault.ready_ms / 1000
    away_s, back_s = _gap_s(fault, after)
    probed = {row.sandbox for row in sandboxes if row.probe}
    return [
        judged(
            "sandboxes deployed", float(len(active_sandboxes(sandboxes) & probed)), "sandboxes",
            float(len(expected.sandboxes)),
            "with heartbeats at the end of the run and an answer to a probe (or one of a predecessor)", "",
            exactly=True,
        ),
        judged(
            "agents active", float(sum(row.status == "active" for row in agents)), "agents",
            float(len(expected.agents)), "by their newest heartbeats at the end of the run", "", exactly=True,
        ),
        judged(
            "memory intact", _whole(sum(row.mirrored is True for row in memory), len(expected.agents)), "%", 100.0,
            "memory keys with the digest of a message in the stream and in the mirror", "", exactly=True,
        ),
        judged(
            "snapshots intact", _whole(sum(row.mirrored is True for row in snapshots), len(expected.agents)), "%",
            100.0, "snapshots with the same digest in the bus and in the mirror", "", exactly=True,
        ),
        judged("detection", detected, "s", detection_s, "from the signal until the agent was declared dead", no_fault),
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
            "outputs from before the kill that are still stored with the same digest", no_fault, exactly=True,
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
    same = sum(at in found and found[at].sha256 == output.sha256 for at, output in known.items())
    return _whole(same, len(known))


def _gap_s(fault: KillReport | None, after: RunRecording) -> tuple[float | None, float | None]:
    """Seconds without an output of the killed agent, and until a tick of its successor was decided."""
    if fault is None or fault.epoch_after is None:
        return None, None
    outputs = after.outputs(fault.agent)
    old = [output.stored_ns for output in outputs.values() if output.epoch == fault.epoch_before]
    new = [output.stored_ns for output in outputs.values() if output.epoch == fault.epoch_after]
    ticks = {tick for tick, at in after.ticks.items() if at in outputs and outputs[at].epoch == fault.epoch_after}
    decided = [after.messages[at].stored_ns for at, (*tick, _) in after.decisions.items() if tuple(tick) in ticks]
    if not old:
        return None, None
    last = max(old)
    return (
        (min(new) - last) * MS / 1000 if new else None,
        (min(decided) - last) * MS / 1000 if decided else None,
    )
