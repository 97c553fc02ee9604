"""FastStream over NATS: `core` publishes core NATS, `js` publishes to JetStream and waits for each acknowledgement.

Written as its documentation shows: typed handlers, the returned value is published. uvloop and orjson are installed,
and FastStream uses the latter by itself.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import uvloop
from faststream import AckPolicy
from faststream.nats import JStream, NatsBroker
from pydantic import BaseModel

from benchmarks.peers import work as w

ACK_S = 5.0
"""How long to wait for an acknowledgement; the 0.5 s of FastStream's default are short on a busy machine."""


class Tick(BaseModel):
    sequence: int
    price: float
    pad: str


class Vote(BaseModel):
    round: int
    p_up: float
    pid: int
    seen: int
    pad: str


class Decision(BaseModel):
    round: int
    final_decision: str
    pad: str


def reading(work: w.Work) -> dict[str, Any]:
    """How to subscribe. Ordered consumers, as bare nats-py and the swarm: nothing that is read is acknowledged."""
    if work.way == "core":
        return {}
    stream = JStream(w.STREAM, declare=False)
    return {"stream": stream, "ordered_consumer": True, "ack_policy": AckPolicy.MANUAL}


def writing(work: w.Work) -> dict[str, Any]:
    """How to publish."""
    return {} if work.way == "core" else {"stream": w.STREAM, "timeout": ACK_S}


async def source(broker: Any, work: w.Work) -> None:
    pace = w.Source(work)
    pad, how = w.tick_padding(work), writing(work)

    @broker.subscriber(w.DECISIONS, **reading(work))
    async def on_decision(decision: Decision) -> None:
        pace.decided(decision.round)

    async def publish(number: int) -> None:
        await broker.publish(Tick(sequence=number, price=w.PRICE, pad=pad), w.TICKS, **how)

    await broker.start()
    w.say("ready")
    await pace.run(publish)


async def voter(broker: Any, name: str, work: w.Work) -> None:
    pad, pid, seen = w.vote_padding(work), os.getpid(), 0

    @broker.subscriber(w.TICKS, **reading(work))
    @broker.publisher(f"{w.VOTES}.{name}", **writing(work))
    async def on_tick(tick: Tick) -> Vote:
        nonlocal seen
        seen += 1
        return Vote(round=tick.sequence, p_up=w.P_UP, pid=pid, seen=seen, pad=pad)

    await broker.start()
    w.say("ready")


async def coordinator(broker: Any, work: w.Work) -> None:
    pad, how, ballots = w.decision_padding(work), writing(work), w.Ballots()

    @broker.subscriber(f"{w.VOTES}.*", **reading(work))
    async def on_vote(vote: Vote) -> None:
        if ballots.add(vote.round):
            await broker.publish(Decision(round=vote.round, final_decision=w.CHOICE, pad=pad), w.DECISIONS, **how)

    await broker.start()
    w.say("ready")


async def main(role: str, work: w.Work) -> None:
    broker = NatsBroker(work.address, logger=None)  # its default logs two lines a message
    if role == "source":
        await source(broker, work)
    elif role == "coordinator":
        await coordinator(broker, work)
    else:
        await voter(broker, role, work)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(*w.arguments()))
