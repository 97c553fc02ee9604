"""One swarm of a name on a server, and a record that stays true."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from tests.acceptance.faults import kill_server
from tests.acceptance.subscriber import SwarmMessage, read_stream
from tests.acceptance.swarm import AGENTS, SANDBOXES, Ends, Swarm, agents_toml
from tests.support.nats import plain_server


@pytest.mark.slow
async def test_a_second_swarm_of_one_name_is_refused_until_the_first_is_gone(tmp_path: Path):
    async with (
        plain_server(tmp_path, "-js", "-sd", str(tmp_path / "store")) as url,
        Swarm(tmp_path / "first", agents_toml(speed=20)) as first,
        Swarm(tmp_path / "second", agents_toml(speed=20)) as second,
    ):
        subscriber = await first.up("--nats", url)
        heartbeats = await subscriber.live(*AGENTS)
        refused = await second.command("up", "--nats", url)
        assert (refused.code, refused.out) == (2, ""), refused
        assert all(name in refused.err for name in (*SANDBOXES, url, "signalmesh down", "swarm.toml"))
        assert {name: heartbeat["epoch"] for name, heartbeat in (await subscriber.live(*AGENTS)).items()} == {
            name: heartbeat["epoch"] for name, heartbeat in heartbeats.items()
        }
        assert subscriber.alerts == []

        ends = await Ends.of(*(process.pid for process in first.all_agents()))
        first.process.kill()
        await first.wait()
        again = await second.up("--nats", url)  # at once, while its children may still be ending
        await ends.all()
        later = await again.live(*AGENTS)
        assert all(heartbeat["epoch"] > heartbeats[name]["epoch"] for name, heartbeat in later.items())
        assert await second.end(signal.SIGINT) == 0
        assert re.fullmatch("signalmesh: who may publish and read at .* is up to that server's own .*\n", second.errors)


def recorded_server(swarm: Swarm) -> int:
    [pid] = [child["pid"] for child in swarm.record["children"] if child["kind"] == "nats-server"]
    assert isinstance(pid, int)
    return pid


def restarted(message: SwarmMessage) -> bool:
    return message.kind == "alert" and message.json["code"] == "nats_server_restarted"


@pytest.mark.slow
async def test_the_record_names_the_server_that_runs(tmp_path: Path):
    async with Swarm(tmp_path) as swarm:
        subscriber = await swarm.up("--speed", "20")
        await subscriber.live(*AGENTS)
        [before] = [child["pid"] for child in swarm.record["children"] if child["kind"] == "nats-server"]
        await kill_server(swarm, subscriber)
        while not any(restarted(message) for message in await read_stream(swarm.url, swarm.name)):
            await subscriber.more_decisions(1)  # the subscriber itself may have come back after the alert
        [pid] = [process.pid for process in swarm.all_agents() if process.name().startswith("nats-server")]
        assert pid != before
        assert [child["pid"] for child in swarm.record["children"] if child["kind"] == "nats-server"] == [pid]
