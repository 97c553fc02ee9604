"""`signalmesh certify`: the acceptance run. It starts a temporary swarm, measures it, kills an agent, audits and cleans
up.

Each step returns its part of the run; `build_report` builds the report from the parts.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from agents.host.probe import Probe, probe_sandbox
from bus import __version__
from bus.durable.registry import read_records
from bus.errors import BusError, MeshError
from bus.messages import Alert, now
from bus.mirror.reader import MIRROR_FILE
from bus.nats.bus import NatsBus
from bus.utils.processes import on_signals
from coordinator.audit.runner import audit_bus
from coordinator.certify.evaluation import (
    LOST_S,
    HostReports,
    agent_rows,
    audited,
    sandbox_of,
    sandbox_rows,
    served,
    targets,
)
from coordinator.certify.expected import ExpectedSwarm, expected_swarm
from coordinator.certify.leftovers import check_earlier_runs
from coordinator.certify.measurements import (
    RunRecording,
    Value,
    check_snapshots,
    match_by_digest,
    read_last_values,
    read_memory,
    record,
)
from coordinator.certify.models import (
    Audited,
    Certificate,
    Cleanup,
    LastValues,
    MemoryKey,
    SnapshotRow,
    Step,
)
from coordinator.certify.temporary_swarm import TemporarySwarm
from coordinator.control.kill import KillReport
from coordinator.control.kill import kill as kill_agent
from coordinator.monitor.observer import Observer
from coordinator.reporting.formatting import format_value
from coordinator.reporting.percentiles import Percentiles
from coordinator.sandboxes.environment import Endpoint
from coordinator.security.keys import use_operator_key
from coordinator.security.tls_files import use_authority

__all__ = ["CertifyOptions", "run_certify"]

SPEED = 20.0
"""Candles a second, after those of the history, which come without a pause. These show latencies, those throughput."""
PACED, AFTER = 40, 20
"""Paced rounds that are decided before the fault, and after it."""
WARMUP_ROUNDS = 10
"""Paced rounds that may still wait for the unpaced ones before them; hops are measured after these."""
TIMEOUT_S, REMOTE_TIMEOUT_S = 45.0, 240.0
"""For each step: on a busy local machine, and with remote sandboxes. The report names what did not come in time."""
KILL_WAIT_S = 15.0
FAILED = "sandbox_failed"
"""The alert of a provider that cannot create a sandbox: waiting for it is pointless."""
NO_HEARTBEAT = "sandbox_no_heartbeat"
"""The alert of a provider that receives no heartbeat of a host that runs: it does not reach the bus."""
MAX_PRINTED = 20
"""Alerts of one code that are printed during the run; the report has the count of all."""
LONGEST_ALERT = 1000
"""Characters of an alert, printed and in the report; the end of a host's log may be in it."""

UNREAD = LastValues(subjects=0, bytes=0, read_ms=Percentiles(n=0))
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifyOptions:
    """The options of the command line; the limits are seconds.

    `provider` is that of the default swarm's sandboxes; with a `config` they have their own.
    """

    provider: str | None = None
    config: Path | None = None
    port: int = 0
    max_detection_s: float = 1.0
    max_recovery_s: float = 5.0
    max_downtime_s: float = 10.0


# -- the parts of a run


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is known before anything is started. `endpoint` is that of the remote sandboxes; None: there are none."""

    options: CertifyOptions
    expected: ExpectedSwarm
    toml: str
    endpoint: str | None
    timeout_s: float
    machine: Probe
    started_at: datetime

    @classmethod
    def of(cls, options: CertifyOptions) -> Plan:
        """The plan for these options.

        Raises:
            UsageError: a mistake in the configuration, or a swarm that cannot be certified.
        """
        expected, toml = expected_swarm(options.config, options.provider)
        remote = any(provider != "local" for provider in expected.sandboxes.values())
        return cls(
            options=options,
            expected=expected,
            toml=toml,
            endpoint=Endpoint.of().label if remote else None,
            timeout_s=REMOTE_TIMEOUT_S if remote else TIMEOUT_S,
            machine=probe_sandbox(),
            started_at=now(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A swarm that runs, and the subscriptions to it."""

    bus: NatsBus
    observer: Observer
    hosts: HostReports
    nats_server: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultResult:
    """The kill, and what the stream held `before` it."""

    before: RunRecording = field(default_factory=RunRecording)
    kill: KillReport | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadBack:
    """What the bus and the mirror hold after the fault."""

    recording: RunRecording = field(default_factory=RunRecording)
    last_values: LastValues = UNREAD
    snapshots: list[SnapshotRow] = field(default_factory=list)
    memory: list[MemoryKey] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the steps between deployment and clean-up returned. `capabilities` are the agents', by their names."""

    capabilities: dict[str, list[str]] = field(default_factory=dict)
    fault: FaultResult = field(default_factory=FaultResult)
    read_back: ReadBack = field(default_factory=ReadBack)
    audit: Audited | None = None


# -- the run


async def run_certify(options: CertifyOptions, report: Callable[[str], None]) -> Certificate:
    """The whole run; `report` is called with a line for each step. Everything that was started is ended.

    Raises:
        UsageError, BusUnreachable, MeshError: the swarm did not start.
    """
    task = asyncio.current_task()
    assert task is not None

    def cancel() -> None:
        task.cancel()

    on_signals(cancel)
    started_monotonic = time.monotonic()
    progress = _Progress(report)
    plan = Plan.of(options)
    swarm = TemporarySwarm(plan.toml, options.config, speed=SPEED, port=options.port)
    earlier: list[str] = []
    deployment: Deployment | None = None
    cleanup = Cleanup()
    ended = "certify was interrupted"
    try:
        earlier = await _find_earlier_runs(report)
        deployment = await _deploy(plan, swarm, progress)
        measured = await _Steps(plan, swarm, deployment, progress).run()
        ended = ""
    except MeshError:
        ended = "certify could not continue"
        raise
    finally:
        # A second Ctrl-C must not interrupt the clean-up: then only the kernel would end the processes.
        cleaning = asyncio.create_task(_clean_up(swarm, deployment, progress))
        while not cleaning.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(cleaning)
        cleanup = cleaning.result()
        cleanup.earlier = earlier
        if ended:
            report(f"signalmesh: {ended}; {cleanup.summary}")
    duration_s = round(time.monotonic() - started_monotonic, 3)
    return build_report(plan, deployment, measured, cleanup, progress.steps, progress.problems, duration_s)


class _Progress:
    """Prints the steps and alerts as they come, and records the steps and problems for the report."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report, self._started_at = report, time.monotonic()
        self._printed: dict[str, set[str]] = {}
        """Code -> the texts of its alerts that were printed."""
        self.steps: list[Step] = []
        self.problems: list[str] = []

    @property
    def _at(self) -> str:
        return f"{time.monotonic() - self._started_at:5.1f} s"

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        self._report(f"{self._at}  {name}")
        started_at = time.monotonic()
        yield
        self.steps.append(Step(name=name, duration_s=round(time.monotonic() - started_at, 3)))

    def on_alert(self, alert: Alert) -> None:
        """Print each text once: several sandboxes may have the same alert code, each with a text of its own."""
        text, printed = format_value(alert.message, LONGEST_ALERT), self._printed.setdefault(alert.code, set())
        if alert.severity == "info" or text in printed or len(printed) == MAX_PRINTED:
            return
        printed.add(text)
        after = "; further ones of this code are counted in the report" if len(printed) == MAX_PRINTED else ""
        self._report(f"{self._at}  {alert.severity}: {format_value(alert.code)}: {text}{after}")


async def _find_earlier_runs(report: Callable[[str], None]) -> list[str]:
    found = []
    for finding in await asyncio.to_thread(check_earlier_runs):
        if finding.level != "ok":
            found.append(f"{finding.text}: {finding.remedy}")
            report(f"{finding.check}: {found[-1]}")
    return found


async def _deploy(plan: Plan, swarm: TemporarySwarm, progress: _Progress) -> Deployment:
    """Start the swarm and subscribe to it."""
    where = plan.expected.providers + (f": {plan.endpoint}" if plan.endpoint else "")
    with progress.step(f"deploying {len(plan.expected.sandboxes)} sandboxes ({where})"):
        run = await swarm.start()
        use_operator_key(swarm.state_dir, run.authentication)
        use_authority(swarm.state_dir, run.url)
        bus = await NatsBus.connect(run.url, run.swarm, "certify")
        try:
            observer, hosts = Observer(bus, progress.on_alert), HostReports(bus, swarm.started_at)
            await observer.start()
            await hosts.start()
        except BaseException:
            await bus.close()
            raise
        version = bus.connection.client.connected_server_version
        server = f"{version.major}.{version.minor}.{version.patch}"
        return Deployment(bus=bus, observer=observer, hosts=hosts, nats_server=server)


async def _clean_up(swarm: TemporarySwarm, deployment: Deployment | None, progress: _Progress) -> Cleanup:
    """End all processes of the swarm."""
    with progress.step("cleaning up"):
        if deployment is not None:
            deployment.hosts.stop()
            await deployment.observer.stop()
            await deployment.bus.close()
        return await swarm.stop()


class _Steps:
    """The steps between deployment and clean-up."""

    def __init__(self, plan: Plan, swarm: TemporarySwarm, deployment: Deployment, progress: _Progress) -> None:
        self._plan, self._swarm, self._progress = plan, swarm, progress
        self._bus, self._observer, self._hosts = deployment.bus, deployment.observer, deployment.hosts
        self._mirror = swarm.state_dir / MIRROR_FILE

    async def run(self) -> Measured:
        """One step after the other. A failed step is a problem of the report; the next is tried all the same, unless
        sandboxes cannot reach the bus: then each would wait for as long as it may.
        """
        plan, attempt = self._plan, self._attempt
        count, history = len(plan.expected.agents), plan.expected.history
        await attempt("waiting for the hosts", self._wait_for_hosts, None)
        if unreached := self._unreached():
            texts = (format_value(alert.message, LONGEST_ALERT) for alert in unreached.values())
            self._progress.problems += [f"{text}; the remaining steps were left out" for text in texts]
            return Measured()
        await attempt("probing their isolation", self._probe, None)
        if plan.endpoint:
            await attempt("listing the remote sandboxes", self._swarm.list_sandboxes, None)
        capabilities = await attempt(
            f"waiting until {count} agents are live", self._wait_for_agents, dict[str, list[str]]()
        )
        rounds = f"waiting until rounds are decided: {history} at once, {PACED} paced"
        await attempt(rounds, self._run_pipeline, None)
        values = await attempt(f"reading the memory back: {count} keys", self._read_memory, list[Value]())
        fault = await attempt(f"SIGKILL to {plan.expected.target}", self._kill, FaultResult())
        await attempt(f"waiting until {AFTER} more rounds are decided", self._run_on, None)
        await attempt("waiting until every sandbox is served", self._wait_for_hosts, None)
        read_back = await self._read_back(values)
        audit = await attempt("auditing", self._audit, None)
        await attempt("waiting for one more heartbeat of every host and agent", self._receive_all, None)
        return Measured(capabilities=capabilities, fault=fault, read_back=read_back, audit=audit)

    async def _attempt(self, name: str, work: Callable[[], Awaitable[T]], otherwise: T) -> T:
        """The result of `work`; `otherwise` if it failed, and then a problem is recorded."""
        result = otherwise
        with self._progress.step(name):
            try:
                result = await work()
            except TimeoutError:
                problem = f"{name}: not within {self._plan.timeout_s:.0f} s; {self._missing()}"
                self._progress.problems.append(problem)
            except MeshError as error:
                self._progress.problems.append(f"{name}: {error}")
        await asyncio.to_thread(self._swarm.remember)
        return result

    def _missing(self) -> str:
        agents = [name for name in self._plan.expected.agents if not self._observer.lives(name)]
        hosts = [name for name in self._plan.expected.sandboxes if name not in served(self._observer)]
        missing = ", ".join([*hosts, *agents]) or "none"
        return f"decisions received: {self._observer.decisions}; without a live heartbeat: {missing}"

    async def _wait_for_hosts(self) -> None:
        observer, expected = self._observer, self._plan.expected.sandboxes.keys()
        try:
            await observer.until(
                lambda: expected <= served(observer) | self._unreached().keys() or observer.alert_at(FAILED, 0.0),
                self._plan.timeout_s,
            )
        finally:
            with contextlib.suppress(BusError):  # the steps that read the bus report that
                await observer.read_alerts()

    def _unreached(self) -> dict[str, Alert]:
        """The sandboxes whose hosts run, but have never sent a heartbeat, with the alert about each."""
        ever = {sandbox_of(received.heartbeat) for received in self._observer.hosts.values()}
        alerts = (alert for _, alert in self._observer.alerts if alert.code == NO_HEARTBEAT)
        found = {str(alert.detail.get("sandbox")): alert for alert in alerts}
        return {name: found[name] for name in self._plan.expected.sandboxes if name in found and name not in ever}

    async def _probe(self) -> None:
        for name in self._observer.hosts:
            await self._hosts.probe(name)

    async def _wait_for_agents(self) -> dict[str, list[str]]:
        """Their capabilities, by their names."""
        agents = self._plan.expected.agents
        await self._observer.until(lambda: all(self._observer.lives(name) for name in agents), self._plan.timeout_s)
        # An agent writes its record after it became live.
        async with asyncio.timeout(self._plan.timeout_s):
            while not agents.keys() <= (records := await read_records(self._bus)).keys():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return {name: list(record.capabilities) for name, record in records.items()}

    async def _decided(self, more: int) -> None:
        expected = self._observer.decisions + more
        await self._observer.until(lambda: self._observer.decisions >= expected, self._plan.timeout_s)

    async def _run_pipeline(self) -> None:
        await self._decided(self._plan.expected.history + PACED - self._observer.decisions)

    async def _run_on(self) -> None:
        await self._decided(AFTER)

    async def _read_memory(self) -> list[Value]:
        subjects = self._bus.subjects
        keys = {name: subjects.memory_key(name, key) for name, key in self._plan.expected.keys.items()}
        return await read_memory(self._bus, keys)

    async def _kill(self) -> FaultResult:
        before = await record(self._bus)
        kill = await kill_agent(self._bus, self._plan.expected.target, signal.SIGKILL, KILL_WAIT_S)
        return FaultResult(before=before, kill=kill)

    async def _read_back(self, values: list[Value]) -> ReadBack:
        """Several steps, so that one that fails does not take the results of the others with it."""
        bus, mirror = self._bus, self._mirror
        recording = await self._attempt("reading back what is stored", lambda: record(bus), RunRecording())
        match = functools.partial(asyncio.to_thread, match_by_digest, values, recording, mirror)
        return ReadBack(
            recording=recording,
            last_values=await self._attempt("reading the last values", lambda: read_last_values(bus), UNREAD),
            snapshots=await self._attempt("comparing the snapshots", lambda: check_snapshots(bus, mirror), []),
            memory=await self._attempt("comparing the memory keys", match, []),
        )

    async def _audit(self) -> Audited:
        return audited(await audit_bus(self._bus, self._mirror))

    async def _receive_all(self) -> None:
        """A process that vanished since its last heartbeat is not active; its replacement is waited for."""
        observer, expected = self._observer, self._plan.expected

        def all_received(since: float) -> bool:
            alive = all(observer.lives(name, since) for name in expected.agents)
            return alive and expected.sandboxes.keys() <= served(observer, since)

        received = failed = False
        async with asyncio.timeout(self._plan.timeout_s):
            while not received and not failed:
                since = time.monotonic()
                with contextlib.suppress(TimeoutError):
                    received = await observer.until(functools.partial(all_received, since), LOST_S)
                self._hosts.listened_from = since
                failed = observer.alert_at(FAILED, 0.0) is not None


# -- the report


def build_report(
    plan: Plan,
    deployment: Deployment,
    measured: Measured,
    cleanup: Cleanup,
    steps: list[Step],
    problems: list[str],
    duration_s: float,
) -> Certificate:
    """The report with the verdict. Pure: it only reads the parts. `problems` are those of the steps."""
    options, expected, observer = plan.options, plan.expected, deployment.observer
    kill, recording = measured.fault.kill, measured.read_back.recording
    problems = [*problems, *_found_problems(expected, observer, measured, cleanup)]
    sandboxes = sandbox_rows(expected, deployment.hosts, observer, plan.machine)
    agents = agent_rows(expected, observer, recording, measured.capabilities, deployment.hosts)
    judgement = targets(
        expected, sandboxes, agents, measured.read_back.memory, measured.read_back.snapshots,
        kill, measured.fault.before, recording, measured.audit,
        detection_s=options.max_detection_s, recovery_s=options.max_recovery_s, downtime_s=options.max_downtime_s,
    )  # fmt: skip
    alerts = sorted((alert for _, alert in observer.alerts), key=lambda alert: alert.timestamp)
    _, restored = recording.events.get(("restored", expected.target, (kill.epoch_after or 0) if kill else 0), (0, {}))
    return Certificate(
        ok=not problems and all(target.ok for target in judgement),
        version=__version__,
        provider=expected.providers,
        endpoint=plan.endpoint,
        started_at=plan.started_at,
        duration_s=duration_s,
        machine=plan.machine,
        nats_server=deployment.nats_server,
        steps=steps,
        targets=judgement,
        sandboxes=sandboxes,
        agents=agents,
        flow=recording.flow(expected.history, WARMUP_ROUNDS, awaited=expected.history + PACED + AFTER),
        throughput=recording.throughput(expected.history),
        memory=measured.read_back.memory,
        snapshots=measured.read_back.snapshots,
        last_values=measured.read_back.last_values,
        fault=kill,
        restored={name: restored.get(name) for name in ("cursor", "outputs")},
        audit=measured.audit,
        alerts=dict(Counter(alert.code for _, alert in observer.alerts)),
        alert_texts={alert.code: format_value(alert.message, LONGEST_ALERT) for alert in alerts},
        cleanup=cleanup,
        problems=problems,
    )


def _found_problems(expected: ExpectedSwarm, observer: Observer, measured: Measured, cleanup: Cleanup) -> Iterator[str]:
    """What went wrong beyond the steps that failed and the targets."""
    if measured.fault.kill is not None and not measured.fault.kill.ok:
        yield f"SIGKILL to {expected.target}: {measured.fault.kill.outcome}"
    if measured.audit is not None and not measured.audit.ok:
        yield from (f"audit: {text}" for text in measured.audit.problems)
    yield from (alert.message for _, alert in observer.alerts if alert.code == FAILED)
    yield from observer.problems
    yield from (f"left behind: {text}" for text in cleanup.orphans)
    if cleanup.exit_code:
        yield f"`signalmesh up` ended with exit code {cleanup.exit_code}"
