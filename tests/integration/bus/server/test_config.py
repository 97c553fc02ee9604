"""The configuration that is written for the embedded server, in a real one."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.secured import secured_server

MOST = 4096
SENT = 5000


@pytest.mark.parametrize("is_open", [False, True])
def test_one_connection_cannot_subscribe_without_end(tmp_path: Path, is_open: bool):
    with secured_server(tmp_path, is_open=is_open) as server:
        address = urlsplit(server.url)
        with socket.create_connection((address.hostname, address.port or 0), 20) as connection:
            subscriptions = "".join(f"SUB swarm.decision.x{n}.y {n}\r\n" for n in range(SENT))
            connection.sendall(f'CONNECT {{"verbose":false}}\r\n{subscriptions}PING\r\n'.encode())
            received = b""
            while b"PONG" not in received:
                received += connection.recv(65536)
    assert received.count(b"-ERR 'maximum subscriptions exceeded'") == SENT - MOST
