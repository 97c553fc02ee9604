"""Two watchdogs: whatever happens to the leader, the standby goes on where it stopped, and no agent is restarted."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bus.utils.processes import die_with_parent
from coordinator.security.keys import KeyStore, key_environment
from tests.acceptance.exact import (
    ROUNDS,
    Content,
    assert_each_round_once,
    assert_numbered,
    assert_same,
    content_of,
    exact_toml,
)
from tests.acceptance.faults import kill_agents
from tests.acceptance.subscriber import Subscriber, read_stream
from tests.acceptance.swarm import AGENTS, ENVIRONMENT, SANDBOXES, Ends, Swarm

Heartbeat = dict[str, Any]


async def both(subscriber: Subscriber) -> tuple[Heartbeat, Heartbeat]:
    """Heartbeats of the leader and the standby."""
    await subscriber.until("two watchdogs", lambda: {"watchdog", "standby"} <= subscriber.heartbeats.keys())
    return subscriber.heartbeats["watchdog"], subscriber.heartbeats["standby"]


async def new_leader(subscriber: Subscriber, term: int) -> Heartbeat:
    """The heartbeat of the leader of a later term."""
    await subscriber.until("a successor", lambda: subscriber.heartbeats["watchdog"]["epoch"] > term)
    return subscriber.heartbeats["watchdog"]


async def new_standby(subscriber: Subscriber, *pids: int) -> Heartbeat:
    await subscriber.until("another one stands by", lambda: subscriber.heartbeats["standby"]["pid"] not in pids)
    return subscriber.heartbeats["standby"]


def same(heartbeats: dict[str, Heartbeat], later: dict[str, Heartbeat]) -> bool:
    """Whether these are heartbeats of the same processes."""
    return all(
        (heartbeats[name]["pid"], heartbeats[name]["epoch"]) == (later[name]["pid"], later[name]["epoch"])
        for name in heartbeats
    )


async def assert_status(swarm: Swarm, leader: int, standby: int) -> None:
    """`status` reports the leader and the standby."""
    status = (await swarm.command("status", "--json")).json
    pids = {dog["pid"]: dog["term"] for dog in status["watchdogs"]}
    assert pids == {leader: status["watchdog_term"], standby: None}
    plain = (await swarm.command("status")).out
    assert f"watchdog {leader} leads with term {status['watchdog_term']}, standby: {standby}" in plain


@pytest.mark.slow
async def test_the_standby_takes_over_from_a_killed_leader_and_restarts_no_agent(tmp_path: Path):
    async with Swarm(tmp_path) as swarm:
        subscriber = await swarm.up("--standby", "--speed", "50")
        await subscriber.decided(251)
        heartbeats = await subscriber.live(*AGENTS)
        leader, standby = await both(subscriber)
        await assert_status(swarm, leader["pid"], standby["pid"])
        swarm.send(leader["pid"], signal.SIGKILL)
        assert (await new_leader(subscriber, leader["epoch"]))["pid"] == standby["pid"]
        third = await new_standby(subscriber, standby["pid"])
        await subscriber.more_heartbeats(
            20, "watchdog"
        )  # long enough for a heartbeat of every host, and to start what no host reports
        assert same(heartbeats, await subscriber.live(*AGENTS))
        assert [alert["code"] for alert in subscriber.alerts] == ["watchdog_died"]
        await assert_status(swarm, standby["pid"], third["pid"])
        await kill_agents(swarm, subscriber, "strategy-momentum")  # it supervises what it has adopted
        await subscriber.more_decisions(5)
        assert_each_round_once(subscriber.decisions)
        assert await swarm.end(signal.SIGINT) == 0


@pytest.mark.slow
async def test_a_leader_that_was_stopped_finds_itself_superseded(tmp_path: Path):
    async with Swarm(tmp_path) as swarm:
        subscriber = await swarm.up("--standby", "--speed", "50")
        await subscriber.decided(251)
        heartbeats = await subscriber.live(*AGENTS)
        leader, standby = await both(subscriber)
        ends = await Ends.of(leader["pid"])
        swarm.send(leader["pid"], signal.SIGSTOP)
        killed = heartbeats.pop("coordinator")
        swarm.send(killed["pid"], signal.SIGKILL)  # what the stopped one receives first when it goes on
        new = await new_leader(subscriber, leader["epoch"])
        assert new["pid"] == standby["pid"]
        back = (await subscriber.back({"coordinator": killed["epoch"]}))["coordinator"]

        for sandbox in SANDBOXES:  # hosts that the new leader has not ordered anything yet refuse the old one as well
            order = {"term": leader["epoch"], "agent": "research-1", "epoch": 1 << 40}
            reply = await subscriber.ask(sandbox, "kill", json.dumps(order).encode())
            assert f"term {leader['epoch']}" in reply["error"], reply
            assert f"term {new['epoch']}" in reply["error"], reply

        swarm.send(leader["pid"], signal.SIGCONT)
        await ends.all()
        third = await new_standby(subscriber, standby["pid"], leader["pid"])
        await subscriber.more_heartbeats(20, "watchdog")
        assert same({**heartbeats, "coordinator": back}, await subscriber.live(*AGENTS))
        assert subscriber.heartbeats["watchdog"]["epoch"] == new["epoch"]
        claims = [message.json for message in subscriber.messages if message.subject == "swarm.epoch.coordinator"]
        assert len(claims) == 2
        spawned = [
            event for event in subscriber.lifecycle if event["event"] == "spawned" and event["agent"] == "coordinator"
        ]
        assert [event["epoch"] for event in spawned] == [killed["epoch"], back["epoch"]]
        await assert_status(swarm, standby["pid"], third["pid"])
        await subscriber.more_decisions(5)
        assert_each_round_once(subscriber.decisions)
        assert_numbered(await read_stream(swarm.url, swarm.name))


@pytest.mark.slow
async def test_a_stopped_standby_does_not_take_over_when_it_goes_on(tmp_path: Path):
    async with Swarm(tmp_path) as swarm:
        subscriber = await swarm.up("--standby", "--speed", "20")
        await subscriber.live(*AGENTS)
        leader, standby = await both(subscriber)
        swarm.send(standby["pid"], signal.SIGSTOP)
        await subscriber.more_heartbeats(20, "watchdog")
        swarm.send(standby["pid"], signal.SIGCONT)
        await subscriber.more_heartbeats(20, "standby")
        assert subscriber.heartbeats["watchdog"]["epoch"] == leader["epoch"]
        assert (subscriber.heartbeats["watchdog"]["pid"], subscriber.heartbeats["standby"]["pid"]) == (
            leader["pid"],
            standby["pid"],
        )
        assert subscriber.alerts == []


@pytest.mark.slow
async def test_a_leader_that_never_goes_on_is_ended_and_replaced(tmp_path: Path):
    async with Swarm(tmp_path) as swarm:
        subscriber = await swarm.up("--standby", "--speed", "20")
        heartbeats = await subscriber.live(*AGENTS)
        leader, standby = await both(subscriber)
        ends = await Ends.of(leader["pid"])
        swarm.send(leader["pid"], signal.SIGSTOP)
        await ends.all()
        third = await new_standby(subscriber, standby["pid"])
        assert subscriber.heartbeats["watchdog"]["pid"] == standby["pid"]
        await assert_status(swarm, standby["pid"], third["pid"])
        assert same(heartbeats, await subscriber.live(*AGENTS))
        assert [alert["code"] for alert in subscriber.alerts] == ["watchdog_unresponsive", "watchdog_died"]


@pytest.mark.slow
async def test_both_killed_at_once_come_back(tmp_path: Path):
    async with Swarm(tmp_path) as swarm:
        subscriber = await swarm.up("--standby", "--speed", "50")
        await subscriber.decided(251)
        heartbeats = await subscriber.live(*AGENTS)
        killed = [heartbeat["pid"] for heartbeat in await both(subscriber)]
        term = subscriber.heartbeats["watchdog"]["epoch"]
        for pid in killed:
            swarm.send(pid, signal.SIGKILL)
        leader = await new_leader(subscriber, term)
        await new_standby(subscriber, *killed, leader["pid"])
        await subscriber.more_heartbeats(20, "watchdog")
        assert same(heartbeats, await subscriber.live(*AGENTS))
        await kill_agents(swarm, subscriber, "strategy-momentum")
        await subscriber.more_decisions(5)
        assert_each_round_once(subscriber.decisions)


DOOMED = """
import asyncio, os, signal, sys
from pathlib import Path

from coordinator.supervisor import executor
from coordinator.supervisor.host_client import HostClient
from coordinator.runner.entrypoints import run_watchdog

moment, url, config = sys.argv[1:]
claim, spawn = executor.claim, HostClient.spawn

def at(this):
    if moment == this:
        os.kill(os.getpid(), signal.SIGKILL)

async def claims(*arguments, **named):
    at("before the claim")
    return await claim(*arguments, **named)

async def spawns(self, *arguments, **named):
    at("after the claim")
    asking = asyncio.create_task(spawn(self, *arguments, **named))
    await asyncio.sleep(0)
    await self._bus.connection.client.flush()  # the order has reached the server
    at("during the spawn")
    await asking
    at("after the spawn")

executor.claim, HostClient.spawn = claims, spawns
sys.exit(run_watchdog(url, Path(config), "swarm", None, "info", standby=True))
"""
CLAIMS = {"before the claim": 1, "after the claim": 2, "during the spawn": 1, "after the spawn": 1}
"""How often an agent is claimed until it runs again, if its watchdog dies at this moment of restarting it."""


@contextlib.asynccontextmanager
async def doomed(swarm: Swarm, moment: str) -> AsyncIterator[int]:
    """A further watchdog that kills itself at this moment of the first restart that it orders; its pid."""
    keys = KeyStore(swarm.directory / ".signalmesh").directory
    with (swarm.directory / "doomed.log").open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            DOOMED,
            moment,
            swarm.url,
            str(swarm.directory / "swarm.toml"),
            cwd=swarm.directory,
            env={**ENVIRONMENT, **(key_environment(keys, "watchdog", "watchdog") if keys.exists() else {})},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=functools.partial(die_with_parent, os.getpid()),
        )
    try:
        yield process.pid
        async with asyncio.timeout(60):
            assert await process.wait() == -signal.SIGKILL
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("moment", CLAIMS)
async def test_a_leader_that_dies_while_it_restarts_an_agent(tmp_path: Path, moment: str, undisturbed: Content):
    agent = "strategy-momentum"
    async with Swarm(tmp_path, exact_toml(speed=60)) as swarm:
        subscriber = await swarm.up("--standby")
        await subscriber.decided(251)
        leader, standby = await both(subscriber)
        async with doomed(swarm, moment) as pid:
            await subscriber.until("a third one", lambda: subscriber.heartbeats["standby"]["pid"] == pid)
            for stopped in (leader, standby):
                swarm.send(stopped["pid"], signal.SIGSTOP)
            leading = await new_leader(subscriber, leader["epoch"])
            assert leading["pid"] == pid
            swarm.send(standby["pid"], signal.SIGCONT)
            await subscriber.until(
                "the standby again", lambda: subscriber.heartbeats["standby"]["pid"] == standby["pid"]
            )
            heartbeats = await subscriber.live(*AGENTS)
            claimed = dict(subscriber.claims)
            swarm.send(heartbeats[agent]["pid"], signal.SIGKILL)
        new = await new_leader(subscriber, leading["epoch"])
        assert new["pid"] == standby["pid"]
        await subscriber.back({agent: heartbeats[agent]["epoch"]})
        swarm.send(leader["pid"], signal.SIGCONT)
        await subscriber.all_decided(ROUNDS)
        await subscriber.more_heartbeats(5, "watchdog", *SANDBOXES)

        claims = [message.sequence for message in subscriber.messages if message.subject == f"swarm.epoch.{agent}"]
        assert len([sequence for sequence in claims if sequence > claimed[agent]]) == CLAIMS[moment]
        children = [child for sandbox in SANDBOXES for child in subscriber.heartbeats[sandbox]["inventory"]]
        running = [(child["agent"], child["epoch"]) for child in children if child.get("exit_code") is None]
        assert sorted(running) == sorted((name, subscriber.claims[name]) for name in AGENTS)
        others = {name: heartbeat for name, heartbeat in heartbeats.items() if name != agent}
        assert same(others, await subscriber.live(*AGENTS))
        assert subscriber.heartbeats["watchdog"]["epoch"] == new["epoch"]
        messages = await read_stream(swarm.url, swarm.name)
        assert_numbered(messages)
        assert_same(content_of(messages), undisturbed)
