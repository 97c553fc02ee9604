"""The web application and its server in this process, with real connections: bounds, and what a fault answers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest
from structlog.testing import CapturingLogger

from coordinator.dashboard.api import Dashboard
from coordinator.dashboard.connections import BUFFER_BYTES, RETRY_S, Transports
from coordinator.dashboard.guard import CRASHED, Access
from coordinator.dashboard.hub import FLUSH_S, QUEUE_BYTES, WRITE_BYTES, Hub
from coordinator.dashboard.live_source import LiveSource
from coordinator.dashboard.model import SwarmModel
from coordinator.dashboard.server import make_server
from coordinator.runner.dashboard_link import open_port
from tests.support.collecting import GUARD_S
from tests.support.dashboard import event_stream, stalled_client
from tests.support.repository import ROOT

CONNECTIONS = "coordinator.dashboard.connections"


@asynccontextmanager
async def served() -> AsyncIterator[tuple[Hub, Transports, tuple[str, int]]]:
    """The server in this process, over a bus that is away; its hub, its connections and its address."""
    hub, transports = Hub(), Transports()
    dashboard = Dashboard(LiveSource("nats://127.0.0.1:1", "swarm", hub), hub)
    port = open_port("127.0.0.1:0", "--listen")
    server = make_server(dashboard, Access.of(port.host, port.port, "t" * 43), transports)
    serving = asyncio.create_task(server.serve(sockets=[port.socket]))
    try:
        yield hub, transports, (port.host, port.port)
    finally:
        hub.close()
        server.should_exit = True
        await serving


async def test_what_waits_for_a_viewer_that_reads_nothing_is_bounded():
    async with served() as (hub, transports, address):
        with stalled_client(address, "/events"):
            async with asyncio.timeout(GUARD_S):
                while not hub.viewers:
                    await asyncio.sleep(0.01)
                [viewer], [transport] = hub._viewers, transports.values()
                most_buffered = most_queued = 0
                while not hub.dropped:
                    hub.publish("n", "x" * 500_000)
                    await asyncio.sleep(FLUSH_S)
                    most_buffered = max(most_buffered, transport.get_write_buffer_size())
                    most_queued = max(most_queued, sum(map(len, viewer._queue)))
                while transports:
                    await asyncio.sleep(0.01)
        assert BUFFER_BYTES < most_buffered < BUFFER_BYTES + WRITE_BYTES + 1000
        assert QUEUE_BYTES // 2 < most_queued < QUEUE_BYTES + 1_100_000
        assert transport.get_write_buffer_size() == 0
        assert not viewer._queue


async def test_a_connection_that_takes_no_byte_is_ended_whatever_it_asked_for(monkeypatch):
    monkeypatch.setattr("coordinator.dashboard.connections.STALLED_S", 0.2)
    path = "/static/vendor/lightweight-charts.mjs"
    async with served() as (_, transports, address):
        with stalled_client(address, path, times=50):
            async with asyncio.timeout(GUARD_S):
                while not transports:
                    await asyncio.sleep(0.01)
                [transport] = transports.values()
                while transports:
                    await asyncio.sleep(0.01)
        assert transport.get_write_buffer_size() == 0
        async with httpx.AsyncClient(base_url=f"http://{address[0]}:{address[1]}", timeout=GUARD_S) as http:
            assert len((await http.get(path)).content) == (ROOT / f"coordinator/dashboard{path}").stat().st_size


async def test_a_fault_of_the_dashboard_is_one_line_with_the_security_headers(monkeypatch):
    monkeypatch.setattr(SwarmModel, "edges", lambda *_: 1 / 0)
    async with served() as (_, _, (host, port)), httpx.AsyncClient(base_url=f"http://{host}:{port}") as http:
        answer = await http.get("/api/mesh")
        assert (answer.status_code, answer.json()) == (500, {"error": CRASHED})
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert (await http.get("/mesh")).status_code == 200


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What the server sends until it ends the connection."""
    async with asyncio.timeout(GUARD_S):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


async def test_connections_beyond_the_bound_get_503_and_those_beyond_that_are_ended(monkeypatch):
    monkeypatch.setattr(f"{CONNECTIONS}.MOST_CONNECTIONS", 3)
    monkeypatch.setattr(f"{CONNECTIONS}.MOST_REFUSED", 2)
    request = b"GET /api/overview HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with served() as (_, transports, address), AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(event_stream(address)) for _ in range(3)]
        for stream in streams:
            await stream.until("connection")
        refused = [await asyncio.open_connection(*address) for _ in range(2)]
        while len(transports) < 5:
            await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection(*address)
        writer.write(request)
        assert await ended(reader) == b""
        writer.close()
        for reader, writer in refused:
            writer.write(request)
            answer = await ended(reader)
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ")
            assert f"retry-after: {RETRY_S}".encode() in head.lower()
            assert b"close other pages" in body
            writer.close()
        streams[0].writer.close()
        async with httpx.AsyncClient(base_url=f"http://{address[0]}:{address[1]}") as http, asyncio.timeout(GUARD_S):
            while (await http.get("/api/overview")).status_code != 200:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "begin",
    [
        b"",
        b"GET / HT",
        b"POST /login HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: same-origin\r\nContent-Length: 4000\r\n\r\n",
    ],
)
async def test_a_request_that_does_not_come_to_an_end_is_broken_off(monkeypatch, begin):
    monkeypatch.setattr(f"{CONNECTIONS}.REQUEST_S", 0.3)
    logged = CapturingLogger()
    monkeypatch.setattr("coordinator.dashboard.guard.log", logged)
    async with served() as (hub, transports, address), event_stream(address) as viewer:
        await viewer.until("connection")
        reader, writer = await asyncio.open_connection(*address)
        writer.write(begin)
        reading = asyncio.create_task(ended(reader))
        while not reading.done():
            if begin:  # a byte now and then does not prolong it
                writer.write(b"x")
            await asyncio.sleep(0.02)
        assert await reading == b""
        writer.close()
        async with asyncio.timeout(GUARD_S):
            while len(transports) > 1:
                await asyncio.sleep(0.01)
        hub.publish("later", {"than": "REQUEST_S"})  # a request that has arrived has no such limit
        await viewer.until("later")
    assert [call.args for call in logged.calls] == [("request_broken_off",)] * begin.startswith(b"POST")


async def test_an_idle_connection_is_kept_for_the_next_request_and_then_closed(monkeypatch):
    monkeypatch.setattr("coordinator.dashboard.server.IDLE_S", 0.3)
    monkeypatch.setattr(f"{CONNECTIONS}.REQUEST_S", GUARD_S)
    async with served() as (_, _, address):
        reader, writer = await asyncio.open_connection(*address)
        for _ in range(2):
            writer.write(b"GET /static/icon.svg HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            head = await reader.readuntil(b"\r\n\r\n")
            found = re.search(rb"content-length: (\d+)", head)
            assert found is not None
            await reader.readexactly(int(found[1]))
        assert await ended(reader) == b""
        writer.close()
