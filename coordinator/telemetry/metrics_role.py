"""The role `metrics`: a process that consumes the stream and the heartbeats, so that agents carry no overhead.

It serves the metrics at http://HOST:PORT/metrics and pushes them to the collector that the OTEL_* variables name. It
reads the stream from its current end; its counters start at 0, as Prometheus expects. It stores nothing but alerts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import generate_latest, start_http_server

from bus.durable.events import EventPublisher
from bus.errors import EXIT_DONE, BusError, MessageError
from bus.heartbeats import LISTEN_S, HeartbeatListener, send_heartbeats
from bus.interface import EVERYTHING, Closable, StoredMessage
from bus.messages import Lifecycle
from bus.mirror.loss_check import half_done
from bus.nats.bus import NatsBus
from bus.nats.consumer import Reader
from bus.observability.logging import set_up_logs
from bus.observability.otel_env import describe_process, read_exporting
from bus.utils.aio import end_tasks, run_to_end
from bus.utils.processes import on_signals
from coordinator.config.loader import load_swarm
from coordinator.config.overrides import Overrides
from coordinator.config.settings import SwarmConfig
from coordinator.config.telemetry import DEFAULT_LISTEN, NOWHERE, ListenAddress, webhook_of
from coordinator.security.keys import KeyOwners
from coordinator.security.shares import UsersFile
from coordinator.security.violations import ViolationLog, ViolationWatch, check_log, reported_through
from coordinator.supervisor.config_publisher import changes_in, read_config
from coordinator.telemetry.alert_webhook import Webhook
from coordinator.telemetry.heartbeat_metrics import HeartbeatMetrics
from coordinator.telemetry.labels import Names
from coordinator.telemetry.otel_env_check import log_wrong_variables
from coordinator.telemetry.otlp_push import CLOSE_S, MetricsExport
from coordinator.telemetry.stream_metrics import StreamMetrics

NAME = "metrics"
HEARTBEAT_S = 0.5
POLL_INTERVAL_S = 1.0
"""Between two checks of the stream's state."""
FINISH_S = 5.0
"""Longest time to wait, on SIGTERM, for the answer to an alert that is being posted."""
END_S = 7.0
"""Longest time for that and the last export together; `up` waits for 8 s."""
LOOKBACK = 4096
"""Messages before the stream's end that are read at the start and not counted: later ones may answer them."""

log = structlog.get_logger("signalmesh.metrics")


class MetricsObserver:
    """Follows one swarm and counts from the stream sequence `count_from` on; None: what is stored from its start on."""

    def __init__(self, bus: NatsBus, config: SwarmConfig, *, count_from: int | None = None) -> None:
        agents, sandboxes = [item.spec.name for item in config.agents], [sandbox.name for sandbox in config.sandboxes]
        self._bus, self._count_from = bus, count_from
        self.metrics = StreamMetrics(bus.subjects, Names((*agents, *sandboxes)), agents)
        self.heartbeats = HeartbeatMetrics(self.metrics.registry, self.metrics.names)
        self._reader: Reader | None = None
        self._listening: Closable | None = None
        self._counted_from = 1
        self._created = ""
        """When the stream that is read was created, by the server."""
        self.read_through = 0
        """Stream sequence of the newest message that was read."""

    async def start(self) -> None:
        """Start to read.

        Raises:
            BusError: the bus does not answer, or there is no such swarm there.
        """
        self.metrics.learn(changes_in(await read_config(self._bus)))
        info = await self._info()
        end = info["state"]["last_seq"]
        self._counted_from = min(end + 1, self._count_from or end + 1)
        await self._read_from(max(1, info["state"]["first_seq"], self._counted_from - LOOKBACK), info["created"])
        if self._listening is None:
            self._listening = HeartbeatListener(
                self._bus,
                on_heartbeat=lambda received: self.heartbeats.take(received.heartbeat),
                on_malformed=lambda _, __: self.heartbeats.take_unreadable(),
            )
            await self._listening.start()

    async def poll(self) -> None:
        """Check the stream's state; a stream that was recreated or truncated is read again where it differs.

        Raises:
            BusError: the bus does not answer.
        """
        read = self.read_through  # reading goes on while the server answers
        info = await self._info()
        state, metrics = info["state"], self.metrics
        metrics.stream_messages.set(state["messages"])
        metrics.stream_bytes.set(state["bytes"])
        metrics.observer_lag.set(max(0, state["last_seq"] - self.read_through))
        if half_done(self._bus, info):
            return  # a restore is under way: the reader goes on and reads what is new
        if self._reader is None or info["created"] != self._created or state["last_seq"] < read:
            await self._read_again(info, read)

    async def _read_again(self, info: dict[str, Any], read: int) -> None:
        """Count the messages of the stream that were not counted yet; the former one was read up to `read`."""
        state, metrics = info["state"], self.metrics
        await self._end_reading()
        if info["created"] == self._created:
            log.warning("stream_truncated", last=state["last_seq"], read_through=read)
            known = metrics.noted_from(min(read, state["last_seq"]) + 1) - 1
        else:
            log.warning("stream_recreated", last=state["last_seq"], read_through=read)
            known = min(read, await self._restored_through())
        self._counted_from = known + 1
        await self._read_from(max(1, state["first_seq"], known + 1), info["created"])

    async def _read_from(self, first: int, created: str) -> None:
        bus, metrics = self._bus, self.metrics
        metrics.restored_through = await self._restored_through()
        config = await read_config(bus)
        if config is not None:
            metrics.use(config)
        for stored in await bus.read_back((bus.subjects.epoch("*"),), 1):
            if stored.sequence < first:
                metrics.learn_claim(stored)
        self.read_through = first - 1
        reader = Reader(bus.jetstream, bus.subjects.stream, EVERYTHING, first, self._on_stored)
        await reader.start()
        self._reader, self._created = reader, created

    async def _info(self) -> dict[str, Any]:
        return await self._bus.api(f"STREAM.INFO.{self._bus.subjects.stream}")

    async def until_read(self, sequence: int) -> None:
        """Wait until the message `sequence` was read, or there is none left to read."""
        while self.read_through < sequence and self._reader is not None and self._reader.pending:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    def heartbeat_fields(self) -> dict[str, Any]:
        """The fields of its heartbeats."""
        status = "live" if self._bus.is_ready else "waiting"
        return {"progress": self.read_through, "status": status, "cursor": self.read_through}

    async def close(self) -> None:
        await self._end_reading()
        if self._listening is not None:
            await self._listening.close()

    async def _end_reading(self) -> None:
        if self._reader is not None:
            await self._reader.close()
            self._reader = None

    async def _restored_through(self) -> int:
        """The last sequence that a restore has written, by the newest event of one."""
        bus, through = self._bus, 0
        for stored in await bus.read_back((bus.subjects.lifecycle("swarm", "*"),), 1):
            with contextlib.suppress(MessageError):
                event = stored.decode(bus.subjects)
                last = event.detail.get("last") if isinstance(event, Lifecycle) and event.event == "rebuilt" else None
                if isinstance(last, int):
                    through = max(through, min(last, stored.sequence))
        return through

    def _on_stored(self, stored: StoredMessage) -> None:
        self.read_through = stored.sequence
        if self.metrics.has_noted(stored):
            return  # read again
        if stored.sequence >= self._counted_from:
            self.metrics.count(stored)
        else:
            self.metrics.remember(stored)


async def observe_once(bus: NatsBus, config: SwarmConfig) -> str:
    """The metrics of the whole stream and of the heartbeats received within LISTEN_S, as Prometheus text.

    Raises:
        BusError: the bus does not answer, or there is no such swarm there.
    """
    observer = MetricsObserver(bus, config, count_from=1)
    await observer.start()
    try:
        await asyncio.sleep(LISTEN_S)
        await observer.until_read((await bus.bounds()).last)
        observer.metrics.observer_connected.set(1)
        await observer.poll()
        return generate_latest(observer.metrics.registry).decode()
    finally:
        await observer.close()


async def _follow(
    bus: NatsBus,
    observer: MetricsObserver,
    stop: asyncio.Event,
    reports: EventPublisher | None,
    webhook_task: _WebhookTask | None,
    refusals: _Refusals | None,
) -> None:
    """Read until `stop` is set; a lost bus is waited for."""
    started = False
    while not stop.is_set():
        try:
            if not started:
                await observer.start()
                started = True
            await observer.poll()
            if refusals is not None and reports is not None:
                await refusals.poll(bus, reports)
        except BusError as error:
            log.debug("metrics_paused", problem=str(error))
        observer.metrics.observer_connected.set(bus.is_ready and started)
        if reports is not None:
            reports.check()
        if webhook_task is not None:
            await webhook_task.poll()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_INTERVAL_S):
                await stop.wait()


@dataclass(frozen=True, slots=True)
class ServerFiles:
    """The log of a nats-server, and the file of its users by which owners of keys are named."""

    log: Path
    users: Path | None


class _Refusals:
    """Alerts about what the server of these files refuses, each once: another process of this role goes on after it."""

    def __init__(self, files: ServerFiles) -> None:
        """Check that the files can be read.

        Raises:
            UsageError: they cannot.
        """
        self._file = files.log
        check_log(files.log, "--server-log")
        self._who = (UsersFile(files.users) if files.users is not None else KeyOwners({})).owner
        self._watch: ViolationWatch | None = None

    async def poll(self, bus: NatsBus, reports: EventPublisher) -> None:
        """Read the log.

        Raises:
            BusError: the bus does not answer.
        """
        if self._watch is None:
            since = await reported_through(bus, NAME)
            server_log = await asyncio.to_thread(ViolationLog, self._file, since)
            self._watch = ViolationWatch(server_log, self._who, resumes=True)
        await self._watch.look(reports)


class _WebhookTask:
    """The webhook's task, and the count of alerts that wait for it."""

    def __init__(self, bus: NatsBus, url: str, metrics: StreamMetrics, reports: EventPublisher) -> None:
        self._metrics = metrics
        self._webhook = Webhook(bus, url, metrics, reports)
        self._task = asyncio.create_task(self._webhook.run(), name="webhook")

    async def poll(self) -> None:
        with contextlib.suppress(BusError):
            self._metrics.webhook_waiting.set(await self._webhook.waiting())

    async def end(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FINISH_S):
                await self._webhook.finish()
        await end_tasks([self._task])


def _address(config: SwarmConfig, listen: str | None) -> ListenAddress | None:
    """Where to serve the metrics; None: nowhere."""
    if listen == NOWHERE:
        return None
    where = "--listen" if listen is not None else f"{config.file}: metrics.listen:"
    address = ListenAddress.parse(listen if listen is not None else config.metrics.listen or DEFAULT_LISTEN, where)
    address.check_free(where)
    return address


def run_metrics(
    url: str,
    config_file: Path | None,
    swarm: str | None,
    listen: str | None,
    log_level: str,
    agents: int | None = None,
    count_from: int | None = None,
    server_files: ServerFiles | None = None,
) -> int:
    """Observe the swarm until SIGTERM or SIGINT; push the metrics and post the alerts if configured.

    `listen` is --listen (None: not given); `agents` is --agents, `count_from` is --count-from. What the server of
    `server_files` refuses becomes alerts.

    Raises:
        UsageError: the address cannot be listened on, the webhook is no URL, or a file cannot be read.
    """
    set_up_logs(log_level)
    log_wrong_variables()
    config = load_swarm(config_file, Overrides(agents=agents))
    webhook, exporting = webhook_of(config), read_exporting(os.environ, "metrics")
    address = _address(config, listen)
    refusals = None if server_files is None else _Refusals(server_files)

    async def observe() -> int:
        stop = asyncio.Event()
        bus = await NatsBus.connect(url, swarm or config.swarm, NAME, wait_s=None)
        on_signals(stop.set)  # before this there is nothing to end in order
        observer = MetricsObserver(bus, config, count_from=count_from)
        server = None
        if address is not None:
            registry = observer.metrics.registry
            server, _ = await asyncio.to_thread(start_http_server, address.port, address.host, registry=registry)
            log.info("metrics_served", url=f"http://{address.url_host}:{server.server_port}/metrics")
        export = None
        if exporting is not None:
            describe = partial(describe_process, bus.subjects.ns)
            export = MetricsExport(exporting, os.environ, observer.metrics.registry, describe)
        reports, webhook_task = None, None
        if webhook or refusals is not None:
            reports = await EventPublisher.open(bus, NAME)
            if webhook:
                webhook_task = _WebhookTask(bus, webhook, observer.metrics, reports)
        heartbeat_task = asyncio.create_task(
            send_heartbeats(bus, NAME, "metrics", HEARTBEAT_S, observer.heartbeat_fields), name="metrics-heartbeats"
        )
        try:
            await _follow(bus, observer, stop, reports, webhook_task, refusals)
        finally:
            until = asyncio.get_running_loop().time() + END_S
            await end_tasks([heartbeat_task])
            if webhook_task is not None:
                await webhook_task.end()
            if reports is not None:
                await reports.finish()
            if export is not None:
                left_s = until - asyncio.get_running_loop().time()
                await asyncio.to_thread(export.close, min(CLOSE_S, left_s))
            await observer.close()
            if server is not None:
                await asyncio.to_thread(server.shutdown)
            await bus.close()
        return EXIT_DONE

    return run_to_end(observe())
