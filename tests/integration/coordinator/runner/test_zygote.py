"""Processes that the zygote forks (coordinator/runner/zygote.py), started by a program that stands for `up`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from bus.utils.processes import wait_pid_exit
from tests.support.collecting import GUARD_S

PROGRAM = """
import asyncio, json, os, random, signal, sys, threading
import coordinator.runner.zygote as zygote
from bus.observability.logging import set_up_logs
from coordinator.runner.launcher import Launcher

def describe():
    import numpy
    print(json.dumps({
        "argv": sys.argv[1:], "parent": os.getppid(), "session": os.getsid(0), "pid": os.getpid(),
        "descriptors": [fd for fd in range(100) if os.path.exists(f"/proc/self/fd/{fd}")],
        "environment": dict(os.environ), "threads": len(os.listdir("/proc/self/task")),
        "random": random.random(), "numpy": numpy.random.random(), "urandom": os.urandom(4).hex(),
        "signals": [signal.getsignal(n) in (signal.SIG_DFL, signal.default_int_handler) for n in (2, 15, 17)],
        "limit": os.sysconf("SC_OPEN_MAX"),
    }), flush=True)

def run_command():
    action = sys.argv[1]
    if action == "exit":
        sys.exit(int(sys.argv[2]))
    if action == "text":
        sys.exit("a text")
    if action == "raise":
        raise ValueError("a fault")
    if action == "thread":
        threading.Timer(0.2, lambda: print("the thread has ended")).start()
        return
    if action == "loop":
        asyncio.run(asyncio.sleep(0))
    describe()
    if action == "wait":
        signal.pause()

os.closerange = None  # its time grows with the limit of descriptors in some builds of Python
zygote.run_command = run_command
zygote.PRELOAD = ("agents.host.preload",)
zygote.FIRST_REPLY_S = zygote.REPLY_S = 60.0

async def main(launcher):
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    keeping = asyncio.create_task(launcher.keep_zygote())
    say = lambda **what: print(json.dumps(what), flush=True)
    say(zygote=launcher.zygote_pid)
    running = {}
    while line := await reader.readline():
        order = json.loads(line)
        if "args" in order:
            with open(order["output"], "ab") as output:
                environment = {name: os.fsdecode(bytes.fromhex(value)) for name, value in order["env"].items()}
                child = await launcher.start(order["args"], environment, output.fileno(), order["pass_fds"])
            running[child.pid] = child
            say(pid=child.pid, kind=type(child).__name__)
        elif "together" in order:
            orders = [["--version"]] * order["together"]
            with open(order["output"], "ab") as output:
                starts = [launcher.start(args, dict(os.environ), output.fileno()) for args in orders]
                children = await asyncio.gather(*starts)
            say(codes=[await child.wait() for child in children])
        elif "wait" in order:
            say(code=await running[order["wait"]].wait())
        elif "reply_s" in order:
            zygote.REPLY_S = order["reply_s"]
            say(set=True)
        else:
            while launcher.zygote_pid in (None, order["zygote"]):
                await asyncio.sleep(0.01)
            say(zygote=launcher.zygote_pid)
    keeping.cancel()
    launcher.stop()

set_up_logs("warning")
launcher = Launcher(zygote.Zygote.fork())
asyncio.run(main(launcher))
"""


class Parent:
    """The program: its orders and its answers are one line each."""

    def __init__(self, process: asyncio.subprocess.Process, directory: Path) -> None:
        self.process, self._directory = process, directory
        self.pid = process.pid
        self.zygote = 0

    async def order(self, **what: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what).encode() + b"\n")
        return await self.answer()

    async def answer(self) -> Any:
        assert self.process.stdout is not None
        async with asyncio.timeout(GUARD_S):
            line = await self.process.stdout.readline()
        assert line, "the program has ended"
        return json.loads(line)

    async def start(
        self, *args: str, env: dict[str, bytes] | None = None, pass_fds: tuple[int, ...] = (), output: str = "out"
    ) -> int:
        hexed = {name: value.hex() for name, value in {"PATH": b"/usr/bin", **(env or {})}.items()}
        order = {"args": args, "env": hexed, "pass_fds": pass_fds, "output": str(self._directory / output)}
        started = await self.order(**order)
        self.kind = started["kind"]
        return int(started["pid"])

    async def run(self, *args: str, **rest: Any) -> tuple[int, str]:
        """Exit code and output of a child."""
        pid = await self.start(*args, **rest)
        code = (await self.order(wait=pid))["code"]
        return code, (self._directory / rest.get("output", "out")).read_text()


@asynccontextmanager
async def parent(directory: Path, pass_fds: tuple[int, ...] = (), **environment: str) -> AsyncIterator[Parent]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, cwd=directory, env={**os.environ, **environment}, pass_fds=pass_fds,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        program = Parent(process, directory)
        program.zygote = (await program.answer())["zygote"]
        yield program
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_a_child_is_as_if_started_by_hand(tmp_path: Path):
    reading, writing = os.pipe()
    async with parent(tmp_path, (writing,)) as program:
        number = writing
        environment = {"KEY": b"value", "LATIN": b"\xe9"}
        pid = await program.start("describe", "--option", env=environment, pass_fds=(number,))
        assert program.kind == "ForkedProcess"
        assert (await program.order(wait=pid))["code"] == 0
        result = json.loads((tmp_path / "out").read_text())
        assert result["argv"] == ["describe", "--option"]
        assert (result["pid"], result["parent"], result["session"]) == (pid, program.pid, pid)
        assert result["descriptors"] == [0, 1, 2, number]
        assert result["environment"] == {"PATH": "/usr/bin", "KEY": "value", "LATIN": "\udce9"}
        assert result["signals"] == [True, True, True]
        assert result["threads"] == 1
    os.close(reading)
    os.close(writing)


async def test_children_share_no_seed_and_run_event_loops_of_their_own(tmp_path: Path):
    async with parent(tmp_path) as program:
        result = [json.loads((await program.run("loop", output=str(n)))[1]) for n in range(3)]
    for source in ("random", "numpy", "urandom"):
        assert len({child[source] for child in result}) == 3


async def test_exit_codes_and_last_words_are_those_of_an_interpreter(tmp_path: Path):
    async with parent(tmp_path) as program:
        assert await program.run("exit", "3", output="a") == (3, "")
        assert await program.run("text", output="b") == (1, "a text\n")
        code, text = await program.run("raise", output="c")
        assert (code, text.splitlines()[-1]) == (1, "ValueError: a fault")
        assert await program.run("thread", output="d") == (0, "the thread has ended\n")
        pid = await program.start("wait", output="e")
        os.kill(pid, signal.SIGKILL)
        assert (await program.order(wait=pid))["code"] == -signal.SIGKILL


async def test_ps_shows_the_command_and_no_variable(tmp_path: Path):
    async with parent(tmp_path, SECRET="of the parent") as program:
        pid = await program.start("wait", "--swarm", "x", env={"SECRET": b"of the child"})
        child = psutil.Process(pid)
        while not (tmp_path / "out").read_text():
            await asyncio.sleep(0.01)
        assert " ".join(child.cmdline()).strip() == "signalmesh wait --swarm x"
        assert b"of the" not in Path(f"/proc/{pid}/environ").read_bytes()
        assert " ".join(psutil.Process(program.zygote).cmdline()).strip() == "signalmesh zygote"


async def test_a_zygote_that_replaced_another_one_ends_with_its_parent_even_while_it_is_stopped(tmp_path: Path):
    async with parent(tmp_path) as program:
        os.kill(program.zygote, signal.SIGKILL)
        another = (await program.order(zygote=program.zygote))["zygote"]
        os.kill(another, signal.SIGSTOP)
        program.process.kill()
        try:
            async with asyncio.timeout(GUARD_S):
                await wait_pid_exit(another)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(another, signal.SIGKILL)


async def test_children_end_with_their_parent_and_so_does_the_zygote(tmp_path: Path):
    async with parent(tmp_path) as program:
        pids = [await program.start("wait") for _ in range(2)]
        program.process.kill()
        async with asyncio.timeout(GUARD_S):
            for pid in (*pids, program.zygote):
                await wait_pid_exit(pid)


async def test_children_outlive_the_zygote_and_the_next_one_forks_again(tmp_path: Path):
    async with parent(tmp_path) as program:
        first = await program.start("wait")
        os.kill(program.zygote, signal.SIGKILL)
        another = (await program.order(zygote=program.zygote))["zygote"]
        assert psutil.Process(first).status() != psutil.STATUS_ZOMBIE
        assert psutil.Process(first).ppid() == program.pid
        # the new one is a new interpreter, in which our run_command is not replaced
        code, text = await program.run("--version", output="version")
        assert program.kind == "ForkedProcess"
        assert (code, text.split()[0]) == (0, "signalmesh")
        assert psutil.Process(another).ppid() == program.pid


async def test_without_an_answer_of_the_zygote_a_new_interpreter_is_started_once(tmp_path: Path):
    async with parent(tmp_path) as program:
        assert await program.run("exit", "0") == (0, "")  # it is ready
        await program.order(reply_s=0.3)
        os.kill(program.zygote, signal.SIGSTOP)
        code, text = await program.run("--version", output="version")
        assert program.kind == "Process"
        assert (code, text.count("signalmesh")) == (0, 1)
        assert not psutil.pid_exists(program.zygote)


@pytest.mark.slow
async def test_all_that_wait_for_a_hung_zygote_are_started_once(tmp_path: Path):
    async with parent(tmp_path) as program:
        assert await program.run("exit", "0") == (0, "")  # it is ready
        await program.order(reply_s=0.3)
        os.kill(program.zygote, signal.SIGSTOP)
        output = tmp_path / "version"
        assert (await program.order(together=5, output=str(output)))["codes"] == [0] * 5
        assert output.read_text().count("signalmesh") == 5
