"""The proxy of the fault tests leaves no connection open, at whatever moment it is closed."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket

from bus.testing.tcp_proxy import Proxy


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(100):
        writer.write(data)
    writer.close()


async def test_a_proxy_that_is_closed_while_a_client_connects_closes_its_connection():
    target = await asyncio.start_server(_echo, "127.0.0.1", 0)
    async with target:
        port = target.sockets[0].getsockname()[1]
        async with Proxy(f"nats://127.0.0.1:{port}") as proxy:
            client = socket.create_connection(("127.0.0.1", int(proxy.url.rpartition(":")[2])))
            client.setblocking(False)
            while not proxy._tasks:  # in the turn after that it would begin to forward
                await asyncio.sleep(0)
        with client, contextlib.suppress(ConnectionResetError):
            assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
    gc.collect()  # pytest reports each connection that is collected open
