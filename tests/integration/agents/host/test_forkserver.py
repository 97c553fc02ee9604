"""The fork server of a sandbox host (agents/host/forkserver.py), in a process of its own as a host is."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

START = """
import asyncio, os, sys, tempfile
from agents.host.forkserver import ForkServer

async def main():
    server = ForkServer()
    await server.start()
    if len(sys.argv) > 1:
        print("started", flush=True)
        sys.stdin.read()
    await server.stop()

asyncio.run(main())
print(tempfile.gettempdir() == os.environ["TMPDIR"])
"""


@pytest.mark.parametrize("length", [40, 200])
async def test_it_starts_however_long_the_path_of_tmpdir_is(tmp_path: Path, length: int):
    directory = tmp_path / ("d" * length)
    directory.mkdir()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", START, env={**os.environ, "TMPDIR": str(directory)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert (process.returncode, out.decode().strip()) == (0, "True"), err.decode()
    assert list(directory.iterdir()) == []


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        yield Path(directory)


@pytest.mark.slow
async def test_what_a_killed_one_has_left_is_removed_by_the_next_and_a_living_one_keeps_its_own(short: Path):
    async def started() -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", START, "wait", env={**os.environ, "TMPDIR": str(short)},
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        assert await process.stdout.readline() == b"started\n"
        return process

    killed = await started()
    [left] = short.iterdir()
    killed.kill()
    await killed.wait()
    assert list(short.iterdir()) == [left]
    os.utime(left, (0, 0))  # as if it were older than any that is just being made
    living = await started()
    [own] = short.iterdir()
    os.utime(own, (0, 0))
    next_one = await started()
    assert own in short.iterdir()
    assert left not in short.iterdir()
    for process in (living, next_one):
        await process.communicate(b"")
        assert process.returncode == 0
    assert list(short.iterdir()) == []
