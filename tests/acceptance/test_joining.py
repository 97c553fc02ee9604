"""Programs of others: plain NATS clients that publish and listen, and agents from files outside of the packages."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.exact import assert_each_round_once
from tests.acceptance.swarm import BREAKOUT, VOTERS, Swarm, agents_toml

AT = "2024-01-15T10:30:00Z"
RECORDED = {
    "sentiment.BTC-USD.research-2": {
        "sentiment": "bullish", "confidence": 0.78, "sources": ["twitter", "news", "reddit"],
        "timestamp": AT, "source": "research-2",
    },
    "signal.BTC-USD.strategy-momentum": {
        "signal": "buy", "strength": 0.85, "indicators": {"rsi": 65, "macd": 0.5, "trend": "up"},
        "timestamp": AT, "source": "strategy-momentum",
    },
    "signal.BTC-USD.strategy-mean-reversion": {
        "signal": "hold", "strength": 0.45, "indicators": {"bollinger_position": 0.6, "volatility": 0.02},
        "timestamp": AT, "source": "strategy-mean-reversion",
    },
}  # fmt: skip
EXTERNAL = """
[agents.research-2]
external = true
[agents.strategy-momentum]
external = true
[agents.strategy-mean-reversion]
external = true
[agents.coordinator]
kind = "coordinator"
[coordinator]
round_timeout_ms = 60000
"""
CLUMSY = """\
from agents.agent import Agent
from bus.messages import MarketData, Signal

class Clumsy(Agent):
    kind = "clumsy"
    listens = ("market",)

    def on_market(self, tick: MarketData) -> Signal:
        if tick.sequence == 5:
            raise ZeroDivisionError("on purpose")
        return self.signal(tick, "hold", 0.5)
"""


async def test_the_recorded_example_published_by_a_plain_client(tmp_path: Path):
    async with Swarm(tmp_path, EXTERNAL) as swarm:
        subscriber = await swarm.up()
        await subscriber.live("coordinator")
        tick = {"symbol": "BTC/USD", "price": 45000.0, "volume": 1250.5, "timestamp": AT, "source": "demo"}
        await subscriber.publish("market.BTC-USD.demo", tick)
        for subject, vote in RECORDED.items():
            assert subscriber.decisions == []
            await subscriber.publish(subject, vote)
        [decision] = await subscriber.more_decisions(1) if not subscriber.decisions else subscriber.decisions
        assert decision["final_decision"] == "buy"
        assert round(decision["position_size"], 2) == 0.25
        assert round(decision["risk_score"], 2) == 0.35
        assert round(decision["consensus_level"], 2) == 0.72
        assert set(decision["agents_consulted"]) == {*VOTERS}
        assert decision["absent"] == []


@pytest.mark.slow
async def test_a_third_party_agent_votes_and_one_that_raises_is_skipped(tmp_path: Path):
    assert len([line for line in BREAKOUT.splitlines() if line]) <= 15
    toml = f"""
max_agents = 7
{agents_toml(speed=20, history=10)}
[agents.breakout]
class = "breakout:Breakout"
[agents.clumsy]
class = "own/clumsy.py:Clumsy"
weight = 0.5
"""
    (tmp_path / "breakout.py").write_text(BREAKOUT)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "clumsy.py").write_text(CLUMSY)
    voters = {*VOTERS, "breakout", "clumsy"}
    async with Swarm(tmp_path, toml) as swarm:
        subscriber = await swarm.up()
        await subscriber.decided(15)
        assert set(subscriber.configs[-1]["voters"]) == voters
        assert subscriber.configs[-1]["voters"]["clumsy"] == 0.5
        skipped = await subscriber.happened("skipped", "clumsy")
        assert "ZeroDivisionError: on purpose" in skipped["reason"]
        [alert] = await subscriber.alerted("handler_failed")
        assert (alert["severity"], alert["agent"]) == ("critical", "clumsy")
        fifth = subscriber.decisions[4]
        assert (fifth["absent"], set(fifth["agents_consulted"])) == (["clumsy"], voters - {"clumsy"})
        await subscriber.until("its vote again", lambda: "clumsy" in subscriber.decisions[-1]["agents_consulted"])
        assert "breakout" in subscriber.decisions[-1]["agents_consulted"]

        killed = await swarm.command("kill", "breakout", "--json")
        assert (killed.code, killed.json["outputs_lost"], killed.json["outputs_duplicated"]) == (0, 0, 0), killed
        await subscriber.until("its vote again", lambda: "breakout" in subscriber.decisions[-1]["agents_consulted"])
        assert_each_round_once(subscriber.decisions)
        assert len([item for item in subscriber.alerts if item["code"] == "handler_failed"]) == 1
