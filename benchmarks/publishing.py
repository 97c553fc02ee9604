"""Acknowledged publishes: the outbox compared with nats-py's publishing, and the embedded server's two durabilities."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import nats
from nats.js import JetStreamContext

from benchmarks.machine import file_system
from benchmarks.report import Result, percentiles
from benchmarks.swarm import scratch
from bus.durable.fencing import claim, fence, new_agent_id
from bus.durable.outbox import Entry, Outbox
from bus.messages import headers as h
from bus.nats.bus import NatsBus
from bus.nats.streams import ensure_streams
from bus.server.config import Durability
from bus.server.supervisor import NatsServer

PAYLOAD = b"{" + b" " * 198 + b"}"
SUBJECT = "swarm.market.X.bench"
WINDOW = 512
PLAIN = "nats-py js.publish_async, plain stream"


class OutboxPublisher:
    """The swarm's publishing: through an outbox, numbered and fenced."""

    def __init__(self, bus: NatsBus, guard: dict[str, str]) -> None:
        self._bus, self._guard = bus, guard
        self._numbers = itertools.count(1)

    @classmethod
    async def claimed(cls, bus: NatsBus) -> OutboxPublisher:
        """Create the stream and the claim of its fence."""
        await ensure_streams(bus)
        epoch = await claim(bus, "bench", agent_id=new_agent_id(), claimed_by="bench", sandbox="")
        return cls(bus, fence(bus, "bench", epoch))

    def headers(self) -> tuple[int, dict[str, str]]:
        number = next(self._numbers)
        return number, {h.MSG_ID: f"bench:{number}", h.OUTPUT: str(number), **self._guard}

    async def publish(self, count: int) -> None:
        """Store `count` messages; returns when all are acknowledged."""
        box = Outbox(self._bus, ("swarm.*.*.bench",), lambda _: None, pipelined=True)
        for _ in range(count):
            number, headers = self.headers()
            box.put(Entry(SUBJECT, PAYLOAD, headers, number))
            if (room := box.send()) is not None:
                await room
        await box.flush()
        box.close()


class NatsPyPublisher:
    """nats-py's ways to store `count` messages; each returns when all are acknowledged."""

    def __init__(self, jetstream: JetStreamContext, outbox_publisher: OutboxPublisher) -> None:
        self._jetstream, self._outbox_publisher = jetstream, outbox_publisher

    async def awaited(self, count: int) -> None:
        for _ in range(count):
            await self._jetstream.publish("bare.x", PAYLOAD)

    # No wait_stall: it makes asyncio.wait_for start a task for every message, five times the CPU.
    async def pipelined(self, count: int) -> None:
        for _ in range(count):
            await self._jetstream.publish_async("bare.x", PAYLOAD)
        await self._jetstream.publish_async_completed()

    async def pipelined_same(self, count: int) -> None:
        for _ in range(count):
            _, headers = self._outbox_publisher.headers()
            await self._jetstream.publish_async("in." + SUBJECT, PAYLOAD, headers=headers)
        await self._jetstream.publish_async_completed()


async def durability(*, quick: bool) -> Result:
    """Both durabilities of the embedded server: one server each, taking turns."""
    turns, many, few = (2, 500, 200) if quick else (4, 4000, 1500)
    modes: tuple[Durability, ...] = ("process", "power")
    rates: dict[str, list[float]] = {mode: [] for mode in modes}
    acks_ms: dict[str, list[float]] = {mode: [] for mode in modes}
    async with scratch() as directory, AsyncExitStack() as stack:
        filesystem = file_system(directory)
        ways: dict[str, tuple[NatsBus, OutboxPublisher]] = {}
        for mode in modes:
            server = await stack.enter_async_context(NatsServer(directory / mode, port=0, durability=mode))
            bus = await NatsBus.connect(server.url, "swarm", "bench")
            stack.push_async_callback(bus.close)
            ways[mode] = (bus, await OutboxPublisher.claimed(bus))
        for _, outbox_publisher in ways.values():
            await outbox_publisher.publish(few)  # unmeasured: code paths and server warm
        for _ in range(turns):
            for name, (bus, outbox_publisher) in ways.items():
                started_at = time.monotonic()
                async with asyncio.timeout(120):
                    await outbox_publisher.publish(many)
                rates[name].append(many / (time.monotonic() - started_at))
                for _ in range(few):
                    started_at = time.monotonic()
                    await bus.publish("in.swarm.market.X.other", PAYLOAD)
                    acks_ms[name].append((time.monotonic() - started_at) * 1000)
    return Result(
        name="durability",
        title="What surviving a loss of power costs",
        conditions=f"The embedded server with `durability` process and power, taking turns, {turns} turns each, its "
        f"store on {filesystem}. Acknowledged/s: messages of {len(PAYLOAD)} bytes through the outbox of one publisher, "
        f"at most {WINDOW} unacknowledged, {many:,} a turn. Milliseconds: one publish and its acknowledgement, "
        f"awaited, {few:,} a turn.",
        rows=[
            {
                "durability": mode,
                "acknowledged/s, median": statistics.median(rates[mode]),
                "acknowledged/s, best": max(rates[mode]),
                **{
                    f"{name}, ms": value
                    for name, value in percentiles(acks_ms[mode]).items()
                    if name in ("p50", "p99", "max")
                },
            }
            for mode in modes
        ],
        raw={"acknowledged_per_s": rates, "ack_ms": {mode: percentiles(values) for mode, values in acks_ms.items()}},
    )


async def outbox(*, quick: bool) -> Result:
    turns, many, few = (1, 3000, 500) if quick else (3, 15_000, 1500)
    async with scratch() as directory, NatsServer(directory, port=0) as server:
        bus = await NatsBus.connect(server.url, "swarm", "bench")
        client = await nats.connect(server.url)
        outbox_publisher = await OutboxPublisher.claimed(bus)
        await client.jetstream().add_stream(name="bare", subjects=["bare.>"])
        nats_py_publisher = NatsPyPublisher(client.jetstream(publish_async_max_pending=WINDOW), outbox_publisher)
        ways: dict[str, tuple[Callable[[int], Awaitable[None]], int]] = {
            "signalmesh outbox (fenced, numbered, deduplicated, republished)": (outbox_publisher.publish, many),
            "nats-py js.publish, awaited, plain stream": (nats_py_publisher.awaited, few),
            PLAIN: (nats_py_publisher.pipelined, many),
            "nats-py js.publish_async, the swarm's stream and headers": (nats_py_publisher.pipelined_same, many),
        }
        for publish, _ in ways.values():
            await publish(few)  # unmeasured: code paths and server warm
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(turns):
            for name, (publish, count) in ways.items():
                started_at = time.monotonic()
                async with asyncio.timeout(60):
                    await publish(count)
                rates[name].append(count / (time.monotonic() - started_at))
        await client.close()
        await bus.close()
    plain = statistics.median(rates[PLAIN])
    return Result(
        name="outbox",
        title="Acknowledged publishes",
        conditions=f"Messages of {len(PAYLOAD)} bytes a second, from the first publish to the last acknowledgement, "
        f"one publisher, at most {WINDOW} unacknowledged; {turns} turns of {many:,} (awaited: {few:,}), interleaved.",
        rows=[
            {
                "acknowledged/s": name,
                "median": statistics.median(values),
                "best": max(values),
                "of publish_async": statistics.median(values) / plain,
            }
            for name, values in rates.items()
        ],
        raw={"acknowledged_per_s": rates},
    )
