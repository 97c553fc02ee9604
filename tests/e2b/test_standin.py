"""What only the stand-in has: faults, limits, its log, and that nothing outlives it."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest
from e2b import (
    AsyncSandbox,
    AuthenticationException,
    NotFoundException,
    RateLimitException,
    SandboxException,
    SandboxNotRunningException,
    SandboxUnreachableException,
    ServiceBusyException,
    TimeoutException,
)

from bus.utils.processes import wait_pid_exit
from tests.e2b.standin.launch import StandIn, standin
from tests.support.collecting import GUARD_S, Collector

pytestmark = pytest.mark.slow  # the stand-in is part of the tests, not of the product

CREATE = "/v2/sandboxes"
START = "/process.Process/Start"


@pytest.fixture
async def sandbox(e2b_standin: StandIn) -> AsyncSandbox:
    return await AsyncSandbox.create(timeout=60)


async def gone(pids: list[int]) -> None:
    async with asyncio.timeout(GUARD_S):
        for pid in pids:
            await wait_pid_exit(pid)


# Refusals


@pytest.mark.parametrize(
    ("status", "raised", "of_a_sandbox"),
    [
        (400, SandboxException, True),
        (401, AuthenticationException, False),
        (403, SandboxException, True),
        (429, RateLimitException, True),
        (500, SandboxException, True),
        (502, SandboxException, True),
        (503, ServiceBusyException, False),
        (504, SandboxException, True),
    ],
)
async def test_each_refusal_of_the_api_has_its_exception(e2b_standin, status, raised, of_a_sandbox):
    await e2b_standin.fail(CREATE, method="POST", status=status, message="so it was told")
    with pytest.raises(raised, match="so it was told") as caught:
        await AsyncSandbox.create(timeout=60, retries=0)
    assert isinstance(caught.value, SandboxException) is of_a_sandbox
    assert await e2b_standin.sandboxes() == {}
    await AsyncSandbox.create(timeout=60, retries=0)  # a fault is used up


@pytest.mark.parametrize(
    ("status", "message", "raised"),
    [
        (401, "no", AuthenticationException),
        (403, "no", SandboxException),
        (429, "no", RateLimitException),
        (500, "no", SandboxException),
        (502, "The sandbox was not found", SandboxNotRunningException),
        (502, "The sandbox is running but port is not open", SandboxUnreachableException),
        (502, "bad gateway", SandboxUnreachableException),
        (503, "no", SandboxUnreachableException),
        (504, "no", TimeoutException),
    ],
)
async def test_each_refusal_of_envd_has_its_exception(sandbox, e2b_standin, status, message, raised):
    await e2b_standin.fail("/process.Process/List", status=status, message=message)
    with pytest.raises(raised) as caught:
        await sandbox.commands.list()
    assert type(caught.value) is raised
    await e2b_standin.fail(START, status=status, message=message)
    with pytest.raises(raised) as caught:
        await sandbox.commands.run("true")
    assert type(caught.value) is raised
    assert await sandbox.commands.list() == []


async def test_the_sdk_itself_repeats_what_was_too_much_or_too_busy(e2b_standin):
    await e2b_standin.fail(CREATE, status=429, retry_after=0)
    await e2b_standin.fail(CREATE, status=503, retry_after=0)
    before = len(e2b_standin.requests(CREATE))
    await AsyncSandbox.create(timeout=60)
    assert [line["status"] for line in e2b_standin.requests(CREATE)[before:]] == [429, 503, 201]
    assert [fault["used"] for fault in await e2b_standin.faults()] == [1, 1]


async def test_a_fault_befalls_only_what_it_names(sandbox, e2b_standin):
    await e2b_standin.fail(START, contains="pip install", status=500, times=None)
    for _ in range(2):
        with pytest.raises(SandboxException):
            await sandbox.commands.run("pip install numpy")
    await sandbox.commands.run("true")
    await e2b_standin.clear()
    assert (await sandbox.commands.run("echo pip install")).exit_code == 0


async def test_a_fault_that_is_none_is_refused(e2b_standin):
    with pytest.raises(ValueError, match="drop: before or after"):
        await e2b_standin.fail("/", drop="sometimes")
    with pytest.raises(ValueError, match="unexpected keyword argument 'stauts'"):
        await e2b_standin.fail("/", stauts=500)


async def test_a_slow_answer_is_a_timeout(sandbox, e2b_standin):
    await e2b_standin.fail(START, contains="install", delay_s=5)
    with pytest.raises(TimeoutException):
        await sandbox.commands.run("echo install", request_timeout=0.2)


# Limits


async def test_so_many_run_at_a_time(e2b_standin):
    await e2b_standin.limits(concurrent=2)
    first, _ = [await AsyncSandbox.create(timeout=60) for _ in range(2)]
    with pytest.raises(RateLimitException, match="maximum number of concurrent"):
        await AsyncSandbox.create(timeout=60, retries=0)
    await first.pause()
    await AsyncSandbox.create(timeout=60, retries=0)


async def test_creates_a_second_are_limited(e2b_standin):
    await e2b_standin.limits(creates_per_s=0.05)
    await AsyncSandbox.create(timeout=60)
    async with httpx.AsyncClient() as client:
        refused = await client.post(
            e2b_standin.environment["E2B_API_URL"] + CREATE,
            headers={"X-API-KEY": e2b_standin.api_key},
            json={"templateID": "base"},
        )
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 20
    await e2b_standin.limits(creates_per_s=None)
    await AsyncSandbox.create(timeout=60)


async def test_a_template_can_go_and_come(e2b_standin):
    await e2b_standin.limits(templates=["base", "numbers"])
    assert (await (await AsyncSandbox.create("numbers", timeout=60)).get_info()).template_id == "numbers"
    await e2b_standin.limits(templates=["base"])
    with pytest.raises(SandboxException, match="template 'numbers' not found"):
        await AsyncSandbox.create("numbers", timeout=60)


# Broken connections


async def test_a_create_whose_answer_was_lost_is_found_by_its_key(e2b_standin):
    await e2b_standin.fail(CREATE, method="POST", drop="after")
    with pytest.raises(httpx.TransportError):
        await AsyncSandbox.create(timeout=60, idempotency_key="slot-1-a")
    [created] = await e2b_standin.sandboxes()
    assert (await AsyncSandbox.create(timeout=60, idempotency_key="slot-1-a")).sandbox_id == created
    assert list(await e2b_standin.sandboxes()) == [created]


async def test_a_create_that_never_arrived_made_nothing(e2b_standin):
    await e2b_standin.fail(CREATE, method="POST", drop="before")
    with pytest.raises(httpx.TransportError):
        await AsyncSandbox.create(timeout=60)
    assert await e2b_standin.sandboxes() == {}


async def test_another_request_by_the_same_key_is_refused(e2b_standin):
    await AsyncSandbox.create(timeout=60, idempotency_key="slot-2-a")
    with pytest.raises(SandboxException) as caught:
        await AsyncSandbox.create(timeout=61, idempotency_key="slot-2-a")
    assert caught.value.status_code == 422


async def test_a_stream_that_breaks_half_way_leaves_the_process_to_be_attached_to(sandbox, e2b_standin):
    await e2b_standin.fail(START, reset_after=2)
    received: Collector[str] = Collector()
    running = await sandbox.commands.run(
        "echo one; read a; echo two; read b; echo three", background=True, stdin=True, on_stdout=received.put, timeout=0
    )
    await received.reach(1)
    await running.send_stdin("go\n")
    with pytest.raises(SandboxUnreachableException):
        await running.wait()
    attached = await sandbox.commands.connect(running.pid, timeout=0)
    await attached.send_stdin("go\n")
    assert (await attached.wait()).stdout == "three\n"


async def test_all_streams_of_a_sandbox_can_be_broken_at_once(sandbox, e2b_standin):
    handles = [await sandbox.commands.run("exec sleep 60", background=True, timeout=0) for _ in range(2)]
    await e2b_standin.reset(sandbox.sandbox_id)
    for handle in handles:
        with pytest.raises(SandboxUnreachableException):  # so its health was requested, and is fine
            await handle.wait()
    assert {found.pid for found in await sandbox.commands.list()} == {handle.pid for handle in handles}


async def test_a_sandbox_vanishes_with_its_processes_without_a_notice(sandbox, e2b_standin):
    running = await sandbox.commands.run("sleep 60 & exec sleep 60", background=True, timeout=0)
    displayed = (await e2b_standin.sandboxes())[sandbox.sandbox_id]
    assert running.pid in displayed["pids"]
    await e2b_standin.vanish(sandbox.sandbox_id)
    await gone([displayed["init"], *displayed["pids"]])
    with pytest.raises(SandboxNotRunningException):
        await running.wait()
    with pytest.raises(NotFoundException):
        await sandbox.get_info()


async def test_an_envd_that_cannot_be_reached_is_no_sandbox_that_is_gone(sandbox, e2b_standin):
    running = await sandbox.commands.run("exec sleep 60", background=True, timeout=0)
    await e2b_standin.port_open(sandbox.sandbox_id, opened=False)
    with pytest.raises(SandboxUnreachableException, match="port is not open"):
        await running.wait()
    with pytest.raises(SandboxUnreachableException, match="port is not open"):
        await sandbox.commands.list()
    assert (await sandbox.get_info()).sandbox_id == sandbox.sandbox_id
    await e2b_standin.port_open(sandbox.sandbox_id, opened=True)
    assert [found.pid for found in await sandbox.commands.list()] == [running.pid]


async def test_sandboxes_live_on_while_the_api_is_down(sandbox, e2b_standin):
    await e2b_standin.ports(api=False)
    with pytest.raises(httpx.ConnectError):
        await sandbox.get_info()
    assert (await sandbox.commands.run("echo here")).stdout == "here\n"
    await e2b_standin.ports(api=True)
    assert (await sandbox.get_info()).sandbox_id == sandbox.sandbox_id


async def test_a_sandbox_behind_a_closed_port_is_unreachable(sandbox, e2b_standin):
    running = await sandbox.commands.run("exec sleep 60", background=True, timeout=0)
    await e2b_standin.ports(envd=False)
    with pytest.raises(SandboxUnreachableException):
        await running.wait()
    await e2b_standin.ports(envd=True)
    assert [found.pid for found in await sandbox.commands.list()] == [running.pid]


async def test_a_pause_stops_every_process(sandbox, e2b_standin):
    received: Collector[str] = Collector()
    await sandbox.commands.run("sleep 60 & echo; exec sleep 60", background=True, on_stdout=received.put, timeout=0)
    await received.reach(1)

    async def states() -> set[str]:
        displayed = (await e2b_standin.sandboxes())[sandbox.sandbox_id]
        assert len(displayed["pids"]) == 2
        return {psutil.Process(pid).status() for pid in displayed["pids"]}

    await sandbox.pause()
    assert await states() == {psutil.STATUS_STOPPED}
    await AsyncSandbox.connect(sandbox.sandbox_id, timeout=60)
    assert psutil.STATUS_STOPPED not in await states()


CLIENT = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as there:
    there.sendall(b"here")
    print(there.recv(1) or "cut", flush=True)
"""


async def test_a_pause_cuts_the_connections_of_the_processes(sandbox):
    arrived, cut = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(4) == b"here"
        arrived.set()
        assert await reader.read() == b""
        cut.set()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1") as server, asyncio.timeout(GUARD_S):
        port = server.sockets[0].getsockname()[1]
        await sandbox.files.write("client.py", CLIENT)
        running = await sandbox.commands.run(f"{sys.executable} client.py {port}", background=True, timeout=0)
        await arrived.wait()
        await sandbox.pause()
        await cut.wait()
        with pytest.raises(SandboxNotRunningException):
            await running.wait()
        again = await AsyncSandbox.connect(sandbox.sandbox_id, timeout=60)
        finished = await again.commands.connect(running.pid, timeout=0)
        assert (await finished.wait()).exit_code == 0


# The log


async def test_only_unlogged_bodies_hold_what_was_sent_by_stream_and_by_file(sandbox, e2b_standin):
    by_stream, by_file, by_run = (secrets.token_hex(16) for _ in range(3))
    running = await sandbox.commands.run("cat >/dev/null", background=True, stdin=True, timeout=0)
    async with sandbox.commands.stream_input(running.pid) as stdin:
        await stdin.send(by_stream)
    await sandbox.commands.close_stdin(running.pid)
    await running.wait()
    await sandbox.files.write("secret", by_file)
    await sandbox.commands.run(f"echo {by_run}", envs={"S": by_run})
    text = "\n".join(json.dumps(line) for line in e2b_standin.log())
    logged = "\n".join(json.dumps({**line, "unlogged": None}) for line in e2b_standin.log())
    assert encoded(by_stream) in text
    assert by_file in text
    for secret in (by_stream, encoded(by_stream), by_file, e2b_standin.api_key):
        assert secret not in logged
    assert e2b_standin.api_key not in text
    started = [line for line in e2b_standin.requests(START) if by_run in json.dumps(line["body"])]
    assert [line["body"][0]["process"]["envs"] for line in started] == [{"S": by_run}]
    assert [line["body"] for line in e2b_standin.log() if line["kind"] == "output" and by_run in line["body"]] == [
        by_run + "\n"
    ]
    [created] = [line for line in e2b_standin.requests(CREATE) if line["method"] == "POST"][-1:]
    assert created["headers"]["x-api-key"] == "present"
    assert started[0]["headers"]["x-access-token"] == "present"


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


async def test_a_wrong_access_token_is_refused(sandbox, e2b_standin):
    async with httpx.AsyncClient(base_url=e2b_standin.environment["E2B_SANDBOX_URL"]) as client:
        refused = await client.post(
            "/process.Process/List",
            json={},
            headers={"E2b-Sandbox-Id": sandbox.sandbox_id, "X-Access-Token": "another"},
        )
    assert refused.status_code == 401


# Its end

DAEMON = """
import os, signal, sys, time
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
os.environ.clear()
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
for descriptor in range(3):
    os.close(descriptor)
os.open("pid.new", os.O_WRONLY | os.O_CREAT)
os.write(0, str(os.getpid()).encode())
os.rename("pid.new", "pid")
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_nothing_outlives_the_stand_in_however_it_ends(tmp_path, monkeypatch, number):
    with standin(tmp_path) as started:
        for name, value in started.environment.items():
            monkeypatch.setenv(name, value)
        sandbox = await AsyncSandbox.create(timeout=60)
        await sandbox.files.write("daemon.py", DAEMON)
        await sandbox.commands.run(f"{sys.executable} daemon.py")
        async with asyncio.timeout(GUARD_S):
            while not await sandbox.files.exists("pid"):
                await asyncio.sleep(0.02)
        daemon = int(await sandbox.files.read("pid"))
        running = await sandbox.commands.run("sleep 60 & exec sleep 60", background=True, timeout=0)
        paused = await AsyncSandbox.create(timeout=60)
        await paused.commands.run("exec sleep 60", background=True, timeout=0)
        await paused.pause()
        displayed = await started.sandboxes()
        pids = [pid for one in displayed.values() for pid in (one["init"], *one["pids"])]
        assert {daemon, running.pid} <= set(pids)
        assert len(pids) >= 6
        started.kill(number)
        await gone(pids)
        with pytest.raises(SandboxUnreachableException):
            await running.wait()


async def test_the_stand_in_ends_with_its_parent(tmp_path):
    script = (
        "import sys\nfrom pathlib import Path\nfrom tests.e2b.standin.launch import standin\n"
        f"with standin(Path({str(tmp_path)!r})) as started:\n    print(started.pid, flush=True)\n    sys.stdin.read()\n"
    )
    starter = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert starter.stdout is not None
        async with asyncio.timeout(GUARD_S):
            pid = int(await starter.stdout.readline())
        assert psutil.pid_exists(pid)
    finally:
        starter.kill()
        await starter.communicate()
    await gone([pid])


async def test_a_killed_sandbox_leaves_no_directory(sandbox, e2b_standin):
    home = Path((await e2b_standin.sandboxes())[sandbox.sandbox_id]["home"])
    assert home.is_dir()
    await sandbox.kill()
    assert not home.exists()
