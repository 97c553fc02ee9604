"""The agent process: connects, runs one incarnation, and ends with an exit code that the watchdog understands."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import orjson
import structlog
import uvloop

from agents.agent import Agent
from agents.runtime.discovery import introduce
from agents.runtime.heartbeat import HEARTBEAT_S, STARVED_S, StartHeartbeats, send_heartbeats
from agents.runtime.output_rate import MAX_OUTPUTS_PER_S
from agents.runtime.records import MEMORY_S, Memory, register
from agents.runtime.runtime import Runtime, RuntimeHooks
from agents.runtime.tracing import AgentTracing
from agents.spec import AgentSpec, ClassTraits, load_class
from bus.durable.events import EventPublisher
from bus.durable.fencing import claim, new_agent_id
from bus.durable.snapshots import first_snapshot
from bus.errors import EXIT_DONE, EXIT_FAILED, BusTimeout, Disconnected, Fenced, MeshError, UsageError
from bus.messages import Heartbeat
from bus.messages.subjects import Subjects
from bus.nats.bus import NatsBus
from bus.nats.credentials import Credentials
from bus.observability.logging import set_up_logs
from bus.observability.otel_env import describe_process
from bus.observability.spans import read_context
from bus.observability.tracer import open_tracer
from bus.utils.aio import end_tasks, is_cancelled, run_to_end
from bus.utils.error_text import MAX_ERROR_TEXT, describe_error, shorten
from bus.utils.processes import MACHINE
from signalmesh import restore_python_path

CLOSE_S = 0.3
"""How long a failed incarnation may take to close its connection."""

ErrorSink = Callable[[str], None]
"""Takes the text of an exception."""

log = structlog.get_logger("signalmesh.agent")


@dataclass(frozen=True, slots=True, kw_only=True)
class Incarnation:
    """What a process needs to become an agent. Without an `epoch` it claims one for itself."""

    spec: AgentSpec
    url: str
    sandbox: str
    epoch: int | None = None
    agent_id: str | None = None
    heartbeat_s: float = HEARTBEAT_S
    starved_s: float = STARVED_S
    max_outputs_per_s: int = MAX_OUTPUTS_PER_S
    log_level: str = "info"
    traceparent: str = ""
    """The span of the recovery that starts it."""
    credentials: Credentials | None = field(default=None, repr=False)
    """None: those that the environment names."""

    def to_json(self) -> bytes:
        return orjson.dumps(self)

    @classmethod
    def from_json(cls, data: bytes) -> Incarnation:
        return msgspec.convert(orjson.loads(data), cls)


def make_agent(spec: AgentSpec, report_step: Callable[[str], None] = lambda _: None) -> Agent:
    """The agent of `spec`, with its options checked and its static data loaded; `report_step` gets each step before it.

    Raises:
        UsageError: its class cannot be imported, an option is wrong, or a data file is broken.
    """
    if spec.command:
        from agents.builtin.command import CommandAgent, command_class

        cls: type[Agent] = command_class(spec)
        assert issubclass(cls, CommandAgent)
        return cls(spec.name, spec.options)
    report_step(f"importing {spec.class_path.rpartition(':')[0]}")
    cls = load_class(spec)
    report_step("creating it (its setup())")
    return cls(spec.name, spec.options)


def memory_key_of(spec: AgentSpec, traits: ClassTraits) -> str:
    """The last part of an agent's memory key: as configured, else as its class defines it, else its first kind."""
    return spec.memory_key or traits.memory_key or (traits.publishes[0] if traits.publishes else "state")


def run_incarnation(incarnation: Incarnation, report_error: ErrorSink = lambda _: None) -> int:
    """Run it to its end; returns the exit code: 0 drained, 2 a user's mistake, 3 no bus, 1 anything else.

    `report_error` is called once, with the text of the exception that ends it, if one does, as soon as it is raised.
    """
    set_up_logs(incarnation.log_level)
    restore_python_path()
    os.nice(incarnation.spec.nice)
    structlog.contextvars.bind_contextvars(agent=incarnation.spec.name, sandbox=incarnation.sandbox)
    first_error = _FirstError(report_error)
    try:
        # Its turns cost less than those of asyncio's own loop: a fifth of the time from a tick to its decision.
        return run_to_end(_run_connected(incarnation, first_error), uvloop.new_event_loop)
    except Fenced as error:
        log.warning("fenced", problem=str(error))
        return EXIT_FAILED
    except MeshError as error:
        first_error.report(error)
        log.error("agent_failed", problem=str(error))  # noqa: TRY400 - expected: its message is enough
        return error.exit_code
    except BaseException as error:  # SystemExit too: its code would look like an orderly end
        first_error.report(error)
        log.exception("agent_crashed")
        return EXIT_FAILED


class _FirstError:
    """Passes on the first exception that ends an incarnation. A later one is the same, or a consequence of it."""

    def __init__(self, sink: ErrorSink) -> None:
        self._sink: ErrorSink | None = sink

    def report(self, error: BaseException) -> None:
        sink, self._sink = self._sink, None
        if sink is not None:
            with contextlib.suppress(OSError):
                sink(shorten(str(error), MAX_ERROR_TEXT) if isinstance(error, MeshError) else describe_error(error))


async def _run_connected(incarnation: Incarnation, first_error: _FirstError) -> int:
    spec = incarnation.spec
    wait_s = None if incarnation.epoch else 5.0
    bus = await NatsBus.connect(incarnation.url, spec.swarm, spec.name, wait_s, incarnation.credentials)
    try:
        try:
            agent = _make_with_heartbeats(incarnation)
        except UsageError as error:
            await _alert_unusable(bus, incarnation, error)
            raise
        agent_id = incarnation.agent_id or new_agent_id()
        epoch = incarnation.epoch or await _claim(bus, incarnation, agent_id)
        if epoch is None:
            return EXIT_DONE
        tracing = _open_tracing(incarnation, agent, bus.subjects, epoch, agent_id)
        interval_s = max(MEMORY_S, incarnation.heartbeat_s)
        traits = ClassTraits.of(type(agent))
        memory = Memory(bus, agent, memory_key_of(spec, traits), traits.publishes, interval_s)
        runtime = Runtime(
            agent,
            bus,
            epoch,
            agent_id=agent_id,
            sandbox=incarnation.sandbox,
            max_outputs_per_s=incarnation.max_outputs_per_s,
            first=first_snapshot(spec.start_after, spec.start_outputs),
            hooks=RuntimeHooks(on_output_stored=memory.take, tracing=tracing),
        )
        _on_end(runtime.drain)

        def end_by_force(error: MeshError) -> None:
            first_error.report(error)
            log.critical("ended_by_force", problem=str(error))
            os._exit(EXIT_FAILED)

        if incarnation.credentials is not None and incarnation.credentials.nkey_seed:
            text = f"agent {spec.name}: the server does not admit its key any more: it was replaced, or this agent was"
            bus.connection.on_refused = lambda: end_by_force(MeshError(text))

        tasks = [
            asyncio.create_task(
                send_heartbeats(runtime, incarnation.heartbeat_s, incarnation.starved_s, end_by_force),
                name="heartbeats",
            ),
            asyncio.create_task(memory.run(), name="memory"),
            asyncio.create_task(_introduce(runtime, bus), name="introduce"),
        ]
        try:
            await runtime.run()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2.0):
                    await register(runtime, "stopped")
        except BaseException as error:
            first_error.report(error)  # now: a handler that ignores its cancellation keeps the process from ending
            if isinstance(error, UsageError):
                await _alert_unusable(bus, incarnation, error)
            raise
        finally:
            if tracing is not None:
                await tracing.close()  # while heartbeats go on: waiting for a collector is no failure
            await end_tasks(tasks)
            if runtime.failure is not None:
                # Without heartbeats now: the watchdog would not wait longer, and it would not know the reason.
                asyncio.get_running_loop().call_later(CLOSE_S, end_by_force, runtime.failure)
    finally:
        await bus.close()
    return EXIT_DONE


def _make_with_heartbeats(incarnation: Incarnation) -> Agent:
    """The agent of this incarnation. While it is made, a thread sends heartbeats, unless no epoch is claimed yet."""
    spec, epoch = incarnation.spec, incarnation.epoch
    if epoch is None:
        return make_agent(spec)

    async def connect() -> NatsBus:
        return await NatsBus.connect(
            incarnation.url, spec.swarm, f"{spec.name} starting", None, incarnation.credentials
        )

    def heartbeat(number: int, doing: str) -> Heartbeat:
        return Heartbeat(
            agent=spec.name,
            agent_id=incarnation.agent_id or "",
            epoch=epoch,
            sequence=number,
            progress=0,
            status="starting",
            interval_ms=int(incarnation.heartbeat_s * 1000),
            sandbox=incarnation.sandbox,
            pid=os.getpid(),
            machine=MACHINE,
            doing=doing,
        )

    with StartHeartbeats(connect, heartbeat, incarnation.heartbeat_s) as starting:

        def report_step(step: str) -> None:
            starting.doing = step

        return make_agent(spec, report_step)


def _on_end(stop: Callable[[], object]) -> None:
    """Have the signals that end a process call `stop` instead."""
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)


async def _claim(bus: NatsBus, incarnation: Incarnation, agent_id: str) -> int | None:
    """Claim the next epoch as soon as the bus answers; None: a signal has ended the process before."""

    async def claim_if_running() -> int:
        name = incarnation.spec.name
        while True:
            with contextlib.suppress(Disconnected, BusTimeout):
                await bus.wait_connected()
                return await claim(bus, name, agent_id=agent_id, claimed_by=name, sandbox=incarnation.sandbox)

    claiming = asyncio.create_task(claim_if_running(), name="claim")
    _on_end(claiming.cancel)
    try:
        return await claiming
    except asyncio.CancelledError:
        if is_cancelled():
            raise
        return None


def _open_tracing(
    incarnation: Incarnation, agent: Agent, subjects: Subjects, epoch: int, agent_id: str
) -> AgentTracing | None:
    """The tracing of this process, if its environment requests it."""
    spec = incarnation.spec

    def resource() -> dict[str, str | int]:
        return {
            **describe_process(spec.swarm),
            "service.instance.id": agent_id,
            "mesh.agent": spec.name,
            "mesh.kind": agent.kind,
            "mesh.epoch": epoch,
            "mesh.sandbox": incarnation.sandbox,
        }

    tracer = open_tracer(os.environ, spec.name, resource)
    if tracer is None:
        return None
    return AgentTracing(tracer, agent, subjects, read_context(incarnation.traceparent))


async def _alert_unusable(bus: NatsBus, incarnation: Incarnation, error: UsageError) -> None:
    """Alert about a mistake that no restart fixes: the user may not see this process's log."""
    name = incarnation.spec.name
    async with await EventPublisher.open(bus, name) as reports:
        reports.alert("critical", "agent_unusable", str(error), agent=name)


async def _introduce(runtime: Runtime, bus: NatsBus) -> None:
    """Once it is ready: the registry record, and the entries in NATS service discovery."""
    await register(runtime)
    await introduce(runtime, bus)
