"""`signalmesh certify`: an acceptance run. A swarm of its own is started, measured, hurt, audited and cleaned away.

Nothing in the report is expected or assumed: each figure was measured in that run, or the row says why it was not.
Times of hops and of the fault's consequences in the stream are the server's; those of the fault's timeline are when
this observer heard each step (coordinator/control/kill.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from agents.host.probe import probe_sandbox
from bus import __version__
from bus.durable.registry import read_records
from bus.errors import BusError, MeshError
from bus.messages import Alert, now
from bus.mirror.reader import MIRROR_FILE
from bus.nats.bus import NatsBus
from bus.utils.processes import on_signals
from coordinator.audit.runner import audit_bus
from coordinator.certify.evaluation import LOST_S, HostReports, agent_rows, audited, sandbox_rows, served, targets
from coordinator.certify.expected import expected
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
from coordinator.reporting.formatting import shown
from coordinator.reporting.percentiles import Percentiles
from coordinator.sandboxes.environment import Endpoint

__all__ = ["CertifyOptions", "run_certify"]

SPEED = 20.0
"""Candles a second, after those of the history, which come without a pause. These show latencies, those throughput."""
PACED, AFTER = 40, 20
"""Paced rounds that are decided before the fault, and after it."""
SETTLED = 10
"""Paced rounds that still may wait for the unpaced ones before them; hops are measured beyond them."""
TIMEOUT_S, REMOTE_TIMEOUT_S = 45.0, 240.0
"""For each step, on a busy machine, and where sandboxes are made elsewhere; then the report says what did not come."""
KILL_WAIT_S = 15.0
FAILED = "sandbox_failed"
"""The alert of a provider that cannot make a sandbox: nobody need wait for it."""
TOLD = 20
"""Alerts of one code that are said as they come: what repeats itself without end is counted."""
LONGEST_ALERT = 1000
"""Characters of an alert, in what is said and in the report; the end of a host's log may be in it."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifyOptions:
    """What was asked for on the command line; the limits are seconds.

    `provider` is that of the default swarm's sandboxes; with a `config` they have their own.
    """

    provider: str | None = None
    config: Path | None = None
    port: int = 0
    max_detection_s: float = 1.0
    max_recovery_s: float = 5.0
    max_downtime_s: float = 10.0


async def run_certify(options: CertifyOptions, say: Say) -> Certificate:
    """The whole run; `say` is told of each step. What it has started is ended, however it ends.

    Raises:
        UsageError, BusUnreachable, MeshError: the swarm did not start.
    """
    task = asyncio.current_task()
    assert task is not None

    def cancel() -> None:
        task.cancel()

    on_signals(cancel)
    run = _Certify(options, say)
    ended = "certify was broken off"
    try:
        await run.start()
        await run.measure()
        ended = ""
    except MeshError:
        ended = "certify could not go on"
        raise
    finally:
        # A second Ctrl-C must not break off the clean-up: then the kernel's guarantee would have to do.
        cleaning = asyncio.create_task(run.clean_up())
        while not cleaning.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(cleaning)
        if ended:
            say(f"signalmesh: {ended}; {run.cleanup.said}")
    return run.conclude()


class _Certify:
    def __init__(self, options: CertifyOptions, say: Say) -> None:
        self._options, self._say = options, say
        self._started_at, self._started_monotonic = now(), time.monotonic()
        self._here = probe_sandbox()
        self._expected, toml = expected(options.config, options.provider)
        far = any(provider != "local" for provider in self._expected.sandboxes.values())
        self._endpoint = Endpoint.of().shown if far else None
        self._timeout_s = REMOTE_TIMEOUT_S if far else TIMEOUT_S
        self._swarm = TemporarySwarm(toml, options.config, speed=SPEED, port=options.port)
        self._steps: list[Step] = []
        self._problems: list[str] = []
        self._told: dict[str, set[str]] = {}
        """Code -> the texts of its alerts that were said."""
        self._bus: NatsBus
        self._observer: Observer
        self._hosts: HostReports
        self._server = ""
        self._memory: list[Value] = []
        self._fault: KillReport | None = None
        self._before = self._recording = RunRecording()
        self._capabilities: dict[str, list[str]] = {}
        self._last_values = LastValues(subjects=0, bytes=0, read_ms=Percentiles(n=0))
        self._snapshots: list[SnapshotRow] = []
        self._keys: list[MemoryKey] = []
        self._audit: Audited | None = None
        self._earlier: list[str] = []
        self.cleanup = Cleanup()

    # -- the steps

    async def start(self) -> None:
        """Have the swarm run, and hear it."""
        for finding in await asyncio.to_thread(check_earlier_runs):
            if finding.level != "ok":
                self._earlier.append(f"{finding.text}: {finding.remedy}")
                self._say(f"{finding.check}: {self._earlier[-1]}")
        where = self._expected.providers + (f": {self._endpoint}" if self._endpoint else "")
        with self._step(f"deploying {len(self._expected.sandboxes)} sandboxes ({where})"):
            run = await self._swarm.start()
            self._bus = await NatsBus.connect(run.url, run.swarm, "certify")
            version = self._bus.connection.client.connected_server_version
            self._server = f"{version.major}.{version.minor}.{version.patch}"
            self._observer, self._hosts = (
                Observer(self._bus, self._on_alert),
                HostReports(self._bus, self._swarm.started_at),
            )
            await self._observer.start()
            await self._hosts.start()

    async def measure(self) -> None:
        """One step after the other; what fails is a problem of the report, and the next one is tried all the same."""
        agents, history = len(self._expected.agents), self._expected.history
        steps = (
            ("until the hosts are heard", self._wait_for_hosts),
            ("probing their isolation", self._probe),
            *([("listing the sandboxes elsewhere", self._list_sandboxes)] if self._endpoint else []),
            (f"until {agents} agents are live", self._wait_for_agents),
            (f"until rounds are decided: {history} at once, {PACED} paced", self._run_pipeline),
            (f"reading the memory back: {agents} keys", self._read_memory),
            (f"SIGKILL to {self._expected.target}", self._kill),
            (f"until {AFTER} rounds more are decided", self._run_on),
            ("until every sandbox is served", self._wait_for_hosts),
            ("reading back what is stored", self._read_back),
            ("auditing", self._prove),
            ("until every host and agent is heard once more", self._receive_all),
        )
        for name, work in steps:
            with self._step(name):
                try:
                    await work()
                except TimeoutError:
                    self._problems.append(f"{name}: not within {self._timeout_s:.0f} s; {self._missing()}")
                except MeshError as error:
                    self._problems.append(f"{name}: {error}")
            await asyncio.to_thread(self._swarm.remember)

    def _on_alert(self, alert: Alert) -> None:
        """What goes wrong is said while it is waited for, each text once: each sandbox has its own."""
        text, told = shown(alert.message, LONGEST_ALERT), self._told.setdefault(alert.code, set())
        if alert.severity == "info" or text in told or len(told) == TOLD:
            return
        told.add(text)
        after = "; further ones of this code are counted in the report" if len(told) == TOLD else ""
        at = f"{time.monotonic() - self._started_monotonic:5.1f} s"
        self._say(f"{at}  {alert.severity}: {shown(alert.code)}: {text}{after}")

    @contextlib.contextmanager
    def _step(self, name: str) -> Iterator[None]:
        self._say(f"{time.monotonic() - self._started_monotonic:5.1f} s  {name}")
        started_at = time.monotonic()
        yield
        self._steps.append(Step(name=name, duration_s=round(time.monotonic() - started_at, 3)))

    def _missing(self) -> str:
        agents = [name for name in self._expected.agents if not self._observer.lives(name)]
        hosts = [name for name in self._expected.sandboxes if name not in served(self._observer)]
        return f"{self._observer.decisions} decisions were heard; not heard: {', '.join([*hosts, *agents]) or 'nobody'}"

    async def _wait_for_hosts(self) -> None:
        observer, wanted = self._observer, self._expected.sandboxes.keys()
        try:
            await observer.until(lambda: wanted <= served(observer) or observer.alert_at(FAILED, 0.0), self._timeout_s)
        finally:
            with contextlib.suppress(BusError):  # its own step tells of that
                await observer.read_alerts()

    async def _probe(self) -> None:
        for name in self._observer.hosts:
            await self._hosts.probe(name)

    async def _list_sandboxes(self) -> None:
        await self._swarm.list_sandboxes()

    async def _wait_for_agents(self) -> None:
        agents = self._expected.agents
        await self._observer.until(lambda: all(self._observer.lives(name) for name in agents), self._timeout_s)
        # The record is written when the agent is live already.
        async with asyncio.timeout(self._timeout_s):
            while not agents.keys() <= (records := await read_records(self._bus)).keys():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        self._capabilities = {name: list(record.capabilities) for name, record in records.items()}

    async def _decided(self, more: int) -> None:
        wanted = self._observer.decisions + more
        await self._observer.until(lambda: self._observer.decisions >= wanted, self._timeout_s)

    async def _run_pipeline(self) -> None:
        await self._decided(self._expected.history + PACED - self._observer.decisions)

    async def _run_on(self) -> None:
        await self._decided(AFTER)

    async def _read_memory(self) -> None:
        subjects = self._bus.subjects
        keys = {name: subjects.memory_key(name, key) for name, key in self._expected.keys.items()}
        self._memory = await read_memory(self._bus, keys)

    async def _kill(self) -> None:
        self._before = await record(self._bus)
        target = self._expected.target
        self._fault = await kill_agent(self._bus, target, signal.SIGKILL, KILL_WAIT_S)
        if not self._fault.ok:
            self._problems.append(f"SIGKILL to {target}: {self._fault.outcome}")

    async def _read_back(self) -> None:
        mirror = self._swarm.state_dir / MIRROR_FILE
        self._recording = await record(self._bus)
        self._last_values = await read_last_values(self._bus)
        self._snapshots = await check_snapshots(self._bus, mirror)
        self._keys = await asyncio.to_thread(match_by_digest, self._memory, self._recording, mirror)

    async def _prove(self) -> None:
        self._audit = audited(await audit_bus(self._bus, self._swarm.state_dir / MIRROR_FILE))
        if not self._audit.ok:
            self._problems += [f"audit: {text}" for text in self._audit.problems]

    async def _receive_all(self) -> None:
        """Whoever vanished since it was last looked at is not active; what replaces it is waited for."""
        observer, expected = self._observer, self._expected

        def all_received(since: float) -> bool:
            alive = all(observer.lives(name, since) for name in expected.agents)
            return alive and expected.sandboxes.keys() <= served(observer, since)

        received = failed = False
        async with asyncio.timeout(self._timeout_s):
            while not received and not failed:
                since = time.monotonic()
                with contextlib.suppress(TimeoutError):
                    received = await observer.until(functools.partial(all_received, since), LOST_S)
                self._hosts.listened_from = since
                failed = observer.alert_at(FAILED, 0.0) is not None

    async def clean_up(self) -> None:
        """End the swarm, whatever of it runs."""
        with self._step("cleaning up"):
            if hasattr(self, "_hosts"):
                self._hosts.stop()
                await self._observer.stop()
            if hasattr(self, "_bus"):
                await self._bus.close()
            self.cleanup = await self._swarm.stop()
            self.cleanup.earlier = self._earlier

    # -- the report

    def conclude(self) -> Certificate:
        """All that was found, with the verdict."""
        options, observer = self._options, self._observer
        fault, recording, keys = self._fault, self._recording, self._keys
        failed = [alert.message for _, alert in observer.alerts if alert.code == FAILED]
        problems = [
            *self._problems,
            *failed,
            *observer.problems,
            *(f"left behind: {text}" for text in self.cleanup.orphans),
        ]
        if self.cleanup.exit_code:
            problems.append(f"`signalmesh up` ended with exit code {self.cleanup.exit_code}")
        wanted = self._expected
        sandboxes = sandbox_rows(wanted, self._hosts, observer, self._here)
        agents = agent_rows(wanted, observer, recording, self._capabilities, self._hosts)
        judgement = targets(
            wanted, sandboxes, agents, keys, self._snapshots, fault, self._before, recording, self._audit,
            detection_s=options.max_detection_s, recovery_s=options.max_recovery_s, downtime_s=options.max_downtime_s,
        )  # fmt: skip
        by_time = sorted((alert for _, alert in observer.alerts), key=lambda alert: alert.timestamp)
        _, restored = recording.events.get(
            ("restored", wanted.target, (fault.epoch_after or 0) if fault else 0), (0, {})
        )
        return Certificate(
            ok=not problems and all(target.ok for target in judgement),
            version=__version__,
            provider=wanted.providers,
            endpoint=self._endpoint,
            started_at=self._started_at,
            duration_s=round(time.monotonic() - self._started_monotonic, 3),
            machine=self._here,
            nats_server=self._server,
            steps=self._steps,
            targets=judgement,
            sandboxes=sandboxes,
            agents=agents,
            flow=recording.flow(wanted.history, SETTLED, awaited=wanted.history + PACED + AFTER),
            throughput=recording.throughput(wanted.history),
            memory=keys,
            snapshots=self._snapshots,
            last_values=self._last_values,
            fault=fault,
            restored={name: restored.get(name) for name in ("cursor", "outputs")},
            audit=self._audit,
            alerts=dict(Counter(alert.code for _, alert in observer.alerts)),
            alert_texts={alert.code: shown(alert.message, LONGEST_ALERT) for alert in by_time},
            cleanup=self.cleanup,
            problems=problems,
        )
