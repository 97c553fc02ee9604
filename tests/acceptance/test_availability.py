"""A sandbox was not available while its host was dead; an outage of the bus is held against none."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import pytest

from tests.acceptance.swarm import AGENTS, SANDBOXES, Ends, Swarm

OUTAGE_S = 4.0
"""Far longer than a silence that is taken for an absence."""


@pytest.mark.slow
@pytest.mark.serial
async def test_no_sandbox_is_absent_while_the_bus_is_away(tmp_path: Path):
    async with Swarm(tmp_path) as swarm:
        subscriber = await swarm.up("--speed", "20")
        await subscriber.live(*AGENTS)
        [server] = [process.pid for process in swarm.all_agents() if process.name().startswith("nats-server")]
        ends = await Ends.of(server)
        swarm.process.send_signal(signal.SIGSTOP)  # no process starts another one meanwhile
        since = time.monotonic()
        swarm.send(server, signal.SIGKILL)
        await ends.all()
        await asyncio.sleep(OUTAGE_S)
        outage_s = time.monotonic() - since
        swarm.process.send_signal(signal.SIGCONT)
        await subscriber.more_heartbeats(10, "watchdog", *SANDBOXES)
        status = (await swarm.command("status", "--json")).json
        healths = {sandbox["name"]: sandbox["health"] for sandbox in status["sandboxes"]}
        assert set(healths) == set(SANDBOXES)
        for health in healths.values():
            assert health["seen_s"] * (1 - health["availability"]) < outage_s / 2, healths
        assert [event for event in subscriber.lifecycle if event["event"] == "declared_dead"] == []


@pytest.mark.slow
async def test_the_time_between_a_host_that_was_killed_and_the_next_one_counts_as_absence(tmp_path: Path):
    async with Swarm(tmp_path) as swarm:
        subscriber = await swarm.up("--speed", "20")
        await subscriber.live(*AGENTS)
        pid = subscriber.heartbeats["python"]["pid"]
        # Replaced after about HOST_LOST_S: silence alone is seen only sometimes; tests/unit controls the clock.
        swarm.send(pid, signal.SIGKILL)
        await subscriber.until("another host", lambda: subscriber.heartbeats["python"]["pid"] != pid)
        await subscriber.more_heartbeats(3, "python", "watchdog")
        status = (await swarm.command("status", "--json")).json
        [health] = [sandbox["health"] for sandbox in status["sandboxes"] if sandbox["name"] == "python"]
        assert 0 < health["availability"] < 1, health
