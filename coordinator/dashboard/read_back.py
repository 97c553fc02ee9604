"""What is read back from the stored messages: candles and decisions older than the model's, the outputs of a death.

Each reads a bounded number of messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bus.interface import StoredMessage
from bus.messages import Decision, MarketData
from bus.messages.subjects import AGENT_KINDS, escape_topic
from coordinator.control.outputs import count_outputs, epoch_of, is_successor
from coordinator.dashboard.model import MAX_CANDLES, Row, candle_row, decision_row, epoch_ms
from coordinator.explain.round_history import decoded
from coordinator.explain.sources import Filter, MessageSource
from coordinator.telemetry.decision_latency import TickTimes

MOST_FILTERS = 32
"""Symbols whose ticks are read by their subjects; of more, all ticks are read."""
MORE_TICKS = 256
"""Ticks before the oldest decision of a page among which its own may be."""

MOST_OUTPUTS = 1000
"""Outputs of an agent before and after one of its deaths that are counted."""


async def decisions_before(source: MessageSource, deciders: Sequence[str], before: int, limit: int) -> list[Row]:
    """The newest `limit` decisions of `deciders` (empty: of all) below the sequence `before`, newest first."""
    wanted = [Filter("decision", agent=agent) for agent in deciders] or [Filter("decision")]
    found: list[tuple[StoredMessage, Decision]] = []
    while len(found) < limit and (page := await source.read_before(wanted, before, limit)):
        before = page[0].sequence
        for stored in reversed(page):
            message = decoded(source.subjects, stored)
            if isinstance(message, Decision):
                found.append((stored, message))
    ticks = await _ticks_of(source, found[:limit])
    return [
        decision_row(decision, stored, ticks.latency_s(decision, stored.stored_ns))
        for stored, decision in found[:limit]
    ]


@dataclass(frozen=True, slots=True)
class CandlePage:
    """Candles with the decisions on them, each oldest first, and the `before` of the next page, if there is one."""

    candles: list[Row]
    decisions: list[Row]
    before: int | None


async def candles_before(source: MessageSource, symbol: str, deciders: Sequence[str], before: int) -> CandlePage:
    """The candles of the MAX_CANDLES newest ticks of `symbol` below the sequence `before`.

    Only those in the order of time, as a chart shows them: where a recorded feed has begun anew, a page ends.
    """
    wanted = (Filter("market", escape_topic(symbol)),)
    page = await source.read_before(wanted, before, MAX_CANDLES)
    if not page:
        return CandlePage([], [], None)
    ticks = _ticks(source, page)
    for _, tick in _ticks(source, await source.read(wanted, before, before)):
        while ticks and _time(ticks[-1]) == epoch_ms(tick.timestamp):  # the rest of the newer page's first candle
            ticks.pop()
    run = _in_order(ticks)
    if len(page) == MAX_CANDLES and len(run) == len(ticks):
        run = _without_first(run)
    candles: list[Row] = []
    times = TickTimes()
    for stored, tick in run:
        candle = candle_row(tick, stored, candles[-1] if candles else None)
        if candles and candles[-1]["t"] == candle["t"]:
            candles.pop()
        candles.append(candle)
        times.take(tick, stored.stored_ns)
    begin = run[0][0].sequence if run else page[0].sequence
    older = await source.read(wanted, 1, begin - 1, 1)
    decisions = await _decisions_on(source, symbol, deciders, run, times) if run else []
    return CandlePage(candles, decisions, begin if older else None)


Tick = tuple[StoredMessage, MarketData]


def _ticks(source: MessageSource, page: Sequence[StoredMessage]) -> list[Tick]:
    return [(one, tick) for one in page if isinstance(tick := decoded(source.subjects, one), MarketData)]


def _time(tick: Tick) -> int:
    return epoch_ms(tick[1].timestamp)


def _in_order(ticks: list[Tick]) -> list[Tick]:
    """The newest of them before which the time goes back."""
    begin = max(0, len(ticks) - 1)
    while begin > 0 and _time(ticks[begin - 1]) <= _time(ticks[begin]):
        begin -= 1
    return ticks[begin:]


def _without_first(ticks: list[Tick]) -> list[Tick]:
    """Without the ticks of the first time: older ones of it may be stored, and a candle is whole."""
    return [one for one in ticks if _time(one) != _time(ticks[0])] or ticks


async def _decisions_on(
    source: MessageSource, symbol: str, deciders: Sequence[str], ticks: list[Tick], times: TickTimes
) -> list[Row]:
    """The decisions on these ticks."""
    topic, last = escape_topic(symbol), await source.last_sequence()
    wanted = [Filter("decision", topic, agent) for agent in deciders] or [Filter("decision", topic)]
    shown = set(map(_time, ticks))
    rows = []
    for stored in await source.read(wanted, ticks[0][0].sequence, last, (len(ticks) + MORE_TICKS) * len(wanted)):
        decision = decoded(source.subjects, stored)
        if isinstance(decision, Decision) and epoch_ms(decision.timestamp) in shown:
            rows.append(decision_row(decision, stored, times.latency_s(decision, stored.stored_ns)))
    return rows


async def _ticks_of(source: MessageSource, decisions: Sequence[tuple[StoredMessage, Decision]]) -> TickTimes:
    """When the ticks of a page of decisions, newest first, were stored."""
    times = TickTimes()
    topics = {escape_topic(decision.symbol) for _, decision in decisions if decision.symbol}
    wanted = (
        [Filter("market", topic) for topic in sorted(topics)] if len(topics) <= MOST_FILTERS else [Filter("market")]
    )
    if topics:
        for stored in await source.read_before(wanted, decisions[0][0].sequence, len(decisions) + MORE_TICKS):
            tick = decoded(source.subjects, stored)
            if isinstance(tick, MarketData):
                times.take(tick, stored.stored_ns)
    return times


async def complete_death(source: MessageSource, agent: str, death: Row, until: int | None) -> Row:
    """`death` with what `kill` reads from the stream: outputs lost and duplicated, and the first of the new process.

    Only outputs below the sequence `until`, the agent's next claim after that of the new process.

    Raises:
        MeshError: they cannot be read now.
    """
    account = death["account"]
    epoch, successor = account["epoch_before"] or 0, account["epoch_after"]
    wanted = [Filter(kind, agent=agent) for kind in (*AGENT_KINDS, "alert")]
    declared = death["sequence"]
    last = until - 1 if until is not None else await source.last_sequence()
    before = [one for one in await source.read_before(wanted, declared, MOST_OUTPUTS) if one.sequence >= epoch]
    after = await source.read(wanted, declared, last, MOST_OUTPUTS)
    found = account | _counted(before + after, await _missing(source, before + after))
    first = next((one for one in after if _is_first(one, epoch, successor)), None)
    if first is not None:
        found["first_output_ms"] = round(first.stored_ns / 1e6) - death["from"]
    return {**death, "account": found}


async def _missing(source: MessageSource, outputs: Sequence[StoredMessage]) -> str | None:
    return await source.missing(outputs[0].sequence, outputs[-1].sequence) if outputs else None


def _counted(outputs: Sequence[StoredMessage], missing: str | None) -> Row:
    if missing is not None:
        return {"outputs_from": f"not counted: {missing}"}
    count = count_outputs(outputs)
    where = f", messages {outputs[0].sequence} to {outputs[-1].sequence}" if outputs else ""
    return {
        "outputs_checked": count.checked, "outputs_lost": count.lost, "outputs_duplicated": count.duplicated,
        "outputs_from": f"the numbers of {count.checked} stored outputs of this agent around its death{where}",
    }  # fmt: skip


def _is_first(stored: StoredMessage, epoch: int, successor: int | None) -> bool:
    kind = stored.subject.split(".")[1]
    return kind in AGENT_KINDS and is_successor(epoch_of(stored.headers), epoch, successor)
