"""What is measured of a recorded stream."""

from __future__ import annotations

from pathlib import Path

from coordinator.certify.measurements import Value, match_by_digest
from coordinator.certify.models import (
    Flow,
)
from tests.support.certified import recording


def test_hops_and_rounds_are_those_of_the_paced_part():
    flow = recording().flow(at_once=1, warmup=0, awaited=2)
    assert [(hop.source, hop.to, hop.kind, hop.ms.n, hop.ms.max) for hop in flow.hops] == [
        ("momentum", "coordinator", "decision", 1, 1.0),
        ("research-1", "momentum", "signal", 1, 5.0),
    ]
    assert (flow.tick_to_decision_ms.n, flow.tick_to_decision_ms.p50) == (1, 6.0)
    assert flow.votes == {"momentum": 1}
    assert recording().flow(at_once=1, warmup=1, awaited=2) == Flow(rounds_warmup=1, rounds_awaited=2)
    assert recording().flow(at_once=2, warmup=0, awaited=2) == Flow(rounds_at_once=1, rounds_awaited=2)
    assert recording().since_claim_ms("ready", "research-1", 4) == 40.0
    assert recording().since_claim_ms("ready", "research-1", 1) is None


def test_throughput_without_decisions_has_a_reason():
    assert recording().throughput(1).why == "the stream holds 0 decisions of the first 1 rounds"


def test_a_value_that_the_stream_does_not_have_is_not_intact(tmp_path: Path):
    from bus.interface import KvEntry

    values = [
        Value("research-1", "k", KvEntry(b"tick 2", 9), (1.0, 2.0)),
        Value("research-1", "k", KvEntry(b"forged", 9), (1.0,)),
        Value("research-1", "k", None, ()),
    ]
    there, forged, missing = match_by_digest(values, recording(), tmp_path / "mirror.sqlite")
    assert (there.sequence, there.mirrored) == (5, None)
    assert "the mirror cannot be read" in there.why
    assert (forged.sequence, forged.mirrored) == (None, None)
    assert forged.why == "none of its 2 messages in the stream has this digest"
    assert missing.why == "the bucket has no such key"
