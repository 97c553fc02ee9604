"""A seeded source of chance, and what an undisturbed run stores."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from bus.nats.bus import NatsBus
from tests.acceptance.exact import MANY_ROUNDS, ROUNDS, Content, content_of, exact_toml
from tests.acceptance.faults import kill_agents, kill_host
from tests.acceptance.subscriber import read_stream
from tests.acceptance.swarm import AGENTS, Swarm
from tests.support.copying import Recorded, record

LENGTH = 600
"""Rounds of the `good` run."""


@pytest.fixture
def chance() -> random.Random:
    """Seeded by ACCEPTANCE_SEED, or at random; pytest prints the seed with a failure."""
    seed = int(os.environ.get("ACCEPTANCE_SEED") or int.from_bytes(os.urandom(4)))
    print(f"ACCEPTANCE_SEED={seed}")  # noqa: T201
    return random.Random(seed)


def _run(directory: Path, rounds: int) -> Content:
    async def run() -> Content:
        async with Swarm(directory, exact_toml(speed=0, rounds=rounds)) as swarm:
            subscriber = await swarm.up()
            await subscriber.decided(rounds)
            return content_of(await read_stream(swarm.url, swarm.name))

    return asyncio.run(run())


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Content:
    """Subject -> payloads of a run of ROUNDS in which nothing happened."""
    return _run(tmp_path_factory.mktemp("undisturbed"), ROUNDS)


@pytest.fixture(scope="session")
def undisturbed_long(tmp_path_factory: pytest.TempPathFactory) -> Content:
    """The same of MANY_ROUNDS."""
    return _run(tmp_path_factory.mktemp("undisturbed_long"), MANY_ROUNDS)


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """A run in which agents and a host were killed; audit, live and at rest, and replay find nothing in it."""

    async def run() -> Recorded:
        async with Swarm(tmp_path_factory.mktemp("good"), exact_toml(speed=100, rounds=LENGTH)) as swarm:
            subscriber = await swarm.up()
            await subscriber.decided(40)
            await kill_agents(swarm, subscriber, "strategy-momentum", "coordinator")
            while_live = await swarm.command("audit", "--json")
            await subscriber.decided(120)
            await kill_agents(swarm, subscriber, "research-1")
            await kill_host(swarm, subscriber, "python")
            await subscriber.decided(LENGTH)
            at_rest, replayed = await swarm.command("audit"), await swarm.command("replay")
            for found in (while_live, at_rest, replayed):
                assert found.code == 0, found.out + found.err
            assert "all checks passed" in at_rest.out
            assert ", 0 missing, 0 differing, 0 damaged" in at_rest.out, "the mirror was not compared"
            assert "identical bytes" in replayed.out
            agents = while_live.json["agents"]
            assert set(agents) == set(AGENTS)
            assert agents["coordinator"]["claims"] >= 2
            bus = await NatsBus.connect(swarm.url, swarm.name, "recorder")
            try:
                return await record(bus)
            finally:
                await bus.close()

    return asyncio.run(run())
