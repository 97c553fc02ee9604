"""What strangers publish in the names of others: decisions go on, each round once, and it is told once."""

from __future__ import annotations

from pathlib import Path

from tests.acceptance.faults import kill_agents
from tests.acceptance.swarm import AGENTS, Swarm

TICK = {"symbol": "BTC/USD", "price": 7000.0, "volume": 1.0, "source": "research-1"}
FORGED = ({"sequence": 1_000_000}, {"sequence": 2_000_000}, {"sequence": 5})
"""Far ahead; far ahead and of a far time; behind."""
TIMES = ("2019-01-01T00:00:00Z", "9999-12-31T00:00:00Z", "2019-01-01T00:00:00Z")


async def test_forged_ticks_settings_and_decisions_stop_nothing(tmp_path: Path):
    async with Swarm(tmp_path) as swarm:
        ear = await swarm.up("--speed", "50")
        await ear.decided(251)
        await ear.live(*AGENTS)
        for fields, at in zip(FORGED, TIMES, strict=True):
            await ear.publish("market.BTC-USD.research-1", {**TICK, **fields, "timestamp": at})
            await ear.more_decisions(10)
        forged = {"voters": {"evil": 1.0}, "timestamp": TIMES[0], "source": "watchdog"}
        await ear.publish("config.swarm.evil", forged)
        await ear.more_decisions(10)
        await kill_agents(swarm, ear, "coordinator")  # it may read all that again, but not tell it again
        await ear.more_decisions(50)

        told = [alert["code"] for alert in ear.alerts if alert["source"] == "coordinator"]
        assert sorted(told) == ["feed_renumbered", "foreign_config", "tick_strayed"]
        names = [decision["decision_id"] for decision in ear.decisions]
        assert len(set(names)) == len(names)
        odd = {"BTC/USD:research-1:1000000", "BTC/USD:research-1:2000000", "BTC/USD:research-1=2:5"}
        assert odd < set(names)
        series = [name for name in names if name not in odd]
        assert series == [f"BTC/USD:research-1:{n}" for n in range(1, len(series) + 1)]
        assert len(ear.decisions[-1]["agents_consulted"]) == 3
