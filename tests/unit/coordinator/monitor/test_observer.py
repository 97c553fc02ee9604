"""Gaps, duplicates and superseded writers, as an observer of the bus counts them."""

from __future__ import annotations

import asyncio

from bus.interface import ReceivedMessage
from bus.messages import Decision, Epoch, encode, now
from bus.messages import headers as h
from coordinator.monitor.observer import Observer
from tests.support.silent_bus import silent


class Subscribers:
    def __init__(self) -> None:
        self.generation = 1
        self.observer = Observer(silent())

    def receive(self, subject: str, data: bytes, sequence: int, **headers: str) -> None:
        named = {h.SEQUENCE: str(sequence), **headers}
        asyncio.run(self.observer._on_message(self.generation, ReceivedMessage(subject, data, named)))

    def decide(self, number: int, sequence: int, before: int) -> None:
        decision = Decision(
            final_decision="hold", position_size=0, risk_score=0, consensus_level=0, agents_consulted=(),
            timestamp=now(), source="coordinator", decision_id=f"BTC/USD:feed:{number}", symbol="BTC/USD", round=number,
        )  # fmt: skip
        subject = "swarm.decision.BTC-USD.coordinator"
        self.receive(subject, encode(decision), sequence, **{h.LAST_SEQUENCE: str(before)})


def test_a_gap_is_explained_by_a_broken_connection_only():
    subscribers = Subscribers()
    subscribers.decide(1, 10, 0)
    subscribers.decide(2, 20, 10)
    subscribers.generation = 2
    subscribers.decide(5, 50, 40)
    assert [(gap.after, gap.through, gap.broken) for gap in subscribers.observer.gaps] == [(20, 40, True)]
    assert subscribers.observer.problems == []
    subscribers.decide(7, 70, 60)
    assert [gap.broken for gap in subscribers.observer.gaps] == [True, False]
    assert "in one connection" in subscribers.observer.problems[0]


def test_a_round_received_twice_and_one_out_of_order_are_problems():
    subscribers = Subscribers()
    subscribers.decide(1, 10, 0)
    subscribers.decide(1, 11, 10)
    assert subscribers.observer.duplicated == 1
    subscribers.decide(3, 9, 8)
    assert len(subscribers.observer.problems) == 2


def test_a_superseded_incarnation_must_not_publish():
    subscribers = Subscribers()
    epoch = Epoch(agent="a", claim="agent_1_abcdef", claimed_by="watchdog", sandbox="b", timestamp=now(), source="w")
    subscribers.receive("swarm.signal.X.a", b"{}", 6, **{h.EPOCH: "5"})
    subscribers.receive("swarm.epoch.a", encode(epoch), 8)
    subscribers.receive("swarm.signal.X.a", b"{}", 9, **{h.EPOCH: "8"})
    subscribers.receive("swarm.signal.X.b", b"{}", 10, **{h.EPOCH: "5"})
    assert subscribers.observer.problems == []
    subscribers.receive("swarm.signal.X.a", b"{}", 11, **{h.EPOCH: "5"})
    assert len(subscribers.observer.problems) == 1
    assert "epoch 5, though 8 was claimed" in subscribers.observer.problems[0]
