"""`kill -9` as a person does it: the printed proof, quarantine and its end, and the watchdog's own death."""

from __future__ import annotations

import asyncio
import random
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agents.feeds.candle_cache import LEAST_SOURCE_BYTES, RECORD_BYTES
from tests.acceptance.exact import assert_each_round_once
from tests.acceptance.faults import kill_agents
from tests.acceptance.subscriber import Subscriber
from tests.acceptance.swarm import AGENTS, ENVIRONMENT, SIGNALMESH, VOTERS, Ends, Swarm, agents_toml

TIMES = ("detected_ms", "claimed_ms", "spawned_ms", "restored_ms", "ready_ms", "first_output_ms")


@pytest.mark.parametrize("kills", [2, pytest.param(2 * len(AGENTS), marks=pytest.mark.slow)])
async def test_kill_prints_a_timeline_with_nothing_lost_or_duplicated(
    tmp_path: Path, chance: random.Random, kills: int
):
    async with Swarm(tmp_path) as swarm:
        subscriber = await swarm.up("--speed", "50")
        await subscriber.live(*AGENTS)
        await subscriber.decided(1)
        first = dict(subscriber.claims)
        killed_in_turn = chance.sample(AGENTS * 2, kills)
        for agent in killed_in_turn:
            heartbeat = (await subscriber.live(agent))[agent]
            killed = await swarm.command("kill", agent, "--json")
            assert killed.code == 0, killed
            report = killed.json
            assert {key: report[key] for key in ("agent", "sandbox", "pid", "signal", "epoch_before")} == {
                "agent": agent, "sandbox": heartbeat["sandbox"], "pid": heartbeat["pid"], "signal": "SIGKILL",
                "epoch_before": heartbeat["epoch"],
            }  # fmt: skip
            assert report["epoch_after"] > report["epoch_before"]
            assert (report["outputs_lost"], report["outputs_duplicated"]) == (0, 0)
            assert report["events_replayed"] >= 0
            assert [time for time in TIMES if report[time] is None] == [], report
            assert 0 < report["restored_ms"] <= report["ready_ms"], report
        await subscriber.more_decisions(20)
        assert_each_round_once(subscriber.decisions)
        again = await subscriber.live(*AGENTS)
        for agent in AGENTS:
            claims = [message.sequence for message in subscriber.messages if message.subject == f"swarm.epoch.{agent}"]
            assert len(claims) == 1 + killed_in_turn.count(agent), agent
            assert claims == sorted(claims)
            assert claims[0] == first[agent]
            assert again[agent]["epoch"] == claims[-1]


@pytest.mark.slow
async def test_a_killed_source_returns_to_its_place_in_a_large_file(tmp_path: Path):
    """It reads the candles from the cache in the state directory, which no other command objects to."""
    start = datetime(2020, 1, 1, tzinfo=UTC)
    rows = [f"{(start + timedelta(minutes=at)).isoformat()},{at + 2},{at + 3},1,{at + 2.5},1" for at in range(30_000)]
    candles = tmp_path / "candles.csv"
    candles.write_text("\n".join(["timestamp,open,high,low,close,volume", *rows]))
    assert candles.stat().st_size > LEAST_SOURCE_BYTES
    toml = agents_toml(speed=50).replace("speed =", f'symbols = {{ "BTC/USD" = "{candles}" }}, speed =')
    async with Swarm(tmp_path / "swarm", toml) as swarm:
        subscriber = await swarm.up()
        await subscriber.live(*AGENTS)
        await subscriber.decided(1)
        [cache] = (swarm.directory / ".signalmesh" / "cache").iterdir()
        assert cache.stat().st_size > 30_000 * RECORD_BYTES
        killed = (await swarm.command("kill", "research-1", "--json")).json
        assert (killed["outputs_lost"], killed["outputs_duplicated"]) == (0, 0)
        await subscriber.more_decisions(20)
        assert_each_round_once(subscriber.decisions)
        assert [*(swarm.directory / ".signalmesh" / "cache").iterdir()] == [cache]
        assert "cache" not in (await swarm.command("doctor")).out


async def quarantine(swarm: Swarm, subscriber: Subscriber, agent: str, deaths: int) -> None:
    """SIGKILL `agent` as soon as it is there, until it is quarantined; then bring it back."""

    def out() -> bool:
        return any(alert["code"] == "quarantined" for alert in subscriber.alerts)

    killed = 0
    while not out():
        epoch = subscriber.claims[agent]
        heartbeat: dict[str, Any] = await subscriber.until(f"{agent} beats", lambda: subscriber.heartbeats[agent])
        if heartbeat["epoch"] == epoch:
            ends = await Ends.of(heartbeat["pid"])
            swarm.send(heartbeat["pid"], signal.SIGKILL)
            await ends.all()
            killed += 1
            await subscriber.until(
                "its next incarnation, or quarantine",
                lambda epoch=epoch: out() or subscriber.heartbeats[agent]["epoch"] > epoch,  # type: ignore[misc]
            )
    assert killed == deaths

    [alert] = await subscriber.alerted("quarantined")
    assert (alert["severity"], alert["agent"]) == ("critical", agent)
    assert f"signalmesh revive {agent}" in alert["message"]
    await subscriber.until(
        "a VotingConfig without it", lambda: subscriber.configs and agent not in subscriber.configs[-1]["voters"]
    )
    assert len(subscriber.configs[-1]["voters"]) == len(VOTERS) - 1

    await subscriber.more_decisions(3)
    for decision in await subscriber.more_decisions(20):
        assert agent not in decision["agents_consulted"]
        assert set(decision["agents_consulted"]) == {*VOTERS} - {agent}
    [row] = [row for row in (await swarm.command("status", "--json")).json["agents"] if row["name"] == agent]
    assert (row["status"], row["pid"]) == ("quarantined", None)
    gone = await swarm.command("kill", agent)
    assert gone.code == 1, gone
    assert f"signalmesh revive {agent}" in gone.err

    revived = await swarm.command("revive", agent, "--json")
    assert revived.code == 0, revived
    assert revived.json == {"agent": agent, "was": "quarantined"}
    await subscriber.until("a VotingConfig with it", lambda: agent in subscriber.configs[-1]["voters"])
    assert set(subscriber.configs[-1]["voters"]) == {*VOTERS}
    await subscriber.live(agent)
    await subscriber.until("its vote", lambda: agent in subscriber.decisions[-1]["agents_consulted"])
    again = await swarm.command("revive", agent)
    assert again.code == 1, again
    assert_each_round_once(subscriber.decisions)
    for (
        decision
    ) in subscriber.decisions:  # at any time its vote is either there or, while it is expected, named as absent
        missing = {*VOTERS} - {*decision["agents_consulted"]} - {*decision["absent"]}
        assert missing <= {agent}


@pytest.mark.slow
async def test_deaths_in_a_row_quarantine_and_revive_brings_back(tmp_path: Path):
    toml = f"[watchdog]\nquarantine_deaths = 4\n{agents_toml(speed=50)}"
    async with Swarm(tmp_path, toml) as swarm:
        subscriber = await swarm.up()
        await subscriber.decided(300)
        await quarantine(swarm, subscriber, "strategy-momentum", 4)


@pytest.mark.slow
async def test_ten_deaths_within_thirty_seconds_quarantine(tmp_path: Path):
    async with Swarm(tmp_path) as swarm:
        subscriber = await swarm.up("--speed", "20")
        await subscriber.decided(251)
        await quarantine(swarm, subscriber, "strategy-momentum", 10)


@pytest.mark.slow
async def test_restart_drains_and_a_killed_watchdog_adopts(tmp_path: Path):
    async with Swarm(tmp_path) as swarm:
        subscriber = await swarm.up("--speed", "50")
        await subscriber.decided(251)
        before = (await subscriber.live(*AGENTS))["coordinator"]
        restarted = await swarm.command("restart", "coordinator", "--json")
        assert restarted.code == 0, restarted
        assert restarted.json["epoch_before"] == before["epoch"]
        await subscriber.back({"coordinator": before["epoch"]})
        assert (await subscriber.happened("drained", "coordinator"))["epoch"] == before["epoch"]

        heartbeats = await subscriber.live(*AGENTS)
        message = len(subscriber.messages)
        watchdog = subscriber.heartbeats["watchdog"]
        swarm.send(watchdog["pid"], signal.SIGKILL)
        await subscriber.until(
            "another watchdog", lambda: subscriber.heartbeats["watchdog"]["epoch"] > watchdog["epoch"]
        )
        assert subscriber.heartbeats["watchdog"]["pid"] != watchdog["pid"]
        await subscriber.more_heartbeats(
            20, "watchdog"
        )  # long enough for a heartbeat of every host, and to start what no host reports
        again = await subscriber.live(*AGENTS)
        for agent in AGENTS:
            assert (again[agent]["pid"], again[agent]["epoch"]) == (
                heartbeats[agent]["pid"],
                heartbeats[agent]["epoch"],
            )
        assert {item.writer for item in subscriber.messages[message:] if item.kind == "epoch"} == {"watchdog"}
        assert [alert["code"] for alert in subscriber.alerts] == ["watchdog_died"]

        await kill_agents(swarm, subscriber, "strategy-mean-reversion")  # it supervises what it has adopted
        await subscriber.more_decisions(5)
        assert_each_round_once(subscriber.decisions)


@pytest.mark.slow
async def test_signals_that_end_nothing_and_agents_that_stay_away_are_reported_as_such(tmp_path: Path):
    toml = f"max_agents = 6\n{agents_toml()}[agents.oracle]\nexternal = true\n"
    async with Swarm(tmp_path, toml) as swarm:
        subscriber = await swarm.up("--speed", "20")
        heartbeats = await subscriber.live(*AGENTS)
        await subscriber.decided(1)

        for name, result in (("CONT", "SIGCONT"), ("WINCH", "SIGWINCH"), ("0", "0")):
            lives = await swarm.command("kill", "strategy-momentum", "--signal", name, "--json")
            assert (lives.code, lives.json["outcome"], lives.json["signal"]) == (0, "lives on", result)
        ignored = await swarm.command("kill", "strategy-momentum", "--signal", "USR2")  # it answers with its stack
        assert (ignored.code, "lives on" in ignored.out) == (1, True), ignored
        assert (await subscriber.live("strategy-momentum"))["strategy-momentum"]["pid"] == heartbeats[
            "strategy-momentum"
        ]["pid"]

        drained = await swarm.command("kill", "strategy-momentum", "--signal", "TERM")
        assert drained.code == 0
        assert "drained" in drained.out
        assert "is not restarted until `signalmesh revive strategy-momentum`" in drained.out
        status = (await swarm.command("status", "--json")).json
        states = {agent["name"]: agent["status"] for agent in status["agents"]}
        assert (states["strategy-momentum"], states["oracle"]) == ("drained", "external")
        assert (await swarm.command("revive", "strategy-momentum")).code == 0
        await subscriber.back({"strategy-momentum": heartbeats["strategy-momentum"]["epoch"]})

        for number in ("USR1", str(int(signal.SIGRTMIN) + 1)):  # one without a name
            [heartbeat] = (await subscriber.live("strategy-momentum")).values()
            ended = await swarm.command("kill", "strategy-momentum", "--signal", number, "--json")
            assert (ended.code, ended.json["outcome"]) == (0, "recovered"), ended
            await subscriber.back({"strategy-momentum": heartbeat["epoch"]})

        for command in ("kill", "restart", "revive"):
            external = await swarm.command(command, "oracle")
            assert external.code == 2
            assert "external" in external.err


@pytest.mark.slow
async def test_external_agents_and_unknown_writers_are_told_apart(tmp_path: Path):
    externals = "[agents.oracle]\nexternal = true\n[agents.reader]\nexternal = true\nvotes = false\n"
    toml = f"max_agents = 7\n{agents_toml()}{externals}"
    async with Swarm(tmp_path, toml) as swarm:
        subscriber = await swarm.up("--speed", "20")
        await subscriber.live(*AGENTS)
        await subscriber.decided(1)
        at = "2024-01-15T10:30:00Z"
        vote = {"signal": "hold", "strength": 0.5, "indicators": {}, "timestamp": at, "source": "oracle", "round": 1}
        await subscriber.publish("signal.BTC-USD.oracle", vote)
        decision = {
            "final_decision": "buy", "position_size": 0.1, "risk_score": 0.1, "consensus_level": 0.9,
            "agents_consulted": [], "timestamp": "2031-01-15T10:30:00Z", "source": "coordinator", "round": 1,
        }  # fmt: skip
        for payload in (decision, b"no decision"):
            await subscriber.publish("decision.BTC-USD.stranger", payload)
        status = (await swarm.command("status", "--json")).json
        rows = {row["name"]: row for row in status["agents"]}
        assert {name for name, row in rows.items() if row["status"] == "external"} == {"oracle", "reader"}
        assert (rows["oracle"]["outputs"], rows["reader"]["outputs"]) == (1, 0)
        assert rows["oracle"]["last_output_at"].startswith("20")
        assert rows["reader"]["last_output_at"] is None
        assert rows["coordinator"]["last_output_at"] is None
        assert status["active_agents"] == 5
        assert status["decisions"]["from_other_writers"] == 2
        assert status["decisions"]["last_at"] < "2031"
        plain = (await swarm.command("status")).out
        assert "5 of 5 agents active, 2 external" in plain
        assert "oracle: external; 1 of its messages are in the stream, the newest of 20" in plain
        assert "reader: external; none of its messages are in the stream" in plain
        assert "(and 2 of other writers)" in plain


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sandbox"), [("strategy-momentum", "unsupervised"), ("added", "nodejs")])
async def test_an_agent_run_by_hand_is_not_a_hosts_to_signal(tmp_path: Path, name: str, sandbox: str):
    async with Swarm(tmp_path, "max_agents = 6\n") as swarm:
        subscriber = await swarm.up("--speed", "20")
        await subscriber.live(*AGENTS)
        added = await swarm.command("add", "added", "--kind", "momentum")
        assert added.code == 0, added.err
        heartbeats = await subscriber.live(name)
        by_hand = await asyncio.create_subprocess_exec(
            str(SIGNALMESH), "agent", name, "--sandbox", sandbox, cwd=tmp_path, env=ENVIRONMENT,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            await subscriber.back({name: heartbeats[name]["epoch"]})
            report = await swarm.command("kill", name)
            assert report.code == 2, report
            assert f"pid {by_hand.pid}" in report.err
            assert "not run by a sandbox host" in report.err
        finally:
            by_hand.kill()
            await by_hand.wait()
