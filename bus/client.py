"""nats-py's client with its hottest functions in a quicker form of the same effect: headers both ways, and delivery.

Its traps are mended in bus/connection.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nats.aio.client import Client
from nats.protocol.command import hpub_cmd

ASCII_BLANKS = " \t\n\r\v\f"

OnDirect = Callable[[str, bytes], None]
"""Called with (subject, data) straight from the read loop; must neither wait nor raise."""


def parse_header_lines(raw: bytes) -> dict[str, str]:
    """Headers as NATS writes them, after the line with the version; what is none is left out.

    nats-py looks at every single character of every name, a fifth of all CPU at full speed.
    """
    out = {}
    for line in raw.decode("utf-8", "replace").split("\r\n"):
        name, colon, value = line.partition(":")
        if colon and name.isascii():
            words = name.split()
            if len(words) == 1:
                out[words[0]] = value.strip(ASCII_BLANKS)
    return out


def parse_headers(block: bytes) -> dict[str, str]:
    """A whole block of headers, with the line of the version in front; empty of an empty one."""
    return parse_header_lines(block.partition(b"\r\n")[2])


class QuickClient(Client):
    """To be used like nats-py's own."""

    def __init__(self) -> None:
        super().__init__()
        self._direct: dict[int, OnDirect] = {}
        self._good_names: set[str] = set()

    _parse_header_lines = staticmethod(parse_header_lines)

    async def _send_publish(
        self, subject: str, reply: str, payload: bytes, payload_size: int, headers: dict[str, Any] | None
    ) -> None:
        if headers:
            lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
            plain = lines.count("\r") == lines.count("\n") == len(headers)
            if plain and self._good_names.issuperset(headers):
                block = b"NATS/1.0\r\n%b\r\n" % lines.encode()
                self.stats["out_msgs"] += 1
                self.stats["out_bytes"] += payload_size
                await self._send_command(hpub_cmd(subject, reply, block, payload))
                if self._flush_queue is not None and self._flush_queue.empty():
                    await self._flush_pending()
                return
        await super()._send_publish(subject, reply, payload, payload_size, headers)
        if headers:  # it has accepted these names
            self._good_names.update(name for name in headers if name and name == name.strip())

    def deliver_directly(self, sid: int, on_direct: OnDirect) -> None:
        """Hand the messages of subscription `sid` to `on_direct` at once, past its queue and task."""
        self._direct[sid] = on_direct

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        on_direct = self._direct.get(sid)
        if on_direct is None:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        self.stats["in_msgs"] += 1
        self.stats["in_bytes"] += len(data)
        on_direct(subject.decode(), data)
