"""Acknowledged publishes a second: our outbox beside nats-py's own ways, to one stream of one server."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Awaitable, Callable

import nats
from nats.js import JetStreamContext

from benchmarks.report import Result
from benchmarks.swarm import scratch
from bus import headers as h
from bus.claims import claim, fence, new_agent_id
from bus.nats_bus import NatsBus
from bus.outbox import Entry, Outbox
from bus.server import NatsServer
from bus.streams import ensure_streams

PAYLOAD = b"{" + b" " * 198 + b"}"
SUBJECT = "swarm.market.X.bench"
WINDOW = 512
PLAIN = "nats-py js.publish_async, plain stream"


class Publishers:
    """Four ways to have `count` messages stored; each returns when all are acknowledged."""

    def __init__(self, bus: NatsBus, jetstream: JetStreamContext, guard: dict[str, str]) -> None:
        self._bus, self._jetstream, self._guard = bus, jetstream, guard
        self._numbers = itertools.count(1)

    def _headers(self) -> tuple[int, dict[str, str]]:
        number = next(self._numbers)
        return number, {h.MSG_ID: f"bench:{number}", h.OUTPUT: str(number), **self._guard}

    async def ours(self, count: int) -> None:
        box = Outbox(self._bus, ("swarm.*.*.bench",), lambda _: None)
        for _ in range(count):
            number, headers = self._headers()
            box.put(Entry(SUBJECT, PAYLOAD, headers, number))
            await box.send()
        await box.flush()
        box.close()

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
            _, headers = self._headers()
            await self._jetstream.publish_async("in." + SUBJECT, PAYLOAD, headers=headers)
        await self._jetstream.publish_async_completed()


async def outbox(*, quick: bool) -> Result:
    turns, many, few = (1, 3000, 500) if quick else (3, 15_000, 1500)
    async with scratch() as directory, NatsServer(directory, port=0) as server:
        bus = await NatsBus.connect(server.url, "swarm", "bench")
        client = await nats.connect(server.url)
        await ensure_streams(bus)
        epoch = await claim(bus, "bench", agent_id=new_agent_id(), claimed_by="bench", sandbox="")
        await client.jetstream().add_stream(name="bare", subjects=["bare.>"])
        publishers = Publishers(bus, client.jetstream(publish_async_max_pending=WINDOW), fence(bus, "bench", epoch))
        ways: dict[str, tuple[Callable[[int], Awaitable[None]], int]] = {
            "signalmesh outbox (fenced, numbered, deduplicated, republished)": (publishers.ours, many),
            "nats-py js.publish, awaited, plain stream": (publishers.awaited, few),
            PLAIN: (publishers.pipelined, many),
            "nats-py js.publish_async, the swarm's stream and headers": (publishers.pipelined_same, many),
        }
        for publish, _ in ways.values():
            await publish(few)  # unmeasured: code paths and server warm
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(turns):
            for name, (publish, count) in ways.items():
                began = time.monotonic()
                async with asyncio.timeout(60):
                    await publish(count)
                rates[name].append(count / (time.monotonic() - began))
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
