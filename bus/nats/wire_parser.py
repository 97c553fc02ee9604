"""Receiving for nats-py's client: messages of direct subscriptions go straight to a function.

nats-py passes a message on in four steps (stream reader, read loop, queue, the subscription's task), each a turn of the
event loop, and parses with regular expressions on a growing buffer. Here a message of a direct subscription is cut out
and passed on as soon as its bytes arrive. Everything else (INFO, PING, errors, other subscriptions, TLS, WebSocket)
goes to nats-py's own parser and read loop, in the order in which it came.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from nats.aio.transport import TcpTransport
from nats.protocol.parser import Parser

OnDirect = Callable[[str, str, bytes, bytes], None]
"""Called with (subject, reply, payload, header block) while bytes are read; must neither wait nor raise."""
END = b"\r\n"


class WireParser(Parser):
    """Cuts what arrives into messages; `direct` maps subscription ids (as bytes) to functions."""

    def __init__(self, client: Any, direct: dict[bytes, OnDirect], after: Callable[[], None]) -> None:
        self._rest = b""
        super().__init__(client)
        self._direct = direct
        self._after = after
        """Called after all received messages are passed on."""

    def reset(self) -> None:
        super().reset()
        self._rest = b""

    def take(self, data: bytes) -> bytes:
        """Pass on the direct messages at the start of the received bytes; returns the rest, which `parse` handles.

        A direct message whose end has not arrived yet is kept here.
        """
        data, self._rest = self._rest + data, b""
        at, size = 0, len(data)
        while at < size:
            end = data.find(END, at)
            line = data[at:end].split(b" ") if end > 0 else []
            on_direct = self._direct.get(line[2]) if len(line) > 3 else None
            if on_direct is None or line[0] not in (b"MSG", b"HMSG"):
                break
            start = end + 2
            try:
                headers = int(line[-2]) if line[0] == b"HMSG" else 0
                stop = start + int(line[-1])
            except ValueError:
                break
            if not 0 <= headers <= stop - start:  # no server sends it; a negative size would have no end
                break
            if size < stop + 2:
                self._rest = data[at:]
                return b""
            reply = text(line[3]) if len(line) == (6 if headers else 5) else ""
            on_direct(text(line[1]), reply, data[start + headers : stop], data[start : start + headers])
            at = stop + 2
        return data[at:]

    async def parse(self, data: bytes = b"") -> None:
        """Pass everything on, in order."""
        while left := self.take(data):
            size = _first(left)
            if size == 0 or size > len(left):
                self._rest = left
                break
            data = left[size:]
            self.buf += _readable(left[:size])
            await super().parse()
        self._after()


_NO_BLANKS = bytes.maketrans(b"\v\f", b"??")
"""A subject may have these bytes, which separate no words for the server, but for Python and nats-py."""


def text(raw: bytes) -> str:
    """Decode a subject. The server accepts any bytes; a subject that is not UTF-8 belongs to no subscription."""
    return raw.decode("utf-8", "replace")


def _readable(operation: bytes) -> bytes:
    """One operation with a first line that nats-py can decode: else it would end its connection permanently."""
    line, end, rest = operation.partition(END)
    line = line.translate(_NO_BLANKS)
    return (line if line.isascii() else text(line).encode()) + end + rest


def _first(data: bytes) -> int:
    """Size of the first operation in `data`, which may be incomplete there; 0 if its line is not complete."""
    end = data.find(END)
    if end < 0:
        return 0
    line = data[:end].split(b" ")
    payload = line[-1] if line and line[0] in (b"MSG", b"HMSG") else b""
    return end + 2 + (int(payload) + 2 if payload.isdigit() else 0)


class _Reader(asyncio.StreamReader):
    """Gives bytes to `take` at once while nats-py's read loop waits for bytes; the rest wakes the loop."""

    def __init__(self, limit: int, take: Callable[[bytes], bytes], after: Callable[[], None]) -> None:
        super().__init__(limit)
        self._take, self._after = take, after
        self._parked = False

    async def read(self, n: int = -1) -> bytes:
        self._parked = True
        try:
            return await super().read(n)
        finally:
            self._parked = False

    def feed_data(self, data: Any) -> None:
        if self._parked:
            data = self._take(data)
            if not data:
                self._after()
                return
            self._parked = False  # the loop runs a little later; bytes that arrive until then must queue after these
        super().feed_data(data)


class WireTransport(TcpTransport):
    """TCP, read through a `WireParser`; after an upgrade to TLS nats-py's read loop reads alone."""

    def __init__(self, parser: WireParser, after: Callable[[], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._parser, self._after = parser, after
        self._tls_failed = False
        """Whether an upgrade to TLS failed: then nothing reports the end of the connection to the stream."""
        self._first_line: bytes | None = None

    async def connect(self, uri: Any, buffer_size: int, connect_timeout: int) -> None:
        self._tls_failed = False
        loop = asyncio.get_running_loop()
        reader = _Reader(buffer_size, self._parser.take, self._after)
        protocol = asyncio.StreamReaderProtocol(reader)
        async with asyncio.timeout(connect_timeout):
            transport, _ = await loop.create_connection(lambda: protocol, uri.hostname, uri.port)
        self._bare_io_reader = self._io_reader = reader
        self._bare_io_writer = self._io_writer = asyncio.StreamWriter(transport, protocol, reader, loop)

    async def read_ahead(self) -> bytes:
        """Wait for the first line, which `readline` returns once more."""
        self._first_line = await self.readline()
        return self._first_line

    async def readline(self) -> bytes:
        line, self._first_line = self._first_line, None
        if line is None:
            line = await super().readline()  # type: ignore[no-untyped-call]
        return line

    def abort(self) -> None:
        """End the connection at once, if there is one."""
        if self._bare_io_writer is not None:
            self._bare_io_writer.transport.abort()

    async def connect_tls(self, uri: Any, ssl_context: Any, buffer_size: int, connect_timeout: int) -> None:
        try:
            await super().connect_tls(uri, ssl_context, buffer_size, connect_timeout)
            transport = None if self._io_writer is None else self._io_writer.transport
            if transport is None:  # asyncio returns none if the connection ends during the handshake
                raise ConnectionResetError("the connection ended during the handshake")
            # None again if the server has ended the connection since. nats-py's protocol takes itself for one without
            # TLS, and asyncio warns at its end.
            if (protocol := transport.get_protocol()) is not None:
                protocol._over_ssl = True  # type: ignore[attr-defined]  # noqa: SLF001
        except BaseException:
            self._tls_failed = True
            self.abort()
            raise

    async def wait_closed(self) -> None:
        if not self._tls_failed:
            await super().wait_closed()  # type: ignore[no-untyped-call]

    def write(self, payload: bytes) -> None:
        """Write; drops the bytes if the connection has just ended, which the reader reports."""
        self.writelines([payload])

    def writelines(self, payload: list[bytes]) -> None:
        """As `write`: uvloop raises where asyncio does not."""
        writer = self._io_writer
        if writer is not None and not writer.transport.is_closing():
            writer.writelines(payload)
