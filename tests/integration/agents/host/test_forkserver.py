"""The fork server of a sandbox host (agents/host/forkserver.py), in a process of its own as a host is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest

from agents.host.forkserver import _FORKS
from bus.utils.processes import wait_pid_exit
from tests.support.collecting import GUARD_S

START = """
import asyncio, os, sys, tempfile
from agents.host.forkserver import ForkServer

async def main():
    await server.start()
    if len(sys.argv) > 1:
        print("started", flush=True)
        sys.stdin.read()
    await server.stop()

server = ForkServer()
if "fork" in sys.argv:
    server.fork()
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


DIES = """
import asyncio, os, signal
from multiprocessing import forkserver
from agents.host.forkserver import ForkServer
from agents.runtime.process import Incarnation
from agents.spec import AgentSpec
from bus.errors import MeshError

def kill_first(descriptor, read=forkserver.read_signed):
    os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)  # it is stopped, and has the request
    return read(descriptor)

async def main():
    await server.start()
    os.kill(forkserver._forkserver._forkserver_pid, signal.SIGSTOP)
    forkserver.read_signed = kill_first
    spec = AgentSpec(name="one", kind="momentum", swarm="swarm", sandbox="base")
    try:
        await server.spawn(Incarnation(spec=spec, url="nats://127.0.0.1:1", sandbox="base"), lambda: False)
    except MeshError as error:
        print(error)
    await server.stop()

server = ForkServer()
server.fork()
asyncio.run(main())
"""


@pytest.mark.skipif(not _FORKS, reason="the server is no fork here")
async def test_a_server_that_dies_while_it_starts_an_agent_is_an_error_of_that_start():
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DIES, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert (process.returncode, out.decode()[:23]) == (0, "the fork server ended b"), err.decode()


TERMINATED = """
import asyncio, os, signal
from multiprocessing import forkserver
from agents.host.forkserver import ForkServer
from agents.runtime.process import Incarnation
from agents.spec import AgentSpec
from bus.utils.processes import adopt_orphans

async def main():
    adopt_orphans(True)
    await server.start()
    spec = AgentSpec(name="one", kind="momentum", swarm="swarm", sandbox="base")
    child = await server.spawn(Incarnation(spec=spec, url="nats://127.0.0.1:1", sandbox="base"), lambda: False)
    os.kill(forkserver._forkserver._forkserver_pid, NUMBER)
    print(await child.wait())
    await server.stop()

server = ForkServer()
server.fork()
asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.skipif(not _FORKS, reason="the server is no fork here")
@pytest.mark.parametrize(("number", "code"), [("SIGTERM", "3"), ("SIGKILL", "-9")])
async def test_an_agent_has_its_own_exit_code_whatever_ends_the_server(number, code):
    """Its own end is that of a process that reaches no bus; a server that is killed takes it along."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", TERMINATED.replace("NUMBER", f"signal.{number}"),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert out.decode().strip() == code, err.decode()


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        yield Path(directory)


@pytest.fixture
async def forking() -> AsyncIterator[tuple[asyncio.subprocess.Process, psutil.Process]]:
    """A process that has forked its server, and this server."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", START, "fork", env={**os.environ, "TMPDIR": "/tmp"},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert await process.stdout.readline() == b"started\n"
    [server] = [child for child in psutil.Process(process.pid).children() if "fork-server" in " ".join(child.cmdline())]
    yield process, server
    for left in (process, server):
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            left.kill()
    await process.communicate()


@pytest.mark.skipif(not _FORKS, reason="the server is no fork here")
async def test_a_forked_one_ends_in_silence(forking):
    process, server = forking
    _, err = await process.communicate(b"")  # to the end of all that write to it
    assert (process.returncode, err.decode()) == (0, "")
    async with asyncio.timeout(GUARD_S):
        await wait_pid_exit(server.pid)


@pytest.mark.skipif(not _FORKS, reason="the server is no fork here")
async def test_a_stopped_one_ends_with_its_host(forking):
    process, server = forking
    server.suspend()
    process.kill()
    async with asyncio.timeout(GUARD_S):
        await wait_pid_exit(server.pid)


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
