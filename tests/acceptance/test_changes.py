"""The swarm is changed while it runs, and the watchdog is killed meanwhile: each change is made once or not at all."""

from __future__ import annotations

import asyncio
import bisect
import json
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from bus.nats.credentials import SERVICES, credentials_from
from coordinator.dashboard.mirror_source import MirrorSource
from tests.acceptance.subscriber import Subscriber, SwarmMessage, read_stream
from tests.acceptance.swarm import (
    AGENTS,
    AUTHENTICATION,
    BREAKOUT,
    GUARD_S,
    SANDBOXES,
    VOTERS,
    Ends,
    Finished,
    Swarm,
    agents_toml,
)

SPEED = "20"
TOML = agents_toml(limit=600)
"""Ends soon, so that reading it all takes no longer than it must."""
PRINTS = 'import os\nprint("imported")\nos.system("echo started")\n'


async def assert_clean(swarm: Swarm) -> None:
    """`audit` and `replay` find nothing."""
    for command in ("audit", "replay"):
        found = await swarm.command(command, "--json")
        assert found.code == 0, found.out
        assert found.json["ok"], found.out


async def homes_of(swarm: Swarm) -> dict[str, str]:
    """Agent -> its sandbox."""
    return {agent["name"]: agent["sandbox"] for agent in (await swarm.command("status", "--json")).json["agents"]}


async def home_of(swarm: Swarm, agent: str) -> str:
    return (await homes_of(swarm))[agent]


def changes_of(subscriber: Subscriber) -> list[dict[str, Any]]:
    """The changes that were stored, in order."""
    return [config["changes"] for config in subscriber.configs if config.get("changes")]


def assert_voters_of_their_rounds(messages: list[SwarmMessage], decider: str = "coordinator") -> None:
    """Each decision names the voters that all VotingConfigs had from its tick to what it answers, and nobody else."""
    sequences: list[int] = []
    voters: list[set[str]] = []
    ticks: dict[int, int] = {}
    decided = 0
    for message in sorted(messages, key=lambda each: each.sequence):
        if message.kind == "config":
            sequences.append(message.sequence)
            voters.append(set(message.json["voters"]))
        elif message.kind == "market":
            ticks[message.json["sequence"]] = message.sequence
        elif message.kind == "decision" and message.writer == decider:
            decision = message.json
            first = bisect.bisect(sequences, ticks[decision["round"]]) - 1
            last = bisect.bisect(sequences, int(message.headers["Mesh-Cause"]))
            expected = set.intersection(*voters[first:last])
            assert {*decision["agents_consulted"], *decision["absent"]} == expected, decision
            decided += 1
    assert decided


def numbers_of(messages: list[SwarmMessage], agent: str) -> list[int]:
    """The numbers of an agent's outputs, in the order of the stream."""
    return [int(m.headers["Mesh-Output"]) for m in messages if m.writer == agent and "Mesh-Output" in m.headers]


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


WRONG_MOVES = {
    ("nobody", "--to", "base"): "no agent 'nobody' in this swarm; it has: research-1",
    ("coordinator", "--to", "pyton"): "no sandbox 'pyton' (did you mean 'python'?); there are: base, nodejs",
}
"""What is refused, and by which words."""
OF_MARKET = ("--listens", "market", "--publishes", "signal", "--json")
ANSWERS = 'import sys\nfor line in sys.stdin:\n    print("{}", flush=True)\n'


@pytest.mark.slow
async def test_a_wrong_move_changes_nothing_and_a_program_that_ends_is_reported(tmp_path: Path):
    (tmp_path / "answers.py").write_text(ANSWERS)
    async with Swarm(tmp_path, "max_agents = 7\n" + TOML) as swarm:
        subscriber = await swarm.up("--speed", SPEED)
        await subscriber.live(*AGENTS)
        for arguments, words in WRONG_MOVES.items():
            refused = await swarm.command("move", *arguments)
            assert (refused.code, words in refused.err) == (2, True), refused.err
        assert changes_of(subscriber) == []

        failed = await swarm.command("add", "ends", "--command", "sh -c 'exit 3'", *OF_MARKET)
        assert (failed.code, failed.out) == (1, ""), failed.out
        assert "agent ends was added, but has died 2 times at the same message: exit code 1" in failed.err
        assert "it ended over a market (exit code 3)" in failed.err
        works = await swarm.command("add", "works", "--command", f"{sys.executable} answers.py", *OF_MARKET)
        assert works.code == 0, works.err
        assert works.json["cursor"] >= subscriber.claims["works"]
        assert {"ends", "works"} <= await agents_of(swarm)
        kept = tmp_path / ".signalmesh" / "changes.json"
        assert "exit 3" in kept.read_text()
        assert (await swarm.command("remove", "ends", "--forget")).code == 0
        await subscriber.until("it is in no copy", lambda: "exit 3" not in kept.read_text() or None)

        for name, warning in (
            ("coordinator", "no agent decides any more: there are no decisions"),
            ("research-1", "no agent publishes market data any more: no round begins"),
        ):
            removed = await swarm.command("remove", name, "--json")
            assert (removed.code, warning in removed.json["warnings"], warning in removed.err) == (0, True, True)


MISTAKES = {
    ("add", "new", "--kind", "momentun"): "unknown kind 'momentun' (did you mean 'momentum'?)",
    ("add", "new", "--class", "broken:Broken"): "importing broken failed: RuntimeError: on purpose",
    ("add", "new", "--class", "breakout:Brekout"): "has no class 'Brekout'",
    ("add", "new", "--kind", "momentum", "--option", "windo=3"): "unknown key",
    ("add", "new", "--kind", "momentum", "--option", "api_key=1"): "--option api_key: looks like a secret by its name",
    ("add", "new", "--command", "no-such-program", "--listens", "market", "--publishes", "signal"): "no program",
    ("add", "new", "--kind", "momentum", "--sandbox", "pyton"): "no sandbox 'pyton' (did you mean 'python'?)",
    ("add", "research-2", "--kind", "sentiment"): "is in the swarm already",
    ("add", "watchdog", "--kind", "momentum"): "this name is reserved",
    ("add", "NodeJS", "--kind", "momentum"): "collides with sandbox 'nodejs'",
    ("add", "new"): "expected one of them, none is given",
    ("scale", "momentum", "1000"): "at most 7 are allowed, which leaves room for 2 of kind momentum",
    ("scale", "momentum", "-1"): "scale momentum -1: expected 0 to 1000",
    ("scale", "momentum", str(10**30)): "expected 0 to 1000",
    ("scale", "momentun", "1"): "expected one of momentum, mean-reversion",
    ("remove", "nobody"): "no agent 'nobody' in this swarm; it has: research-1",
}
"""What is refused, and by which words."""


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_agents_come_and_go_while_the_swarm_decides(tmp_path: Path):
    async with Swarm(tmp_path, "max_agents = 7\n" + agents_toml(limit=20000)) as swarm:
        (tmp_path / "breakout.py").write_text(PRINTS + BREAKOUT)  # `replay --json` imports it
        (tmp_path / "broken.py").write_text('raise RuntimeError("on purpose")')
        subscriber = await swarm.up("--speed", SPEED)
        await subscriber.live(*AGENTS)
        await subscriber.decided(20)
        for arguments, words in MISTAKES.items():
            refused = await swarm.command(*arguments)
            assert (refused.code, words in refused.err) == (2, True), refused.err
        if not AUTHENTICATION:
            assert (await swarm.command("keys", "add", "theirs", "--role", "voter")).code == 0
            refused = await swarm.command("add", "theirs", "--kind", "momentum")
            assert (refused.code, "voter-theirs.nk is the key of a voter" in refused.err) == (2, True), refused.err
        assert changes_of(subscriber) == []

        add = ("add", "second", "--kind", "momentum", "--option", "rsi_period=9", "--json")
        both = await asyncio.gather(swarm.command(*add), swarm.command(*add))
        added, refused = sorted(both, key=lambda done: done.code)
        assert (added.code, refused.code) == (0, 2), [done.err for done in both]
        assert "is in the swarm already" in refused.err
        await subscriber.until("it votes", lambda: "second" in subscriber.configs[-1]["voters"])
        first, *_, last = [config for config in subscriber.configs if config.get("changes")]
        assert (set(first["voters"]), set(last["voters"])) == ({*VOTERS}, {*VOTERS, "second"})
        assert (await introduced(swarm, subscriber, "second"))["metadata"]["epoch"] == str(added.json["epoch"])
        class_of_users = await swarm.command("add", "breakout", "--class", "breakout:Breakout", "--weight", "0.5")
        assert class_of_users.code == 0, class_of_users.err
        refused = await swarm.command("add", "eighth", "--kind", "momentum")
        assert (refused.code, "at most 7 are allowed" in refused.err) == (2, True), refused.err

        # Removed, its process ends, its keys are revoked; added again, it goes on.
        removed = await swarm.command("remove", "second", "--json")
        assert removed.json == {"agent": "second", "forgotten": False, "warnings": []}
        await subscriber.happened("removed", "second")
        assert "second" not in (await swarm.command("status", "--json")).out
        keys = tmp_path / ".signalmesh" / "keys" / "agents"
        assert list(keys.glob("second.*")) == []
        refused = await swarm.command("add", "second", "--kind", "momentum")
        assert (refused.code, "has left a state as" in refused.err) == (2, True), refused.err
        again = await swarm.command("add", "second", "--kind", "momentum", "--option", "rsi_period=9", "--json")
        assert again.json["epoch"] > added.json["epoch"]
        # Forgotten, it begins anew; the numbers of its outputs go on.
        assert (await swarm.command("remove", "second", "--forget", "--json")).json["forgotten"]
        assert (await swarm.command("add", "second", "--kind", "mean-reversion")).code == 0
        # An agent of swarm.toml, and a second decider.
        assert (await swarm.command("remove", "research-2")).code == 0
        assert (await swarm.command("add", "decider", "--kind", "coordinator")).code == 0
        await subscriber.until("it decides", lambda: subscriber.decisions[-1]["source"] == "decider")
        await assert_clean(swarm)
        agents = {"research-1", *VOTERS, "coordinator", "second", "breakout", "decider"} - {"research-2"}
        assert await agents_of(swarm) == agents

        different = {"second": "added", "breakout": "added", "decider": "added", "research-2": "removed"}
        status = (await swarm.command("status", "--json")).json
        assert {one["agent"]: one["change"] for one in status["changes"]} == different
        restarts = {one["name"]: one["restarts"] for one in status["agents"]}
        assert restarts["second"] == 0  # it was added three times
        refused = await swarm.command("config", "reset")
        assert (refused.code, "`signalmesh down` first" in refused.err) == (2, True), refused.err
        assert await swarm.end(signal.SIGINT) == 0
        assert (await swarm.command("config", "diff", "--json")).json["changes"] == status["changes"]
        mirror = MirrorSource(tmp_path / ".signalmesh" / "mirror.sqlite")
        mirrored = mirror.status()
        mirror.close()
        assert mirrored is not None
        assert {one.name: one.restarts for one in mirrored.agents if one.name in restarts} == restarts
        saved = tmp_path / "saved.toml"
        done = await swarm.command("config", "save", "--out", str(saved))
        assert done.code == 0, done.err

        subscriber = await swarm.up("--speed", SPEED)
        await subscriber.live(*agents)
        assert await agents_of(swarm) == agents
        messages = await read_stream(swarm.url, swarm.name)
        *_, config = (message.json for message in messages if message.kind == "config")
        assert set(config["voters"]) == agents - {"research-1", "coordinator", "decider"}
        numbers = numbers_of(messages, "second")
        assert numbers == list(range(1, len(numbers) + 1))
        assert_voters_of_their_rounds(messages)
        await assert_clean(swarm)
        homes = await homes_of(swarm)

        # Saved while it runs, there is no difference any more, and the next start follows what is edited since.
        file = tmp_path / "swarm.toml"
        assert (await swarm.command("config", "save")).code == 0
        assert file.read_text() == saved.read_text()
        file.write_text(file.read_text().replace("weight = 0.5", "weight = 0.25"))
        for command in ("config diff", "status"):
            assert (await swarm.command(*command.split(), "--json")).json["changes"] == []
        assert await swarm.end(signal.SIGINT) == 0
        subscriber = await swarm.up("--speed", SPEED)
        await subscriber.live(*agents)
        assert subscriber.configs[-1]["voters"] == {**config["voters"], "breakout": 0.25}
        for command in ("config diff", "status"):
            assert (await swarm.command(*command.split(), "--json")).json["changes"] == []
        await assert_clean(swarm)
        assert await swarm.end(signal.SIGINT) == 0
        async with Swarm(tmp_path / "scratch", saved.read_text()) as scratch:
            (tmp_path / "scratch" / "breakout.py").write_text(BREAKOUT)
            subscriber = await scratch.up("--speed", SPEED)
            await subscriber.live(*agents)
            assert subscriber.configs[-1]["voters"] == config["voters"]
            assert await homes_of(scratch) == homes


async def introduced(swarm: Swarm, subscriber: Subscriber, agent: str) -> dict[str, Any]:
    """What the agent says of itself in NATS service discovery."""
    prefix = credentials_from().options(swarm.url).get("inbox_prefix", "_INBOX")
    inbox = f"{prefix}.{SERVICES}.{agent}"
    answers = await subscriber.client.subscribe(inbox)
    await subscriber.client.publish(f"$SRV.INFO.{agent}", b"", reply=inbox)
    answer: dict[str, Any] = json.loads((await answers.next_msg(GUARD_S)).data)
    await answers.unsubscribe()
    return answer


async def agents_of(swarm: Swarm) -> set[str]:
    return {*await homes_of(swarm)}


@pytest.mark.slow
async def test_a_watchdog_killed_in_the_middle_of_a_change_makes_it_once(tmp_path: Path):
    async with Swarm(tmp_path, "max_agents = 9\n" + agents_toml(limit=20000)) as swarm:
        subscriber = await swarm.up("--speed", SPEED)
        await subscriber.live(*AGENTS)

        def removed(name: str) -> bool:
            return any(event["event"] == "drained" and event["agent"] == name for event in subscriber.lifecycle)

        steps: list[tuple[str, tuple[str, ...], Callable[[], bool]]] = [
            ("asked", ("add", "one", "--kind", "momentum"), lambda: True),
            ("stored", ("add", "two", "--kind", "momentum"), lambda: "two" in newest_agents(subscriber)),
            ("claimed", ("add", "three", "--kind", "momentum"), lambda: "three" in subscriber.claims),
            ("asked", ("remove", "one"), lambda: True),
            ("stored", ("remove", "two", "--forget"), lambda: "two" not in newest_agents(subscriber)),
            ("drained", ("remove", "three", "--forget"), lambda: removed("three")),
        ]
        for at, (step, arguments, happened) in enumerate(steps):
            done = await kill_leader_when(swarm, subscriber, step, happened, swarm.command(*arguments))
            assert done.code == 0, (step, arguments, done.err)
            assert len({changes["revision"] for changes in changes_of(subscriber)}) == at + 1
        assert await agents_of(swarm) == {*AGENTS}
        await assert_clean(swarm)


def newest_agents(subscriber: Subscriber) -> dict[str, Any]:
    changes = changes_of(subscriber)
    agents: dict[str, Any] = changes[-1].get("agents", {}) if changes else {}
    return agents


SANDBOX_MISTAKES = {
    ("sandbox", "add", "base"): "sandbox 'base' is in the swarm already",
    ("sandbox", "add", "Coordinator"): "collides with agent 'coordinator'",
    ("sandbox", "add", "watchdog"): "this name is reserved",
    ("sandbox", "add", "far", "--provider", "e2b"): "no provider of sandboxes at E2B runs",
    ("sandbox", "add", "far", "--option", "template=x"): "is valid only with provider",
    ("sandbox", "add", "far", "--provider", "e2b", "--option", "template"): "expected KEY=VALUE",
    ("sandbox", "remove", "base", "--option", "template=x"): "expected with `sandbox add` alone",
    ("sandbox", "add"): "expected the name of a sandbox after it",
    ("sandbox", "remove", "pyton"): "no sandbox 'pyton' (did you mean 'python'?); there are: base, nodejs, python",
    ("sandbox", "base", "extra"): "expected a name alone, or add or remove before the name",
}
"""What is refused, and by which words."""


async def sandboxes_of(swarm: Swarm) -> set[str]:
    return {one["name"] for one in (await swarm.command("status", "--json")).json["sandboxes"]}


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_sandboxes_come_and_go_while_the_swarm_decides(tmp_path: Path):
    name = "strategy-momentum"
    key = tmp_path / ".signalmesh" / "keys" / "sandbox-extra.nk"
    async with Swarm(tmp_path, agents_toml(limit=20000)) as swarm:
        subscriber = await swarm.up("--speed", SPEED)
        await subscriber.live(*AGENTS)
        for arguments, words in SANDBOX_MISTAKES.items():
            refused = await swarm.command(*arguments)
            assert (refused.code, words in refused.err) == (2, True), refused.err
        assert changes_of(subscriber) == []

        added = await swarm.command("sandbox", "add", "extra", "--json")
        assert added.json == {"sandbox": "extra", "change": "added", "provider": "local", "moved": []}, added.err
        assert key.exists() != bool(AUTHENTICATION)
        moved = await swarm.command("move", name, "--to", "extra", "--json")
        assert (moved.code, moved.json["sandbox"]) == (0, "extra"), moved.err
        # Its host is as good as any other: killed, it comes back, and so does the agent.
        host = subscriber.heartbeats["extra"]["pid"]
        swarm.send(host, signal.SIGKILL)
        await subscriber.back({name: moved.json["epoch"]})
        await subscriber.until("its host is back", lambda: subscriber.heartbeats["extra"]["pid"] != host)
        assert (await swarm.command("rebalance")).code == 0
        assert await home_of(swarm, name) == "extra"
        assert await sandboxes_of(swarm) == {*SANDBOXES, "extra"}
        assert (await swarm.command("doctor")).code == 0
        assert await swarm.end(signal.SIGINT) == 0
        differences = (await swarm.command("config", "diff", "--json")).json["changes"]
        assert [(one["agent"], one["change"]) for one in differences] == [("extra", "added"), (name, "moved")]

        subscriber = await swarm.up("--speed", SPEED)
        before = await subscriber.live(*AGENTS)
        assert before[name]["sandbox"] == "extra"
        assert await sandboxes_of(swarm) == {*SANDBOXES, "extra"}
        ends = await Ends.of(subscriber.heartbeats["extra"]["pid"])
        command = swarm.command("sandbox", "remove", "extra", "--json")
        removed = await kill_leader_when(
            swarm, subscriber, "stored", lambda: "extra" in removed_in(subscriber), command
        )
        assert removed.code == 0, removed.err
        assert [(one["agent"], one["status"]) for one in removed.json["moved"]] == [(name, "running")]
        await ends.all()
        await subscriber.happened("removed", "extra")
        await subscriber.until("the key is revoked", lambda: None if key.exists() else True)
        assert await sandboxes_of(swarm) == {*SANDBOXES}
        assert await home_of(swarm, name) in SANDBOXES

        # Sandboxes of swarm.toml go as well, all but the last one; no agent dies with its host.
        for sandbox in ("python", "base"):
            removed = await swarm.command("sandbox", "remove", sandbox, "--json")
            assert removed.code == 0, removed.err
        refused = await swarm.command("sandbox", "remove", "nodejs")
        assert (refused.code, "is the only sandbox" in refused.err) == (2, True), refused.err
        assert await homes_of(swarm) == dict.fromkeys(AGENTS, "nodejs")
        again = await swarm.command("sandbox", "add", "python", "--json")
        assert again.code == 0, again.err
        differences = (await swarm.command("config", "diff", "--json")).json["changes"]
        assert [one["agent"] for one in differences if one["is_sandbox"]] == ["base"]
        deaths = [event["reason"] for event in subscriber.lifecycle if event["event"] == "declared_dead"]
        assert [reason for reason in deaths if "its sandbox host" in reason] == []
        assert [alert["text"] for alert in subscriber.alerts if alert["code"] == "sandbox_lost"] == []
        status = (await swarm.command("status", "--json")).json
        assert status["refused"] is None
        assert {changes["revision"] for changes in changes_of(subscriber)} - {2} == {3, 4, 5, 6}
        await assert_clean(swarm)


def removed_in(subscriber: Subscriber) -> dict[str, Any]:
    """The sandboxes that the newest changes have removed."""
    changes = changes_of(subscriber)
    removed: dict[str, Any] = changes[-1].get("removed_sandboxes", {}) if changes else {}
    return removed
