"""One agent as a process: connects, runs one incarnation, and ends with an exit code that the watchdog understands."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass, field

import msgspec
import orjson
import structlog
import uvloop

from agents.agent import Agent, published_kinds
from agents.runtime.heartbeat import HEARTBEAT_S, send_heartbeats
from agents.runtime.records import MEMORY_S, Memory, register
from agents.runtime.runtime import Runtime
from agents.runtime.tracing import AgentTracing
from agents.spec import AgentSpec, load_class
from bus import __version__
from bus.durable.events import EventPublisher
from bus.errors import EXIT_DONE, EXIT_FAILED, BusError, Fenced, MeshError, UsageError
from bus.interface import ReceivedMessage
from bus.nats.bus import NatsBus
from bus.nats.credentials import Credentials
from bus.observability.logging import set_up_logs
from bus.observability.spans import read_context
from bus.observability.tracer import open_tracer
from bus.utils.aio import end_tasks, run_to_end

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


def make_agent(spec: AgentSpec) -> Agent:
    """The agent of `spec`, with its options checked and its static data loaded.

    Raises:
        UsageError: its class cannot be imported, an option is wrong, or a data file is broken.
    """
    if spec.command:
        from agents.builtin.command import CommandAgent, command_class

        cls: type[Agent] = command_class(spec)
        assert issubclass(cls, CommandAgent)
        return cls(spec.name, spec.options)
    return load_class(spec)(spec.name, spec.options)


def memory_key_of(spec: AgentSpec, cls: type[Agent]) -> str:
    """The last part of an agent's memory key: as configured, else what its class says, else its first kind."""
    publishes = published_kinds(cls)
    return spec.memory_key or cls.memory_key or (publishes[0] if publishes else "state")


def run_incarnation(incarnation: Incarnation) -> int:
    """Run it to its end; returns the exit code: 0 drained, 2 a person's mistake, 3 no bus, 1 anything else."""
    set_up_logs(incarnation.log_level)
    os.nice(incarnation.spec.nice)
    structlog.contextvars.bind_contextvars(agent=incarnation.spec.name, sandbox=incarnation.sandbox)
    try:
        # Its turns cost less than those of asyncio's own loop: a fifth of the time from a tick to its decision.
        return run_to_end(_live(incarnation), uvloop.new_event_loop)
    except Fenced as error:
        log.warning("fenced", problem=str(error))
        return EXIT_FAILED
    except MeshError as error:
        log.error("agent_failed", problem=str(error))  # noqa: TRY400 - expected: its message says all
        return error.exit_code
    except (Exception, SystemExit):  # the latter from an agent's setup: its code would look like an orderly end
        log.exception("agent_crashed")
        return EXIT_FAILED


async def _live(incarnation: Incarnation) -> int:
    spec = incarnation.spec
    wait_s = None if incarnation.epoch else 5.0
    bus = await NatsBus.connect(incarnation.url, spec.swarm, spec.name, wait_s, incarnation.credentials)
    try:
        try:
            agent = make_agent(spec)
        except UsageError as error:
            await _alert_unusable(bus, incarnation, error)
            raise
        runtime = Runtime(
            agent,
            bus,
            sandbox=incarnation.sandbox,
            epoch=incarnation.epoch,
            agent_id=incarnation.agent_id,
        )
        runtime.tracing = tracing = _open_tracing(incarnation, runtime)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, runtime.drain)
        interval_s = max(MEMORY_S, incarnation.heartbeat_s)
        memory = Memory(bus, agent, memory_key_of(spec, type(agent)), published_kinds(type(agent)), interval_s)
        runtime.on_stored = memory.take
        tasks = [
            asyncio.create_task(send_heartbeats(runtime, incarnation.heartbeat_s), name="beat"),
            asyncio.create_task(memory.run(), name="memory"),
            asyncio.create_task(_introduce(runtime, bus), name="introduce"),
        ]
        try:
            await runtime.run()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2.0):
                    await register(runtime, "stopped")
        except UsageError as error:
            await _alert_unusable(bus, incarnation, error)
            raise
        finally:
            if tracing is not None:
                await tracing.close()  # while it still beats: a collector that does not answer is no death
            await end_tasks(tasks)
    finally:
        await bus.close()
    return EXIT_DONE


def _open_tracing(incarnation: Incarnation, runtime: Runtime) -> AgentTracing | None:
    """What makes the spans of this process, if its environment asks for them."""
    spec = incarnation.spec

    def resource() -> dict[str, str | int]:
        return {
            "service.version": __version__,
            "service.namespace": spec.swarm,
            "service.instance.id": runtime.agent_id,
            "mesh.swarm": spec.swarm,
            "mesh.agent": spec.name,
            "mesh.kind": runtime.agent.kind,
            "mesh.epoch": runtime.epoch,
            "mesh.sandbox": incarnation.sandbox,
            "process.pid": runtime.pid,
        }

    tracer = open_tracer(os.environ, spec.name, resource)
    if tracer is None:
        return None
    return AgentTracing(tracer, runtime.agent, runtime.bus.subjects, read_context(incarnation.traceparent))


async def _alert_unusable(bus: NatsBus, incarnation: Incarnation, error: UsageError) -> None:
    """A mistake that no restart mends: say so on the bus, for its person may not see this process's log."""
    from bus.durable.outbox import Outbox

    outbox = Outbox(bus, (), lambda _: None)
    reporter = EventPublisher(bus, outbox, incarnation.spec.name)
    reporter.alert("critical", "agent_unusable", str(error), agent=incarnation.spec.name)
    with contextlib.suppress(TimeoutError, BusError):
        async with asyncio.timeout(2.0):
            await outbox.flush()
    outbox.close()


async def _introduce(runtime: Runtime, bus: NatsBus) -> None:
    """Once it is ready: the registry record, and a place in NATS service discovery (`nats micro ls`)."""
    await register(runtime)
    agent = runtime.agent

    async def status(_: ReceivedMessage) -> bytes:
        tracing = runtime.tracing
        spans = {} if tracing is None else tracing.spans
        return orjson.dumps(
            {
                "agent": runtime.name,
                "agent_id": runtime.agent_id,
                "epoch": runtime.epoch,
                "status": runtime.status,
                "cursor": runtime.intake.cursor,
                "inputs": runtime.intake.inputs,
                "outputs": runtime.journal.outputs,
                "poison": runtime.intake.poison,
                "skipped": runtime.intake.skips,
                "pid": os.getpid(),
                "sandbox": runtime.sandbox,
                **spans,
            }
        )

    await bus.serve(
        name=runtime.name,
        version=__version__,
        description=f"{agent.kind} agent of swarm {bus.subjects.ns}",
        metadata={
            "swarm": bus.subjects.ns,
            "kind": agent.kind,
            "agent_id": runtime.agent_id,
            "epoch": str(runtime.epoch),
            "sandbox": runtime.sandbox,
            "capabilities": ",".join(agent.capabilities),
        },
        endpoint="status",
        subject=bus.subjects.control(runtime.name, "status"),
        on_request=status,
    )
    await asyncio.Event().wait()
