"""Agents move between this machine and a sandbox at E2B, there and back, and take their state along exactly."""

from __future__ import annotations

import hashlib
import os
import signal

import pytest

from tests.acceptance.ear import read_stream
from tests.acceptance.swarm import AGENTS, agents_toml
from tests.e2b.far import FAR_AGENTS, FarSwarm, far_sandbox

CHAIN = """
import hashlib
from dataclasses import dataclass

from agents.agent import Agent
from bus.messages import MarketData, Signal


class Chain(Agent):
    kind = "chain"
    listens = ("market",)

    @dataclass
    class State:
        seen: int = 0
        link: str = ""

    def on_market(self, tick: MarketData) -> Signal:
        state = self.state
        state.seen += 1
        state.link = hashlib.sha256(f"{state.link} {tick.sequence} {tick.price}".encode()).hexdigest()
        return self.signal(tick, "hold", 0.5, indicators={"seen": state.seen, "link": state.link})
"""
"""Its whole state stands in each vote, and depends on every tick before: one lost or doubled shows in all later."""
EVERYBODY = (*AGENTS, "chain")


@pytest.mark.slow
async def test_agents_move_from_here_to_there_and_back_with_their_state(tmp_path, e2b_standin):
    (tmp_path / "chain.py").write_text(CHAIN)
    far = far_sandbox(files='["chain.py"]')
    toml = (
        f"max_agents = 6\n[sandboxes.base]\n{far}\n"
        f"{agents_toml(speed=20).replace('nodejs', 'base')}"
        '[agents.chain]\nclass = "chain.py:Chain"\nsandbox = "base"\n'
    )
    async with FarSwarm(tmp_path, e2b_standin, toml) as swarm:
        there = await swarm.settled()
        ear = there.ear
        at_home = [name for name in EVERYBODY if name not in FAR_AGENTS]
        beats = await ear.live(*EVERYBODY)
        assert {name: beats[name]["sandbox"] for name in at_home} == dict.fromkeys(at_home, "base")
        await ear.decided(260)

        os.kill(ear.beats["base"]["pid"], signal.SIGKILL)  # the only host here: all go there
        beats = await ear.back({name: beats[name]["epoch"] for name in at_home})
        assert {beat["sandbox"] for beat in beats.values()} == {there.host}
        await ear.more_decisions(20)
        await ear.until("the host here", lambda: ear.beats["base"]["uptime_s"] > 1)

        everybody = await ear.live(*EVERYBODY)
        await e2b_standin.vanish(there.sandbox_id)  # and back
        beats = await ear.back({name: beat["epoch"] for name, beat in everybody.items()})
        assert {beat["sandbox"] for beat in beats.values()} == {"base"}
        await ear.more_decisions(20)

        stored = await read_stream(swarm.url, swarm.name)
        seen, link, expected = 0, "", {}
        for said in stored:
            if said.kind == "market":
                tick = said.json
                seen += 1
                link = hashlib.sha256(f"{link} {tick['sequence']} {tick['price']}".encode()).hexdigest()
                expected[tick["sequence"]] = {"seen": seen, "link": link}
        votes = [said.json for said in stored if said.kind == "signal" and said.writer == "chain"]
        assert len(votes) > 300
        assert [vote["round"] for vote in votes] == list(range(1, len(votes) + 1)), "one for each tick, in order"
        assert [vote["indicators"] for vote in votes] == [expected[vote["round"]] for vote in votes]
        moves = [said.json for said in stored if said.kind == "lifecycle" and said.json["event"] == "moved"]
        assert sum(move["agent"] == "chain" for move in moves) == 2, "there, and back"
        assert sorted(move["agent"] for move in moves) == sorted([*at_home, *EVERYBODY])
        audit = await swarm.verb("audit", "--json")
        assert (audit.code, audit.json["problems"]) == (0, []), audit.out + audit.err
        replayed = await swarm.verb("replay", "--json")
        assert (replayed.code, replayed.json["differences"]) == (0, []), replayed.out + replayed.err
