"""The wall clock of the whole swarm jumps by an hour, to and fro: no process dies of it, and no decision changes."""

from __future__ import annotations

import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from tests.acceptance.exact import Content
from tests.acceptance.faults import kill_agents
from tests.acceptance.subscriber import Subscriber
from tests.acceptance.swarm import AGENTS, Swarm
from tests.matrix.verification import Before, matrix_toml, verify

HOUR_S = 3600
SOURCE = Path(__file__).parents[1] / "support" / "wall_clock.c"


def moved_by(directory: Path) -> tuple[dict[str, str], Callable[[int], None]]:
    """The environment of processes whose wall clock can be moved, and what moves it: to so many seconds ahead."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler is here (Debian: apt install gcc libc6-dev)")
    library, file = directory / "wall_clock.so", directory / "wall_clock"
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, SOURCE, "-ldl"], check=True)
    file.write_bytes(struct.pack("q", 0))

    def move(seconds: int) -> None:
        with file.open("r+b") as written:
            written.write(struct.pack("q", seconds))

    return {"LD_PRELOAD": str(library), "WALL_CLOCK_FILE": str(file)}, move


def ahead_s(subscriber: Subscriber) -> float:
    """How far the clock that dated the newest lifecycle event is ahead of ours, in seconds."""
    return datetime.fromisoformat(subscriber.lifecycle[-1]["timestamp"]).timestamp() - time.time()


@pytest.mark.serial
async def test_the_wall_clock_jumps(tmp_path: Path, undisturbed_long: Content):
    environment, move = moved_by(tmp_path)
    async with Swarm(tmp_path, matrix_toml(), environment=environment) as swarm:
        subscriber = await swarm.up()
        before = await Before.of(subscriber)
        risen = set()
        for hours, agent in ((1, "research-1"), (-1, "coordinator"), (0, "strategy-momentum")):
            move(hours * HOUR_S)
            deaths = [event for event in subscriber.lifecycle if event["event"] == "declared_dead"]
            await subscriber.more_heartbeats(30, *AGENTS)  # three seconds: many times the timeout of any process
            assert [event for event in subscriber.lifecycle if event["event"] == "declared_dead"] == deaths
            await kill_agents(
                swarm, subscriber, agent
            )  # events are dated by the clock as it is now, and it comes back all the same
            risen.add(agent)
            assert abs(ahead_s(subscriber) - hours * HOUR_S) < HOUR_S / 4, "the clock was not faked"
        await verify(swarm, subscriber, undisturbed_long, before, risen)
        assert [alert["code"] for alert in subscriber.alerts] == []
        assert await swarm.end(signal.SIGINT) == 0
