from dataclasses import dataclass, field

from agents.agent import Agent
from bus.messages import MarketData, Signal


class Breakout(Agent):
    kind = "breakout"
    listens = ("market",)

    @dataclass
    class State:
        """The last 20 closes, oldest first."""

        highs: list[float] = field(default_factory=list)

    def on_market(self, tick: MarketData) -> Signal | None:
        before, self.state.highs = self.state.highs, [*self.state.highs, tick.price][-20:]
        if len(before) == 20 and tick.price > max(before):
            return self.signal(tick, "buy", 0.7)
        return self.signal(tick, "hold", 0.5)
