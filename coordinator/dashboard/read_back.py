"""What is read back from the stored messages: decisions older than those that the model keeps, in bounded pages."""

from __future__ import annotations

from collections.abc import Sequence

from bus.interface import StoredMessage
from bus.messages import Decision, MarketData
from bus.messages.subjects import escape_topic
from coordinator.dashboard.model import Row, decision_row
from coordinator.explain.round_history import decoded
from coordinator.explain.sources import Filter, MessageSource
from coordinator.telemetry.decision_latency import TickTimes

MOST_FILTERS = 32
"""Symbols whose ticks are read by their subjects; of more, all ticks are read."""
MORE_TICKS = 256
"""Ticks before the oldest decision of a page among which its own may be."""


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
