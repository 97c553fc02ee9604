"""What the strategies share: a window of closes for each series, and one Signal for each candle.

A strategy is its measure of a window (`measure`). agents/builtin/indicators.py has the indicators.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from agents.agent import Agent
from agents.builtin import indicators
from agents.builtin.indicators import Closes
from bus.errors import UsageError
from bus.messages import MarketData, Signal

MAX_SERIES = 32
"""Windows that a strategy keeps; 32 of 250 closes fit into a snapshot."""
SHORTEST_PERIOD = 2
"""Candles: what TA-Lib takes at the least."""
MAX_WINDOW = 32 * 250
"""Closes of a window: one as long as that still fits into a snapshot."""


class Strategy(Agent):
    """One Signal for each candle; hold at 0.5 with no indicators while the window is too short to measure them."""

    listens = ("market",)
    publishes = ("signal",)
    memory_key = "signal"

    @dataclass
    class State:
        """`closes` maps a symbol and its source to the last closes, oldest first, in the quote currency."""

        closes: dict[str, list[float]] = field(default_factory=dict)

    @dataclass(frozen=True)
    class Options:
        """Options of every strategy."""

        window: int = 250
        """Closes that are kept: at least those that its indicators need (50 and 21 by default), up to 8000.

        From 250 on the RSI is exact to 2e-6 (docs/concepts/decisions.md).
        """

    state: State
    options: Options

    @property
    def shortest(self) -> int:
        """Closes from which on `measure` can measure."""
        raise NotImplementedError

    @property
    def periods(self) -> dict[str, int]:
        """Those of the options that are periods, in candles: each 2 or more."""
        return {}

    def setup(self) -> None:
        """Check the window and the periods.

        Raises:
            UsageError: nothing could ever be measured in it, or it would fit no snapshot.
        """
        for name, period in self.periods.items():
            if not SHORTEST_PERIOD <= period <= MAX_WINDOW:
                raise UsageError(
                    f"agent {self.name!r}: {name}: expected {SHORTEST_PERIOD} to {MAX_WINDOW} candles, not {period}"
                )
        window = self.options.window
        if not self.shortest <= window <= MAX_WINDOW:
            raise UsageError(
                f"agent {self.name!r}: window: expected {self.shortest} to {MAX_WINDOW} closes, not {window}"
            )

    def measure(self, closes: Closes) -> tuple[float, dict[str, float]] | None:
        """The probability of a rise, and the indicators that give it; None while `closes` are too few."""
        raise NotImplementedError

    def on_market(self, tick: MarketData) -> Signal:
        """Vote on the round of `tick`."""
        measured = self.measure(self._push(tick))
        if measured is None:
            return self.signal(tick, "hold", 0.5, {}, 0.5)
        p_up, values = measured
        side, strength = indicators.vote(p_up)
        return self.signal(tick, side, strength, values, p_up)

    def _push(self, tick: MarketData) -> Closes:
        """Append the price of `tick` to the window of its symbol and source, and return the window.

        Two sources of one symbol are two series: the difference between them is no move of the price. The windows
        used longest ago go when there are more than MAX_SERIES.
        """
        windows = self.state.closes
        series = f"{tick.symbol} {tick.source}"
        window = windows.pop(series, [])
        windows[series] = window  # the newest is last
        if len(windows) > MAX_SERIES:
            del windows[next(iter(windows))]
        window.append(tick.price)
        del window[: -self.options.window]
        return np.array(window, dtype=np.float64)  # TA-Lib takes no other type
