"""What a launcher of sandboxes relies on, asked by the unmodified SDK: of the stand-in, and of E2B where a key is set.

The same tests run against both, so that a difference shows as one. Of the service a test takes one sandbox of a minute,
and kills it whatever happens. The tests run against it only where they are asked for: `E2B_API_KEY=... pytest -m e2b`.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from e2b import (
    AsyncSandbox,
    AuthenticationException,
    CommandExitException,
    FileType,
    InvalidArgumentException,
    NotFoundException,
    PtySize,
    SandboxException,
    SandboxQuery,
    SandboxState,
    TimeoutException,
)

from tests.e2b.standin.launch import StandIn
from tests.support.collecting import GUARD_S, Collector

LIFETIME_S = 60
REAL_KEY = os.environ.get("E2B_API_KEY")


@dataclass
class Service:
    """Where the sandboxes come from. `pool` tells those of this test from all others."""

    pool: str
    standin: StandIn | None

    async def create(self, **options: Any) -> AsyncSandbox:
        options = {"timeout": LIFETIME_S} | options
        options["metadata"] = {"pool": self.pool} | options.get("metadata", {})
        return await AsyncSandbox.create(**options)

    async def all(self, **query: Any) -> list[str]:
        """The ids of this test's sandboxes."""
        metadata = {"pool": self.pool} | query.pop("metadata", {})
        paginator = AsyncSandbox.list(query=SandboxQuery(metadata=metadata, **query))
        found: list[str] = []
        while paginator.has_next:
            found += [sandbox.sandbox_id for sandbox in await paginator.next_items()]
        return found


@pytest.fixture(params=["standin", pytest.param("real", marks=pytest.mark.e2b)])
async def service(request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    standin = None
    if request.param == "standin":
        standin = request.getfixturevalue("e2b_standin")
    elif not REAL_KEY:
        pytest.skip("E2B_API_KEY is not set")
    made = Service(f"conformance {secrets.token_hex(4)} &=%", standin)
    try:
        yield made
    finally:
        for name in await made.all():
            await AsyncSandbox.kill(name)


@pytest.fixture
async def sandbox(service: Service) -> AsyncSandbox:
    return await service.create(envs={"COLOUR": "green", "SIZE": "1"})


async def until(condition: Callable[[], Awaitable[Any]]) -> Any:
    """Its first true value. For what tells nobody when it happens."""
    async with asyncio.timeout(GUARD_S):
        while not (value := await condition()):
            await asyncio.sleep(0.02)
    return value


async def ended(handle: Any) -> CommandExitException:
    """The failure with which a command ends."""
    async with asyncio.timeout(GUARD_S):
        with pytest.raises(CommandExitException) as caught:
            await handle.wait()
    return caught.value


async def alive(sandbox: AsyncSandbox, pid: int | str) -> bool:
    """Whether there is such a process in the sandbox, and no zombie."""
    looked = await sandbox.commands.run(f"grep -c 'State:.[^ZX]' /proc/{pid}/status || true")
    return looked.stdout.strip() == "1"


# The control API


async def test_a_sandbox_is_made_with_what_it_was_asked_for(service):
    before = datetime.now(UTC)
    made = await service.create(metadata={"role": "a b/c"}, allow_internet_access=False)
    info = await made.get_info()
    assert info.sandbox_id == made.sandbox_id
    assert info.state == SandboxState.RUNNING
    assert info.metadata == {"pool": service.pool, "role": "a b/c"}
    assert abs((info.end_at - info.started_at).total_seconds() - LIFETIME_S) < 5
    assert abs((info.started_at - before).total_seconds()) < 60
    assert await made.is_running()


async def test_the_same_idempotency_key_makes_one_sandbox(service):
    key = f"slot-{secrets.token_hex(8)}"
    first = await service.create(idempotency_key=key)
    second = await service.create(idempotency_key=key)
    assert first.sandbox_id == second.sandbox_id
    assert await service.all() == [first.sandbox_id]


async def test_sandboxes_are_found_by_metadata_and_state_page_by_page(service):
    made = [await service.create(metadata={"slot": f"{n} +/ü"}) for n in range(3)]
    assert set(await service.all()) == {one.sandbox_id for one in made}
    assert await service.all(metadata={"slot": "1 +/ü"}) == [made[1].sandbox_id]
    assert await service.all(metadata={"slot": "4"}) == []
    await made[2].pause()
    assert await service.all(state=[SandboxState.PAUSED]) == [made[2].sandbox_id]
    pages = []
    paginator = AsyncSandbox.list(query=SandboxQuery(metadata={"pool": service.pool}), limit=2)
    while paginator.has_next:
        pages.append([found.sandbox_id for found in await paginator.next_items()])
    assert [len(page) for page in pages] == [2, 1]
    assert {name for page in pages for name in page} == {one.sandbox_id for one in made}


async def test_a_lifetime_is_set_and_connecting_only_prolongs_it(service):
    made = await service.create(timeout=30)

    async def left_s():
        return ((await made.get_info()).end_at - datetime.now(UTC)).total_seconds()

    await made.set_timeout(50)
    assert 40 < await left_s() <= 51
    await AsyncSandbox.connect(made.sandbox_id, timeout=10)
    assert 40 < await left_s() <= 51
    await AsyncSandbox.connect(made.sandbox_id, timeout=100)
    assert 90 < await left_s() <= 101
    await made.set_timeout(20)
    assert await left_s() <= 21


async def test_killing_twice_is_no_error_and_nothing_is_left(service):
    made = await service.create()
    assert await made.kill() is True
    assert await made.kill() is False
    assert await AsyncSandbox.kill(made.sandbox_id) is False
    assert await service.all() == []
    assert await made.is_running() is False
    for call in (made.get_info, made.pause, lambda: made.set_timeout(5), lambda: AsyncSandbox.connect(made.sandbox_id)):
        with pytest.raises(NotFoundException):
            await call()


async def test_what_runs_in_a_sandbox_learns_of_its_death_as_not_running(sandbox):
    running = await sandbox.commands.run("sleep 60", background=True, timeout=0)
    await sandbox.kill()
    with pytest.raises(TimeoutException) as caught:
        await running.wait()
    assert type(caught.value).__name__ == "SandboxNotRunningException"
    for call in (
        lambda: sandbox.commands.run("true"),
        sandbox.commands.list,
        lambda: sandbox.commands.kill(1),
        lambda: sandbox.files.read("x"),
        lambda: sandbox.files.write("x", "y"),
        lambda: sandbox.files.list("."),
    ):
        with pytest.raises(TimeoutException, match="was not found") as caught:
            await call()
        assert type(caught.value).__name__ == "SandboxNotRunningException"


async def test_a_sandbox_ends_when_its_lifetime_does(service):
    made = await service.create(timeout=30)
    running = await made.commands.run("sleep 60", background=True, timeout=0)
    await made.set_timeout(1)
    with pytest.raises(TimeoutException) as caught:
        await running.wait()
    assert type(caught.value).__name__ == "SandboxNotRunningException"
    assert await until(lambda: is_gone(made))


async def is_gone(sandbox: AsyncSandbox) -> bool:
    try:
        await sandbox.get_info()
    except NotFoundException:
        return True
    return False


async def test_a_lifetime_may_end_in_a_pause(service):
    made = await service.create(lifecycle={"on_timeout": "pause"})
    await made.set_timeout(1)

    async def paused():
        return (await made.get_info()).state == SandboxState.PAUSED

    await until(paused)
    assert await made.is_running() is False
    again = await AsyncSandbox.connect(made.sandbox_id, timeout=LIFETIME_S)
    assert await again.is_running()


async def test_a_pause_stops_the_processes_and_breaks_the_streams(sandbox):
    counting = "exec 3>>ticks; while :; do echo >&3; sleep 0.02; done"
    running = await sandbox.commands.run(counting, background=True, timeout=0)

    async def ticks(connected: AsyncSandbox) -> int:
        return len(await connected.files.read("ticks"))

    await until(lambda: has_more(ticks, sandbox, 2))
    assert await sandbox.pause() is True
    assert await sandbox.pause() is False
    with pytest.raises(TimeoutException) as caught:
        await running.wait()
    assert type(caught.value).__name__ == "SandboxNotRunningException"
    with pytest.raises(TimeoutException, match="was not found"):
        await sandbox.commands.list()
    again = await AsyncSandbox.connect(sandbox.sandbox_id, timeout=LIFETIME_S)
    assert [process.pid for process in await again.commands.list()] == [running.pid]
    stood_at = await ticks(again)
    await until(lambda: has_more(ticks, again, stood_at))
    reattached = await again.commands.connect(running.pid, timeout=0)
    assert await again.commands.kill(running.pid)
    await ended(reattached)


async def has_more(ticks: Callable[[AsyncSandbox], Awaitable[int]], sandbox: AsyncSandbox, than: int) -> bool:
    try:
        return await ticks(sandbox) > than
    except NotFoundException:
        return False


async def test_what_a_sandbox_uses_is_measured(sandbox):
    await sandbox.commands.run("sleep 60 >/dev/null 2>&1 &")
    metrics = await until(sandbox.get_metrics)
    last = metrics[-1]
    assert last.cpu_count >= 1
    assert 0 < last.mem_used < last.mem_total
    assert last.disk_total > 0
    assert last.cpu_used_pct >= 0


async def test_a_template_that_is_not_there_is_refused(service):
    with pytest.raises(SandboxException) as caught:
        await service.create(template="no-such-template-as-this")
    assert caught.value.status_code in (400, 403, 404)


async def test_a_wrong_key_is_refused_as_such_and_not_as_a_failure_of_a_sandbox(service):
    with pytest.raises(AuthenticationException) as caught:
        await AsyncSandbox.create(timeout=5, api_key="e2b_" + "0" * 20)
    assert not isinstance(caught.value, SandboxException)


async def test_an_unreachable_api_is_httpx_own_failure(service, unused_tcp_port):
    with pytest.raises(httpx.ConnectError):
        await AsyncSandbox.create(timeout=5, api_url=f"http://127.0.0.1:{unused_tcp_port}")


@pytest.fixture
def unused_tcp_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


# Commands


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


async def test_a_command_runs_where_it_is_told_to(sandbox):
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


async def test_a_death_by_signal_is_told_as_one(sandbox):
    with pytest.raises(CommandExitException) as caught:
        await sandbox.commands.run("kill -9 $$")
    assert (caught.value.exit_code, caught.value.error) == (-1, "signal: killed")


async def test_output_comes_whole_and_in_order_while_the_command_runs(sandbox):
    heard: Collector[str] = Collector()
    running = await sandbox.commands.run(
        "echo ready; read go; seq 1 20000", background=True, stdin=True, on_stdout=heard.put, timeout=0
    )
    assert await heard.reach(1) == ["ready\n"]
    await sandbox.commands.send_stdin(running.pid, "go\n")
    result = await running.wait()
    assert result.stdout == "ready\n" + "".join(f"{n}\n" for n in range(1, 20001))
    assert "".join(heard.items) == result.stdout


async def test_output_is_not_kept_where_nobody_wants_it(sandbox):
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
    await until(lambda: again.files.exists("said"))  # so it said "second" while nobody listened: that is lost
    await until(lambda: was_read(service, running.pid, "second\n"))
    attached = await again.commands.connect(running.pid, timeout=0)
    await attached.send_stdin("go\n")
    failed = await ended(attached)
    assert (failed.stdout, failed.exit_code) == ("third\n", 4)


async def was_read(service: Service, pid: int, text: str) -> bool:
    """Whether envd has taken this output from the process. The service does not say: there a call takes longer."""
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


async def test_everyone_attached_hears_the_same(sandbox):
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
    heard: Collector[str] = Collector()
    running = await sandbox.commands.run(
        "trap '' TERM INT HUP; sleep 60 >/dev/null 2>&1 & echo $!; wait",
        background=True,
        on_stdout=heard.put,
        timeout=0,
    )
    [child] = await heard.reach(1)
    assert await running.kill() is True
    failed = await ended(running)
    assert (failed.exit_code, failed.error) == (-1, "signal: killed")
    assert await sandbox.commands.kill(running.pid) is False
    assert not await alive(sandbox, running.pid)
    assert await alive(sandbox, int(child))


async def test_a_command_ends_when_all_have_closed_its_output(sandbox):
    """So one that leaves a child behind must point the child's output elsewhere."""
    ran = await sandbox.commands.run("(sleep 0.5; echo late; touch late) & echo early")
    assert ran.stdout == "early\nlate\n"
    assert await sandbox.files.exists("late")


async def test_a_kill_ends_the_stream_though_a_child_still_has_the_output(sandbox):
    running = await sandbox.commands.run("sleep 60 & wait", background=True, timeout=0)
    assert await running.kill()
    assert (await ended(running)).error == "signal: killed"


async def test_the_exit_code_is_known_to_one_who_comes_late(sandbox):
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


async def test_a_terminal_has_a_size_and_hears_what_is_typed(sandbox):
    heard: Collector[bytes] = Collector()
    terminal = await sandbox.pty.create(PtySize(rows=31, cols=97), on_data=heard.put, timeout=0)
    await sandbox.pty.send_stdin(terminal.pid, b"stty size; exec cat\n")

    async def said(text: bytes) -> None:
        count = 0
        while text not in b"".join(heard.items):
            count = len(await heard.reach(count + 1))

    await said(b"31 97\r\n")
    await sandbox.pty.resize(terminal.pid, PtySize(rows=10, cols=20))
    await sandbox.pty.send_stdin(terminal.pid, b"typed\n")
    await said(b"typed\r\ntyped\r\n")
    assert (await sandbox.commands.run(f"stty size </proc/{terminal.pid}/fd/0")).stdout == "10 20\n"
    assert await sandbox.pty.kill(terminal.pid)
    await ended(terminal)


# Files


async def test_a_file_is_written_read_and_seen_by_commands(sandbox):
    home = (await sandbox.commands.run("pwd")).stdout.strip()
    written = await sandbox.files.write("a/b.txt", "héllo\n")
    assert (written.name, written.path) == ("b.txt", f"{home}/a/b.txt")
    assert await sandbox.files.read("a/b.txt") == "héllo\n"
    assert await sandbox.files.read(f"{home}/a/b.txt") == "héllo\n"
    assert (await sandbox.commands.run("cat a/b.txt; echo more >>a/b.txt")).stdout == "héllo\n"
    assert await sandbox.files.read("a/b.txt") == "héllo\nmore\n"
    await sandbox.files.write("a/b.txt", "new")
    assert await sandbox.files.read("a/b.txt") == "new"


@pytest.mark.parametrize("options", [{}, {"use_octet_stream": True}, {"gzip": True}], ids=["form", "octets", "gzip"])
async def test_bytes_travel_unchanged(sandbox, options):
    data = bytes(range(256)) * 4000
    await sandbox.files.write("data", data, **options)
    assert bytes(await sandbox.files.read("data", format="bytes")) == data
    async with await sandbox.files.read("data", format="stream") as chunks:
        assert b"".join([chunk async for chunk in chunks]) == data
    assert (await sandbox.files.get_info("data")).size == len(data)


async def test_several_files_are_written_at_once(sandbox):
    await sandbox.files.write_files([{"path": "one", "data": "1"}, {"path": "deep/er/two", "data": b"2"}])
    assert (await sandbox.files.read("one"), await sandbox.files.read("deep/er/two")) == ("1", "2")


async def test_directories_are_made_listed_renamed_and_removed(sandbox):
    assert await sandbox.files.make_dir("x/y") is True
    assert await sandbox.files.make_dir("x/y") is False
    await sandbox.files.write("x/y/file", "abc")
    assert [found.name for found in await sandbox.files.list("x")] == ["y"]
    assert sorted(found.name for found in await sandbox.files.list("x", depth=2)) == ["file", "y"]
    info = await sandbox.files.get_info("x/y/file")
    assert (info.name, info.type, info.size) == ("file", FileType.FILE, 3)
    assert (await sandbox.files.get_info("x/y")).type == FileType.DIR
    moved = await sandbox.files.rename("x/y/file", "x/other")
    assert moved.name == "other"
    assert not await sandbox.files.exists("x/y/file")
    assert await sandbox.files.exists("x/other")
    await sandbox.files.remove("x")
    assert not await sandbox.files.exists("x")


async def test_what_is_not_there_is_not_found(sandbox):
    for call in (
        lambda: sandbox.files.read("none"),
        lambda: sandbox.files.get_info("none"),
        lambda: sandbox.files.list("none"),
        lambda: sandbox.files.rename("none", "some"),
    ):
        with pytest.raises(NotFoundException):
            await call()
    assert await sandbox.files.exists("none") is False
    await sandbox.files.make_dir("directory")
    with pytest.raises(InvalidArgumentException):
        await sandbox.files.read("directory")
