"""What must not mislead the watchdog: ends that look orderly, handlers that never return, foreign settings."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.exact import assert_each_round_once
from tests.acceptance.subscriber import Subscriber, read_stream
from tests.acceptance.swarm import AGENTS, VOTERS, Swarm, agents_toml
from tests.support.nats import plain_server

ENDING = """\
import os
from pathlib import Path
from agents.agent import Agent
from bus.messages import MarketData, Signal

class Ending(Agent):
    kind = "ending"
    listens = ("market",)

    def on_market(self, tick: MarketData) -> Signal:
        once = Path(__file__).with_name("ended")
        if tick.sequence == 20 and not once.exists():
            once.touch()
            os._exit(0)
        return self.signal(tick, "hold", 0.5)
"""
LOOPING = """\
from agents.agent import Agent
from bus.messages import MarketData, Signal

class Looping(Agent):
    kind = "looping"
    listens = ("market",)

    def on_market(self, tick: MarketData) -> Signal:
        while tick.sequence == 20:
            pass
        return self.signal(tick, "hold", 0.5)
"""


def with_own(directory: Path, name: str, code: str, **source_options: float) -> str:
    """A swarm.toml of the default agents and one from `directory`/`name`.py."""
    (directory / f"{name}.py").write_text(code)
    return f'max_agents = 6\n{agents_toml(**source_options)}[agents.{name}]\nclass = "{name}:{name.title()}"\n'


@pytest.mark.slow
async def test_an_exit_with_code_0_that_is_no_drain_is_a_death(tmp_path: Path):
    async with Swarm(tmp_path, with_own(tmp_path, "ending", ENDING, speed=20, history=10)) as swarm:
        subscriber = await swarm.up()
        dead = await subscriber.happened("declared_dead", "ending")
        assert "exit code 0" in dead["reason"]
        await subscriber.back({"ending": dead["epoch"]})
        await subscriber.until("its vote again", lambda: "ending" in subscriber.decisions[-1]["agents_consulted"])

        # One that drains stays away, though by the same exit code.
        drained = await swarm.command("kill", "ending", "--signal", "TERM", "--json")
        assert (drained.code, drained.json["outcome"]) == (0, "drained"), drained
        await subscriber.until("a VotingConfig without it", lambda: "ending" not in subscriber.configs[-1]["voters"])
        await subscriber.more_decisions(20)
        assert len([event for event in subscriber.lifecycle if event["event"] == "declared_dead"]) == 1
        again = await swarm.command("restart", "ending", "--json")
        assert (again.code, again.json["was"]) == (0, "drained"), again
        assert again.json["epoch_after"] == (await subscriber.live("ending"))["ending"]["epoch"]
        assert_each_round_once(subscriber.decisions)
        stored = await read_stream(swarm.url, swarm.name)
        votes = [message.json["round"] for message in stored if (message.kind, message.writer) == ("signal", "ending")]
        assert votes == list(range(1, len(votes) + 1))


@pytest.mark.slow
async def test_a_handler_that_never_returns_is_quarantined(tmp_path: Path):
    toml = with_own(tmp_path, "looping", LOOPING, speed=20, history=10)
    async with Swarm(tmp_path, f"{toml}[watchdog]\nstarved_ms = 1200\n") as swarm:
        subscriber = await swarm.up()
        [quarantined] = await subscriber.alerted("quarantined")
        assert "in a row" in quarantined["message"]
        dead = [event for event in subscriber.lifecycle if event["event"] == "declared_dead"]
        assert {event["agent"] for event in dead} == {"looping"}
        unresponsive = [alert for alert in subscriber.alerts if alert["code"] == "agent_unresponsive"]
        # The progress in heartbeats may lag behind, and want of a CPU on a busy machine is no stall.
        assert 3 <= len(unresponsive) <= len(dead) <= 10
        assert all("starved_ms = 1200" in event["reason"] for event in dead)
        assert any("now at looping.py:" in event["reason"] for event in dead)
        assert {alert["agent"] for alert in unresponsive} == {"looping"}
        await subscriber.until("a VotingConfig without it", lambda: "looping" not in subscriber.configs[-1]["voters"])
        await subscriber.more_decisions(20)
        assert subscriber.decisions[-1]["absent"] == []
        assert_each_round_once(subscriber.decisions)


def forged(**voters: float) -> dict[str, Any]:
    return {"voters": voters, "timestamp": "2024-01-15T10:30:00Z", "source": "watchdog"}


async def ours_again(subscriber: Subscriber, since: int) -> None:
    """Wait until the newest VotingConfig is the watchdog's own, and newer than message `since`."""

    def found() -> bool:
        last = [message for message in subscriber.messages if message.kind == "config"][-1]
        return last.sequence > since and last.writer == "watchdog" and set(last.json["voters"]) == {*VOTERS}

    await subscriber.until("our VotingConfig in force again", found)


@pytest.mark.slow
async def test_a_config_of_another_writer_does_not_stay_active(tmp_path: Path):
    async with (
        plain_server(tmp_path, "-js", "-sd", str(tmp_path / "store")) as url,
        Swarm(tmp_path, agents_toml(speed=50)) as swarm,
    ):
        subscriber = await swarm.up("--nats", url)
        await subscriber.live(*AGENTS)
        for number, writer in enumerate(("watchdog", "stranger"), 1):
            sequence = await subscriber.publish(f"config.swarm.{writer}", forged(unknown_writer=1.0))
            await ours_again(subscriber, sequence)
            alert = (await subscriber.alerted("config_overridden", number))[-1]
            assert alert["detail"]["subjects"] == [f"swarm.config.swarm.{writer}"]
        assert await swarm.end(signal.SIGINT) == 0
        for writer in ("watchdog", "stranger"):
            subscriber = await swarm.listen()
            sequence = await subscriber.publish(f"config.swarm.{writer}", forged(unknown_writer=1.0))
            await swarm.up("--nats", url)
            await ours_again(subscriber, sequence)
            await subscriber.live(*AGENTS)
            assert await swarm.end(signal.SIGINT) == 0
