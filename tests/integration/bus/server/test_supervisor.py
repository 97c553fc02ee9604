"""The embedded server, with a real nats-server and real SIGKILLs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats.errors
import psutil
import pytest
from nats.js.api import StreamConfig

from bus.errors import BusError, UsageError
from bus.messages import MAX_PAYLOAD_BYTES
from bus.nats.streams import MINIMUM_VERSION
from bus.server import supervisor
from bus.server.binary import server_version
from bus.server.config import MAX_MESSAGE_BYTES, Durability
from bus.server.monitoring import listed, read_monitoring
from bus.server.supervisor import (
    NatsServer,
    ServerDied,
    ServerEvent,
    ServerRestarted,
    ServerRestartFailed,
)
from bus.utils.backoff import FIRST_BACKOFF_S
from bus.utils.processes import _poll_pid_exit, wait_pid_exit
from tests.support.fake_binary import fake_binary
from tests.support.plain_client import connect_plainly


class Events:
    """Collects a server's events; `of` waits for one of a type."""

    def __init__(self) -> None:
        self.seen: list[ServerEvent] = []
        self._queue: asyncio.Queue[ServerEvent] = asyncio.Queue()

    def __call__(self, event: ServerEvent) -> None:
        self.seen.append(event)
        self._queue.put_nowait(event)

    async def of(self, kind: type[ServerEvent]) -> ServerEvent:
        async with asyncio.timeout(30):
            while not isinstance(event := await self._queue.get(), kind):
                pass
        return event


@asynccontextmanager
async def supervised(nats_server: NatsServer) -> AsyncIterator[Events]:
    events = Events()
    task = asyncio.create_task(nats_server.supervise(events))
    try:
        yield events
    finally:
        await nats_server.stop()
        async with asyncio.timeout(10):
            await task


def servers_of_ours() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if child.name() == "nats-server"]


async def test_starts_on_a_free_port_with_jetstream_and_our_limits(tmp_path):
    async with NatsServer(tmp_path, port=0) as nats_server:
        assert nats_server.port > 0
        assert nats_server.version is not None
        assert nats_server.version >= MINIMUM_VERSION
        client = await connect_plainly(nats_server.url)
        assert client.max_payload == MAX_MESSAGE_BYTES > MAX_PAYLOAD_BYTES
        account = await client.jetstream().account_info()
        assert account.streams == 0
        await client.close()
        pid = nats_server.pid
    assert pid is not None
    assert not psutil.pid_exists(pid)
    assert nats_server.pid is None


async def jetstream_of(nats_server: NatsServer, directory) -> dict[str, object]:
    """JetStream's configuration as the running server itself tells it."""
    assert nats_server.pid is not None
    url = listed(directory / "nats", nats_server.pid, "monitoring")
    assert url is not None
    assert url.startswith("http://127.0.0.1:")
    reported = await read_monitoring(url, "varz")
    assert reported is not None
    found: dict[str, object] = reported["jetstream"]["config"]
    return found


@pytest.mark.parametrize(("durability", "always", "interval_s"), [("process", False, 1), ("power", True, None)])
async def test_the_requested_durability_is_active_also_after_a_restart(tmp_path, durability, always, interval_s):
    requested: Durability = durability
    async with NatsServer(tmp_path, port=0, durability=requested) as nats_server, supervised(nats_server) as events:
        for _ in range(2):
            reported = await jetstream_of(nats_server, tmp_path)
            assert reported.get("sync_always", False) is always
            assert interval_s is None or reported["sync_interval"] == interval_s * 10**9
            assert nats_server.pid is not None
            os.kill(nats_server.pid, signal.SIGKILL)
            await events.of(ServerRestarted)


async def test_killed_it_comes_back_on_its_port_with_what_it_stored(tmp_path):
    async with NatsServer(tmp_path, port=0) as nats_server, supervised(nats_server) as events:
        port, first = nats_server.port, nats_server.pid
        assert first is not None
        client = await connect_plainly(nats_server.url)
        stream = client.jetstream()
        await stream.add_stream(StreamConfig(name="kept", subjects=["kept.>"]))
        for number in range(100):
            await stream.publish("kept.x", str(number).encode())
        await client.close()

        os.kill(first, signal.SIGKILL)
        died = await events.of(ServerDied)
        assert isinstance(died, ServerDied)
        assert (died.pid, died.returncode, died.retry_s) == (first, -signal.SIGKILL, FIRST_BACKOFF_S)
        again = await events.of(ServerRestarted)
        assert isinstance(again, ServerRestarted)
        assert again.pid == nats_server.pid != first
        assert nats_server.port == port

        client = await connect_plainly(nats_server.url)
        info = await client.jetstream().stream_info("kept")
        assert info.state.messages == 100
        last = await client.jetstream().get_msg("kept", 100)
        assert last.data == b"99"
        await client.close()


async def test_repeated_deaths_are_answered_more_and_more_slowly(tmp_path):
    async with NatsServer(tmp_path, port=0) as nats_server, supervised(nats_server) as events:
        for _ in range(3):
            assert nats_server.pid is not None
            os.kill(nats_server.pid, signal.SIGKILL)
            await events.of(ServerRestarted)
    pauses = [event.retry_s for event in events.seen if isinstance(event, ServerDied)]
    assert pauses == [0.05, 0.1, 0.2]


async def test_a_port_taken_meanwhile_is_reported_and_tried_again(tmp_path):
    events = Events()
    thief = socket.socket()
    thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

    def steal(event: ServerEvent) -> None:
        if isinstance(event, ServerDied):
            thief.bind(("127.0.0.1", nats_server.port))
            thief.listen()
        events(event)

    async with NatsServer(tmp_path, port=0) as nats_server:
        watch = asyncio.create_task(nats_server.supervise(steal))
        port = nats_server.port
        assert nats_server.pid is not None
        os.kill(nats_server.pid, signal.SIGKILL)
        failed = await events.of(ServerRestartFailed)
        assert isinstance(failed, ServerRestartFailed)
        assert f"--port {port}: another program" in failed.problem
        thief.close()
        await events.of(ServerRestarted)
        assert nats_server.port == port
    await watch


async def test_a_watch_of_an_earlier_start_does_not_meddle_with_the_next(tmp_path):
    async with NatsServer(tmp_path, port=0) as nats_server:
        events = Events()
        watch = asyncio.create_task(nats_server.supervise(events))
        await nats_server.stop()
        await nats_server.start()
        async with asyncio.timeout(10):
            await watch
        assert events.seen == []
        assert len(servers_of_ours()) == 1


async def test_stop_during_a_restart_leaves_nothing_behind(tmp_path):
    nats_server = NatsServer(tmp_path, port=0)
    await nats_server.start()
    assert nats_server.pid is not None
    died = asyncio.Event()
    watch = asyncio.create_task(nats_server.supervise(lambda _: died.set()))
    os.kill(nats_server.pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        await died.wait()
        await nats_server.stop()
        await watch
    assert servers_of_ours() == []


async def test_a_server_that_ignores_sigterm_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "STOP_GRACE_S", 0.1)
    nats_server = NatsServer(tmp_path, port=0)
    await nats_server.start()
    assert nats_server.pid is not None
    os.kill(nats_server.pid, signal.SIGSTOP)  # a stopped process acts on SIGKILL only
    await nats_server.stop()
    assert await nats_server.wait() == -signal.SIGKILL


PARENT = """
import asyncio, json, sys
from pathlib import Path
from bus.server.supervisor import NatsServer

async def main():
    async with NatsServer(Path(sys.argv[1]), port=0) as server:
        print(json.dumps({"pid": server.pid, "port": server.port}), flush=True)
        await server.wait()

asyncio.run(main())
"""


async def parent_with_server(state_dir: Path) -> tuple[asyncio.subprocess.Process, dict[str, int]]:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, str(state_dir), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    async with asyncio.timeout(30):
        return parent, json.loads(await parent.stdout.readline())


async def test_it_ends_when_its_parent_is_killed_and_the_next_one_takes_over_the_store(tmp_path):
    parent, reported = await parent_with_server(tmp_path)
    assert psutil.Process(reported["pid"]).name() == "nats-server"
    parent.kill()
    await parent.wait()
    async with asyncio.timeout(10):
        await wait_pid_exit(reported["pid"])
    async with NatsServer(tmp_path, port=reported["port"]) as successor:
        assert successor.port == reported["port"]


async def test_a_terminal_s_interrupt_does_not_reach_it(tmp_path):
    async with NatsServer(tmp_path, port=0) as nats_server:
        assert nats_server.pid is not None
        assert os.getsid(nats_server.pid) == nats_server.pid != os.getsid(0)


async def test_two_servers_do_not_share_a_store(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "LOCK_TIMEOUT_S", 0.0)
    async with NatsServer(tmp_path, port=0):
        with pytest.raises(UsageError, match=r"in use by another server.*signalmesh down.*--state-dir"):
            await NatsServer(tmp_path, port=0).start()


async def test_a_port_in_use_by_another_nats_server_is_reported(tmp_path):
    async with NatsServer(tmp_path / "a", port=0) as first:
        with pytest.raises(UsageError, match=rf"--port {first.port}: another NATS server .*--port 0 picks a free one"):
            await NatsServer(tmp_path / "b", port=first.port).start()


async def test_a_port_in_use_by_another_program_is_reported(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=rf"--port {port}: another program .*--port 0 picks a free one"):
            await NatsServer(tmp_path, port=port).start()


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_is_none(tmp_path, port):
    with pytest.raises(UsageError, match=f"--port {port}"):
        NatsServer(tmp_path, port=port)


async def test_a_server_that_ends_at_once_is_reported_with_its_last_words(tmp_path):
    script = (
        'if [ "$1" = --version ]; then echo "nats-server: v2.12.0"; else\n'
        f'echo "[FTL] out of cheese" >>"{tmp_path}/nats/nats.log"; exit 3; fi'
    )
    with pytest.raises(BusError, match=r"ended with status 3.*\n.*out of cheese"):
        await NatsServer(tmp_path, binary=fake_binary(tmp_path / "fake", script)).start()


async def test_a_state_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--state-dir"):
        await NatsServer(tmp_path / "file", port=0).start()


async def test_a_server_that_is_too_old_is_refused_by_name(tmp_path):
    old = fake_binary(tmp_path / "old-server", 'echo "nats-server: v2.10.4"')
    with pytest.raises(UsageError, match=r"old-server: nats-server 2\.10\.4 is too old, expected >= 2\.12"):
        await NatsServer(tmp_path, port=0, binary=old).start()


@pytest.mark.parametrize("script", ["echo hello", "exit 1"])
def test_a_program_that_is_no_nats_server(tmp_path, script):
    with pytest.raises(UsageError, match="is not nats-server"):
        server_version(fake_binary(tmp_path / "fake", script))


USERS = """
accounts { A { users = [ %s ] } }
"""


def user(name: str) -> str:
    return f"{{ user: {name}, password: {name} }}"


async def test_a_reload_returns_when_the_users_that_are_gone_are_cut_off(tmp_path):
    both, one = (USERS % ", ".join(map(user, names)) for names in (("stays", "goes"), ("stays",)))
    async with NatsServer(tmp_path, port=0, authorization=both) as server:
        ends = {"stays": asyncio.Event(), "goes": asyncio.Event()}
        clients = {}
        for name, ended in ends.items():

            async def on_end(ended=ended):
                ended.set()

            clients[name] = await connect_plainly(
                server.url, user=name, password=name, allow_reconnect=False, closed_cb=on_end
            )
        await server.reload()
        for client in clients.values():
            await client.flush()
        await server.reload(one)
        await clients["stays"].flush()
        # What the client sends now comes after its end.
        with pytest.raises((nats.errors.Error, OSError)):
            await clients["goes"].flush()
        async with asyncio.timeout(30):
            await ends["goes"].wait()
        await clients["stays"].close()


async def test_a_configuration_that_the_server_refuses_is_reported_and_a_later_one_is_used(tmp_path):
    async with NatsServer(tmp_path, port=0, authorization=USERS % user("a")) as server:
        with pytest.raises(BusError, match=r"Failed to reload server configuration: .*nats\.conf"):
            await server.reload("authorization = nonsense\n")
        await server.reload(USERS % user("b"))
        await (await connect_plainly(server.url, user="b", password="b")).close()


async def test_a_server_that_does_not_read_its_configuration_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "RELOAD_TIMEOUT_S", 0.2)
    async with NatsServer(tmp_path, port=0) as server:
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        with pytest.raises(BusError, match=r"has not read its configuration within 0\.2 s"):
            await server.reload()
        os.kill(server.pid, signal.SIGCONT)


@pytest.mark.parametrize("wait", [wait_pid_exit, _poll_pid_exit])
async def test_waiting_for_a_process_that_is_not_our_child(wait):
    script = "import subprocess, sys; print(subprocess.Popen(['cat'], stdin=0, stdout=2).pid, flush=True)"
    read_end, write_end = os.pipe()
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdin=read_end, stdout=asyncio.subprocess.PIPE
    )
    os.close(read_end)
    out, _ = await parent.communicate()
    waiting = asyncio.create_task(wait(int(out)))
    done, _ = await asyncio.wait({waiting}, timeout=0.2)
    assert not done
    os.close(write_end)  # `cat` ends at the end of its input
    async with asyncio.timeout(10):
        await waiting
        await wait(int(out))  # again: it is gone
