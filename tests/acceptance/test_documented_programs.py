"""The programs of the pages about consumers and external voters do what the pages say, with the keys that they name."""

from __future__ import annotations

import asyncio
import functools
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bus.utils.processes import die_with_parent
from tests.acceptance.swarm import ENVIRONMENT, GUARD_S, Swarm, agents_toml
from tests.support.repository import ROOT

VOTER = "max_agents = 6\n[agents.my-voter]\nexternal = true\nweight = 0.5\n"


def programs(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


@asynccontextmanager
async def running(swarm: Swarm, program: str) -> AsyncIterator[asyncio.StreamReader]:
    """What the program prints that runs in the directory of the swarm."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-uc",
        program.replace("nats://127.0.0.1:4222", swarm.url),
        cwd=swarm.directory,
        env=ENVIRONMENT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        preexec_fn=functools.partial(die_with_parent, os.getpid()),
    )
    try:
        assert process.stdout is not None
        yield process.stdout
    finally:
        process.kill()
        await process.communicate()


@pytest.mark.slow
async def test_consumers_receive_decisions_and_the_voter_votes(tmp_path: Path):
    async with Swarm(tmp_path, VOTER + agents_toml(speed=5, history=10)) as swarm:
        subscriber = await swarm.up()
        await subscriber.decided(12)
        live, stored = programs("docs/guides/consumers.md")
        for program in (*programs("README.md")[-1:], live, stored):
            async with running(swarm, program) as printed, asyncio.timeout(GUARD_S):
                line = (await printed.readline()).decode()
            assert '"final_decision"' in line, line
        [vote] = programs("docs/guides/external-voters.md")
        async with running(swarm, vote):
            await subscriber.until(
                "its vote in a decision", lambda: "my-voter" in subscriber.decisions[-1]["agents_consulted"]
            )
        assert subscriber.alerts == []
