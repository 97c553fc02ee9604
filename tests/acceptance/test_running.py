"""Starting, looking, ending, and starting again: what one sees, what is left, and that nothing starts over."""

from __future__ import annotations

import random
import signal
from datetime import datetime
from pathlib import Path

import psutil
import pytest

from tests.acceptance.exact import (
    ROUNDS,
    Content,
    assert_beginning,
    assert_each_round_once,
    assert_numbered,
    assert_same,
    content_of,
    exact_toml,
)
from tests.acceptance.faults import kill_agents
from tests.acceptance.subscriber import Subscriber, read_stream
from tests.acceptance.swarm import AGENTS, SANDBOXES, Ends, Swarm


@pytest.mark.slow
async def test_status_and_two_swarms_on_one_server(tmp_path: Path, undisturbed: Content):
    few = 120
    async with (
        Swarm(tmp_path / "one", exact_toml(speed=50, rounds=9000)) as one,
        Swarm(tmp_path / "two", exact_toml(speed=0, rounds=few, top='swarm = "two"'), "two") as two,
    ):
        subscriber = await one.up("--open")
        other = await two.up("--nats", one.url)
        await subscriber.decided(200)
        await other.decided(few)
        heartbeats = await subscriber.live(*AGENTS)
        others = await other.live(*AGENTS)
        await kill_agents(one, subscriber, "coordinator")

        for role in ("sandbox", "watchdog", "agent"):
            received = await one.command("health", role, "--json")
            assert (received.code, received.json["ok"], received.json["role"]) == (0, True, role)
        without_heartbeat = await one.command("health", "sandbox", "--timeout", "0.3", "--swarm", "three")
        assert without_heartbeat.code == 1, without_heartbeat

        requested = await one.command("status", "--json")
        assert requested.code == 0, requested
        status = requested.json
        assert (status["swarm"], status["nats"]) == ("swarm", one.url)
        assert (status["active_agents"], status["processes"]) == (5, 5)
        sandboxes = {row["name"]: row for row in status["sandboxes"]}
        assert sorted(sandboxes) == sorted(SANDBOXES)
        assert sorted(name for row in sandboxes.values() for name in row["agents"]) == sorted(AGENTS)
        if not any(
            event["event"] == "moved" for event in subscriber.lifecycle
        ):  # a host that is starved of CPU loses them
            assert sandboxes["nodejs"]["agents"] == ["research-2", "strategy-momentum"]
        for row in sandboxes.values():
            assert (row["provider"], row["status"]) == ("local", "active")
            assert row["uptime_s"] > 0
            if Path("/proc/self/smaps_rollup").exists():  # else this system does not measure it
                assert 0 < row["health"]["pss_mb"] <= row["health"]["rss_mb"]
        agents = {row["name"]: row for row in status["agents"]}
        assert sorted(agents) == sorted(AGENTS)
        for name, row in agents.items():
            assert row["status"] == "active"
            assert row["agent_id"].startswith("agent_")
            assert row["capabilities"]
            assert row["restarts"] == (name == "coordinator")
            assert row["heartbeat_age_ms"] >= 0
            assert row["lag"] >= 0
            assert row["cursor"] > 0
            assert row["outputs"] > 0
            assert row["poison"] == 0
            assert psutil.Process(row["pid"]).is_running()
            if name != "coordinator":
                assert (row["pid"], row["epoch"]) == (heartbeats[name]["pid"], heartbeats[name]["epoch"])
        assert agents["research-1"]["kind"] == "market-data"
        assert status["decisions"]["count"] >= 200
        assert datetime.fromisoformat(status["decisions"]["last_at"]).year == 2017
        plain = await one.command("status")
        assert plain.code == 0
        assert all(name in plain.out for name in (*AGENTS, *SANDBOXES, one.url))

        theirs = (await two.command("status", "--json")).json
        assert (theirs["swarm"], theirs["active_agents"]) == ("two", 5)
        assert theirs["decisions"]["count"] == few
        again = await other.live(*AGENTS)
        assert {n: b["epoch"] for n, b in again.items()} == {n: b["epoch"] for n, b in others.items()}
        assert {message.subject.split(".")[0] for message in other.messages} == {"two"}
        stored = content_of(await read_stream(one.url, "two"))
        renamed = {f"swarm{subject[3:]}": payloads for subject, payloads in stored.items()}
        assert_beginning(renamed, undisturbed, few)
        assert_each_round_once(subscriber.decisions)

        assert await two.end(signal.SIGINT) == 0
        await subscriber.more_decisions(5)  # the server was not theirs to end
        assert await one.end(signal.SIGINT) == 0


async def assert_went_on(subscriber: Subscriber, before: dict[str, int], decided: int) -> None:
    """Epochs rose, and what is decided from here on are later rounds than those decided before."""
    assert all(heartbeat["epoch"] > before[name] for name, heartbeat in (await subscriber.live(*AGENTS)).items())
    assert all(decision["round"] > decided for decision in subscriber.decisions)


@pytest.mark.slow
async def test_kill_9_of_up_leaves_nothing_and_the_next_one_goes_on(
    tmp_path: Path, undisturbed: Content, chance: random.Random
):
    async with Swarm(tmp_path, exact_toml()) as swarm:
        subscriber = await swarm.up()
        await subscriber.decided(chance.randint(200, 350))
        ends = await Ends.of(*(process.pid for process in swarm.all_agents()))
        assert len(ends.pids) >= 1 + 1 + 1 + len(SANDBOXES) + len(AGENTS)  # up, server, watchdog, hosts, agents
        swarm.process.kill()
        await ends.all()
        assert await swarm.wait() == -signal.SIGKILL
        before, decided = dict(subscriber.claims), subscriber.decisions[-1]["round"]

        no_process = await swarm.command("status")
        assert no_process.code == 3, no_process
        assert "signalmesh up" in no_process.err
        assert (await swarm.command("down")).code == 2

        again = await swarm.up()
        await assert_went_on(again, before, decided)
        await again.all_decided(ROUNDS)
        messages = await read_stream(swarm.url, swarm.name)
        assert_numbered(messages)
        assert_same(content_of(messages), undisturbed)


@pytest.mark.slow
async def test_ctrl_c_and_down_end_cleanly_and_the_next_up_goes_on(
    tmp_path: Path, undisturbed: Content, chance: random.Random
):
    async with Swarm(tmp_path, exact_toml()) as swarm:
        subscriber = await swarm.up()
        await subscriber.decided(chance.randint(100, 350))
        assert await swarm.end(signal.SIGINT) == 0
        assert not (tmp_path / ".signalmesh" / "run.json").exists()
        before, decided = dict(subscriber.claims), subscriber.decisions[-1]["round"]

        subscriber = await swarm.up()
        await assert_went_on(subscriber, before, decided)
        before = dict(subscriber.claims)
        if subscriber.decisions:  # on a slow machine all may have been decided before the first end
            decided = subscriber.decisions[-1]["round"]
        ends = await Ends.of(*(process.pid for process in swarm.all_agents()))
        down = await swarm.command("down")
        assert down.code == 0, down
        assert await swarm.wait() == 0
        await ends.all()

        subscriber = await swarm.up()
        await assert_went_on(subscriber, before, decided)
        before = dict(subscriber.claims)
        assert await swarm.end(signal.SIGHUP) == 0  # the terminal was closed

        subscriber = await swarm.up()
        await assert_went_on(subscriber, before, decided)
        await subscriber.all_decided(ROUNDS)
        messages = await read_stream(swarm.url, swarm.name)
        assert_numbered(messages)
        assert_same(content_of(messages), undisturbed)
        drained = {
            message.writer for message in messages if message.kind == "lifecycle" and message.json["event"] == "drained"
        }
        assert drained == {*AGENTS}
        assert not [
            message.json for message in messages if message.kind == "alert" and message.json["severity"] == "critical"
        ]
        # Whether the last `up` has noticed that by now is open.
        assert [line for line in swarm.errors.splitlines() if "the data has ended: research-1" not in line] == []
