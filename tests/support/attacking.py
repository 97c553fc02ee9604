"""What attacks on a server with keys have in common: the connections, and whether one has worked."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import orjson
import pytest

from bus.errors import BusError
from bus.nats.bus import NatsBus
from tests.support.secured import Secured, secured_server

AGENT = "agent-strategy-momentum"
GUARD_S = 10.0
REFUSED_S = 0.3
"""A request to which no answer may come; a denial ends most of them before."""
MARKER = "in.swarm.alert.info.operator"


@pytest.fixture(scope="module", params=["keys", "open"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with secured_server(tmp_path_factory.mktemp(request.param), is_open=request.param == "open") as running:
        yield running


@asynccontextmanager
async def connected(server: Secured, *identities: str) -> AsyncIterator[list[NatsBus]]:
    """The operator's connection, and those of these identities."""
    async with AsyncExitStack() as stack:
        buses = []
        for identity in ("operator", *identities):
            buses.append(await server.connect(identity))
            stack.push_async_callback(buses[-1].close)
        yield buses


async def lands(operator: NatsBus, attacker: NatsBus, subject: str, headers: dict[str, str] | None = None) -> bool:
    """Whether anybody receives what the attacker publishes to `subject`."""
    received: list[str] = []
    marked = asyncio.Event()

    def on_message(actual: str, _: str, data: bytes, __: bytes) -> None:
        if data == b"marker":
            marked.set()
        else:
            received.append(actual)

    marker = subject if subject.startswith(("swarm.control.", "swarm.heartbeat.")) else MARKER
    subscriptions = [
        await operator.connection.subscribe_directly(each.removeprefix("in."), on_message)
        for each in dict.fromkeys((subject, marker))
    ]
    await operator.flush()
    attacker.connection.write(subject, b"{}", headers=headers)
    await attacker.flush()  # the server has judged it
    operator.connection.write(marker, b"marker")
    async with asyncio.timeout(GUARD_S):
        await marked.wait()
    for subscription in subscriptions:
        await subscription.unsubscribe()
    return bool(received)


async def is_served(attacker: NatsBus, command: str, body: Any = None) -> bool:
    """Whether the server does what this request to JetStream's API asks for."""
    data = b"" if body is None else orjson.dumps(body)
    try:
        answer = orjson.loads(await attacker.request(f"$JS.API.{command}", data, REFUSED_S))
    except BusError:
        return False
    return "error" not in answer


async def spies(operator: NatsBus, attacker: NatsBus, subject: str, sent: str) -> bool:
    """Whether the attacker receives what is sent to `sent`, subscribed to `subject`."""
    received: list[bytes] = []
    await attacker.connection.subscribe_directly(subject, lambda _s, _r, data, _h: received.append(data))
    await attacker.flush()
    operator.connection.write(sent.format(inbox=operator.connection.client.new_inbox()), b"secret")
    await operator.flush()
    if sent.startswith("in."):  # the stream passes on what it has stored later, one after the other
        assert await lands(operator, operator, MARKER)
    await attacker.flush()
    return b"secret" in received


async def alerts_of(operator: NatsBus, code: str) -> list[dict[str, Any]]:
    """Those of `up`, and none that an attacker has stored without any JSON in it."""
    found: list[dict[str, Any]] = []
    for each in await operator.read_back(("swarm.alert.*.up",), 1):
        with contextlib.suppress(orjson.JSONDecodeError):
            found.append(orjson.loads(each.data))
    return [alert for alert in found if alert.get("code") == code]
