"""Bare nats-py: `core` publishes and subscribes core NATS, `js` stores each message in JetStream.

JetStream is used as its users get the most from it: `publish_async`, whose acknowledgements are checked when they
arrive, and ordered consumers. uvloop runs the loop and orjson the payloads, as in the swarm.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

import nats
import orjson
import uvloop
from nats.aio.msg import Msg

from benchmarks.peers import work as w


class Wire:
    """Publish and subscribe in one of the two ways."""

    def __init__(self, client: Any, work: w.Work) -> None:
        self._client = client
        pending = 2 * work.open_rounds
        self._jetstream = client.jetstream(publish_async_max_pending=pending) if work.way == "js" else None

    async def publish(self, subject: str, data: bytes) -> None:
        if self._jetstream is None:
            await self._client.publish(subject, data)
        else:
            (await self._jetstream.publish_async(subject, data)).add_done_callback(_stored)

    async def subscribe(self, subject: str, on_msg: Callable[[Msg], Awaitable[None]]) -> None:
        if self._jetstream is None:
            await self._client.subscribe(subject, cb=on_msg)
        else:
            await self._jetstream.subscribe(subject, cb=on_msg, ordered_consumer=True)
        await self._client.flush()


def _stored(future: asyncio.Future[Any]) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        w.say(f"not stored: {error!r}")
        os._exit(1)


async def source(wire: Wire, work: w.Work) -> None:
    pace = w.Source(work)
    pad = w.tick_padding(work)

    async def on_decision(msg: Msg) -> None:
        pace.decided(orjson.loads(msg.data)["round"])

    async def publish(number: int) -> None:
        await wire.publish(w.TICKS, orjson.dumps({"sequence": number, "price": w.PRICE, "pad": pad}))

    await wire.subscribe(w.DECISIONS, on_decision)
    w.say("ready")
    await pace.run(publish)


async def voter(wire: Wire, name: str, work: w.Work) -> None:
    pad, pid, seen = w.vote_padding(work), os.getpid(), 0
    subject = f"{w.VOTES}.{name}"

    async def on_tick(msg: Msg) -> None:
        nonlocal seen
        seen += 1
        vote = {"round": orjson.loads(msg.data)["sequence"], "p_up": w.P_UP, "pid": pid, "seen": seen, "pad": pad}
        await wire.publish(subject, orjson.dumps(vote))

    await wire.subscribe(w.TICKS, on_tick)
    w.say("ready")


async def coordinator(wire: Wire, work: w.Work) -> None:
    pad, ballots = w.decision_padding(work), w.Ballots()

    async def on_vote(msg: Msg) -> None:
        number = orjson.loads(msg.data)["round"]
        if ballots.add(number):
            decision = {"round": number, "final_decision": w.CHOICE, "pad": pad}
            await wire.publish(w.DECISIONS, orjson.dumps(decision))

    await wire.subscribe(f"{w.VOTES}.*", on_vote)
    w.say("ready")


async def main(role: str, work: w.Work) -> None:
    wire = Wire(await nats.connect(work.address, name=role), work)
    if role == "source":
        await source(wire, work)
    elif role == "coordinator":
        await coordinator(wire, work)
    else:
        await voter(wire, role, work)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(*w.arguments()))
