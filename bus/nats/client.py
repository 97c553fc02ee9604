"""nats-py's client with a fast path for publishing and for messages of direct subscriptions.

`write` sends a message without a turn of the event loop, `subscribe_directly` calls a function as soon as the bytes of
a message arrive (bus/nats/wire_parser.py). bus/nats/connection.py works around nats-py's known traps.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import ItemsView, Iterator, Mapping
from typing import Any

import nats.errors
from nats.aio.client import DEFAULT_BUFFER_SIZE, Client, Srv
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.aio.transport import WebSocketTransport
from nats.protocol.command import hpub_cmd, pub_cmd

from bus.messages import headers as h
from bus.nats.wire_parser import OnDirect, WireParser, WireTransport
from bus.utils.aio import end_tasks

LARGE = 16 * 1024
"""From this many bytes on, writes are not held back until the current read ends."""
HEAD_START_S = 0.25
"""A server that has not answered after this time is no longer waited for alone: the next one is tried as well."""
MOST_DISCOVERED = 4
"""Attempts at a time at servers that the cluster advertises: many of them may exist no more."""
ASCII_BLANKS = " \t\n\r\v\f"
STATUS = "Status"
DESCRIPTION = "Description"
KNOWN_NAMES = frozenset(
    (h.MSG_ID, h.OUTPUT, h.EPOCH, h.CAUSE, h.EXPECTED_LAST_SUBJECT_SEQUENCE, h.EXPECTED_LAST_SUBJECT)
)
"""Names of most headers of most messages, which need no check."""
FIRST_LINE = (STATUS, DESCRIPTION)
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
        if name in KNOWN_NAMES:
            if colon:
                out[name] = value.strip(ASCII_BLANKS)
        elif colon and name.isascii():
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
        if self._parsed is None and name not in FIRST_LINE:
            encoded = name.encode()
            at = self._block.rfind(encoded)  # the last one is the one that counts
            if at < 0:
                return default
            end = at + len(encoded)
            if self._block[at - 2 : at] == b"\r\n" and self._block[end : end + 2] == b": ":
                value = self._block[end + 2 :].partition(b"\r\n")[0]
                return value.decode("utf-8", "replace").strip(ASCII_BLANKS)
        return self._all().get(name, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def items(self) -> ItemsView[str, str]:
        return self._all().items()  # Mapping's own looks up each name by itself

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
        self.accepted = False
        """Whether any server has accepted a connection, though it may have sent nothing."""
        self._ps: WireParser = WireParser(self, self._direct, self.flush_now)

    _parse_header_lines = staticmethod(parse_header_lines)

    # -- connecting

    async def _attempt_reconnect(self) -> None:
        for server in self._server_pool:
            server.reconnects = 0  # the failures of earlier outages say nothing about this one
        await super()._attempt_reconnect()

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        if self.is_closed:  # nats-py would close nothing: it does not reckon with another attempt to connect since
            self._status = Client.DISCONNECTED
        await super()._close(status, do_cbs)

    async def _select_next_server(self) -> None:
        """Connect to the first server that answers: in turn, but without waiting for one that is silent.

        Those that the cluster advertises come after the given ones: their addresses may lead nowhere from here.
        """
        if any(server.uri.scheme in ("ws", "wss") for server in self._server_pool):
            # nats-py takes what a cluster advertises for nats:// addresses, which these ports do not speak.
            self._server_pool = [server for server in self._server_pool if not server.discovered]
            await super()._select_next_server()
            return
        attempts: dict[asyncio.Task[WireTransport], Srv] = {}
        try:
            while not (connected := await self._try_servers(attempts)):
                pass
            if isinstance(self._transport, WireTransport):
                self._transport.abort()
            self._current_server, self._transport = attempts[connected], connected.result()
        finally:
            await end_tasks(attempts)
            for task in attempts:
                if not task.cancelled() and task.exception() is None and task.result() is not self._transport:
                    task.result().abort()

    async def _try_servers(
        self, attempts: dict[asyncio.Task[WireTransport], Srv]
    ) -> asyncio.Task[WireTransport] | None:
        """Begin an attempt if it is time, and wait a moment for all; returns one that has succeeded."""
        if not self._server_pool:
            self._current_server = None
            raise nats.errors.NoServersError
        newest = max((server.last_attempt or 0.0 for server in attempts.values()), default=0.0)
        if time.monotonic() >= newest + HEAD_START_S:
            server = self._next_server([*attempts.values()])
            if server is not None:
                server.last_attempt = time.monotonic()
                attempts[asyncio.create_task(self._attempt(server), name="nats-attempt")] = server
        pause_s = self.options["reconnect_time_wait"]
        if not attempts:
            await asyncio.sleep(pause_s)
            return None
        done, _ = await asyncio.wait(attempts, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if (error := task.exception()) is None:
                return task
            server = attempts.pop(task)
            server.last_attempt = time.monotonic()
            server.reconnects += 1
            if not isinstance(error, Exception):
                raise error
            self._err = error
            await self._error_cb(error)
        return None

    def _next_server(self, busy: list[Srv]) -> Srv | None:
        """The server to try next, in turn: of those with the fewest attempts a given one. None: not yet."""
        now, wait_s = time.monotonic(), self.options["reconnect_time_wait"]
        full = sum(server.discovered for server in busy) >= MOST_DISCOVERED
        ready = [
            server
            for server in self._server_pool
            if server not in busy
            and not (full and server.discovered)
            and (server.last_attempt is None or now >= server.last_attempt + wait_s)
        ]
        return min(ready, key=lambda server: (server.reconnects, server.discovered), default=None)

    async def _attempt(self, server: Srv) -> WireTransport:
        transport = WireTransport(self._ps, self.flush_now)
        timeout_s = self.options["connect_timeout"]
        try:
            await transport.connect(server.uri, DEFAULT_BUFFER_SIZE, timeout_s)
            self.accepted = True
            if not self.options["tls_handshake_first"]:
                async with asyncio.timeout(timeout_s):
                    if not (await transport.read_ahead()).startswith(b"INFO "):
                        raise nats.errors.Error("nats: empty response from server when expecting INFO message")
        except BaseException:
            transport.abort()
            raise
        return transport

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
