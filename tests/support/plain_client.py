"""A NATS client that owes nothing to the product, for tests that watch it from outside."""

from __future__ import annotations

from typing import Any

from nats.aio.client import Client, Srv
from nats.aio.transport import TcpTransport


class PlainClient(Client):
    """nats-py's client, which forgets a connection whose handshake failed; this one closes it first."""

    async def _connect_to_server(self, s: Srv) -> None:
        if isinstance(self._transport, TcpTransport):
            self._transport.close()
        await super()._connect_to_server(s)


async def connect_plainly(url: str, **options: Any) -> PlainClient:
    """Connect to one of the servers at `url`, separated by commas; `options` are those of nats-py."""
    client = PlainClient()
    await client.connect(url.split(","), **options)
    return client
