"""What the traces of a swarm must be, in any collector."""

from __future__ import annotations

from tests.acceptance.swarm import AGENTS
from tests.support.collector import OtlpCollector, Received, orphans, roots

PHASES = ("detect", "claim", "spawn", "restore", "replay")
"""The children of a recovery: three by the watchdog, two by the new process."""


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


def is_whole(trace: dict[str, Received] | None) -> bool:
    """Whether all five agents have exported spans of this round."""
    services = {span.service for span in (trace or {}).values()}
    return decision_of(trace) is not None and services >= set(AGENTS)


def recoveries(collector: OtlpCollector, agent: str) -> list[dict[str, Received]]:
    """The traces of this agent's recoveries that are complete."""
    found = [
        trace for trace in collector.traces().values() if any(s.name == f"respawn {agent}" for s in trace.values())
    ]
    return [trace for trace in found if {span.name for span in trace.values()} >= set(PHASES)]
