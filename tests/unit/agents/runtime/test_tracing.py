"""The spans of one agent: which trace an output belongs to, and what a successor exports again."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

import pytest

from agents.agent import Agent
from agents.runtime.output_validation import Prepared
from agents.runtime.tracing import MAX_PENDING, AgentTracing
from bus.interface import StoredMessage
from bus.messages import Alert, Decision, Event, MarketData, Signal, encode
from bus.messages import headers as h
from bus.messages.subjects import Subjects
from bus.observability.logging import TRACE_ID
from bus.observability.spans import Context, Span
from tests.support.recording_tracer import RecordingTracer

AT = datetime(2020, 1, 1, tzinfo=UTC)
SUBJECTS = Subjects("swarm")
RECOVERY = Context("f" * 32, "e" * 16)


class Source(Agent):
    kind = "source"
    publishes = ("market",)


class Voter(Agent):
    kind = "voter"
    listens = ("market",)
    publishes = ("signal",)


class Decider(Agent):
    kind = "decider"
    listens = ("market", "signal")
    publishes = ("decision",)


def tick(n: int, symbol: str = "A") -> MarketData:
    return MarketData(symbol=symbol, price=2.5, volume=1.0, timestamp=AT, source="feed", sequence=n)


def vote(n: int, source: str = "one") -> Signal:
    return Signal(signal="buy", strength=0.5, indicators={}, timestamp=AT, source=source, symbol="A", round=n)


def decision_on(n: int, symbol: str) -> Decision:
    return dataclasses.replace(decision(n), symbol=symbol, decision_id=f"{symbol}:feed:{n}")


def decision(n: int, voters: tuple[str, ...] = ("one", "two"), absent: tuple[str, ...] = ()) -> Decision:
    return Decision(
        final_decision="buy", position_size=0.1, risk_score=0.1, consensus_level=1.0, symbol="A", round=n,
        agents_consulted=voters, absent=absent, timestamp=AT, source="me",
    )  # fmt: skip


def header(trace: int, span: int, *, sampled: bool = True) -> str:
    return f"00-{trace:032x}-{span:016x}-{'01' if sampled else '00'}"


SUBJECT = {
    MarketData: "swarm.market.A.me",
    Signal: "swarm.signal.A.me",
    Decision: "swarm.decision.A.me",
    Alert: "swarm.alert.info.me",
}


class Traced:
    """The tracing of one incarnation of an agent named `me`."""

    def __init__(self, cls: type[Agent], recovery: Context | None = None, sampler: str = "always_on") -> None:
        self.tracer = RecordingTracer(sampler)
        self.tracing = AgentTracing(self.tracer, cls("me"), SUBJECTS, recovery)

    def take(self, sequence: int, message: Event, traceparent: str = "") -> None:
        headers = {h.TRACEPARENT: traceparent} if traceparent else {}
        writer = f"swarm.market.A.{message.source}"
        self.tracing.begin(StoredMessage(writer, sequence, encode(message), headers), message)

    def sign(self, message: Any, number: int, cause: int | None) -> str:
        subject = SUBJECT[type(message)]
        prepared = Prepared(subject, encode(message), subject.split(".")[1], message)
        return self.tracing.sign(prepared, number, cause)

    def output(self, message: Any, number: int, cause: int | None, sequence: int = 0) -> Span:
        """The span of an output that is published and stored."""
        assert self.sign(message, number, cause)
        assert self.tracer.emitted == [] or self.tracer.emitted[-1].attributes.get("mesh.output") != number
        self.tracing.acked(number, sequence)
        return self.tracer.emitted[-1]


def stored(message: Any, number: int, cause: int | None, traceparent: str, stored_ns: int = 7_000) -> StoredMessage:
    headers = {h.OUTPUT: str(number), h.TRACEPARENT: traceparent}
    if cause is not None:
        headers[h.CAUSE] = str(cause)
    return StoredMessage(SUBJECT[type(message)], 90 + number, encode(message), headers, 0, stored_ns)


def test_an_answer_is_a_child_of_its_input():
    traced = Traced(Voter)
    traced.take(5, tick(1), header(1, 2))
    span = traced.output(vote(1), 3, 5, sequence=8)
    assert (span.name, span.kind, span.context.trace_id, span.parent) == (
        "send swarm.signal", "producer", f"{1:032x}", f"{2:016x}",
    )  # fmt: skip
    assert {name: value for name, value in span.attributes.items() if name.startswith("mesh.")} == {
        "mesh.output": 3, "mesh.symbol": "A", "mesh.round": 1, "mesh.signal": "buy", "mesh.strength": 0.5,
        "mesh.cause": 5, "mesh.stream_sequence": 8,
    }  # fmt: skip
    assert span.attributes["messaging.message.id"] == "me:3"
    assert 0 < span.start_ns <= span.end_ns


def test_the_answer_to_what_is_not_sampled_passes_its_header_on():
    traced = Traced(Voter)
    for sent in (header(1, 2, sampled=False), ""):
        traced.take(5, tick(1), sent)
        assert traced.sign(vote(1), 3, 5) == sent
        traced.tracing.acked(3, 8)
    assert traced.tracer.emitted == []
    assert traced.tracing.save() == {}


def test_each_output_has_a_span_of_its_own_that_any_process_can_derive():
    ids = []
    for _ in range(2):
        traced = Traced(Voter)
        traced.take(5, tick(1), header(1, 2))
        ids.append([traced.sign(vote(1), number, 5) for number in (3, 4)])
    assert ids[0] == ids[1]
    assert ids[0][0] != ids[0][1]


def test_what_a_source_produces_begins_a_trace_and_the_first_links_to_the_recovery():
    traced = Traced(Source, RECOVERY)
    spans = [traced.output(tick(n), n, None) for n in (1, 2, 3)]
    assert [span.parent for span in spans] == ["", "", ""]
    assert len({span.context.trace_id for span in spans}) == 3
    assert [span.links for span in spans] == [[(RECOVERY, {"mesh.recovery": "me"})], [], []]
    assert "mesh.cause" not in spans[0].attributes
    assert Traced(Source).output(tick(1), 1, None).links == []


def test_a_source_gives_a_context_to_sampled_ticks_only():
    assert Traced(Source).sign(tick(1), 1, None).endswith("-01")
    assert Traced(Source, sampler="always_off").sign(tick(1), 1, None) == ""


def test_the_trace_of_an_input_is_that_of_what_its_handler_logs():
    traced = Traced(Voter)
    traced.take(5, tick(1), header(1, 2))
    assert TRACE_ID.get() == f"{1:032x}"
    traced.tracing.end()
    assert TRACE_ID.get() == ""


def test_a_failed_handler_is_a_span_with_its_error():
    traced = Traced(Voter)
    message = StoredMessage("swarm.market.A.feed", 5, b"{}", {h.TRACEPARENT: header(1, 2), h.MSG_ID: "feed:1"})
    traced.tracing.begin(message, tick(1))
    traced.tracing.failed(message, "market", "on_market raised ValueError: no", ValueError("no"))
    [span] = traced.tracer.emitted
    assert (span.name, span.kind, span.parent, span.error) == (
        "process swarm.market", "consumer", f"{2:016x}", "on_market raised ValueError: no",
    )  # fmt: skip
    [(name, _, exception)] = span.events
    assert (name, exception["exception.type"], exception["exception.message"]) == ("exception", "ValueError", "no")
    assert (span.attributes["mesh.stream_sequence"], span.attributes["messaging.message.id"]) == (5, "feed:1")
    assert 0 < span.start_ns <= span.end_ns


def test_a_failure_on_what_is_not_sampled_or_no_longer_handled_is_no_span():
    traced = Traced(Voter)
    traced.take(5, tick(1), header(1, 2, sampled=False))
    traced.tracing.failed(StoredMessage("swarm.market.A.feed", 5, b"", {}), "market", "why", ValueError())
    traced.take(6, tick(2), header(1, 2))
    traced.tracing.failed(StoredMessage("swarm.market.A.feed", 5, b"", {}), "market", "why", ValueError())
    assert traced.tracer.emitted == []


# -- rounds


def decided(*, last: str = header(1, 12)) -> Traced:
    """A decider with an open round of trace 1, voted on by `one` (span 11) and `two`, and by an unknown writer."""
    traced = Traced(Decider)
    traced.take(5, tick(1), header(1, 2))
    traced.take(6, vote(1, "one"), header(1, 11))
    traced.take(7, vote(1, "unknown"), header(1, 13))
    traced.take(8, vote(1, "two"), last)
    return traced


def test_a_decision_is_a_child_of_the_vote_that_closed_it_and_links_to_the_others():
    span = decided().output(decision(1, absent=("three",)), 1, 8)
    assert (span.context.trace_id, span.parent) == (f"{1:032x}", f"{12:016x}")
    assert span.links == [(Context(f"{1:032x}", f"{11:016x}"), {"mesh.voter": "one"})]
    assert [(name, values) for name, _, values in span.events] == [("absent", {"mesh.voter": "three"})]


def test_a_decision_on_another_traces_vote_is_a_child_of_its_tick():
    span = decided(last=header(9, 12)).output(decision(1), 1, 8)
    assert (span.context.trace_id, span.parent) == (f"{1:032x}", f"{2:016x}")
    assert [link[1] for link in span.links] == [{"mesh.voter": "one"}]


def test_another_answer_to_a_round_leaves_it_open_and_a_decision_ends_it():
    traced = decided()
    assert traced.sign(vote(1), 1, 8)
    assert "rounds" in traced.tracing.save()
    assert traced.sign(decision(1), 2, 8)
    assert "rounds" not in traced.tracing.save()


def test_a_round_that_is_not_sampled_passes_its_header_on_and_that_of_its_votes():
    traced = Traced(Decider)
    unsampled = header(1, 2, sampled=False)
    traced.take(5, tick(1), unsampled)
    traced.take(6, vote(1), header(1, 11, sampled=False))
    assert traced.sign(decision(1), 1, 6) == unsampled
    traced.tracing.acked(1, 9)
    assert traced.tracer.emitted == []


@pytest.mark.parametrize("tick_was_read", [True, False])
def test_a_sampled_vote_that_closes_an_unsampled_round_of_another_symbol_is_not_its_parent(tick_was_read):
    """Rounds close in order: the last vote on one may close the one behind it as well."""
    traced = Traced(Decider)
    if tick_was_read:  # else its predecessor has read it
        traced.take(5, tick(1, "B"))
    traced.take(6, tick(1), header(1, 2))
    traced.take(7, vote(1), header(1, 11))
    assert traced.sign(decision_on(1, "A"), 1, 7).split("-")[1] == f"{1:032x}"
    assert traced.sign(decision_on(1, "B"), 2, 7) == ""


def test_a_decision_on_a_round_that_is_not_known_belongs_to_no_trace_of_another_round():
    traced = Traced(Decider)
    traced.take(5, tick(2), header(1, 2))
    assert traced.sign(decision(1), 1, 5) == ""


def test_an_alert_without_a_round_belongs_to_its_input():
    traced = Traced(Decider)
    traced.take(5, tick(2), header(1, 2))
    alert = Decider("me").alert("info", "look", "text", AT)
    span = traced.output(alert, 1, 5)
    assert (span.parent, span.attributes["mesh.code"]) == (f"{2:016x}", "look")


# -- what a successor exports again


def test_what_was_stored_and_perhaps_not_exported_is_exported_again_as_the_same_span():
    first = Traced(Voter)
    first.take(5, tick(1), header(1, 2))
    before = first.output(vote(1), 3, 5, sequence=93)
    after = Traced(Voter, RECOVERY)
    after.take(5, tick(1), header(1, 2))
    after.tracing.found(stored(vote(1), 3, 5, before.context.header))
    [span] = after.tracer.emitted
    assert (span.context, span.parent, span.name) == (before.context, before.parent, before.name)
    assert (span.start_ns, span.end_ns) == (7_000, 7_000)
    assert span.attributes == {**before.attributes, "mesh.reemitted": True}
    assert span.links == [(RECOVERY, {"mesh.recovery": "me"})]


def test_what_a_source_stored_is_exported_again():
    traced = Traced(Source, RECOVERY)
    traced.tracing.found(stored(tick(1), 1, None, header(1, 2), stored_ns=0))
    [span] = traced.tracer.emitted
    assert (span.context, span.parent) == (Context(f"{1:032x}", f"{2:016x}"), "")
    assert span.end_ns >= span.start_ns > 1_000_000
    assert "mesh.cause" not in span.attributes


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(stored(vote(1), 3, 5, header(1, 2, sampled=False)), id="not sampled"),
        pytest.param(stored(vote(1), 3, 5, header(4, 2)), id="of another trace than its input"),
        pytest.param(StoredMessage("swarm.signal.A.me", 9, b"{", {h.OUTPUT: "3"}), id="malformed"),
    ],
)
@pytest.mark.parametrize("cls", [Voter, Decider])
def test_nothing_else_is_exported_again(cls, message):
    traced = Traced(cls)
    traced.take(5, tick(7), header(1, 2))
    traced.tracing.found(message)
    assert traced.tracer.emitted == []


def test_no_span_of_this_process_is_exported_again():
    traced = Traced(Voter)
    traced.take(5, tick(1), header(1, 2))
    span = traced.output(vote(1), 3, 5)
    traced.tracing.found(stored(vote(1), 3, 5, span.context.header))
    assert traced.tracer.emitted == [span]


def test_a_decision_found_in_a_replay_ends_its_round():
    traced = decided()
    traced.tracing.found(stored(decision(1), 1, 8, header(1, 77)))
    [span] = traced.tracer.emitted
    assert (span.parent, span.attributes["mesh.cause"]) == (f"{12:016x}", 8)
    assert traced.tracing.save().get("rounds") is None


def test_a_snapshot_carries_what_may_not_be_exported_yet_and_its_successor_exports_it_once():
    first = decided()
    exported, queued = (first.output(vote(1), number, 8, sequence=20) for number in (1, 2))
    first.sign(decision(1, absent=("three",)), 3, 8)
    exported.resolved = True
    assert first.tracing.has_pending
    saved = first.tracing.save()
    after = Traced(Decider, RECOVERY)
    after.tracing.load(saved)
    again, unacknowledged = after.tracer.emitted
    assert (again.context, again.parent, again.name) == (queued.context, queued.parent, queued.name)
    assert again.start_ns == queued.start_ns // 1000 * 1000
    assert again.end_ns - again.start_ns == (queued.end_ns - queued.start_ns) // 1000 * 1000
    assert again.attributes["messaging.message.body.size"] == queued.attributes["messaging.message.body.size"]
    assert again.attributes["mesh.reemitted"] is True
    assert again.links[-1] == (RECOVERY, {"mesh.recovery": "me"})
    assert [values for _, values in unacknowledged.links[:-1]] == [{"mesh.voter": "one"}]
    assert [values for _, _, values in unacknowledged.events] == [{"mesh.voter": "three"}]
    after.tracing.load(saved)  # its own, after a handler failed
    assert len(after.tracer.emitted) == 2


def test_open_rounds_survive_in_a_snapshot():
    first = decided()
    after = Traced(Decider)
    after.tracing.load(first.tracing.save())
    after.take(9, vote(1, "three"), header(1, 14))
    span = after.output(decision(1), 1, 9)
    assert (span.parent, [values["mesh.voter"] for _, values in span.links]) == (f"{14:016x}", ["one", "two"])


@pytest.mark.parametrize("saved", [{"pending": [[1]]}, {"pending": [5]}, {"rounds": 7}])
def test_an_unreadable_snapshot_keeps_no_agent_from_starting(saved):
    traced = Traced(Decider)
    traced.tracing.load(saved)
    assert traced.tracer.emitted == []


def test_what_is_exported_is_pending_no_more_and_the_rest_is_bounded():
    traced = Traced(Voter)
    traced.take(5, tick(1), header(1, 2))
    for number in range(1, MAX_PENDING + 3):
        traced.output(vote(1), number, 5)
    assert [entry[0] for entry in traced.tracing.save()["pending"]] == list(range(3, MAX_PENDING + 3))
    for span in traced.tracer.emitted:
        span.resolved = True
    assert not traced.tracing.has_pending
    assert traced.tracing.save() == {}


def test_the_phases_of_a_recovery_are_its_children_and_answers_to_late_inputs_link_to_it():
    traced = Traced(Voter, RECOVERY)
    traced.tracing.restored(6)
    for sequence in (6, 7):
        traced.take(sequence, tick(sequence), header(sequence, 2))
        traced.output(vote(sequence), sequence, sequence)
    traced.tracing.ready(4)
    restore, late, new, replay = traced.tracer.emitted
    assert [(span.name, span.parent, span.context.trace_id) for span in (restore, replay)] == [
        (name, RECOVERY.span_id, RECOVERY.trace_id) for name in ("restore", "replay")
    ]
    assert replay.attributes == {"mesh.agent": "me", "mesh.replayed": 4, "mesh.reemitted_spans": 0}
    assert restore.start_ns <= restore.end_ns == replay.start_ns <= replay.end_ns
    assert (len(late.links), len(new.links)) == (1, 0)


def test_an_agent_that_was_not_recovered_has_no_phases():
    traced = Traced(Voter)
    traced.tracing.restored(6)
    traced.tracing.ready(4)
    assert traced.tracer.emitted == []
