"""Commands: how they start, are read, fed, attached to again, and end (see conforming.py)."""

from __future__ import annotations

import asyncio
import sys

import pytest
from e2b import (
    AsyncSandbox,
    CommandExitException,
    InvalidArgumentException,
    NotFoundException,
    PtySize,
    SandboxException,
    TimeoutException,
)

from tests.e2b.conforming import Service, alive, ended, until
from tests.support.collecting import GUARD_S, Collector

pytestmark = pytest.mark.slow  # the stand-in is part of the tests, not of the product


async def test_a_command_runs_in_the_home_directory_with_the_environment_it_was_given(sandbox, monkeypatch):
    monkeypatch.setenv("OF_THE_LAUNCHER", "1")
    ran = await sandbox.commands.run(
        'echo "$COLOUR $SIZE $KIND"; pwd; echo "$HOME"; env; echo wrong >&2', envs={"SIZE": "2", "KIND": "a 'b' \"c\""}
    )
    first, directory, home, *environment = ran.stdout.splitlines()
    assert first == "green 2 a 'b' \"c\""
    assert directory == home
    assert ran.stderr == "wrong\n"
    assert ran.exit_code == 0
    assert not [line for line in environment if line.startswith(("E2B_API_KEY=", "OF_THE_LAUNCHER="))]


async def test_a_command_runs_in_the_given_directory(sandbox):
    await sandbox.files.make_dir("below/here")
    ran = await sandbox.commands.run("pwd", cwd="below/here")
    assert ran.stdout.endswith("/below/here\n")
    with pytest.raises(InvalidArgumentException, match="does not exist"):
        await sandbox.commands.run("pwd", cwd="nowhere")


async def test_a_failure_has_the_exit_code_and_what_was_printed(sandbox):
    with pytest.raises(CommandExitException) as caught:
        await sandbox.commands.run("echo out; echo err >&2; exit 3")
    assert (caught.value.exit_code, caught.value.stdout, caught.value.stderr) == (3, "out\n", "err\n")
    assert caught.value.error == "exit status 3"


async def test_a_death_by_signal_is_reported_as_one(sandbox):
    with pytest.raises(CommandExitException) as caught:
        await sandbox.commands.run("kill -9 $$")
    assert (caught.value.exit_code, caught.value.error) == (-1, "signal: killed")


async def test_output_comes_whole_and_in_order_while_the_command_runs(sandbox):
    received: Collector[str] = Collector()
    running = await sandbox.commands.run(
        "echo ready; read go; seq 1 20000", background=True, stdin=True, on_stdout=received.put, timeout=0
    )
    assert await received.reach(1) == ["ready\n"]
    await sandbox.commands.send_stdin(running.pid, "go\n")
    result = await running.wait()
    assert result.stdout == "ready\n" + "".join(f"{n}\n" for n in range(1, 20001))
    assert "".join(received.items) == result.stdout


async def test_output_is_not_kept_without_a_listener(sandbox):
    result = await sandbox.commands.run("echo out", retain_output=False)
    assert result.stdout is None


async def test_input_is_streamed_and_ends_when_it_is_closed(sandbox):
    running = await sandbox.commands.run("cat; echo end", background=True, stdin=True, timeout=0)
    async with sandbox.commands.stream_input(running.pid) as stdin:
        await stdin.send("one\n")
        await stdin.send(b"two\n" + b"x" * 100_000 + b"\n")
    await sandbox.commands.close_stdin(running.pid)
    result = await running.wait()
    assert result.stdout == "one\ntwo\n" + "x" * 100_000 + "\nend\n"


async def test_the_end_of_a_stream_is_not_the_end_of_the_input(sandbox):
    running = await sandbox.commands.run("read a; read b; echo $a $b", background=True, stdin=True, timeout=0)
    for word in ("one\n", "two\n"):
        async with sandbox.commands.stream_input(running.pid) as stdin:
            await stdin.send(word)
    assert (await running.wait()).stdout == "one two\n"


async def test_a_command_without_input_reads_its_end_at_once(sandbox):
    assert (await sandbox.commands.run("cat; echo end")).stdout == "end\n"


async def test_what_runs_is_listed(sandbox):
    assert await sandbox.commands.list() == []
    command = "exec sleep 60"
    running = await sandbox.commands.run(command, background=True, timeout=0, envs={"KIND": "k"})
    [found] = await sandbox.commands.list()
    assert (found.pid, found.cmd, found.args, found.envs) == (
        running.pid,
        "/bin/bash",
        ["-l", "-c", command],
        {"KIND": "k"},
    )
    assert await running.kill()
    await ended(running)
    assert await sandbox.commands.list() == []


async def test_a_process_outlives_the_stream_it_was_started_by_and_is_attached_to_again(service, sandbox):
    running = await sandbox.commands.run(
        "echo first; read a; echo second; echo said >said; read b; echo third; exit 4",
        background=True,
        stdin=True,
        timeout=0,
    )
    await running.disconnect()
    again = await AsyncSandbox.connect(sandbox.sandbox_id)
    await again.commands.send_stdin(running.pid, "go\n")
    await until(lambda: again.files.exists("said"))  # so it printed "second" without a listener: that is lost
    await until(lambda: was_read(service, running.pid, "second\n"))
    attached = await again.commands.connect(running.pid, timeout=0)
    await attached.send_stdin("go\n")
    failed = await ended(attached)
    assert (failed.stdout, failed.exit_code) == ("third\n", 4)


async def was_read(service: Service, pid: int, text: str) -> bool:
    """Whether envd has taken this output from the process. The service does not report it: a call there is slower."""
    if service.standin is None:
        return True
    lines = [line for line in service.standin.log() if line["kind"] == "output" and line["pid"] == pid]
    return text in "".join(line["body"] for line in lines)


LAUNCHER = """
import asyncio, sys
from e2b import AsyncSandbox

async def main():
    sandbox = await AsyncSandbox.connect(sys.argv[1])
    running = await sandbox.commands.run("exec sleep 60", background=True, timeout=0)
    print(running.pid, flush=True)
    await running.wait()

asyncio.run(main())
"""


async def test_a_process_outlives_its_launcher(sandbox):
    launcher = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LAUNCHER, sandbox.sandbox_id, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert launcher.stdout is not None
        async with asyncio.timeout(GUARD_S):
            pid = int(await launcher.stdout.readline())
    finally:
        launcher.kill()
        await launcher.communicate()
    assert await alive(sandbox, pid)
    attached = await sandbox.commands.connect(pid, timeout=0)
    assert await sandbox.commands.kill(pid)
    assert (await ended(attached)).exit_code == -1


async def test_every_listener_receives_the_same(sandbox):
    running = await sandbox.commands.run("read go; echo said; exit 2", background=True, stdin=True, timeout=0)
    attached = [await sandbox.commands.connect(running.pid, timeout=0) for _ in range(2)]
    await running.send_stdin("go\n")
    for handle in (running, *attached):
        failed = await ended(handle)
        assert (failed.stdout, failed.exit_code) == ("said\n", 2)


async def test_the_timeout_of_a_command_kills_it_though_it_runs_in_the_background(sandbox):
    lasting = await sandbox.commands.run("exec sleep 60", background=True, timeout=0)
    with pytest.raises(TimeoutException, match=r"exceeding 'timeout'|deadline"):
        await (await sandbox.commands.run("echo $$ >short; exec sleep 60", background=True, timeout=1)).wait()
    short = (await sandbox.files.read("short")).strip()

    async def only_one():
        return len(await sandbox.commands.list()) == 1

    await until(only_one)
    assert [found.pid for found in await sandbox.commands.list()] == [lasting.pid]
    assert not await alive(sandbox, short)
    assert await alive(sandbox, lasting.pid)


async def test_the_timeout_of_a_connection_kills_nothing(sandbox):
    running = await sandbox.commands.run("exec sleep 60", background=True, timeout=0)
    with pytest.raises(TimeoutException):
        await (await sandbox.commands.connect(running.pid, timeout=0.3)).wait()
    assert await alive(sandbox, running.pid)


async def test_a_kill_is_of_one_process_and_its_children_live_on(sandbox):
    received: Collector[str] = Collector()
    running = await sandbox.commands.run(
        "trap '' TERM INT HUP; sleep 60 >/dev/null 2>&1 & echo $!; wait",
        background=True,
        on_stdout=received.put,
        timeout=0,
    )
    [child] = await received.reach(1)
    assert await running.kill() is True
    failed = await ended(running)
    assert (failed.exit_code, failed.error) == (-1, "signal: killed")
    assert await sandbox.commands.kill(running.pid) is False
    assert not await alive(sandbox, running.pid)
    assert await alive(sandbox, int(child))


async def test_a_command_ends_when_all_have_closed_its_output(sandbox):
    """So one that leaves a child behind must redirect the child's output."""
    ran = await sandbox.commands.run("(sleep 0.5; echo late; touch late) & echo early")
    assert ran.stdout == "early\nlate\n"
    assert await sandbox.files.exists("late")


async def test_a_kill_ends_the_stream_though_a_child_still_has_the_output(sandbox):
    running = await sandbox.commands.run("sleep 60 & wait", background=True, timeout=0)
    assert await running.kill()
    assert (await ended(running)).error == "signal: killed"


async def test_the_exit_code_is_known_to_a_late_listener(sandbox):
    running = await sandbox.commands.run("read go; exit 5", background=True, stdin=True, timeout=0)
    await running.disconnect()
    await sandbox.commands.send_stdin(running.pid, "go\n")

    async def none_runs():
        return await sandbox.commands.list() == []

    await until(none_runs)
    assert (await ended(await sandbox.commands.connect(running.pid))).exit_code == 5


async def test_a_process_that_is_not_there_is_not_found(sandbox):
    pid = 4_000_000  # above the kernel's largest
    assert await sandbox.commands.kill(pid) is False
    with pytest.raises(NotFoundException):
        await sandbox.commands.connect(pid)
    with pytest.raises(NotFoundException):
        await sandbox.commands.send_stdin(pid, "x")
    with pytest.raises(NotFoundException):
        async with sandbox.commands.stream_input(pid) as stdin:
            await stdin.send("x")


async def test_input_of_a_command_that_takes_none_is_refused(sandbox):
    running = await sandbox.commands.run("exec sleep 60", background=True, timeout=0)
    with pytest.raises(SandboxException, match="stdin"):
        await sandbox.commands.send_stdin(running.pid, "x")


async def test_a_terminal_has_a_size_and_receives_what_is_typed(sandbox):
    received: Collector[bytes] = Collector()
    terminal = await sandbox.pty.create(PtySize(rows=31, cols=97), on_data=received.put, timeout=0)
    await sandbox.pty.send_stdin(terminal.pid, b"stty size; exec cat\n")

    async def output(text: bytes) -> None:
        count = 0
        while text not in b"".join(received.items):
            count = len(await received.reach(count + 1))

    await output(b"31 97\r\n")
    await sandbox.pty.resize(terminal.pid, PtySize(rows=10, cols=20))
    await sandbox.pty.send_stdin(terminal.pid, b"typed\n")
    await output(b"typed\r\ntyped\r\n")
    assert (await sandbox.commands.run(f"stty size </proc/{terminal.pid}/fd/0")).stdout == "10 20\n"
    assert await sandbox.pty.kill(terminal.pid)
    await ended(terminal)
