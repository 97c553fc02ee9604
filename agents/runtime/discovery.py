"""What an agent tells programs that know nothing of its swarm, once it is ready.

Two services of NATS: one by the agent's name, which answers with its state, and one by the name `agents`, as the
Synadia Agent Protocol 0.3 wants it (core-protocol.md in github.com/synadia-ai/synadia-agent-sdk-docs). The subjects of
that protocol belong to no swarm: their owner is the swarm, their session the agent. The watchdog relies on none of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from datetime import UTC, datetime

import orjson

from agents.runtime.runtime import Runtime
from bus import __version__
from bus.errors import BusError
from bus.interface import ReceivedMessage
from bus.messages.subjects import HARNESS, PROTOCOL_SERVICE
from bus.nats.bus import NatsBus, Refusal, ServiceEndpoint

__all__ = ["PROTOCOL_HEARTBEAT_S", "introduce"]

PROTOCOL_VERSION = "0.3"
PROTOCOL_HEARTBEAT_S = 30
"""Recommended by the protocol, whose readers take an agent for gone after three times as long."""
NO_PROMPTS = {"max_payload": "1KB", "attachments_ok": "false"}
"""The protocol demands an endpoint for prompts that says both; callers send nothing longer."""


async def introduce(runtime: Runtime, bus: NatsBus) -> None:
    """Register both services, and send the heartbeats of the protocol until cancelled."""
    agent, subjects = runtime.agent, bus.subjects
    about = {
        "swarm": subjects.ns,
        "kind": agent.kind,
        "agent_id": runtime.agent_id,
        "epoch": str(runtime.epoch),
        "sandbox": runtime.sandbox,
        "capabilities": ",".join(agent.capabilities),
    }
    description = f"{agent.kind} agent of swarm {subjects.ns}"

    async def state(_: ReceivedMessage) -> bytes:
        return _state(runtime)

    endpoint = ServiceEndpoint(name="status", subject=subjects.control(runtime.name, "status"), on_request=state)
    await bus.serve(
        name=runtime.name, version=__version__, description=description, metadata=about, endpoints=[endpoint]
    )

    identity = {"agent": HARNESS, "owner": subjects.ns, "session": runtime.name}
    instance = ""

    def heartbeat() -> bytes:
        return orjson.dumps(
            {
                **identity,
                "instance_id": instance,
                "ts": datetime.now(UTC),
                "interval_s": PROTOCOL_HEARTBEAT_S,
            },
            option=orjson.OPT_UTC_Z | orjson.OPT_OMIT_MICROSECONDS,
        )

    async def status(_: ReceivedMessage) -> bytes:
        return heartbeat()

    async def refuse(_: ReceivedMessage) -> Refusal:
        text = f"{runtime.name} takes no prompts: its outputs follow from the messages that it reads"
        return Refusal("403", text)

    instance = await bus.serve(
        name=PROTOCOL_SERVICE,
        version=__version__,
        description=description,
        metadata={**about, **identity, "protocol_version": PROTOCOL_VERSION},
        endpoints=[
            ServiceEndpoint(
                name=name,
                subject=subjects.protocol(name, runtime.name),
                on_request=on_request,
                queue=PROTOCOL_SERVICE,
                metadata=metadata,
            )
            for name, on_request, metadata in (("prompt", refuse, NO_PROMPTS), ("status", status, None))
        ],
    )
    while True:
        with contextlib.suppress(BusError):
            await bus.notify(subjects.protocol("hb", runtime.name), heartbeat())
        await asyncio.sleep(PROTOCOL_HEARTBEAT_S)


def _state(runtime: Runtime) -> bytes:
    processor, tracing = runtime.input_processor, runtime.tracing
    spans = {} if tracing is None else tracing.spans
    return orjson.dumps(
        {
            "agent": runtime.name,
            "agent_id": runtime.agent_id,
            "epoch": runtime.epoch,
            "status": runtime.status,
            "cursor": processor.cursor,
            "inputs": processor.inputs,
            "outputs": runtime.output_log.outputs,
            "poison": processor.poison,
            "skipped": processor.skips,
            "pid": os.getpid(),
            "sandbox": runtime.sandbox,
            **spans,
        }
    )
