"""The observer counts every message of the stream once, whatever becomes of the stream and whenever it looks."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bus.nats.bus import NatsBus
from bus.nats.streams import StreamLimits, ensure_streams
from bus.server.supervisor import NatsServer
from coordinator.config.loader import parse_swarm
from coordinator.runner.mirror_role import restore
from coordinator.telemetry.metrics_role import MetricsObserver
from tests.support.collecting import GUARD_S
from tests.support.mirroring import Heartbeats, mirror_process
from tests.support.nats import Connections


async def put(bus: NatsBus, count: int) -> int:
    """Store `count` messages; the sequence of the last one."""
    ack = None
    for _ in range(count):
        ack = await bus.publish("in.swarm.signal.BTC-USD.momentum", b"{}")
    assert ack is not None
    return ack.sequence


async def read_up_to(observer: MetricsObserver, sequence: int) -> None:
    async with asyncio.timeout(GUARD_S):
        while observer.read_through < sequence:
            await asyncio.sleep(0.005)


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Events that the observer logs."""
    events: list[str] = []

    class Log:
        def __getattr__(self, level: str) -> Any:
            return lambda event, **_: events.append(event)

    monkeypatch.setattr("coordinator.telemetry.metrics_role.log", Log())
    return events


def counted(observer: MetricsObserver, kind: str = "signal") -> float:
    return observer.metrics.registry.get_sample_value("signalmesh_messages_total", {"kind": kind}) or 0


class World:
    """A server, somebody who writes, and an observer on a connection of its own."""

    def __init__(
        self, server: NatsServer, directory: Path, bus: NatsBus, observer: MetricsObserver, connections: Any
    ) -> None:
        self.server, self.directory, self.bus, self.observer = server, directory, bus, observer
        self.connections = connections


@asynccontextmanager
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with NatsServer(tmp_path, port=0) as server, Connections() as connections:
        bus = await connections.bus(server.url, streams=True)
        await put(bus, 3)  # before it looks
        own = await connections.bus(server.url)
        observer = MetricsObserver(own, parse_swarm({}, "swarm.toml", ""))
        await observer.start()
        try:
            yield World(server, tmp_path, bus, observer, connections)
        finally:
            await observer.close()


async def test_messages_read_during_a_poll_do_not_look_like_a_truncated_stream(tmp_path, monkeypatch, logged):
    async with world(tmp_path) as it:
        requested = it.observer._bus.api

        async def overtaken(subject: str, *rest: Any) -> Any:
            answer = await requested(subject, *rest)
            if subject.startswith("STREAM.INFO"):
                await read_up_to(it.observer, await put(it.bus, 5))
            return answer

        monkeypatch.setattr(it.observer._bus, "api", overtaken)
        for _ in range(4):
            await it.observer.poll()
        last = await put(it.bus, 1)
        await read_up_to(it.observer, last)
        assert counted(it.observer) == last - 3 == 21
        assert logged == []


async def test_a_recreated_stream_is_read_from_its_beginning(tmp_path, logged):
    async with world(tmp_path) as it:
        await read_up_to(it.observer, await put(it.bus, 20))
        await it.bus.api("STREAM.DELETE.swarm_events")
        await ensure_streams(it.bus)
        last = await put(it.bus, 7)
        await it.observer.poll()
        await read_up_to(it.observer, last)
        assert logged == ["stream_recreated"]
        await it.observer.poll()
        await read_up_to(it.observer, await put(it.bus, 1))
        assert counted(it.observer) == 20 + 7 + 1


async def test_a_recreated_stream_that_is_longer_already_is_noticed(tmp_path):
    async with world(tmp_path) as it:
        await read_up_to(it.observer, await put(it.bus, 5))
        await it.bus.api("STREAM.DELETE.swarm_events")
        await ensure_streams(it.bus)
        last = await put(it.bus, 30)
        await it.observer.poll()
        await read_up_to(it.observer, last)
        assert counted(it.observer) == 5 + 30


async def test_a_truncated_stream_is_counted_on_from_its_end(tmp_path, logged):
    async with world(tmp_path) as it:
        await read_up_to(it.observer, await put(it.bus, 10))
        port = it.server.port
        await it.server.stop()
        store, backup = it.server.directory, tmp_path / "backup"
        shutil.copytree(store, backup)
        async with NatsServer(tmp_path, port=port):
            await it.bus.wait_connected()
            await read_up_to(it.observer, await put(it.bus, 20))
        assert counted(it.observer) == 30
        shutil.rmtree(store)
        backup.rename(store)
        async with NatsServer(tmp_path, port=port):
            await it.bus.wait_connected()
            last = await put(it.bus, 4)  # under the numbers of lost ones
            assert last == 3 + 10 + 4
            await it.observer._bus.wait_connected()
            await it.observer.poll()
            await read_up_to(it.observer, last)
            assert logged == ["stream_truncated"]
            last = await put(it.bus, 2)
            await it.observer.poll()
            await read_up_to(it.observer, last)
            assert counted(it.observer) == 30 + 4 + 2


async def test_restored_messages_are_not_counted_twice_and_new_ones_are_counted(tmp_path, logged):
    async with world(tmp_path) as it, mirror_process(it.server.url, tmp_path / "m.sqlite") as mirror:
        heartbeats = await Heartbeats.of(it.bus)
        last = await put(it.bus, 10)
        await heartbeats.reached(mirror.process.pid, last)
        await mirror.kill()
        await read_up_to(it.observer, await put(it.bus, 5))  # these the mirror never hears of
        await it.bus.api("STREAM.DELETE.swarm_events")
        text, _ = await restore(it.bus, mirror.file, StreamLimits(), "up")
        assert f"{last} messages (1 to {last})" in text
        last = await put(it.bus, 2)
        await it.observer.poll()
        await read_up_to(it.observer, last)
        assert logged == ["stream_recreated"]
        assert counted(it.observer) == 10 + 5 + 2
        assert counted(it.observer, "lifecycle") == 1, "the account of the rebuild"
