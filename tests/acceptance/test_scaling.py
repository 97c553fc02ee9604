"""`up --agents N` as its user has it: every agent lives and votes, a killed one is back, and all of it is exact."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.swarm import AGENTS, Swarm

COUNT = 24
ADDED = [f"{kind}-{at}" for at in range(1, 11) for kind in ("momentum", "mean-reversion")][: COUNT - len(AGENTS)]


@pytest.mark.slow
@pytest.mark.serial
async def test_many_agents_vote_and_recover(tmp_path: Path):
    async with Swarm(tmp_path) as swarm:
        subscriber = await swarm.up("--agents", str(COUNT), "--speed", "10")
        await subscriber.live(*AGENTS, *ADDED)
        await subscriber.decided(255)
        status = (await swarm.command("status", "--json")).json
        assert {row["name"] for row in status["agents"]} == {*AGENTS, *ADDED}
        voters = len(AGENTS) - 2 + len(ADDED)
        await subscriber.until(
            "a decision with all votes", lambda: len(subscriber.decisions[-1]["agents_consulted"]) == voters
        )
        for agent in ("mean-reversion-3", "coordinator"):
            killed = await swarm.command("kill", agent, "--json")
            assert killed.code == 0, killed
            assert killed.json["outcome"] == "recovered"
        await subscriber.more_decisions(10)
        audit = await swarm.command("audit", "--json")
        assert audit.code == 0, audit.out + audit.err
        replay = await swarm.command("replay", "--json")  # it finds the agents by the record of the run
        assert replay.code == 0, replay.out + replay.err
        assert set(audit.json["agents"]) == set(replay.json["agents"]) == {*AGENTS, *ADDED}


async def test_too_few_agents_are_refused_before_anything_is_started(tmp_path: Path):
    done = await Swarm(tmp_path).command("up", "--agents", "3")
    assert done.code == 2
    assert "--agents 3: expected 5" in done.err
    assert not (tmp_path / ".signalmesh").exists()
