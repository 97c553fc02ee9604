"""What `kill` reports about a recovery, of messages in any order that the bus allows."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import orjson
import pytest

from bus.durable.registry import Record, write_record
from bus.errors import MeshError
from bus.interface import ReceivedMessage
from bus.messages import Epoch, Heartbeat, Lifecycle, Signal, encode, now
from bus.messages.headers import EPOCH
from bus.messages.subjects import WATCHDOG
from bus.nats.bus import NatsBus
from bus.server.supervisor import NatsServer
from bus.utils.aio import end_tasks
from coordinator.control.kill import find_agent, kill
from tests.support.nats import Connections
from tests.support.reporters import reporter_of

PID = 4242


async def lifecycle(bus: NatsBus, event: Any, epoch: int, writer: str = "") -> None:
    writer = writer or reporter_of(event, "a")
    message = Lifecycle(event=event, agent="a", epoch=epoch, timestamp=now(), source=writer)
    await bus.publish(bus.subjects.write(bus.subjects.lifecycle("a", writer)), encode(message))


async def beat(bus: NatsBus, name: str) -> None:
    message = Heartbeat(
        agent=name,
        agent_id=name,
        epoch=1,
        sequence=1,
        progress=1,
        status="live",
        interval_ms=20,
        sandbox="base",
        pid=PID,
    )
    await bus.notify(bus.subjects.heartbeat(name), encode(message))


async def test_a_start_that_its_host_reports_after_the_agent_is_ready_is_in_the_report(tmp_path: Path):
    async with NatsServer(tmp_path, port=0) as server, Connections() as connections:
        swarm = await connections.bus(server.url, streams=True)
        bus = await connections.bus(server.url)

        async def signalled(_: ReceivedMessage) -> bytes:
            await lifecycle(swarm, "declared_dead", 1)
            await lifecycle(swarm, "spawned", 10**9, "captured")
            claim = Epoch(agent="a", claim="c", claimed_by=WATCHDOG, sandbox="base", timestamp=now(), source=WATCHDOG)
            epoch = (await swarm.publish(swarm.subjects.write(swarm.subjects.epoch("a")), encode(claim))).sequence
            await lifecycle(swarm, "spawned", epoch, "captured")
            for event in ("restored", "ready"):
                await lifecycle(swarm, event, epoch)
            vote = Signal(signal="hold", strength=0.5, indicators={}, timestamp=now(), source="a", symbol="BTC/USD")
            subject = swarm.subjects.write(swarm.subjects.event("signal", "BTC/USD", "a"))
            await swarm.publish(subject, encode(vote), {EPOCH: str(epoch)})
            return orjson.dumps({"agent": "a", "pid": PID})

        async def report_start(received: ReceivedMessage) -> None:
            """`kill` has the output too, over the same connection."""
            await lifecycle(swarm, "spawned", int(received.headers[EPOCH]))

        await swarm.answer(swarm.subjects.control("base", "signal"), signalled)
        await bus.listen(f"{bus.subjects.ns}.signal.*.a", report_start)
        await bus.flush()

        async def send_heartbeats() -> None:
            while True:
                await beat(swarm, "a")
                await beat(swarm, WATCHDOG)
                await asyncio.sleep(0.02)

        beating = asyncio.create_task(send_heartbeats())
        report = await kill(bus, "a", signal.SIGKILL, 20.0)
        await end_tasks([beating])
        assert report.outcome == "recovered"
        assert report.spawned_ms is not None
        assert report.ready_ms is not None
        assert report.spawned_ms > report.ready_ms


async def test_the_heartbeat_of_an_active_agent_may_come_later(tmp_path: Path):
    async with NatsServer(tmp_path, port=0) as server, Connections() as connections:
        swarm = await connections.bus(server.url, streams=True)
        bus = await connections.bus(server.url)
        for name, status in (("a", "active"), ("b", "stopped")):
            record = Record(
                agent_id=name, name=name, kind="k", capabilities=(), status=status, epoch=1, sandbox="base", pid=PID,
                spawned_at=now(),
            )  # fmt: skip
            await write_record(swarm, record)
        finding = asyncio.create_task(find_agent(bus, "a"))
        with pytest.raises(MeshError, match="agent 'b' does not run"):
            await find_agent(bus, "b")  # meanwhile the first wait for the other one has ended
        await asyncio.sleep(0.1)
        assert not finding.done()
        await beat(swarm, "a")
        assert (await finding).pid == PID
