"""A user's agent whose handler fails on everything: given up with its exception named, and given another chance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agents.intake import HOPELESS_SKIPS
from tests.acceptance.swarm import Swarm, agents_toml

HOPELESS = """\
from pathlib import Path
from agents.agent import Agent
from bus.messages import MarketData, Signal

class Hopeless(Agent):
    kind = "hopeless"
    listens = ("market",)

    def on_market(self, tick: MarketData) -> Signal:
        if not Path("mended").exists():
            raise SystemExit("no such model")
        return self.signal(tick, "hold", 0.5)
"""


async def test_a_hopeless_agent_is_quarantined_told_of_and_revived(tmp_path: Path):
    toml = f'max_agents = 6\n{agents_toml(speed=20, history=10)}\n[agents.hopeless]\nclass = "hopeless:Hopeless"\n'
    (tmp_path / "hopeless.py").write_text(HOPELESS)
    async with Swarm(tmp_path, toml) as swarm:
        ear = await swarm.up()

        def events(name: str) -> list[dict[str, Any]]:
            return [item for item in ear.lifecycle if (item["event"], item["agent"]) == (name, "hopeless")]

        for chance in (1, 2):
            alert = (await ear.alerted("agent_unusable", chance))[-1]
            for word in ("hopeless", f"{chance * HOPELESS_SKIPS} inputs in a row", "on_market", "SystemExit", "revive"):
                assert word in alert["message"], alert
            await ear.until("quarantined", lambda: len(events("quarantined")) == chance)  # noqa: B023 - awaited here
            if chance == 2:
                (tmp_path / "mended").touch()
            assert (await swarm.verb("revive", "hopeless")).code == 0
        skipped = [item["detail"]["sequence"] for item in events("skipped")]
        assert len(skipped) == len(set(skipped)) == 2 * HOPELESS_SKIPS
        await ear.until("it votes", lambda: ear.decisions and "hopeless" in ear.decisions[-1]["agents_consulted"])
        beat = (await ear.live("hopeless"))["hopeless"]
        assert beat["skipped"] == 2 * HOPELESS_SKIPS
        assert len(events("quarantined")) == len(events("exited")) == 2
