"""Cutting what arrives into messages: the same calls in the same order, however the bytes are split."""

from __future__ import annotations

import asyncio
from dataclasses import fields
from typing import Any

import pytest
from nats.aio.client import Client as Client_
from nats.aio.client import Srv
from nats.aio.transport import TcpTransport
from nats.errors import ProtocolError
from nats.protocol.parser import Parser

from bus.nats.client import FastClient, LazyHeaders, parse_headers
from bus.nats.connection import _Client
from bus.nats.wire_parser import WireParser, WireTransport, _Reader

BLOCK = b"NATS/1.0\r\nA: 1\r\nB: x:y\r\n\r\n"
OPERATIONS = (
    b"MSG to.me 7 5\r\nhello\r\n",
    b"PING\r\n",
    b"HMSG to.me 7 back.1 %d %d\r\n%b{}\r\n" % (len(BLOCK), len(BLOCK) + 2, BLOCK),
    b"MSG to.others 8 back.2 12\r\nMSG x 7 1\r\na\r\n",
    b"MSG to.me 7 back.3 0\r\n\r\n",
    b"PONG\r\n",
    b"HMSG to.others 8 %d %d\r\n%b\r\n" % (len(BLOCK), len(BLOCK), BLOCK),
    b"MSG to.me 7 4\r\n\r\n\r\n\r\n",
    b"MSG to.\xff 7 back.\xfe 1\r\n\xff\r\n",
    b"MSG others.\xff 8 1\r\n\xff\r\n",
)
CALLS = [
    ("direct", "to.me", "", b"hello", b""),
    ("ping",),
    ("direct", "to.me", "back.1", b"{}", BLOCK),
    ("other", b"to.others", b"back.2", b"MSG x 7 1\r\na", None),
    ("direct", "to.me", "back.3", b"", b""),
    ("pong",),
    ("other", b"to.others", b"", b"", BLOCK),
    ("direct", "to.me", "", b"\r\n\r\n", b""),
    ("direct", "to.\ufffd", "back.\ufffd", b"\xff", b""),
    ("other", "others.\ufffd".encode(), b"", b"\xff", None),
]


class Client:
    """In the place of nats-py's client, for its parser."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.after = 0
        self.parser = WireParser(self, {b"7": self._direct}, self._after)

    def _direct(self, *call: Any) -> None:
        self.calls.append(("direct", *call))

    def _after(self) -> None:
        self.after += 1

    async def _process_msg(self, sid: int, *call: Any) -> None:
        assert sid == 8
        await asyncio.sleep(0)
        self.calls.append(("other", *call))

    async def _process_ping(self) -> None:
        self.calls.append(("ping",))

    async def _process_pong(self) -> None:
        self.calls.append(("pong",))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 16, 31, 64, 1000])
async def test_through_the_read_loop(size):
    client, data = Client(), b"".join(OPERATIONS)
    for at in range(0, len(data), size):
        await client.parser.parse(data[at : at + size])
    assert client.calls == CALLS
    assert client.after > 0


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 16, 31, 64, 1000])
@pytest.mark.parametrize("turns", [0, 1, 3])
async def test_through_the_reader(size, turns):
    """What is direct is handed on at once while the read loop waits, and waits its turn behind what is not."""
    client, data = Client(), b"".join(OPERATIONS)
    reader = _Reader(1 << 16, client.parser.take, client._after)

    async def loop() -> None:
        while not reader.at_eof():
            await client.parser.parse(await reader.read(1 << 16))

    looping = asyncio.create_task(loop())
    for at in range(0, len(data), size):
        for _ in range(turns):
            await asyncio.sleep(0)
        reader.feed_data(data[at : at + size])
    reader.feed_eof()
    await looping
    assert client.calls == CALLS


async def test_a_direct_message_needs_no_turn_of_the_loop():
    client = Client()
    reader = _Reader(1 << 16, client.parser.take, client._after)
    reading = asyncio.create_task(reader.read(100))
    await asyncio.sleep(0)
    reader.feed_data(OPERATIONS[0])
    assert client.calls == CALLS[:1]
    assert client.after == 1
    assert not reading.done()
    reading.cancel()


@pytest.mark.parametrize("line", [b"MSG to.me 7 x\r\n", b"HMSG to.me 7 x 5\r\nhello\r\n", b"NONSENSE\r\n"])
async def test_what_is_no_protocol_is_refused(line):
    with pytest.raises(ProtocolError):
        await Client().parser.parse(line)


async def test_a_new_connection_begins_with_nothing_left_over():
    client = Client()
    await client.parser.parse(OPERATIONS[0][:-3])
    client.parser.reset()
    await client.parser.parse(OPERATIONS[1])
    assert client.calls == [("ping",)]


@pytest.mark.parametrize(
    ("block", "headers"),
    [
        (BLOCK, {"A": "1", "B": "x:y"}),
        (b"NATS/1.0 503\r\n\r\n", {"Status": "503"}),
        (b"NATS/1.0 404 Message Not Found\r\n\r\n", {"Status": "404", "Description": "Message Not Found"}),
        (
            b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 7\r\n\r\n",
            {"Status": "100", "Description": "Idle Heartbeat", "Nats-Last-Consumer": "7"},
        ),
        (b"", {}),
        (b"NATS/1.0\r\nA: 1\r\nAB: 2\r\nB:3\r\n\r\n", {"A": "1", "AB": "2", "B": "3"}),
        (b"NATS/1.0\r\nA: 1\r\nA: 2\r\n\r\n", {"A": "2"}),
        (b"NATS/1.0\r\n A : 2\r\n\r\n", {"A": "2"}),
        (b"NATS/1.0\r\nX: A: 1\r\nA:  \xff \r\n\r\n", {"X": "A: 1", "A": "\ufffd"}),
        (b"NATS/1.0\r\nA: 1\r2\r\n\r\n", {"A": "1\r2"}),
        (b"NATS/1.0\r\nA: 1", {"A": "1"}),
    ],
)
def test_header_blocks(block, headers):
    assert parse_headers(block) == headers
    for name in (*headers, "absent"):
        assert LazyHeaders(block).get(name) == headers.get(name)
    assert dict(LazyHeaders(block)) == headers


@pytest.mark.parametrize(
    ("ours", "theirs", "names"),
    [
        (FastClient, Client_, ("_attempt_reconnect", "_select_next_server", "_remove_sub", "_parse_header_lines")),
        (FastClient, Client_, ("_process_headers",)),
        (_Client, Client_, ("_process_pong", "_process_err", "_process_op_err")),
        (WireParser, Parser, ("parse", "reset")),
        (WireTransport, TcpTransport, ("connect", "read", "readline", "writelines")),
    ],
)
def test_what_is_replaced_in_nats_py_is_there(ours, theirs, names):
    """A release that renames it would quietly bring the long way back, or worse."""
    assert issubclass(ours, theirs)
    for name in names:
        assert name in vars(theirs), name
    client = Client_()
    assert [type(getattr(client, name)) for name in ("_pending", "_pending_data_size", "_sid")] == [list, int, int]
    assert client._server_pool == []
    assert {"discovered", "last_attempt", "reconnects", "uri"} <= {field.name for field in fields(Srv)}
    assert isinstance(client._ps, Parser)
