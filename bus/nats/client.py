"""nats-py's client with a fast path for publishing and for messages of direct subscriptions.

`write` sends a message without a turn of the event loop, `subscribe_directly` calls a function as soon as the bytes of
a message arrive (bus/nats/wire_parser.py). bus/nats/connection.py works around nats-py's known traps.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import nats.errors
from nats.aio.client import DEFAULT_BUFFER_SIZE, Client, Srv
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.aio.transport import WebSocketTransport
from nats.protocol.command import hpub_cmd, pub_cmd

from bus.nats.wire_parser import OnDirect, WireParser, WireTransport

LARGE = 16 * 1024
"""From this many bytes on, writes are not held back until the current read ends."""
ASCII_BLANKS = " \t\n\r\v\f"
STATUS = "Status"
DESCRIPTION = "Description"
"""Status of the first line of a header block, under nats-py's names."""
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_NEW_LINES = str.maketrans({"\r": " ", "\n": " "})


def parse_headers(block: bytes) -> dict[str, str]:
    """Parse a raw header block: the headers, and the status of its first line if it has one."""
    first, _, rest = block.partition(b"\r\n")
    headers = parse_header_lines(rest)
    code, _, description = first.removeprefix(b"NATS/1.0").strip().partition(b" ")
    if code.isdigit():
        headers[STATUS] = code.decode()
        if description:
            headers[DESCRIPTION] = description.decode("utf-8", "replace")
    return headers


def parse_header_lines(raw: bytes) -> dict[str, str]:
    """Headers as NATS writes them, after the line with the version; leaves out invalid ones.

    nats-py checks every single character of every name, a fifth of all CPU at full speed.
    """
    out = {}
    for line in raw.decode("utf-8", "replace").split("\r\n"):
        name, colon, value = line.partition(":")
        if colon and name.isascii():
            words = name.split()
            if len(words) == 1:
                out[words[0]] = value.strip(ASCII_BLANKS)
    return out


class LazyHeaders(Mapping[str, str]):
    """The headers of a header block, parsed on first access; a single header is cut out without parsing the others."""

    __slots__ = ("_block", "_parsed")

    def __init__(self, block: bytes) -> None:
        self._block = block
        self._parsed: dict[str, str] | None = None

    def _all(self) -> dict[str, str]:
        if self._parsed is None:
            self._parsed = parse_headers(self._block) if self._block else {}
        return self._parsed

    def __getitem__(self, name: str) -> str:
        return self._all()[name]

    def get(self, name: str, default: Any = None) -> Any:
        if self._parsed is None:
            prefix = b"\r\n%b: " % name.encode()
            at = self._block.rfind(prefix)  # the last one is the one that counts
            if at >= 0 and name not in (STATUS, DESCRIPTION):
                value = self._block[at + len(prefix) :].partition(b"\r\n")[0]
                return value.decode("utf-8", "replace").strip(ASCII_BLANKS)
            if prefix[2:-2] not in self._block and name not in (STATUS, DESCRIPTION):
                return default
        return self._all().get(name, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __repr__(self) -> str:
        return repr(self._all())


class FastClient(Client):
    """Same interface as nats-py's client."""

    def __init__(self) -> None:
        super().__init__()
        self._direct: dict[bytes, OnDirect] = {}
        self._good_names: set[str] = set()
        self._flushing = False
        self._ps: WireParser = WireParser(self, self._direct, self.flush_now)

    _parse_header_lines = staticmethod(parse_header_lines)

    async def _connect_to_server(self, s: Srv) -> None:
        if s.uri.scheme in ("ws", "wss"):
            await super()._connect_to_server(s)
            return
        s.last_attempt = time.monotonic()
        if not isinstance(self._transport, WireTransport):
            self._transport = WireTransport(self._ps, self.flush_now)
        await self._transport.connect(s.uri, DEFAULT_BUFFER_SIZE, self.options["connect_timeout"])

    # -- publishing

    def write(self, subject: str, payload: bytes, reply: str = "", headers: Mapping[str, str] | None = None) -> None:
        """Publish: at once while a received message is being handled, else with the next turn of the event loop.

        Raises:
            ConnectionClosedError, OutboundBufferLimitError (not connected), MaxPayloadError, BadSubjectError,
            BadHeaderError: nothing was sent.
        """
        if not self.is_connected:
            raise nats.errors.ConnectionClosedError if self.is_closed else nats.errors.OutboundBufferLimitError
        if subject.split() != [subject]:
            raise nats.errors.BadSubjectError
        block = self._header_block(headers) if headers else b""
        if len(block) + len(payload) > self._max_payload:  # the server would cut the connection
            raise nats.errors.MaxPayloadError
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += len(payload)
        command = hpub_cmd(subject, reply, block, payload) if headers else pub_cmd(subject, reply, payload)
        self._pending.append(command)  # after nats-py's own commands: this message may rely on a SUB among them
        self._pending_data_size += len(command)
        if self._pending_data_size > LARGE:
            self.flush_now()
        elif not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self.flush_now)

    def _header_block(self, headers: Mapping[str, str]) -> bytes:
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        if not self._good_names.issuperset(headers):
            for name in headers:
                if not _NAME.fullmatch(name):
                    raise nats.errors.BadHeaderError(name)
            self._good_names.update(headers)
        if not lines.count("\r") == lines.count("\n") == len(headers):
            lines = "".join([f"{name}: {value.translate(_NEW_LINES)}\r\n" for name, value in headers.items()])
        return b"NATS/1.0\r\n%b\r\n" % lines.encode()

    def flush_now(self) -> None:
        """Hand the written bytes to the operating system."""
        self._flushing = False
        if isinstance(self._transport, WebSocketTransport):  # it sends when it is awaited, by nats-py's flusher
            if self._pending and self.is_connected and self._flush_queue is not None:
                with contextlib.suppress(asyncio.QueueFull):  # a flush is already scheduled
                    self._flush_queue.put_nowait(asyncio.get_running_loop().create_future())
        elif self._pending and self.is_connected and self._transport:
            pending, self._pending = self._pending, []
            self._pending_data_size = 0
            self._transport.writelines(pending)

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        # nats-py writes PING past what waits to be written: its PONG would not confirm a SUB before it.
        self.flush_now()
        await super()._send_ping(future)

    # -- subscribing

    async def subscribe_directly(self, subject: str, on_direct: OnDirect) -> Subscription:
        """Subscribe with a function that is called while bytes are read; without a queue, a task or a limit.

        Raises:
            ConnectionClosedError: this client has been closed.
        """
        sid = b"%d" % (self._sid + 1)  # nats-py counts them; needed before the first message arrives
        self._direct[sid] = on_direct
        try:
            return await self.subscribe(subject, cb=_unused_callback)
        except BaseException:
            self._direct.pop(sid, None)
            raise

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        self._direct.pop(b"%d" % sid, None)
        super()._remove_sub(sid, max_msgs)


async def _unused_callback(_: Msg) -> None:
    """Required by nats-py; the messages of a direct subscription bypass it."""
