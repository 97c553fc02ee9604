"""Addresses to listen on, as people write them."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass

from bus.errors import UsageError

DEFAULT_LISTEN = "127.0.0.1:9464"
"""The port that OpenTelemetry's Prometheus exporters use."""
EVERYWHERE = "0.0.0.0"  # noqa: S104 - only where it was asked for


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen; port 0 is any free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, where: str) -> Address:
        """`HOST:PORT`, `[::1]:PORT`, or `:PORT` for every interface; `where` is the option or the key that says so.

        Raises:
            UsageError: it is none of these.
        """
        host, colon, port = text.rpartition(":")
        if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
            raise UsageError(f"{where} {text!r}: expected HOST:PORT, such as {DEFAULT_LISTEN}")
        return cls(host.removeprefix("[").removesuffix("]") or EVERYWHERE, int(port))

    @property
    def shown_host(self) -> str:
        """The host as it stands in a URL."""
        return f"[{self.host}]" if ":" in self.host else self.host

    def check_free(self, where: str) -> None:
        """See that this process could listen there now.

        Raises:
            UsageError: it could not.
        """
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, kind, protocol, _, address = found[0]
            with contextlib.closing(socket.socket(family, kind, protocol)) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                probe.listen(1)
        except OSError as error:
            raise UsageError(
                f"{where} {self.shown_host}:{self.port}: cannot listen there ({error.strerror or error}); name another "
                "address, with port 0 for any free one"
            ) from None
