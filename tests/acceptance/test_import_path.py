"""Files in the working directory and in PYTHONPATH: none replaces a module of ours, and agents are found among them."""

from __future__ import annotations

from pathlib import Path

from tests.acceptance.faults import kill_agents
from tests.acceptance.swarm import Swarm, agents_toml

SHADOWS = ("types.py", "selectors.py", "orjson.py", "msgspec.py", "uvloop.py", "coordinator.py", "bus.py", "talib.py")
RAISING = "raise ImportError('the file of a user was imported instead of a module')\n"
AGENT = """\
import helpers_of_mine
from agents.agent import Agent
from bus.messages import MarketData, Signal

class Mine(Agent):
    kind = "mine"
    listens = ("market",)

    def on_market(self, tick: MarketData) -> Signal:
        return self.signal(tick, helpers_of_mine.SIDE, 0.5)
"""


async def test_files_of_users_shadow_no_module_in_any_process(tmp_path: Path):
    directory, library = tmp_path / "swarm", tmp_path / "library"
    for path in (directory, library):
        path.mkdir()
        for name in SHADOWS:
            (path / name).write_text(RAISING)
    (directory / "agents").mkdir()
    (directory / "agents" / "mine.py").write_text(AGENT)
    (library / "helpers_of_mine.py").write_text('SIDE = "hold"\n')
    toml = f'max_agents = 6\n{agents_toml(speed=20, history=10)}\n[agents.mine]\nclass = "agents/mine.py:Mine"\n'
    # Carried as `signalmesh` itself carries it: an interpreter that begins with this PYTHONPATH cannot start at all.
    async with Swarm(directory, toml, environment={"SIGNALMESH_PYTHONPATH": str(library)}) as swarm:
        subscriber = await swarm.up()
        await subscriber.decided(20)
        await kill_agents(swarm, subscriber, "mine", "coordinator")
        await subscriber.more_decisions(10)
        assert "mine" in subscriber.decisions[-1]["agents_consulted"]
        assert not subscriber.alerts
