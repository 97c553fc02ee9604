"""Traces as a collector receives them over the wire: one tree a decision, and no harm by an ill one."""

from __future__ import annotations

from pathlib import Path

from tests.acceptance.ear import Said, read_stream
from tests.acceptance.exact import ROUNDS, Content, assert_numbered, assert_same, content_of, exact_toml
from tests.acceptance.swarm import AGENTS, VOTERS, Swarm, agents_toml
from tests.support.collector import Received, TraceCollector, collecting, orphans, roots

PRODUCER = 4


def environment(collector: TraceCollector, **more: str) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_TRACES_SAMPLER": "always_on", **more}


def decision_of(trace: dict[str, Received] | None) -> Received | None:
    spans = [span for span in (trace or {}).values() if span.name == "send swarm.decision"]
    assert len(spans) <= 1, spans
    return spans[0] if spans else None


def assert_tree(trace: dict[str, Received], voters: set[str]) -> Received:
    """One tick, the voters' answers to it, and the decision of them; returns the decision's span."""
    assert orphans(trace) == []
    [root] = roots(trace)
    assert (root.name, root.service) == ("send swarm.market", "research-1")
    decision = decision_of(trace)
    assert decision is not None
    votes = {
        span.service: span for span in trace.values() if span.name in ("send swarm.signal", "send swarm.sentiment")
    }
    assert set(votes) >= voters
    assert {span.parent for span in votes.values()} == {root.id}
    ids = {votes[voter].id: voter for voter in voters}
    assert decision.parent in {root.id, *ids}
    linked = {link[1]: link[2].get("mesh.voter") for link in decision.links if link[0] == decision.trace}
    assert {decision.parent, *linked} - {root.id} == set(ids), "the parent, or linked"
    for span_id, voter in linked.items():
        assert voter == ids[span_id]
    return decision


async def whole(collector: TraceCollector, number: int) -> dict[str, Received]:
    """The trace of the round `number`, once all five agents have told of it."""

    def found() -> dict[str, Received] | None:
        trace = collector.of_round(number)
        services = {span.service for span in (trace or {}).values()}
        return trace if decision_of(trace) and services >= set(AGENTS) else None

    return await collector.until(f"the trace of round {number}", found)


async def test_a_decision_is_one_trace(tmp_path: Path):
    async with (
        collecting() as collector,
        Swarm(tmp_path, exact_toml(speed=0, rounds=40), environment=environment(collector)) as swarm,
    ):
        ear = await swarm.up()
        await ear.decided(40)
        for number in range(1, 41):
            trace = await whole(collector, number)
            decision = assert_tree(trace, set(VOTERS))
            assert decision.attributes["mesh.round"] == number
            assert [event for event in decision.events if event[0] == "absent"] == []
        said = {
            m.headers["Nats-Msg-Id"]: m for m in await read_stream(swarm.url, swarm.name) if "Mesh-Output" in m.headers
        }
        assert len(collector.spans) == len(said), "each output has its span, once"
        for span in collector.spans:
            message = said[span.attributes["messaging.message.id"]]
            assert message.headers["traceparent"] == f"00-{span.trace}-{span.id}-01"
            assert span.kind == PRODUCER
            assert span.attributes["messaging.system"] == "nats"
            assert span.attributes["messaging.destination.name"] == message.subject
            assert span.attributes["messaging.message.body.size"] == len(message.data)
            assert span.attributes["mesh.stream_sequence"] == message.sequence
            assert span.start_ns <= span.end_ns
            beat = ear.beats[span.service]
            assert span.resource["service.instance.id"] == beat["agent_id"]
            assert (span.resource["mesh.epoch"], span.resource["mesh.sandbox"]) == (beat["epoch"], beat["sandbox"])


LOOKER = """
import sys
import threading
from agents.agent import Agent
from bus.messages import MarketData, Signal

class Looker(Agent):
    kind = "looker"
    listens = ("market",)

    def on_market(self, tick: MarketData) -> Signal:
        found = {
            "opentelemetry": sum(name.startswith(("opentelemetry", "google.protobuf")) for name in sys.modules),
            "spans": sum(thread.name == "spans" for thread in threading.enumerate()),
        }
        return self.signal(tick, "hold", 0.5, found)
"""


async def looked(directory: Path, environment: dict[str, str]) -> tuple[dict[str, float], list[Said]]:
    """What an agent finds in its own process after some rounds, and all that was stored."""
    directory.mkdir()
    (directory / "looker.py").write_text(LOOKER)
    toml = f'max_agents = 6\n{agents_toml(speed=0, limit=20)}[agents.looker]\nclass = "looker:Looker"\n'
    async with Swarm(directory, toml, environment=environment) as swarm:
        ear = await swarm.up()
        await ear.decided(20)
        said = await read_stream(swarm.url, swarm.name)
        last = [message for message in said if message.subject.endswith(".looker") and message.kind == "signal"][-1]
        return last.json["indicators"], [message for message in said if "Mesh-Output" in message.headers]


async def test_without_an_endpoint_nothing_is_imported_and_nothing_travels(tmp_path: Path):
    found, said = await looked(tmp_path / "off", {})
    assert found == {"opentelemetry": 0, "spans": 0}
    assert [message for message in said if "traceparent" in message.headers] == []
    async with collecting() as collector:
        found, said = await looked(tmp_path / "on", environment(collector))
        assert found["opentelemetry"] > 0
        assert found["spans"] == 1
        assert [message for message in said if "traceparent" not in message.headers] == []


async def test_the_stored_bytes_are_those_of_a_run_without_tracing(tmp_path: Path, undisturbed: Content):
    async with (
        collecting() as collector,
        Swarm(tmp_path, exact_toml(speed=0), environment=environment(collector)) as swarm,
    ):
        ear = await swarm.up()
        await ear.decided(ROUNDS)
        messages = await read_stream(swarm.url, swarm.name)
        assert_same(content_of(messages), undisturbed)
        assert_numbered(messages)
        audit = await swarm.verb("audit")
        assert audit.code == 0, audit.out
