"""Whatever is killed under load, the stream ends up with the bytes of an undisturbed run, each once and in order."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from tests.acceptance.exact import (
    MANY_ROUNDS,
    ROUNDS,
    Content,
    assert_each_round_once,
    assert_numbered,
    assert_same,
    content_of,
    exact_toml,
)
from tests.acceptance.faults import (
    FAULTS,
    kill_agents,
    kill_host,
    kill_server,
    pause_and_resume,
    refuse_and_kill,
    stop_agent,
)
from tests.acceptance.subscriber import Subscriber, read_stream
from tests.acceptance.swarm import AGENTS, SANDBOXES, VOTERS, Swarm

FOUR = (*VOTERS, "coordinator")
KILLS = 8
"""In a row: then the pauses between restarts have grown to about their longest, 5 s."""


async def finish(
    swarm: Swarm, subscriber: Subscriber, undisturbed: Content, rounds: int = ROUNDS, *, received: bool = True
) -> None:
    """Let the recording end; all must be stored, and (if the server lived) received, as in an undisturbed run."""
    await subscriber.decided(rounds)
    if received:
        assert_each_round_once(subscriber.decisions, rounds)
    messages = await read_stream(swarm.url, swarm.name)
    assert_numbered(messages)
    assert_same(content_of(messages), undisturbed)


async def test_kill_9_of_each_agent_and_of_four_at_once(tmp_path: Path, undisturbed: Content, chance: random.Random):
    async with Swarm(tmp_path, exact_toml()) as swarm:
        subscriber = await swarm.up()
        order = chance.sample(AGENTS, len(AGENTS))
        await subscriber.decided(chance.randint(1, 250))
        for agent in order:
            await kill_agents(swarm, subscriber, agent)
            await subscriber.more_decisions(chance.randint(1, 30), last=ROUNDS)
        await kill_agents(swarm, subscriber, *FOUR)
        await finish(swarm, subscriber, undisturbed)
        await subscriber.until("the last event", lambda: subscriber.heartbeats["research-1"]["status"] == "finished")
        status = await swarm.command("status", "--json")
        assert {agent["name"]: agent["status"] for agent in status.json["agents"]}["research-1"] == "finished"
        assert await swarm.end(signal.SIGINT) == 0
        assert swarm.errors.splitlines()[-1].startswith(f"signalmesh: the data has ended: research-1 ({ROUNDS} events)")


@pytest.mark.slow
async def test_kill_9_of_a_host_and_of_nats_server(tmp_path: Path, undisturbed: Content, chance: random.Random):
    async with Swarm(tmp_path, exact_toml()) as swarm:
        subscriber = await swarm.up()
        await subscriber.decided(chance.randint(1, 300))
        await kill_host(swarm, subscriber, chance.choice(SANDBOXES))
        await subscriber.more_decisions(chance.randint(1, 50), last=ROUNDS)
        await kill_server(swarm, subscriber)
        await finish(swarm, subscriber, undisturbed, received=False)


@pytest.mark.slow
async def test_stopped_agents_and_zombies(tmp_path: Path, undisturbed: Content, chance: random.Random):
    async with Swarm(tmp_path, exact_toml()) as swarm:
        subscriber = await swarm.up()
        await subscriber.decided(chance.randint(200, 260))
        await stop_agent(swarm, subscriber, chance.choice(AGENTS))
        await subscriber.more_decisions(chance.randint(1, 30), last=ROUNDS)
        zombies = await pause_and_resume(swarm, subscriber, "nodejs")
        assert zombies
        await finish(swarm, subscriber, undisturbed)
        for name, epoch in zombies.items():
            claimed = next(
                message
                for message in subscriber.messages
                if message.subject == f"swarm.epoch.{name}" and message.sequence > epoch
            )
            after = [
                message
                for message in subscriber.messages
                if message.writer == name and message.sequence > claimed.sequence
            ]
            assert str(epoch) not in {message.headers.get("Mesh-Epoch") for message in after}, "the zombie was heard"
            exited = await subscriber.happened("exited", name, epoch)
            assert exited["detail"]["exit_code"] == 1, "the zombie did not end by itself"


@pytest.mark.slow
async def test_agents_killed_while_the_stream_refuses(tmp_path: Path, undisturbed: Content, chance: random.Random):
    async with Swarm(tmp_path, exact_toml()) as swarm:
        subscriber = await swarm.up()
        await subscriber.decided(chance.randint(260, 400))
        await refuse_and_kill(swarm, subscriber)
        await finish(swarm, subscriber, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(2))
async def test_random_faults(tmp_path: Path, undisturbed_long: Content, seed: int):
    chance = random.Random(seed)
    async with Swarm(tmp_path, exact_toml(100, MANY_ROUNDS, watchdog="quarantine_deaths = 1000")) as swarm:
        subscriber = await swarm.up()
        await subscriber.decided(chance.randint(1, 250))
        while subscriber.decisions[-1]["round"] < MANY_ROUNDS - 200:
            name = chance.choice(list(FAULTS))
            print(f"seed {seed}: {name} after round {subscriber.decisions[-1]['round']}")  # noqa: T201
            await FAULTS[name](swarm, subscriber, chance)
            await subscriber.more_decisions(chance.randint(1, 60), last=MANY_ROUNDS)
        await finish(swarm, subscriber, undisturbed_long, MANY_ROUNDS, received=False)


@pytest.mark.slow
@pytest.mark.timeout(600)
# One agent of each role that has a recovery of its own: a source, and the decider. The fault matrix kills the others.
@pytest.mark.parametrize("killed", ["research-1", "coordinator", "four", "nats-server"])
async def test_one_killed_again_and_again(tmp_path: Path, undisturbed_long: Content, killed: str):
    chance = random.Random(killed)
    async with Swarm(tmp_path, exact_toml(150, MANY_ROUNDS, watchdog="quarantine_deaths = 1000")) as swarm:
        subscriber = await swarm.up()
        await subscriber.decided(chance.randint(1, 250))
        for _ in range(KILLS):
            if killed == "nats-server":
                await kill_server(swarm, subscriber)
            else:
                await kill_agents(swarm, subscriber, *(FOUR if killed == "four" else [killed]))
            await subscriber.more_decisions(chance.randint(1, 60), last=MANY_ROUNDS)
        await finish(swarm, subscriber, undisturbed_long, MANY_ROUNDS, received=killed != "nats-server")
