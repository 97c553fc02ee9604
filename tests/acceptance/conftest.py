"""A seeded source of chance, and what an undisturbed run stores."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from tests.acceptance.ear import read_stream
from tests.acceptance.exact import MANY_ROUNDS, ROUNDS, Content, content_of, exact_toml
from tests.acceptance.swarm import Swarm


@pytest.fixture
def chance() -> random.Random:
    """Seeded by ACCEPTANCE_SEED, or anew; pytest shows the seed with a failure."""
    seed = int(os.environ.get("ACCEPTANCE_SEED") or int.from_bytes(os.urandom(4)))
    print(f"ACCEPTANCE_SEED={seed}")  # noqa: T201
    return random.Random(seed)


def _run(directory: Path, rounds: int) -> Content:
    async def run() -> Content:
        async with Swarm(directory, exact_toml(speed=0, rounds=rounds)) as swarm:
            ear = await swarm.up()
            await ear.decided(rounds)
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
