"""`signalmesh chaos` on a whole swarm: it recovers from each fault, and chaos says so only when it did."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path

import pytest

from coordinator.chaos.plan import Places, plan
from coordinator.chaos.runner import places_of
from coordinator.replay.runner import config_of
from coordinator.runner.run_record import read_run
from tests.acceptance.swarm import AGENTS, Swarm, run_verb

SEED = 5
GUARD_S = 400.0


def places(swarm: Swarm) -> Places:
    state_dir = swarm.directory / ".signalmesh"
    run = read_run(state_dir)
    assert run is not None
    return places_of(config_of(None, state_dir), run)


@pytest.mark.slow
@pytest.mark.timeout(500)
async def test_a_seeded_run_of_faults_with_its_proof(tmp_path: Path):
    async with Swarm(tmp_path) as swarm:
        ear = await swarm.up("--speed", "20", "--standby", "--fault-proxy")
        await ear.decided(260)
        await ear.live(*AGENTS)
        there = places(swarm)
        assert there.has >= {"nats-server", "proxy", "mirror", "standby"}
        done = await swarm.verb(
            "chaos", "--for", "20", "--seed", str(SEED), "--patience", "120", "--json", guard_s=GUARD_S
        )
        assert done.code == 0, (done.json["problems"], done.json["proofs"], done.err)
        found = done.json
        assert (found["ok"], found["problems"], found["seed"]) == (True, [], SEED)

        faults = sorted(found["faults"], key=lambda fault: fault["number"])
        planned = list(itertools.islice(plan(SEED, there), len(faults)))
        assert [(fault["kind"], tuple(fault["targets"])) for fault in faults] == [(p.kind, p.targets) for p in planned]
        assert {fault["outcome"] for fault in faults} <= {"recovered", "not applicable"}
        recovered = [fault for fault in faults if fault["outcome"] == "recovered"]
        assert len(recovered) >= 5
        assert all(fault["recovered_ms"] > 0 for fault in recovered)
        assert all(fault["detected_ms"] > 0 for fault in recovered if fault["kind"] in ("kill-agent", "kill-host"))
        assert sum(kind["recovered"] for kind in found["kinds"]) == len(recovered)

        heard = found["decisions"]
        assert heard["heard"] + heard["missed"] == heard["stored"] > 0
        assert (heard["gaps_in_one_connection"], heard["rounds_doubled"]) == (0, 0)
        assert {proof["name"]: proof["ok"] for proof in found["proofs"]} == {"audit": True, "replay": True}
        await ear.more_decisions(5)
        assert (await swarm.verb("status", "--json")).json["active_agents"] == len(AGENTS)
        assert (await swarm.verb("doctor", "--json")).json["ok"]


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_a_swarm_that_does_not_recover_is_a_failure(tmp_path: Path):
    async with Swarm(tmp_path) as swarm:
        ear = await swarm.up("--speed", "20")
        await ear.live(*AGENTS)
        there = places(swarm)
        assert "proxy" not in there.has
        seed = next(seed for seed in itertools.count() if next(plan(seed, there)).kind == "kill-watchdog")
        swarm.send(swarm.process.pid, signal.SIGSTOP)  # nobody is there to start the watchdog again
        done = await swarm.verb("chaos", "--for", "5", "--seed", str(seed), "--patience", "3", "--json")
        swarm.send(swarm.process.pid, signal.SIGCONT)
        assert done.code == 1, done
        found = done.json
        assert not found["ok"]
        assert [fault["outcome"] for fault in found["faults"]] == ["not recovered"]
        assert "kill-watchdog" in found["problems"][0]


async def test_without_a_swarm_nothing_is_hit(tmp_path: Path):
    done = await run_verb(tmp_path, "chaos", "--for", "5")
    assert done.code == 2
    assert "no swarm runs" in done.err
    assert (await run_verb(tmp_path, "chaos", "--for", "0")).code == 2
