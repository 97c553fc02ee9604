"""The fork server of a sandbox host (agents/children.py), in a process of its own as a host is."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

START = """
import asyncio, os, tempfile
from agents.children import ForkServer

async def main():
    server = ForkServer()
    await server.start()
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
