"""`signalmesh chaos` on a whole swarm: it recovers from each fault, and chaos reports so only when it did."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path

import pytest

from coordinator.chaos.plan import FaultTargets, plan
from coordinator.chaos.runner import candidates_of
from coordinator.monitor.run_files import config_of
from coordinator.runner.run_record import read_run
from tests.acceptance.swarm import AGENTS, Swarm, run_command

SEED = 5
GUARD_S = 400.0


def candidates(swarm: Swarm) -> FaultTargets:
    state_dir = swarm.directory / ".signalmesh"
    run = read_run(state_dir)
    assert run is not None
    return candidates_of(config_of(None, state_dir), run)


@pytest.mark.slow
@pytest.mark.serial
@pytest.mark.timeout(500)
async def test_a_seeded_run_of_faults_with_its_verification(tmp_path: Path):
    async with Swarm(tmp_path) as swarm:
        subscriber = await swarm.up("--speed", "20", "--standby", "--fault-proxy")
        await subscriber.decided(260)
        await subscriber.live(*AGENTS)
        there = candidates(swarm)
        assert there.has >= {"nats-server", "proxy", "mirror", "standby"}
        done = await swarm.command(
            "chaos", "--for", "20", "--seed", str(SEED), "--recovery-timeout", "120", "--json", guard_s=GUARD_S
        )
        assert done.code == 0, (done.json["problems"], done.json["verifications"], done.err)
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

        received = found["decisions"]
        assert received["received"] + received["missed"] == received["stored"] > 0
        assert (received["gaps_in_one_connection"], received["rounds_duplicated"]) == (0, 0)
        assert {verification["name"]: verification["ok"] for verification in found["verifications"]} == {
            "audit": True,
            "replay": True,
        }
        await subscriber.more_decisions(5)
        assert (await swarm.command("status", "--json")).json["active_agents"] == len(AGENTS)
        assert (await swarm.command("doctor", "--json")).json["ok"]


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_a_swarm_that_does_not_recover_is_a_failure(tmp_path: Path):
    async with Swarm(tmp_path) as swarm:
        subscriber = await swarm.up("--speed", "20")
        await subscriber.live(*AGENTS)
        there = candidates(swarm)
        assert "proxy" not in there.has
        seed = next(seed for seed in itertools.count() if next(plan(seed, there)).kind == "kill-watchdog")
        swarm.send(swarm.process.pid, signal.SIGSTOP)  # no process is there to start the watchdog again
        done = await swarm.command("chaos", "--for", "5", "--seed", str(seed), "--recovery-timeout", "3", "--json")
        swarm.send(swarm.process.pid, signal.SIGCONT)
        assert done.code == 1, done
        found = done.json
        assert not found["ok"]
        assert [fault["outcome"] for fault in found["faults"]] == ["not recovered"]
        assert "kill-watchdog" in found["problems"][0]


async def test_without_a_swarm_nothing_is_hit(tmp_path: Path):
    done = await run_command(tmp_path, "chaos", "--for", "5")
    assert done.code == 2
    assert "no swarm runs" in done.err
    assert (await run_command(tmp_path, "chaos", "--for", "0")).code == 2
