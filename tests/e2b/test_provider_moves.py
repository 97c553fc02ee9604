"""Agents move between this machine and a sandbox at E2B, there and back, and take their state along exactly."""

from __future__ import annotations

import hashlib
import os
import signal

import pytest

from tests.acceptance.subscriber import read_stream
from tests.acceptance.swarm import AGENTS, agents_toml
from tests.e2b.remote import REMOTE_AGENTS, RemoteSwarm, remote_sandbox

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
"""Its whole state is in each vote, and depends on every tick before: one lost or duplicated shows in later votes."""
EVERY_AGENT = (*AGENTS, "chain")


@pytest.mark.slow
async def test_agents_move_from_here_to_there_and_back_with_their_state(tmp_path, e2b_standin):
    (tmp_path / "chain.py").write_text(CHAIN)
    remote = remote_sandbox(files='["chain.py"]')
    toml = (
        f"max_agents = 6\n[sandboxes.base]\n{remote}\n"
        f"{agents_toml(speed=20).replace('nodejs', 'base')}"
        '[agents.chain]\nclass = "chain.py:Chain"\nsandbox = "base"\n'
    )
    async with RemoteSwarm(tmp_path, e2b_standin, toml) as swarm:
        there = await swarm.started()
        subscriber = there.subscriber
        at_home = [name for name in EVERY_AGENT if name not in REMOTE_AGENTS]
        heartbeats = await subscriber.live(*EVERY_AGENT)
        assert {name: heartbeats[name]["sandbox"] for name in at_home} == dict.fromkeys(at_home, "base")
        await subscriber.decided(260)

        os.kill(subscriber.heartbeats["base"]["pid"], signal.SIGKILL)  # the only host here: all go there
        heartbeats = await subscriber.back({name: heartbeats[name]["epoch"] for name in at_home})
        assert {heartbeat["sandbox"] for heartbeat in heartbeats.values()} == {there.host}
        await subscriber.more_decisions(20)
        await subscriber.until("the host here", lambda: subscriber.heartbeats["base"]["uptime_s"] > 1)

        all_agents = await subscriber.live(*EVERY_AGENT)
        await e2b_standin.vanish(there.sandbox_id)  # and back
        heartbeats = await subscriber.back({name: heartbeat["epoch"] for name, heartbeat in all_agents.items()})
        assert {heartbeat["sandbox"] for heartbeat in heartbeats.values()} == {"base"}
        await subscriber.more_decisions(20)

        stored = await read_stream(swarm.url, swarm.name)
        seen, link, expected = 0, "", {}
        for message in stored:
            if message.kind == "market":
                tick = message.json
                seen += 1
                link = hashlib.sha256(f"{link} {tick['sequence']} {tick['price']}".encode()).hexdigest()
                expected[tick["sequence"]] = {"seen": seen, "link": link}
        votes = [message.json for message in stored if message.kind == "signal" and message.writer == "chain"]
        assert len(votes) > 300
        assert [vote["round"] for vote in votes] == list(range(1, len(votes) + 1)), "one for each tick, in order"
        assert [vote["indicators"] for vote in votes] == [expected[vote["round"]] for vote in votes]
        moves = [message.json for message in stored if message.kind == "lifecycle" and message.json["event"] == "moved"]
        assert sum(move["agent"] == "chain" for move in moves) == 2, "there, and back"
        assert sorted(move["agent"] for move in moves) == sorted([*at_home, *EVERY_AGENT])
        audit = await swarm.command("audit", "--json")
        assert (audit.code, audit.json["problems"]) == (0, []), audit.out + audit.err
        replayed = await swarm.command("replay", "--json")
        assert (replayed.code, replayed.json["differences"]) == (0, []), replayed.out + replayed.err
