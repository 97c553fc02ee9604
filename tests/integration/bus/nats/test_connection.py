"""The connection to a real server: it never goes deaf, notices what nobody tells it, and says so without secrets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import urlparse

import nats.errors
import pytest
from nats.aio.client import Srv

from bus.errors import BusTimeout, BusUnreachable, Disconnected, NotAdmitted, UsageError
from bus.interface import ReceivedMessage
from bus.nats import connection as connection_module
from bus.nats.bus import NatsBus
from bus.nats.connection import _Client
from bus.nats.streams import check_server, ensure_streams
from bus.nats.urls import check_url, redacted_url
from bus.server.binary import find_binary
from bus.testing.tcp_proxy import DOWN, Proxy
from bus.utils.aio import end_tasks
from tests.support.collecting import GUARD_S, Collector
from tests.support.nats import Connections, plain_server, supervised_server
from tests.support.ports import free_ports

MARKET = "swarm.market.A.feed"
SECRET = "pa55word"

GIVEN_UP_S = 0.5


@pytest.fixture
async def connections() -> AsyncIterator[Connections]:
    async with Connections() as stack:
        yield stack


@pytest.fixture
async def server(tmp_path):
    async with supervised_server(tmp_path) as server:
        yield server


async def down_and_up(bus: NatsBus) -> Collector[str]:
    reported: Collector[str] = Collector()

    async def up() -> None:
        reported.put("up")

    bus.watch_connection(lambda: reported.put("down"), up)
    return reported


async def wait_connected(bus: NatsBus) -> None:
    async with asyncio.timeout(GUARD_S):
        await bus.wait_connected()


async def test_a_late_pong_does_not_make_it_deaf(server, connections):
    async with Proxy(server.url) as proxy, connections:
        bus = await connections.bus(proxy.url, streams=True)
        found: Collector[ReceivedMessage] = Collector()
        await bus.listen("swarm.heartbeat.>", found)
        await bus.bounds()
        proxy.pause(DOWN)
        with pytest.raises(nats.errors.TimeoutError):
            await bus.connection.client.flush(timeout=0.05)
        proxy.release(DOWN)
        await bus.notify("swarm.heartbeat.feed", b"")
        await found.reach(1)
        await bus.bounds()
        await bus.connection.client.flush(timeout=2)
        assert bus.connection.generation == 1  # it went on; nothing had to be made anew
        assert bus.is_ready


async def test_a_late_pong_answers_its_own_ping_only():
    client = _Client()
    gave_up, waiting = asyncio.Future[bool](), asyncio.Future[bool]()
    gave_up.cancel()
    client._pongs = [gave_up, waiting]
    await client._process_pong()
    assert not waiting.done()
    await client._process_pong()
    assert waiting.done()
    await client._process_pong()  # one that nobody waits for


async def test_callbacks_that_raise_do_no_harm(server, connections):
    async with Proxy(server.url) as proxy, connections:
        bus = await connections.bus(proxy.url, streams=True)
        tries = 0

        def down() -> None:
            raise ValueError("down")

        async def up() -> None:
            nonlocal tries
            tries += 1
            if tries == 1:
                raise ValueError("up")

        bus.watch_connection(down, up)
        reported = await down_and_up(bus)
        proxy.reset()
        assert await reported.reach(2) == ["down", "up"]
        await wait_connected(bus)
        assert tries == 2
        await bus.bounds()


async def test_a_refused_protocol_line_does_not_close_it_for_good(server, connections):
    """The server says -ERR and cuts the connection; nats-py alone would stay closed, and nobody would be told."""
    async with connections:
        bus = await connections.bus(server.url, streams=True)
        reported = await down_and_up(bus)
        found: Collector[ReceivedMessage] = Collector()
        await bus.listen("swarm.heartbeat.>", found)
        await bus.connection.client._send_command(b"PUB too.large 99999999\r\n")
        await bus.connection.client._flush_pending()
        assert await reported.reach(2) == ["down", "up"]
        await wait_connected(bus)
        await bus.bounds()
        await bus.notify("swarm.heartbeat.feed", b"")
        await found.reach(1)


async def test_it_closes_although_another_task_stopped_waiting_for_its_end(server):
    bus = await NatsBus.connect(server.url, "swarm", "test")
    transport = bus.connection.client._transport
    assert transport is not None
    waiting = asyncio.create_task(transport.wait_closed())
    await asyncio.sleep(0)  # it has begun
    await end_tasks([waiting])
    await bus.close()
    assert bus.connection.client.is_closed


async def test_a_frozen_server_is_noticed_and_forgiven(server, connections):
    async with connections:
        bus = await connections.bus(server.url, streams=True)
        reported = await down_and_up(bus)
        followed: Collector[object] = Collector()
        await bus.follow(("swarm.>",), 1, followed)
        await bus.publish("in." + MARKET, b"1")
        pid = server.server.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            assert await reported.reach(1) == ["down"]
            assert not bus.is_ready
            for call in (bus.publish("in." + MARKET, b""), bus.notify("x", b""), bus.bounds(), bus.last(MARKET)):
                with pytest.raises(Disconnected):
                    await call
        finally:
            os.kill(pid, signal.SIGCONT)
        assert (await reported.reach(2))[:2] == ["down", "up"]
        await wait_connected(bus)
        assert (await bus.publish("in." + MARKET, b"2")).sequence == 2
        await followed.reach(2)
        assert server.server.pid == pid


async def test_what_was_under_way_is_answered_when_it_breaks(server, connections):
    async with Proxy(server.url) as proxy, connections:
        bus = await connections.bus(proxy.url, streams=True)
        proxy.pause(DOWN)
        publishing = asyncio.create_task(bus.publish("in." + MARKET, b"1", timeout_s=60))
        while not bus.jetstream._acks:
            await asyncio.sleep(0)
        proxy.reset()
        async with asyncio.timeout(GUARD_S):
            with pytest.raises(BusTimeout, match="the connection broke"):
                await publishing
        proxy.release(DOWN)
        await wait_connected(bus)
        await bus.bounds()


async def test_live_waits_for_what_a_reconnect_owes(server, connections):
    async with Proxy(server.url) as proxy, connections:
        bus = await connections.bus(proxy.url, streams=True)
        started_at, go_on = asyncio.Event(), asyncio.Event()

        async def up() -> None:
            started_at.set()
            await go_on.wait()

        bus.watch_connection(lambda: None, up)
        assert bus.is_ready
        proxy.reset()
        async with asyncio.timeout(GUARD_S):
            await started_at.wait()
        waiting = asyncio.create_task(bus.wait_connected())
        await bus.bounds()  # connected it is
        assert not bus.is_ready
        assert not waiting.done()
        go_on.set()
        async with asyncio.timeout(GUARD_S):
            await waiting
        assert bus.is_ready


async def test_a_break_during_the_catching_up_restarts_it(server, connections):
    async with Proxy(server.url) as proxy, connections:
        bus = await connections.bus(proxy.url, streams=True)
        started_at: Collector[int] = Collector()
        finished: Collector[int] = Collector()

        async def up() -> None:
            turn = len(started_at.items)
            started_at.put(turn)
            if turn == 0:
                await asyncio.Event().wait()
            finished.put(turn)

        bus.watch_connection(lambda: None, up)
        proxy.reset()
        await started_at.reach(1)
        proxy.reset()
        await wait_connected(bus)
        assert finished.items == [1]


# -- addresses


def silent_port() -> tuple[socket.socket, int]:
    """A port that is taken, so that nobody else gets it, and where nobody answers."""
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    return taken, taken.getsockname()[1]


async def test_an_unreachable_server_is_named_without_credentials():
    taken, port = silent_port()
    with taken:
        async with asyncio.timeout(GUARD_S):
            with pytest.raises(BusUnreachable) as unreachable:
                await NatsBus.connect(f"nats://user:{SECRET}@127.0.0.1:{port}", "swarm", "test", wait_s=0.2)
    assert unreachable.value.url == f"nats://127.0.0.1:{port}"
    assert f"nats://127.0.0.1:{port}" in str(unreachable.value)
    assert "signalmesh up" in str(unreachable.value)
    assert SECRET not in f"{unreachable.value!r} {unreachable.value} {vars(unreachable.value)}"
    assert unreachable.value.exit_code == 3


async def test_wrong_credentials_are_reported_and_not_printed(tmp_path):
    async with plain_server(tmp_path, "--user", "user", "--pass", "right") as url:
        wrong = url.replace("://", f"://user:{SECRET}@")
        with pytest.raises(NotAdmitted, match="Authorization Violation") as unreachable:
            await NatsBus.connect(wrong, "swarm", "test", wait_s=0.3)
        reported = str(unreachable.value)
        assert reported.startswith(f"the NATS server at {url} answers, but does not take these credentials")
        assert "--nats-creds (SIGNALMESH_NATS_CREDS)" in reported
        assert "signalmesh up" not in reported
        assert unreachable.value.exit_code == 3
        assert SECRET not in f"{reported} {unreachable.value!r} {vars(unreachable.value)}"
        bus = await NatsBus.connect(url.replace("://", "://user:right@"), "swarm", "test")
        try:
            assert bus.url == url
            await bus.close()
            with pytest.raises(Disconnected) as closed:
                await bus.notify("x", b"")
            assert "right" not in str(closed.value)
        finally:
            await bus.close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nats://",
        "http://localhost:4222",
        "nats://localhost:99999",
        "nats://localhost:port",
        "nats://[::1",
        f"http://user:{SECRET}@localhost:4222",
        f"nats://user:{SECRET}@localhost:99999",
        f"nats://user:{SECRET}@[::1",
        f"nats://user:{SECRET}@",
        f"user:{SECRET}@localhost:x",
        "nats://localhost:4222,",
        f"nats://localhost:4222,nats://user:{SECRET}@localhost:x",
    ],
)
async def test_a_malformed_address_is_a_persons_mistake(url):
    with pytest.raises(UsageError, match="expected nats://HOST:PORT") as usage:
        await NatsBus.connect(url, "swarm", "test", wait_s=0.1)
    assert SECRET not in f"{usage.value!r}"
    assert usage.value.exit_code == 2


@pytest.mark.parametrize(
    ("url", "result"),
    [
        ("nats://localhost:4222", "nats://localhost:4222"),
        ("localhost", "nats://localhost"),
        (f"tls://token-{SECRET}@example.org:4443", "tls://example.org:4443"),
        (f"nats://user:{SECRET}@[::1]:4222", "nats://[::1]:4222"),
        (f"nats://user:p@{SECRET}@host:1", "nats://host:1"),
        (f"nats://u:{SECRET}@one:1, nats://u:{SECRET}@two:2,three", "nats://one:1,nats://two:2,nats://three"),
    ],
)
def test_printed_addresses_have_no_credentials(url, result):
    assert check_url(url) == url
    assert redacted_url(url) == result


def test_websockets_are_not_mixed_with_others():
    with pytest.raises(UsageError, match="nats://one,ws://two: expected either WebSocket addresses"):
        check_url("nats://one,ws://two")


async def test_any_server_of_several_will_do(tmp_path, connections):
    async with plain_server(tmp_path, "-js", "-sd", str(tmp_path / "store")) as url, connections:
        bus = await connections.bus(f"nats://127.0.0.1:1,{url}", streams=True)
        assert (await bus.publish("in.swarm.alert.info.test", b"{}")).sequence == 1
        assert bus.url == f"nats://127.0.0.1:1,{url}"


@contextmanager
def silent_address(*, accepts: bool) -> Iterator[str]:
    """HOST:PORT that never says anything: it accepts connections, or the kernel drops the packets of new ones."""
    with contextlib.ExitStack() as stack:
        silent = stack.enter_context(socket.socket())
        silent.bind(("127.0.0.1", 0))
        silent.listen(100 if accepts else 0)
        for _ in range(0 if accepts else 4):  # more than the queue of those that nobody accepts takes
            filling = stack.enter_context(socket.socket())
            filling.setblocking(False)
            filling.connect_ex(silent.getsockname())
        yield f"127.0.0.1:{silent.getsockname()[1]}"


@asynccontextmanager
async def member(directory: Path, port: int, routes: tuple[int, int], more: str = "") -> AsyncIterator[None]:
    """A server of a cluster of two; it listens for its peer at the first port of `routes`."""
    config = directory / f"{port}.conf"
    listen, peer = routes
    config.write_text(
        f"host: 127.0.0.1\nport: {port}\n{more}\n"
        f'cluster {{ name: c, host: 127.0.0.1, port: {listen}, routes: ["nats://127.0.0.1:{peer}"] }}\n'
    )
    process = await asyncio.create_subprocess_exec(
        str(find_binary()), "-c", str(config), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.kill()
        await process.wait()


@pytest.mark.parametrize("accepts", [False, True])
async def test_an_advertised_address_that_never_answers_does_not_delay_a_recovery(tmp_path, connections, accepts):
    given, other, one, two = free_ports(4)
    with silent_address(accepts=accepts) as advertised:
        async with member(tmp_path, other, (two, one), f'client_advertise: "{advertised}"'), connections:
            async with member(tmp_path, given, (one, two)):
                bus = await connections.bus(f"nats://127.0.0.1:{given}")
                client = bus.connection.client
                async with asyncio.timeout(GUARD_S):
                    while not (found := [server for server in client._server_pool if server.discovered]):
                        await asyncio.sleep(0.01)
                assert [server.uri.netloc for server in found] == [advertised]
                down = await down_and_up(bus)
                # An attempt lasts for longer than the test may: it ends in time only if nothing waits for one.
                client.options["connect_timeout"] = 10 * GUARD_S
            await down.reach(1)
            async with asyncio.timeout(GUARD_S):
                while found[0].last_attempt is None:
                    await asyncio.sleep(0.01)
            async with member(tmp_path, given, (one, two)):
                await wait_connected(bus)


async def test_silent_servers_among_the_given_ones_delay_nothing(tmp_path, connections, monkeypatch):
    monkeypatch.setattr(connection_module, "CONNECT_TIMEOUT_S", 10 * GUARD_S)
    async with plain_server(tmp_path) as url, connections:
        with silent_address(accepts=False) as dropping, silent_address(accepts=True) as accepting:
            async with asyncio.timeout(GUARD_S):
                await connections.bus(f"nats://{dropping},nats://{accepting},{url}")


def test_given_addresses_are_tried_before_those_of_the_cluster():
    client = _Client()
    client.options["reconnect_time_wait"] = 0
    names = ("told", "given", "other")
    client._server_pool = [Srv(urlparse(f"nats://{name}")) for name in names]
    client._server_pool[0].discovered = True
    tried = []
    for _ in range(4):
        server = client._next_server([])
        assert server is not None
        tried.append(server.uri.hostname)
        server.reconnects += 1
    assert tried == ["given", "other", "told", "given"]


async def test_a_malformed_swarm_name_is_a_persons_mistake():
    with pytest.raises(UsageError, match=r"swarm 'a\.b'"):
        await NatsBus.connect("nats://127.0.0.1:1", "a.b", "test", wait_s=0.1)


# -- servers that do not fit


async def test_a_server_without_jetstream_is_refused(tmp_path, connections):
    async with plain_server(tmp_path) as url, connections:
        bus = await connections.bus(url)
        with pytest.raises(UsageError, match="runs without JetStream; start it with --jetstream"):
            await check_server(bus)
        with pytest.raises(UsageError, match="runs without JetStream"):
            await ensure_streams(bus)


@asynccontextmanager
async def pretending(info: dict[str, object]) -> AsyncIterator[str]:
    """Something that introduces itself as a NATS server, answers pings and does nothing else."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"INFO " + json.dumps(info).encode() + b" \r\n")
        while line := await reader.readline():
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")
        writer.close()

    fake = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"nats://127.0.0.1:{fake.sockets[0].getsockname()[1]}"
    finally:
        fake.close()


@pytest.mark.parametrize(("version", "fits"), [("2.9.25", False), ("2.11.9", False), ("2.12.0", True), ("3.0.0", True)])
async def test_an_old_server_is_refused_by_its_version(version, fits, connections):
    info = {
        "server_id": "x",
        "version": version,
        "proto": 1,
        "headers": True,
        "max_payload": 1 << 20,
        "jetstream": True,
    }
    async with pretending(info) as url, connections:
        bus = await connections.bus(url)
        if fits:
            await check_server(bus)
        else:
            with pytest.raises(UsageError, match=rf"is {version}; expected 2\.12 or newer"):
                await check_server(bus)


async def test_something_else_that_listens_there_is_unreachable():
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    other = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        url = f"nats://127.0.0.1:{other.sockets[0].getsockname()[1]}"
        with pytest.raises(BusUnreachable, match="expecting INFO"):
            await NatsBus.connect(url, "swarm", "test", wait_s=0.2)
    finally:
        other.close()


async def test_an_attempt_that_is_given_up_leaves_no_connection_open():
    """A refused attempt, then one without an answer: nats-py takes itself for closed since the former."""
    ended: asyncio.Queue[int] = asyncio.Queue()
    accepted = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        number = accepted
        writer.write(b'INFO {"server_id":"x","version":"2.12.0","headers":true,"max_payload":1048576}\r\n')
        if number == 1:
            while not (await reader.readline()).startswith(b"PING"):
                pass
            writer.write(b"-ERR 'Authorization Violation'\r\n")
        await reader.read()
        ended.put_nowait(number)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        with pytest.raises(BusUnreachable):
            await NatsBus.connect(
                f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}", "swarm", "test", wait_s=GIVEN_UP_S
            )
        async with asyncio.timeout(30):
            assert {await ended.get() for _ in range(accepted)} == set(range(1, accepted + 1))
    finally:
        server.close()
    assert accepted == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:parameter 'timeout'")  # of nats-py's use of aiohttp
@pytest.mark.parametrize("scheme", ["nats", "ws", "wss"])
async def test_a_closed_port_is_described_alike_for_every_scheme(scheme: str):
    with pytest.raises(
        BusUnreachable, match=rf"at {scheme}://127.0.0.1:1 \(\[Errno 111\] Connect[^<>]*\); start the swarm"
    ):
        await NatsBus.connect(f"{scheme}://127.0.0.1:1", "swarm", "test", wait_s=2)
