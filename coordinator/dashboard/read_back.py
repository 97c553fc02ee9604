"""What is read back from the stored messages: decisions older than those that the model keeps, the outputs of a death.

Both read a bounded number of messages.
"""

from __future__ import annotations

from collections.abc import Sequence

from bus.interface import StoredMessage
from bus.messages import Decision, MarketData
from bus.messages.subjects import AGENT_KINDS, escape_topic
from coordinator.control.outputs import count_outputs, epoch_of, is_successor
from coordinator.dashboard.model import Row, decision_row
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
