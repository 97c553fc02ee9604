"""HTTP: who is let in, and where it listens. No swarm runs."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from tests.acceptance.swarm import ENVIRONMENT, SIGNALMESH, run_command
from tests.support.mcp_client import http_server, text_of

pytestmark = pytest.mark.slow

PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
ACCEPT = {"Accept": "application/json, text/event-stream"}


async def test_only_a_client_with_the_token_is_let_in_and_learns_that_nothing_runs(tmp_path: Path):
    async with http_server(SIGNALMESH, tmp_path, environment=ENVIRONMENT) as (url, token, _):
        assert stat.S_IMODE((tmp_path / ".signalmesh" / "mcp.token").stat().st_mode) == 0o600
        bearer = {"Authorization": f"Bearer {token}"}
        port = httpx2.URL(url).port or 0
        async with httpx2.AsyncClient() as http:
            for headers, status, expected in (
                ({}, 401, "token: expected Authorization: Bearer with the token in .signalmesh/mcp.token"),
                ({"Authorization": "Bearer wrong"}, 401, "token: expected"),
                (bearer | {"Origin": "http://evil.example"}, 403, "Origin: expected none, or this server's"),
                (bearer | {"Origin": f"http://127.0.0.1:{port + 1}"}, 403, "Origin: expected"),
                (bearer | {"Host": f"evil.example:{port}"}, 400, "Host: expected localhost or a loopback address"),
            ):
                answer = await http.post(url, json=PING, headers=ACCEPT | headers)
                assert (answer.status_code, answer.json()["error"][: len(expected)]) == (status, expected)
                assert token not in answer.text
            for path in ("/", "/mcp"):
                assert (await http.get(str(httpx2.URL(url).copy_with(path=path)))).status_code == 401
        async with (
            httpx2.AsyncClient(headers=bearer | {"Origin": f"http://127.0.0.1:{port}"}) as http,
            Client(streamable_http_client(url, http_client=http)) as client,
        ):
            found = await client.call_tool("swarm_status", {})
            assert found.is_error
            assert "start the swarm with `signalmesh up`" in text_of(found)
            assert "There is no mirror's file at .signalmesh/mirror.sqlite either" in text_of(found)


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "192.0.2.1:8000", "[::]:0", "example.org:80"])
async def test_another_address_than_loopback_is_refused_before_the_sdk_is_imported(tmp_path: Path, listen):
    imports = {"PYTHONPROFILEIMPORTTIME": "1"}
    found = await run_command(tmp_path, "mcp", "--listen", listen, environment=imports)
    assert found.code == 2
    assert ("bus.errors" in found.err, "mcp_types" in found.err, "uvicorn" in found.err) == (True, False, False)
    assert f"--listen {listen}: expected a loopback address such as 127.0.0.1:8765" in found.err


async def test_a_port_in_use_is_not_exchanged_for_another(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        found = await run_command(tmp_path, "mcp", "--listen", listen)
    assert found.code == 2
    assert f"--listen {listen}: this port is in use; use another one, or port 0 for any free one" in found.err
