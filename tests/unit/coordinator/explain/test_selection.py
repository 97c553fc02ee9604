"""Which decision a selector means, and what is said where it means none."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from bus.errors import EXIT_FAILED, EXIT_USAGE, UsageError
from bus.messages import Decision
from bus.messages import headers as h
from coordinator.explain.errors import AmbiguousRound, RoundOpen, RoundRemoved, UnknownRound
from coordinator.explain.selection import LATEST, SelectedDecision, Selector, make_selector, select
from tests.support.coordinator_rounds import CONFIG, NEWS, NOON, SYMBOL, tick, vote
from tests.support.recorded_rounds import RecordedRounds

ONE_VOTER = replace(CONFIG, voters={NEWS: 1.0})


def recording(count: int, source: str = "research-1") -> RecordedRounds:
    recorded = RecordedRounds()
    recorded.play([ONE_VOTER])
    play(recorded, range(1, count + 1), source)
    return recorded


def play(recorded: RecordedRounds, numbers: range, source: str = "research-1", symbol: str = SYMBOL) -> None:
    for n in numbers:
        recorded.play([tick(n, 100.0 + n, source, symbol), vote(NEWS, n, symbol=symbol)])


async def selected(recorded: RecordedRounds, decision: str) -> SelectedDecision:
    return await select(recorded, Selector(decision=decision))


async def test_every_decision_is_found_by_id_by_sequence_and_by_round() -> None:
    recorded = recording(40)
    for n, stored in enumerate(recorded.decisions, 1):
        for selector in (
            Selector(decision=f"{SYMBOL}:research-1:{n}"),
            Selector(decision=str(stored.sequence)),
            Selector(symbol=SYMBOL, round=n),
        ):
            found = await select(recorded, selector)
            assert (found.stored, found.name.sequence, found.decider) == (stored, n, "coordinator")
    assert (await selected(recorded, LATEST)).stored is recorded.decisions[-1]


async def test_a_decision_of_a_feed_in_order_is_found_without_reading_them_all() -> None:
    recorded = recording(100)
    recorded.reads = 0
    await selected(recorded, f"{SYMBOL}:research-1:50")
    assert recorded.reads == 0


async def test_numbers_that_start_again_are_found_by_their_run() -> None:
    recorded = recording(5)
    recorded.play([replace(tick(2), timestamp=NOON + timedelta(days=9)), vote(NEWS, 2)])
    assert (await selected(recorded, f"{SYMBOL}:research-1=2:2")).stored is recorded.decisions[-1]
    assert (await selected(recorded, f"{SYMBOL}:research-1:2")).stored is recorded.decisions[1]
    with pytest.raises(AmbiguousRound, match=r"2 decisions match, expected one; name it: .*:2, .*research-1=2:2"):
        await select(recorded, Selector(symbol=SYMBOL, round=2))


async def test_a_round_of_two_sources_is_ambiguous_and_both_are_named() -> None:
    recorded = recording(3, "a")
    play(recorded, range(1, 3), "b")
    with pytest.raises(AmbiguousRound, match=f"name it: {SYMBOL}:a:2, {SYMBOL}:b:2$") as raised:
        await select(recorded, Selector(symbol=SYMBOL, round=2))
    assert raised.value.exit_code == EXIT_USAGE
    assert (await select(recorded, Selector(symbol=SYMBOL, round=3))).decision_id == f"{SYMBOL}:a:3"


async def test_an_id_that_two_deciders_have_used_is_told_apart_by_sequence() -> None:
    recorded = recording(3)
    stored = recorded.decisions[1]
    decision = stored.decode(recorded.subjects)
    assert isinstance(decision, Decision)
    cause = h.number(stored.headers, h.CAUSE)
    second = recorded.add(replace(decision, source="coordinator-2"), cause=cause, skip=True)
    with pytest.raises(AmbiguousRound, match=f"name it: {stored.sequence}, {second.sequence}$"):
        await selected(recorded, f"{SYMBOL}:research-1:2")
    assert (await selected(recorded, str(second.sequence))).decider == "coordinator-2"
    with pytest.raises(AmbiguousRound):
        await select(recorded, Selector(symbol=SYMBOL, round=2))


async def test_the_latest_is_of_a_decider_of_the_swarm() -> None:
    recorded = RecordedRounds()
    recorded.play([replace(ONE_VOTER, deciders=("coordinator",))])
    play(recorded, range(1, 4))
    mine = recorded.decisions[-1]
    decision = mine.decode(recorded.subjects)
    assert isinstance(decision, Decision)
    recorded.add(replace(decision, source="a-stranger"), skip=True)
    assert (await selected(recorded, LATEST)).stored is mine


async def test_no_decision_yet() -> None:
    with pytest.raises(UnknownRound, match=r"explain latest: memory has no decision yet; `signalmesh status`"):
        await selected(RecordedRounds(), LATEST)


@pytest.mark.parametrize("text", ["", "nonsense", "BTC/USD", "BTC/USD:5", "BTC/USD:research-1:x", "a:b=1:2", "a:b:007"])
async def test_what_is_no_id(text: str) -> None:
    with pytest.raises(UnknownRound, match="expected a decision_id like BTC/USD:research-1:42, the sequence of its"):
        await selected(recording(1), text)


@pytest.mark.parametrize(
    ("decision", "expected"),
    [
        (f"{SYMBOL}:research-1:7", "there is no such round; those of BTC/USD by research-1 are 1 to 3"),
        (f"{SYMBOL}:research-9:2", "there is no such round; expected one of the symbols BTC/USD, and a source that"),
        ("ETH/USD:research-1:2", "there is no such round; expected one of the symbols BTC/USD"),
        ("1", "message 1 is no decision; expected a decision_id"),
        ("999", "message 999 is no decision"),
    ],
)
async def test_an_unknown_decision(decision: str, expected: str) -> None:
    with pytest.raises(UnknownRound, match=f"explain {decision}: {expected}") as raised:
        await selected(recording(3), decision)
    assert raised.value.exit_code == EXIT_USAGE
    assert "\n" not in str(raised.value)


async def test_a_round_that_is_open() -> None:
    recorded = recording(3)
    opened = recorded.add(tick(4))
    for selector in (Selector(decision=f"{SYMBOL}:research-1:4"), Selector(symbol=SYMBOL, round=4)):
        with pytest.raises(RoundOpen, match=f"still open: its tick is message {opened.sequence}, and") as raised:
            await select(recorded, selector)
        assert raised.value.exit_code == EXIT_FAILED


async def test_a_tick_that_opened_no_round() -> None:
    recorded = recording(3)
    stray = recorded.add(replace(tick(0), timestamp=tick(3).timestamp))
    play(recorded, range(4, 6))
    with pytest.raises(UnknownRound, match=f"tick 0 of BTC/USD is message {stray.sequence}, but it opened no round"):
        await selected(recorded, f"{SYMBOL}:research-1:0")


async def test_a_round_that_retention_removed() -> None:
    recorded = recording(9)
    gone = recorded.decisions[3]
    recorded.remove(gone.sequence)
    for decision in (f"{SYMBOL}:research-1:2", str(gone.sequence)):
        with pytest.raises(RoundRemoved, match=f"messages up to {gone.sequence} are gone; look elsewhere") as raised:
            await selected(recorded, decision)
        assert raised.value.exit_code == EXIT_FAILED


async def test_a_decision_of_another_program() -> None:
    recorded = recording(2)
    decision = recorded.decisions[0].decode(recorded.subjects)
    assert isinstance(decision, Decision)
    foreign = recorded.add(replace(decision, source="outside"), skip=True)
    with pytest.raises(UnknownRound, match="by outside has no header Mesh-Cause: it is not of a built-in coordinator"):
        await selected(recorded, str(foreign.sequence))
    unnamed = recorded.add(replace(decision, decision_id="mine"), skip=True, cause=3)
    with pytest.raises(UnknownRound, match="has the decision_id 'mine'"):
        await selected(recorded, str(unnamed.sequence))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((None, None, None), r"^explain: expected DECISION_ID, latest, or --round N --symbol S"),
        ((None, SYMBOL, None), "--symbol without --round: expected"),
        ((None, None, 4), "--round without --symbol: expected"),
        (("latest", SYMBOL, 4), "explain latest with --round or --symbol: expected one or the other"),
    ],
)
def test_arguments_that_name_none(arguments: tuple[str | None, str | None, int | None], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        make_selector(*arguments)


async def test_an_id_with_line_feeds_is_found_and_errors_repeat_it_in_one_line() -> None:
    recorded = recording(2)
    play(recorded, range(1, 3), symbol="a\nb")
    assert (await selected(recorded, "a\nb:research-1:2")).stored is recorded.decisions[-1]
    for wanted in ("a\nb:research-1:3", "a\nb:other:2", "no\nid", "x\ny:research-1:1"):
        with pytest.raises(UnknownRound) as raised:
            await selected(recorded, wanted)
        assert len(str(raised.value).splitlines()) == 1
    play(recorded, range(1, 2), "other", "a\nb")
    with pytest.raises(AmbiguousRound) as ambiguous:
        await select(recorded, Selector(symbol="a\nb", round=1))
    assert len(str(ambiguous.value).splitlines()) == 1
