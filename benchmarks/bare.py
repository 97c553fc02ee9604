"""The peer: the same pipeline in bare nats-py. Run by benchmarks/pipeline.py as `python -m benchmarks.bare ROLE ...`.

One source, three voters, one coordinator, each a process; payloads of the swarm's sizes, orjson on both sides, and
nothing else: no state, no recovery, no fence, no numbering, no deduplication. `core` publishes and subscribes core
NATS; `js` publishes through JetStream (`publish_async`, a file stream) and reads by nats-py's ordered consumers.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import nats
import orjson
from nats.aio.msg import Msg

from benchmarks.swarm import scratch
from bus.server.supervisor import NatsServer

VOTERS = ("voter-1", "voter-2", "voter-3")
OPEN_ROUNDS = 256
"""Most undecided rounds, as in the swarm's source."""
TICKS, DECISIONS = "bare.market.x.source", "bare.decision.x.coordinator"


def padded(fields: dict[str, Any], size: int) -> bytes:
    """JSON of about `size` bytes."""
    bare = len(orjson.dumps({**fields, "pad": ""}))
    return orjson.dumps({**fields, "pad": "x" * max(0, size - bare)})


class Wire:
    """Publish and subscribe in one of the two ways."""

    def __init__(self, client: Any, way: str) -> None:
        self._client = client
        self._jetstream = client.jetstream(publish_async_max_pending=4096) if way == "js" else None

    async def publish(self, subject: str, data: bytes) -> None:
        if self._jetstream is None:
            await self._client.publish(subject, data)
        else:
            await self._jetstream.publish_async(subject, data)

    async def subscribe(self, subject: str, on_msg: Callable[[Msg], Awaitable[None]]) -> None:
        if self._jetstream is None:
            await self._client.subscribe(subject, cb=on_msg)
        else:
            await self._jetstream.subscribe(subject, cb=on_msg, ordered_consumer=True)
        await self._client.flush()


async def source(wire: Wire, speed: float, rounds: int, size: int) -> None:
    decided = 0
    wake = asyncio.Event()

    async def on_decision(msg: Msg) -> None:
        nonlocal decided
        decided = orjson.loads(msg.data)["round"]
        wake.set()

    await wire.subscribe(DECISIONS, on_decision)
    await asyncio.to_thread(sys.stdin.readline)  # all other processes run
    loop = asyncio.get_running_loop()
    due = loop.time()
    for number in range(1, rounds + 1):
        while number - decided > OPEN_ROUNDS:
            wake.clear()
            await wake.wait()
        if speed:
            await asyncio.sleep(due - loop.time())
            due = max(due + 1 / speed, loop.time())
        else:
            await asyncio.sleep(0)
        await wire.publish(TICKS, padded({"sequence": number, "price": 1.5}, size))
    await asyncio.Event().wait()


async def voter(wire: Wire, name: str, size: int) -> None:
    async def on_tick(msg: Msg) -> None:
        number = orjson.loads(msg.data)["sequence"]
        await wire.publish(f"bare.signal.x.{name}", padded({"round": number, "p_up": 0.5}, size))

    await wire.subscribe(TICKS, on_tick)


async def coordinator(wire: Wire, size: int) -> None:
    votes: dict[int, int] = {}

    async def on_vote(msg: Msg) -> None:
        number = orjson.loads(msg.data)["round"]
        votes[number] = votes.get(number, 0) + 1
        if votes[number] == len(VOTERS):
            del votes[number]
            await wire.publish(DECISIONS, padded({"round": number, "final_decision": "buy"}, size))

    await wire.subscribe("bare.signal.x.*", on_vote)


async def main(role: str, url: str, way: str, speed: float, rounds: int, size: int) -> None:
    client = await nats.connect(url, name=role)
    wire = Wire(client, way)
    if role == "source":
        print("ready", flush=True)
        await source(wire, speed, rounds, size)
    elif role == "coordinator":
        await coordinator(wire, size)
    else:
        await voter(wire, role, size)
    print("ready", flush=True)
    await asyncio.Event().wait()


class Pipeline:
    """The running peer; `client` is an outside subscriber's, `go` starts the source."""

    def __init__(self, client: Any, source_process: asyncio.subprocess.Process) -> None:
        self.client, self._source = client, source_process

    def go(self) -> None:
        assert self._source.stdin is not None
        self._source.stdin.write(b"go\n")


@asynccontextmanager
async def pipeline(way: str, speed: float, rounds: int, sizes: dict[str, int]) -> AsyncIterator[Pipeline]:
    """The five processes over a nats-server of their own, configured like a swarm's; ended with the context."""
    async with AsyncExitStack() as stack:
        directory = await stack.enter_async_context(scratch())
        server = await stack.enter_async_context(NatsServer(directory, port=0))
        client = await nats.connect(server.url, name="bench")
        stack.push_async_callback(client.close)
        if way == "js":
            await client.jetstream().add_stream(name="bare", subjects=["bare.>"])
        processes = {}
        for role in ("coordinator", *VOTERS, "source"):
            size = sizes[{"source": "tick", "coordinator": "decision"}.get(role, "signal")]
            arguments = [role, server.url, way, str(speed), str(rounds), str(size)]
            process = processes[role] = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "benchmarks.bare", *arguments,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            stack.push_async_callback(_end, process)
        for process in processes.values():
            assert process.stdout is not None
            async with asyncio.timeout(20):
                await process.stdout.readline()
        await asyncio.sleep(0.3)  # until its consumers are created
        yield Pipeline(client, processes["source"])


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


if __name__ == "__main__":
    role_, url_, way_, speed_, rounds_, size_ = sys.argv[1:]
    asyncio.run(main(role_, url_, way_, float(speed_), int(rounds_), int(size_)))
