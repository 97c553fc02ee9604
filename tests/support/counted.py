"""A stream that is not stored: messages handed to the metrics that count it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from prometheus_client import generate_latest

from bus.interface import StoredMessage
from bus.messages import Decision, Heartbeat, Lifecycle, MarketData, Message, encode
from bus.messages.subjects import Subjects
from coordinator.telemetry.labels import Names
from coordinator.telemetry.stream_metrics import StreamMetrics
from tests.support.page import Shown, parsed
from tests.support.reporters import reporter_of

AT = datetime(2026, 1, 1, tzinfo=UTC)
MS = 1_000_000
AGENTS = ("research-1", "momentum", "coordinator")
KNOWN = (*AGENTS, "base")


class Stream:
    """Messages handed to metrics, each stored one millisecond after the one before by default."""

    def __init__(self) -> None:
        self.subjects = Subjects("swarm")
        self.metrics = StreamMetrics(self.subjects, Names(KNOWN), AGENTS)
        self.sequence = 0
        self.at_ns = 1_000_000_000_000

    def put(
        self,
        subject: str,
        message: Message | bytes,
        cause: int | str = 0,
        after_ms: float = 1,
        count: bool = True,
        traceparent: str = "",
    ) -> int:
        self.sequence += 1
        self.at_ns += round(after_ms * MS)
        data = message if isinstance(message, bytes) else encode(message)
        headers = {"Mesh-Cause": str(cause)} if cause else {}
        if traceparent:
            headers["traceparent"] = traceparent
        stored = StoredMessage(subject, self.sequence, data, headers, stored_ns=self.at_ns)
        (self.metrics.count if count else self.metrics.remember)(stored)
        return self.sequence

    def tick(self, number: int, **options: Any) -> int:
        tick = MarketData(symbol="BTC/USD", price=1.0, volume=1.0, timestamp=AT, source="research-1", sequence=number)
        return self.put("swarm.market.BTC-USD.research-1", tick, **options)

    def decision(self, number: int, by: str = "coordinator", **options: Any) -> int:
        decision = Decision(
            final_decision="buy",
            position_size=0.1,
            risk_score=0.1,
            consensus_level=0.6,
            agents_consulted=("momentum",),
            timestamp=AT,
            source=by,
            decision_id=f"BTC/USD:research-1:{number}",
            symbol="BTC/USD",
            round=number,
            absent=options.pop("absent", ()),
        )
        return self.put(f"swarm.decision.BTC-USD.{by}", decision, **options)

    def incarnation(self, event: Any, agent: str = "momentum", **options: Any) -> int:
        after_ms = options.pop("after_ms", 1)
        writer = options.pop("by", "") or reporter_of(event, agent)
        message = Lifecycle(event=event, agent=agent, timestamp=AT, source=writer, **options)
        return self.put(f"swarm.lifecycle.{agent}.{writer}", message, after_ms=after_ms)

    def result(self) -> Shown:
        """As a scrape reads them."""
        return parsed(generate_latest(self.metrics.registry).decode())


def heartbeat(name: str = "momentum", **options: Any) -> Heartbeat:
    fields: dict[str, Any] = {
        "agent": name, "agent_id": "a", "epoch": 5, "sequence": 1, "progress": 1, "status": "live", "interval_ms": 100,
        "sandbox": "base", "pid": 1,
    }  # fmt: skip
    return Heartbeat(**fields | options)
