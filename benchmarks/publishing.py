"""Acknowledged publishes a second: our outbox beside nats-py's own ways, to one stream of one server."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Awaitable, Callable

import nats

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


async def outbox(*, quick: bool) -> Result:
    turns, many, few = (1, 3000, 500) if quick else (3, 15_000, 1500)
    numbers = itertools.count(1)
    async with scratch() as directory, NatsServer(directory, port=0) as server:
        bus = await NatsBus.connect(server.url, "swarm", "bench")
        client = await nats.connect(server.url)
        await ensure_streams(bus)
        epoch = await claim(bus, "bench", agent_id=new_agent_id(), claimed_by="bench", sandbox="")
        guard = fence(bus, "bench", epoch)
        await client.jetstream().add_stream(name="bare", subjects=["bare.>"])
        jetstream = client.jetstream(publish_async_max_pending=WINDOW)

        def headers(number: int) -> dict[str, str]:
            return {h.MSG_ID: f"bench:{number}", h.OUTPUT: str(number), **guard}

        async def ours(count: int) -> None:
            box = Outbox(bus, ("swarm.*.*.bench",), lambda _: None)
            for _ in range(count):
                number = next(numbers)
                box.put(Entry(SUBJECT, PAYLOAD, headers(number), number))
                await box.send()
            await box.flush()
            box.close()

        async def awaited(count: int) -> None:
            for _ in range(count):
                await jetstream.publish("bare.x", PAYLOAD)

        async def pipelined(count: int) -> None:
            for _ in range(count):
                await jetstream.publish_async("bare.x", PAYLOAD, wait_stall=5)
            await jetstream.publish_async_completed()

        async def pipelined_same(count: int) -> None:
            for _ in range(count):
                await jetstream.publish_async("in." + SUBJECT, PAYLOAD, headers=headers(next(numbers)), wait_stall=5)
            await jetstream.publish_async_completed()

        ways: dict[str, tuple[Callable[[int], Awaitable[None]], int]] = {
            "signalmesh outbox (fenced, numbered, deduplicated, republished)": (ours, many),
            "nats-py js.publish, awaited, plain stream": (awaited, few),
            "nats-py js.publish_async, plain stream": (pipelined, many),
            "nats-py js.publish_async, the swarm's stream and headers": (pipelined_same, many),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(turns):
            for name, (publish, count) in ways.items():
                began = time.monotonic()
                async with asyncio.timeout(60):
                    await publish(count)
                rates[name].append(count / (time.monotonic() - began))
        await client.close()
        await bus.close()
    plain = statistics.median(rates["nats-py js.publish_async, plain stream"])
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
