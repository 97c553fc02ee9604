"""The port of the dashboard, and the address at which a browser finds it. Imports no web framework: `up` uses it."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from typing import Self

from bus.errors import UsageError
from coordinator.config.telemetry import ListenAddress

LISTENER_VARIABLE = "SIGNALMESH_DASHBOARD_LISTENER"
"""Number of the inherited descriptor of a listening socket: `up` keeps the port while the dashboard is restarted."""
PORTS = 50
"""Ports that are tried, beginning with the wanted one."""
BACKLOG = 256


@dataclass(frozen=True, slots=True)
class OpenPort:
    """A listening socket; `wanted` is the port that was asked for."""

    socket: socket.socket
    host: str
    port: int
    wanted: int

    @property
    def url(self) -> str:
        """The address for a browser on this machine."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "") else "[::1]" if self.host == "::" else self.host  # noqa: S104
        return f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{self.port}/"

    @property
    def remark(self) -> str:
        """That the wanted port is in use; empty if it is this one."""
        if self.wanted in (0, self.port):
            return ""
        return f"port {self.wanted} is in use: the dashboard listens on {self.port}"

    @classmethod
    def inherited(cls, number: int) -> Self:
        """The socket that `up` has opened."""
        listener = socket.socket(fileno=number)
        host, port = listener.getsockname()[:2]
        return cls(listener, host, port, port)


def open_port(text: str, where: str) -> OpenPort:
    """Listen at `text` (HOST:PORT), or at the next free port; `where` is the option or key that contains it.

    Raises:
        UsageError: it is no such address, or no port of this host can be used.
    """
    address = ListenAddress.parse(text, where)
    tried = range(address.port, min(address.port + PORTS, 65536)) if address.port else (0,)
    try:
        for port in tried:
            found = socket.getaddrinfo(address.host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, _, _, _, place = found[0]
            try:
                listener = socket.create_server(place[:2], family=family, backlog=BACKLOG)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            host, number = listener.getsockname()[:2]
            return OpenPort(listener, host, number, address.port)
    except OSError as error:
        raise UsageError(
            f"{where} {address.url_host}:{address.port}: cannot listen there ({error.strerror or error}); use another "
            "address, such as 127.0.0.1:8080"
        ) from None
    raise UsageError(
        f"{where} {address.url_host}:{address.port}: this port and the {len(tried) - 1} after it are in use; use "
        "another one, or port 0 for any free one"
    )


def inherited_port() -> OpenPort | None:
    """The socket that `up` has opened for this process, if it has."""
    number = os.environ.pop(LISTENER_VARIABLE, None)
    return None if number is None else OpenPort.inherited(int(number))
