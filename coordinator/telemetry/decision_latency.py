"""The time from a tick to its decision, by the server's times of storing."""

from __future__ import annotations

from collections import OrderedDict

from bus.messages import Decision, MarketData

REMEMBERED = 32_768
"""Messages, and ticks, whose time of storing is remembered; an answer to an older one has no latency."""
NANOSECOND = 1e-9


def seconds_between(since_ns: int, at_ns: int) -> float | None:
    """Seconds; None where one of them is not known (0), or the server's clock was set back between."""
    return (at_ns - since_ns) * NANOSECOND if 0 < since_ns <= at_ns else None


class TickTimes:
    """When the newest REMEMBERED ticks were stored."""

    def __init__(self) -> None:
        self._ticks: OrderedDict[tuple[str, str, int], int] = OrderedDict()

    def take(self, tick: MarketData, stored_ns: int) -> None:
        """Remember a tick; one without a sequence has no decision that names it."""
        if tick.sequence is not None and stored_ns:
            self._ticks[tick.symbol, tick.source, tick.sequence] = stored_ns
            if len(self._ticks) > REMEMBERED:
                self._ticks.popitem(last=False)

    def latency_s(self, decision: Decision, stored_ns: int) -> float | None:
        """Seconds from storing the tick to storing its decision; None if that tick is not remembered."""
        if decision.decision_id is None or decision.symbol is None or decision.round is None:
            return None
        # symbol:source:sequence, or symbol:source=run:sequence where a feed has renumbered its ticks
        _, _, source = decision.decision_id.rpartition(":")[0].rpartition(":")
        return seconds_between(
            self._ticks.get((decision.symbol, source.partition("=")[0], decision.round), 0), stored_ns
        )
