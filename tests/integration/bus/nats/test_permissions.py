"""What a server denies is found by trying it, and what waits for it ends with the reason."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bus.errors import PermissionDenied, Refused
from bus.interface import ReceivedMessage
from bus.nats.bus import NatsBus
from bus.nats.connection import describe_denials
from bus.nats.permissions import find_denied
from bus.nats.streams import ensure_streams
from tests.support.collecting import Collector
from tests.support.nats import Connections, plain_server


def configuration(directory: Path, permissions: str) -> str:
    return f"""
jetstream {{ store_dir: "{directory}/store" }}
authorization {{ users: [
  {{ user: all, password: p }}
  {{ user: u, password: p, permissions: {{ {permissions} }} }}
] }}
"""


@asynccontextmanager
async def denying(directory: Path, permissions: str) -> AsyncIterator[tuple[str, NatsBus]]:
    """The url of a server with these permissions, and a connection that has them."""
    file = directory / "nats.conf"
    file.write_text(configuration(directory, permissions))
    async with plain_server(directory, "-c", str(file)) as url, Connections() as connections:
        await connections.bus(url.replace("//", "//all:p@"), streams=True)
        yield url, await connections.bus(url.replace("//", "//u:p@"))


@pytest.mark.parametrize(
    ("permissions", "found"),
    [
        ("", set()),
        ('publish: { deny: ["$JS.API.CONSUMER.CREATE.>"] }', {"$JS.API.CONSUMER.CREATE.swarm_events.*"}),
        ('publish: { deny: ["$JS.FC.>"] }', {"$JS.FC.KV_swarm_state.*.*"}),
        ('publish: { deny: ["in.swarm.epoch.b"] }', {"in.swarm.epoch.b"}),
        ('publish: { deny: ["$KV.swarm_agents.>"] }', {"$KV.swarm_agents.a"}),
        ('publish: { deny: ["swarm.heartbeat.*"] }', {"swarm.heartbeat.a", "swarm.heartbeat.watchdog"}),
        ('publish: { deny: ["swarm.control.*.probe"] }', {"swarm.control.base.probe"}),
        ('publish: { deny: ["_INBOX.>"] }', {"_INBOX.*"}),
        ('subscribe: { deny: ["swarm.lifecycle.>"] }', {"swarm.lifecycle.>"}),
        ('subscribe: { deny: ["swarm.heartbeat.*"] }', {"swarm.heartbeat.*"}),
        ('subscribe: { deny: ["swarm.control.>"] }', {"swarm.control.base.probe"}),
        ('subscribe: { deny: ["_INBOX.>"] }', {"_INBOX.*"}),
        (
            'publish: { allow: [">"], deny: ["_INBOX.>"] }, subscribe: ">", allow_responses: true',
            set(),  # a host may answer
        ),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
async def test_what_is_denied_is_found(tmp_path, permissions, found):
    async with denying(tmp_path, permissions) as (_, bus):
        denied = await find_denied(bus, ("a", "b"), ("base",), "test", quiet=True)
        assert {denial.subject for denial in denied} >= found
        assert bool(denied) == bool(found)
        if denied:
            assert "does not let user 'u'" in describe_denials(denied)


async def test_trying_it_stores_nothing_and_reaches_no_process_of_a_swarm_that_runs(tmp_path):
    async with denying(tmp_path, "") as (url, bus):
        received: Collector[ReceivedMessage] = Collector()
        async with Connections() as connections:
            other = await connections.bus(url.replace("//", "//all:p@"))
            await other.listen("swarm.>", received)
            await other.flush()
            assert await find_denied(bus, ("a", "b"), ("base",), "test", quiet=False) == []
            await other.flush()
        assert received.items == []
        assert (await bus.bounds()).last == 0
        assert await bus.kv_all("swarm_state") == {}


async def test_a_denied_inbox_ends_every_request_at_once(tmp_path):
    async with denying(tmp_path, 'subscribe: { deny: ["_INBOX.>"] }') as (_, bus):
        async with asyncio.timeout(4):  # less than the time-out of a request
            with pytest.raises(PermissionDenied, match=r"user 'u' subscribe to _INBOX\.\*\.\*"):
                await ensure_streams(bus)
            with pytest.raises(PermissionDenied, match="subscribe to _INBOX"):
                await bus.request("swarm.control.base.probe", b"{}")
            with pytest.raises(Refused, match="subscribe to _INBOX"):
                await bus.publish("in.swarm.alert.warning.x", b"{}")


async def reconfigure(directory: Path, bus: NatsBus, permissions: str) -> None:
    """Change the permissions of user u while the server runs; returns when they hold."""
    (directory / "nats.conf").write_text(configuration(directory, permissions))
    [ports] = directory.glob("*.ports")
    os.kill(int(ports.stem.rpartition("_")[2]), signal.SIGHUP)
    while bool(await find_denied(bus, (), (), "test", quiet=False)) != bool(permissions):
        pass


async def test_a_reader_goes_on_once_its_consumer_is_allowed_again(tmp_path):
    """Permissions may change while it runs: it must not end in silence."""
    async with denying(tmp_path, "") as (_, bus):
        read: Collector[int] = Collector()
        refused: Collector[str] = Collector()
        await bus.follow(("swarm.>",), 1, lambda stored: read.put(stored.sequence))
        [name] = (await bus.api("CONSUMER.NAMES.swarm_events"))["consumers"]
        await reconfigure(tmp_path, bus, 'publish: { deny: ["$JS.API.CONSUMER.CREATE.>"] }')
        bus.connection.watch_denials(lambda denial: refused.put(denial.subject))
        await bus.api(f"CONSUMER.DELETE.swarm_events.{name}")
        await refused.reach(1)
        await reconfigure(tmp_path, bus, "")
        await bus.publish("in.swarm.alert.warning.x", b"{}")
        assert await read.reach(1) == [1]
