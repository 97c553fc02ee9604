"""The page of an explanation: every number on it follows from the others on it, and nothing of a message is markup."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from bus.messages import Lifecycle
from coordinator.decisions.rounds import round_id
from coordinator.explain.explainer import explain
from coordinator.explain.models import Explanation
from coordinator.explain.selection import LATEST, Selector
from coordinator.explain.text import print_explanation
from coordinator.reporting.differences import FieldDifference
from tests.support.coordinator_rounds import CONFIG, MOMENTUM, NEWS, NOON, REVERSION, SYMBOL, VOTERS, tick, timer, vote
from tests.support.recorded_rounds import TRACEPARENT, RecordedRounds


async def explained(recorded: RecordedRounds) -> Explanation:
    return await explain(recorded, Selector(decision=LATEST))


def recording(**votes: float) -> RecordedRounds:
    """Thirty rounds, and one more with these votes; it times out if one is missing."""
    recorded = RecordedRounds()
    recorded.play([CONFIG])
    for n in range(1, 31):
        recorded.play([tick(n, 100.0 + n * 7 % 13), *(vote(voter, n, 0.6) for voter in VOTERS)])
    names = {"news": NEWS, "momentum": MOMENTUM, "reversion": REVERSION}
    recorded.play([tick(31, 104.0), *(vote(names[name], 31, p_up) for name, p_up in votes.items())])
    if len(votes) < len(names):
        recorded.play([timer(round_id(SYMBOL, "research-1", 31))])
    return recorded


def page(found: Explanation, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Label -> text of the lines below the table; the whole page under ""."""
    print_explanation(found)
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if re.match(r"\S.{0,14}\s{2,}\S|  \S.{0,12}\s{2,}\S", line)]
    return {line[:16].strip(): line[16:] for line in lines} | {"": out}


async def test_a_buy_with_its_caps_and_flips(capsys: pytest.CaptureFixture[str]) -> None:
    found = await explained(recording(news=0.78, momentum=0.85, reversion=0.45))
    lines = page(found, capsys)
    assert lines[""].startswith(f"BTC/USD round 31: buy, size {found.published.position_size:.4f}, risk ")
    assert lines["log pool"].endswith("= +0.9332) = 0.7177")
    assert lines["linear pool"] == "m = 0.3333 x 0.7800 + 0.3333 x 0.4500 + 0.3333 x 0.8500 = 0.6933"
    assert lines["thresholds"] == "buy if q >= 0.55, sell if q <= 0.45; q = 0.7177: buy"
    assert lines["quorum"] == "3 of 3 voters with 1 of the weight; more than 0.5 is needed: reached"
    agreement, volatility, drawdown, risk = re.findall(r"\d\.?\d*(?= |$)", lines["risk"].partition("= 1 - ")[2])
    assert 1 - float(agreement) * float(volatility) * float(drawdown) == pytest.approx(float(risk), abs=2e-4)
    assert lines["edge"].startswith("(2m - 1 = 2 x 0.6933 - 1 = 0.3867) x (1 - risk ")
    assert sum("<- this one" in lines[name] for name in ("edge", "CVaR cap", "position cap")) == 1
    assert lines["trace"] == TRACEPARENT.split("-")[1]
    assert lines[""].rstrip().splitlines()[-1].startswith("the same to the last digit: computed again from ")


async def test_the_printed_flip_really_flips(capsys: pytest.CaptureFixture[str]) -> None:
    votes = {"news": 0.6, "momentum": 0.62, "reversion": 0.5}
    out = page(await explained(recording(**votes)), capsys)[""]
    [needed] = re.findall(r"strategy-momentum: p_up 0\.6200 -> (0\.\d{4}) or less \(-0\.\d{4}\) gives hold", out)
    closer = float(needed) + 1e-4
    assert (await explained(recording(**{**votes, "momentum": float(needed)}))).published.final_decision == "hold"
    assert (await explained(recording(**{**votes, "momentum": closer}))).published.final_decision == "buy"


async def test_an_absent_voter_without_which_there_is_no_quorum(capsys: pytest.CaptureFixture[str]) -> None:
    recorded = recording(news=0.9)
    found = await explained(recorded)
    lines = page(found, capsys)
    assert "1 of 3 voters with 0.3333 of the weight; more than 0.5 is needed: not reached, so hold" in lines[""]
    assert f"{MOMENTUM}, by voting at all: with its weight the quorum is reached, and buy follows" in lines[""]
    assert "0: hold takes no position" in lines["size"]
    assert lines["closed by"].startswith("the timer of the round: message ")


async def test_no_voter_alone_where_all_agree(capsys: pytest.CaptureFixture[str]) -> None:
    lines = page(await explained(recording(news=0.999, momentum=0.999, reversion=0.999)), capsys)
    assert "or less" in lines["flips it alone"] or "no voter, whatever its p_up" in lines["flips it alone"]
    assert lines["absence alone"] == "of no voter changes it"


async def test_a_difference_names_both_values(capsys: pytest.CaptureFixture[str]) -> None:
    found = replace(
        await explained(recording(news=0.9)),
        same=False,
        differences=[FieldDifference(field="risk_score", recorded=0.1, replayed=0.25)],
    )
    lines = page(found, capsys)
    assert "DIFFERENT: computed again" in lines[""]
    assert "risk_score: published 0.1, computed 0.25" in lines[""]


async def test_what_messages_say_is_no_markup_and_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    recorded = recording(news=0.9, momentum=0.9)
    tick_32 = tick(32, 100.0)
    recorded.play([tick_32])
    recorded.add(
        Lifecycle(event="declared_dead", agent=MOMENTUM, timestamp=NOON, source="watchdog", reason="[red]\x1b[2J")
    )
    signal = replace(vote(MOMENTUM, 32, 0.9), indicators={"[bold]\x1b[0m": "\x07"})
    recorded.play([signal, vote(NEWS, 32, 0.7), vote(REVERSION, 32, 0.7)])
    out = page(await explained(recorded), capsys)[""]
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "[red]" in out
    assert "[bold]" in out
