"""The web application and its server in this process, with real connections: bounds, and what a fault answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from coordinator.dashboard.api import Dashboard
from coordinator.dashboard.guard import CRASHED, Access
from coordinator.dashboard.hub import FLUSH_S, QUEUE_BYTES, WRITE_BYTES, Hub
from coordinator.dashboard.live_source import LiveSource
from coordinator.dashboard.model import SwarmModel
from coordinator.dashboard.server import BUFFER_BYTES, Transports, make_server
from coordinator.runner.dashboard_link import open_port
from tests.support.collecting import GUARD_S
from tests.support.dashboard import stalled_client
from tests.support.repository import ROOT


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
    monkeypatch.setattr("coordinator.dashboard.server.STALLED_S", 0.2)
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
