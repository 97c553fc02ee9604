"""autogen-core over gRPC: five worker runtimes and the host that passes their messages on."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from dataclasses import dataclass

from autogen_core import (
    MessageContext,
    RoutedAgent,
    TopicId,
    TypeSubscription,
    message_handler,
    try_get_known_serializers_for_type,
)
from autogen_ext.runtimes.grpc import GrpcWorkerAgentRuntime, GrpcWorkerAgentRuntimeHost

from benchmarks.peers import work as w

TICK, VOTE, DECISION = (TopicId(name, "default") for name in ("tick", "vote", "decision"))


@dataclass
class Tick:
    sequence: int
    price: float
    sent_at: float
    pad: str


@dataclass
class Vote:
    round: int
    p_up: float
    pid: int
    seen: int
    sent_at: float
    voter: str
    pad: str


@dataclass
class Decision:
    round: int
    final_decision: str
    pad: str


class Source(RoutedAgent):
    def __init__(self, pace: w.Source) -> None:
        super().__init__("source")
        self._pace = pace

    @message_handler
    async def on_decision(self, message: Decision, ctx: MessageContext) -> None:
        self._pace.decided(message.round)


class Voter(RoutedAgent):
    def __init__(self, name: str, work: w.Work) -> None:
        super().__init__(name)
        self._name, self._pid, self._seen = name, os.getpid(), 0
        self._pad = w.vote_padding(work, sent_at=time.monotonic())

    @message_handler
    async def on_tick(self, message: Tick, ctx: MessageContext) -> None:
        self._seen += 1
        vote = Vote(
            round=message.sequence, p_up=w.P_UP, pid=self._pid, seen=self._seen, sent_at=message.sent_at,
            voter=self._name, pad=self._pad,
        )  # fmt: skip
        await self.publish_message(vote, topic_id=VOTE)


class Coordinator(RoutedAgent):
    def __init__(self, stamps: w.Stamps, work: w.Work, done: asyncio.Event) -> None:
        super().__init__("coordinator")
        self._stamps, self._done, self._ballots = stamps, done, w.Ballots()
        self._pad = w.decision_padding(work)

    @message_handler
    async def on_vote(self, message: Vote, ctx: MessageContext) -> None:
        if message.voter == w.VOTERS[0]:
            self._stamps.vote(message.pid, message.seen)
        if self._ballots.add(message.round):
            self._stamps.decide(message.round, message.sent_at)
            decision = Decision(round=message.round, final_decision=w.CHOICE, pad=self._pad)
            await self.publish_message(decision, topic_id=DECISION)
            if self._stamps.complete:
                self._done.set()


async def connected(work: w.Work) -> GrpcWorkerAgentRuntime:
    runtime = GrpcWorkerAgentRuntime(host_address=work.address)
    await runtime.start()
    for kind in (Tick, Vote, Decision):
        runtime.add_message_serializer(try_get_known_serializers_for_type(kind))
    return runtime


async def host(work: w.Work) -> None:
    GrpcWorkerAgentRuntimeHost(address=work.address).start()
    w.say("ready")
    await asyncio.Event().wait()


async def source(work: w.Work) -> None:
    pace = w.Source(work)
    pad = w.tick_padding(work, sent_at=time.monotonic())
    runtime = await connected(work)

    async def publish(number: int) -> None:
        tick = Tick(sequence=number, price=w.PRICE, sent_at=time.monotonic(), pad=pad)
        await runtime.publish_message(tick, topic_id=TICK)

    await Source.register(runtime, "source", lambda: Source(pace))
    await runtime.add_subscription(TypeSubscription(DECISION.type, "source"))
    w.say("ready")
    await pace.run(publish)


async def voter(name: str, work: w.Work) -> None:
    runtime = await connected(work)
    await Voter.register(runtime, name, lambda: Voter(name, work))
    await runtime.add_subscription(TypeSubscription(TICK.type, name))
    w.say("ready")
    await asyncio.Event().wait()


async def coordinator(work: w.Work) -> None:
    stamps, done = w.Stamps(work), asyncio.Event()
    runtime = await connected(work)
    await Coordinator.register(runtime, "coordinator", lambda: Coordinator(stamps, work, done))
    await runtime.add_subscription(TypeSubscription(VOTE.type, "coordinator"))
    w.say("ready")
    await done.wait()
    w.say(json.dumps(stamps.measured()))
    await asyncio.to_thread(sys.stdin.readline)
    w.say(json.dumps(stamps.processes()))
    await asyncio.Event().wait()


async def main(role: str, work: w.Work) -> None:
    if role in w.VOTERS:
        await voter(role, work)
    else:
        await {"host": host, "source": source, "coordinator": coordinator}[role](work)


if __name__ == "__main__":
    asyncio.run(main(*w.arguments()))
