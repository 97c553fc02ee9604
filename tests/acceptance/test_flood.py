"""A user's agent that publishes without pause: it is slowed down, then quarantined, and the others go on."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from agents.runtime.output_rate import FLOOD_S
from tests.acceptance.subscriber import read_stream
from tests.acceptance.swarm import Swarm, agents_toml

PER_S = 300
FLOODING = """\
from agents.agent import Agent
from bus.messages import Headline, MarketData, now

class Handler(Agent):
    kind = "flooding-handler"
    listens = ("market",)
    publishes = ("headline",)

    def on_market(self, tick: MarketData):
        return [Headline(text=f"{n}", timestamp=tick.timestamp, source=self.name) for n in range(1000)]

class Source(Agent):
    kind = "flooding-source"
    publishes = ("headline",)

    async def produce(self, last):
        while True:
            yield Headline(text="again", timestamp=now(), source=self.name, symbols=("BTC/USD",))

class Endless(Agent):
    kind = "endless"
    listens = ("market",)
    publishes = ("headline",)

    def on_market(self, tick: MarketData):
        while True:
            yield Headline(text="on", timestamp=tick.timestamp, source=self.name)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Handler", "Source", "Endless"])
async def test_a_flooding_agent_is_slowed_down_and_quarantined(tmp_path: Path, kind: str):
    agents = agents_toml(speed=20, history=10).replace('kind = "sentiment"', 'kind = "sentiment"\nvotes = false')
    toml = (
        f'max_agents = 6\n[watchdog]\nmax_outputs_per_s = {PER_S}\n{agents}\n[agents.flood]\nclass = "flood:{kind}"\n'
    )
    (tmp_path / "flood.py").write_text(FLOODING)
    async with Swarm(tmp_path, toml) as swarm:
        subscriber = await swarm.up()
        quarantined = await subscriber.happened("quarantined", "flood")
        rate = f"published more than {PER_S} outputs"
        assert (rate if kind != "Endless" else "expected at most 4096") in quarantined["reason"]
        alerts: list[dict[str, Any]] = await subscriber.alerted("quarantined")
        assert alerts[-1]["agent"] == "flood"
        assert "signalmesh revive flood" in alerts[-1]["message"]
        await subscriber.more_decisions(20)
        stored = [one for one in await read_stream(swarm.url, swarm.name) if one.kind == "headline"]
        of_flood = [one for one in stored if one.writer == "flood"]
        # a burst of one second, and of the input after it, is free
        assert len(of_flood) <= (0 if kind == "Endless" else (FLOOD_S + 4) * PER_S + 1000)
        assert (len(of_flood) > PER_S) == (kind != "Endless")
        others = [one["agent"] for one in subscriber.lifecycle if one["event"] in ("declared_dead", "quarantined")]
        assert set(others) == {"flood"}
        audit = await swarm.command("audit")
        assert audit.code == 0, audit.out
        assert await swarm.end(signal.SIGINT) == 1, "an agent is quarantined"
