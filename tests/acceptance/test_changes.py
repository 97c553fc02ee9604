"""The swarm is changed while it runs, and the watchdog is killed meanwhile: each change is made once or not at all."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.subscriber import Subscriber
from tests.acceptance.swarm import AGENTS, Finished, Swarm, agents_toml

SPEED = "20"
TOML = agents_toml(limit=600)
"""Ends soon, so that reading it all takes no longer than it must."""


async def assert_clean(swarm: Swarm) -> None:
    """`audit` and `replay` find nothing."""
    for command in ("audit", "replay"):
        found = await swarm.command(command, "--json")
        assert found.code == 0, found.out
        assert found.json["ok"], found.out


async def home_of(swarm: Swarm, agent: str) -> str:
    status = (await swarm.command("status", "--json")).json
    [sandbox] = [item["sandbox"] for item in status["agents"] if item["name"] == agent]
    return str(sandbox)


def changes_of(subscriber: Subscriber) -> list[dict[str, Any]]:
    """The changes that were stored, in order."""
    return [config["changes"] for config in subscriber.configs if config.get("changes")]


async def kill_leader_when(
    swarm: Swarm, subscriber: Subscriber, what: str, happened: Callable[[], bool], command: Awaitable[Finished]
) -> Finished:
    """Run the command, and kill the leading watchdog once `happened`."""
    running = asyncio.ensure_future(command)
    await subscriber.until(what, happened)
    swarm.send(subscriber.heartbeats["watchdog"]["pid"], signal.SIGKILL)
    return await running


@pytest.mark.slow
async def test_a_moved_agent_keeps_its_outputs_and_stays_there(tmp_path: Path):
    async with Swarm(tmp_path, TOML) as swarm:
        subscriber = await swarm.up("--speed", SPEED)
        await subscriber.live(*AGENTS)
        await subscriber.decided(300)
        before = subscriber.heartbeats["strategy-momentum"]
        moved = await swarm.command("move", "strategy-momentum", "--to", "python", "--json")
        assert moved.code == 0, moved.err
        assert moved.json["sandbox"] == "python"
        assert moved.json["epoch"] > before["epoch"]
        [event] = [event for event in subscriber.lifecycle if event["event"] == "moved"]
        assert (event["agent"], event["sandbox"], event["detail"]) == (
            "strategy-momentum", "python", {"moved_from": "nodejs"},
        )  # fmt: skip
        [changes] = changes_of(subscriber)
        assert changes["moved"]["strategy-momentum"]["sandbox"] == "python"
        assert changes["change"] == "move strategy-momentum to python"
        # A death is no reason to return.
        swarm.send(subscriber.heartbeats["strategy-momentum"]["pid"], signal.SIGKILL)
        await subscriber.back({"strategy-momentum": moved.json["epoch"]})
        assert await home_of(swarm, "strategy-momentum") == "python"
        assert (await swarm.command("rebalance", "--json")).json == {"moved": []}
        await assert_clean(swarm)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["asked", "stored", "drained", "claimed"])
async def test_a_watchdog_killed_in_the_middle_of_a_move_moves_once(tmp_path: Path, step: str):
    name = "strategy-momentum"
    async with Swarm(tmp_path, TOML) as swarm:
        subscriber = await swarm.up("--speed", SPEED)
        epoch = (await subscriber.live(*AGENTS))[name]["epoch"]
        happened = {
            "asked": lambda: True,
            "stored": lambda: bool(changes_of(subscriber)),
            "drained": lambda: any(event["event"] == "drained" for event in subscriber.lifecycle),
            "claimed": lambda: subscriber.claims[name] > epoch,
        }[step]
        command = swarm.command("move", name, "--to", "python", "--json")
        moved = await kill_leader_when(swarm, subscriber, step, happened, command)
        assert moved.code == 0, moved.err
        assert moved.json["sandbox"] == "python"
        assert len({changes["revision"] for changes in changes_of(subscriber)}) == 1
        assert await home_of(swarm, name) == "python"
        assert (await swarm.command("audit")).code == 0


@pytest.mark.slow
async def test_agents_of_a_lost_sandbox_return_by_rebalance(tmp_path: Path):
    async with Swarm(tmp_path, TOML) as swarm:
        subscriber = await swarm.up("--speed", SPEED)
        before = await subscriber.live(*AGENTS)
        host = subscriber.heartbeats["nodejs"]["pid"]
        swarm.send(host, signal.SIGKILL)
        lost = {name: before[name]["epoch"] for name in ("research-2", "strategy-momentum")}
        await subscriber.back(lost)
        await subscriber.until("its host is back", lambda: subscriber.heartbeats["nodejs"]["pid"] != host)
        elsewhere = [name for name in lost if subscriber.heartbeats[name]["sandbox"] != "nodejs"]
        done = await swarm.command("rebalance", "--json")
        assert done.code == 0, done.err
        assert {item["agent"]: item["sandbox"] for item in done.json["moved"]} == dict.fromkeys(elsewhere, "nodejs")
        for name in lost:
            assert await home_of(swarm, name) == "nodejs"
        assert changes_of(subscriber) == []
        assert (await swarm.command("audit")).code == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (("nobody", "--to", "base"), 2, "no agent 'nobody' in this swarm; it has: research-1"),
        (("coordinator", "--to", "pyton"), 2, "no sandbox 'pyton' (did you mean 'python'?); there are: base, nodejs"),
    ],
)
async def test_a_wrong_move_changes_nothing(tmp_path: Path, arguments: tuple[str, ...], code: int, problem: str):
    async with Swarm(tmp_path) as swarm:
        subscriber = await swarm.up("--speed", SPEED)
        await subscriber.live(*AGENTS)
        refused = await swarm.command("move", *arguments)
        assert (refused.code, problem in refused.err) == (code, True), refused.err
        assert changes_of(subscriber) == []
