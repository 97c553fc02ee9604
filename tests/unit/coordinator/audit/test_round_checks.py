"""Rounds in an audit: which ticks must be decided, in which order, and when nothing can be said."""

from __future__ import annotations

from datetime import UTC, datetime

from bus.interface import StoredMessage
from bus.messages import Decision, MarketData
from coordinator.audit.models import Findings
from coordinator.audit.round_checks import RoundChecker
from coordinator.config.changes import AddedAgent, Changes, RemovedAgent
from coordinator.decisions.agent import MAX_OPEN_ROUNDS

AT = datetime(2020, 1, 1, tzinfo=UTC)


class Stream:
    """Puts ticks and decisions on an imagined stream."""

    def __init__(self, first: int = 1) -> None:
        self.findings = Findings()
        self.rounds = RoundChecker(self.findings, first)
        self.sequence = first - 1

    def _stored(self, subject: str) -> StoredMessage:
        self.sequence += 1
        return StoredMessage(subject, self.sequence, b"")

    def tick(self, number: int | None, source: str = "feed", symbol: str = "A") -> int:
        tick = MarketData(symbol=symbol, price=1.0, volume=1.0, timestamp=AT, source=source, sequence=number)
        self.rounds.tick(self._stored(f"swarm.market.{symbol}.{source}"), tick)
        return self.sequence

    def decide(self, name: str, agent: str = "coordinator", symbol: str = "A") -> None:
        decision = Decision(
            final_decision="hold", position_size=0.0, risk_score=0.0, consensus_level=0.0, agents_consulted=(),
            timestamp=AT, source=agent, decision_id=name, symbol=symbol, round=1,
        )  # fmt: skip
        self.rounds.decision(agent, self._stored(f"swarm.decision.{symbol}.{agent}"), decision)

    @property
    def texts(self) -> list[str]:
        self.rounds.finish()
        return [problem.text for problem in self.findings.problems]


def test_two_sources_two_symbols_and_what_still_waits():
    stream = Stream()
    stream.tick(1)
    stream.tick(1, "other")
    stream.tick(7, symbol="B")
    stream.tick(2)
    stream.decide("B:feed:7", symbol="B")
    stream.decide("A:feed:1")
    stream.decide("A:other:1")
    assert stream.texts == []
    assert (stream.rounds.audit.decided, stream.rounds.audit.waiting) == (3, 1)


def test_a_round_left_out_is_named_by_its_tick():
    stream = Stream()
    first = stream.tick(1)
    stream.tick(2)
    stream.decide("A:feed:2")
    stream.rounds.finish()
    [problem] = stream.findings.problems
    assert problem.sequences == [first, stream.sequence]
    assert "A:feed:1" in problem.text
    assert stream.rounds.audit.missing == 1


def test_outlier_ticks_and_a_renumbering_feed_are_no_problem():
    stream = Stream()
    for number in (1, 10**6, 2, 2, 1000, 1, 2):
        stream.tick(number)
    for name in ("feed:1", "feed:1000000", "feed:2", "feed:1000", "feed=2:1", "feed=2:2"):
        stream.decide(f"A:{name}")
    assert stream.texts == []
    assert (stream.rounds.audit.decided, stream.rounds.audit.waiting) == (6, 0)
    stream.decide("A:feed:1000000")
    stream.decide("A:feed=2:1")
    assert stream.rounds.audit.duplicated == 2


def test_rounds_out_of_order_duplicated_or_without_a_tick():
    stream = Stream()
    stream.tick(1)
    stream.decide("A:feed:1")
    stream.decide("A:feed:1")
    stream.decide("A:feed:5")
    assert ["decided again" in text for text in stream.texts] == [True, False]
    assert "without a tick" in stream.texts[1]
    assert stream.rounds.audit.duplicated == 1


def test_repeated_and_unnumbered_ticks_open_rounds_as_the_coordinator_does():
    stream = Stream()
    stream.tick(None)
    stream.tick(1)  # a repetition
    stream.tick(None)
    stream.decide("A:feed:1")
    stream.decide("A:feed:2")
    assert stream.texts == []
    assert stream.rounds.audit.waiting == 0


def test_strays_and_new_numberings_open_rounds_as_the_coordinator_does():
    stream = Stream()
    for number in (1, 5000, 2, 3):
        stream.tick(number)
    for name in ("A:feed:1", "A:feed:5000", "A:feed:2", "A:feed:3"):
        stream.decide(name)
    for number in (9000, 1):
        stream.tick(number)
    stream.decide("A:feed:9000")
    stream.decide("A:feed=2:1")
    assert stream.texts == []
    assert stream.rounds.audit.waiting == 0


def test_a_skipped_tick_has_no_round():
    stream = Stream()
    early = stream.tick(1)
    stream.rounds.skipped("coordinator", early)  # before anybody knows that it decides
    stream.tick(2)
    stream.decide("A:feed:2")
    late = stream.tick(3)
    stream.rounds.skipped("coordinator", late)
    stream.tick(4)
    stream.decide("A:feed:4")
    assert stream.texts == []


def test_two_deciders_each_decide_every_round():
    stream = Stream()
    stream.tick(1)
    stream.tick(2)
    stream.decide("A:feed:1")
    stream.decide("A:feed:2")
    stream.decide("A:feed:2", agent="second")
    [text] = stream.texts
    assert text.startswith("second: ")


def test_a_decision_of_a_users_own_kind_is_none_of_our_rounds():
    stream = Stream()
    stream.tick(1)
    for name in ("", "mine", "B:feed:1", "A:feed:x"):
        stream.decide(name)
    assert stream.texts == []
    assert stream.rounds.audit.decided == 0


def test_ticks_beyond_what_may_be_open_prove_nothing():
    stream = Stream()
    for number in range(1, MAX_OPEN_ROUNDS + 3):
        stream.tick(number)
    stream.decide("A:feed:2")
    assert stream.texts == []


def test_what_retention_took_proves_nothing_but_what_came_after_does():
    stream = Stream()
    stream.tick(1)
    stream.rounds.forget()
    stream.decide("A:feed:2")
    stream.tick(3)
    stream.tick(4)
    stream.decide("A:feed:4")
    [text] = stream.texts
    assert "A:feed:3" in text


def changed(agents: dict[str, AddedAgent], removed: dict[str, RemovedAgent] | None = None) -> Changes:
    return Changes(revision=1, agents=agents, removed=removed or {})


def test_a_decider_that_was_added_decides_from_where_it_began_to_read():
    stream = Stream()
    stream.tick(1)
    after = stream.tick(2)
    stream.tick(3)
    stream.rounds.changed(changed({"added": AddedAgent(table={}, after=after)}))
    stream.tick(4)
    stream.decide("A:feed:4", agent="added")
    [text] = stream.texts
    assert "A:feed:4 is decided, but not the rounds before it: A:feed:3" in text


def test_a_decider_that_was_added_before_the_stream_begins_goes_on_at_the_first_config_that_is_kept():
    stream = Stream(first=100)
    stream.rounds.forget()
    stream.tick(7)
    stream.decide("A:feed:7", agent="added")
    stream.rounds.changed(changed({"added": AddedAgent(table={}, after=40)}))
    stream.tick(8)
    stream.decide("A:feed:8", agent="added")
    assert stream.texts == []


def test_a_decider_that_was_removed_for_good_decides_nothing_until_it_is_added_again():
    stream = Stream()
    stream.tick(1)
    stream.decide("A:feed:1", agent="added")
    stream.rounds.changed(changed({}, {"added": RemovedAgent(after=2, forget=True)}))
    stream.tick(2)
    stream.rounds.finish()
    assert stream.rounds.audit.waiting == 0
    stream.rounds.changed(changed({"added": AddedAgent(table={}, after=stream.sequence)}))
    stream.tick(3)
    stream.decide("A:feed:3", agent="added")
    assert stream.texts == []
