"""The way to the dashboard: its port, the token that allows to act on agents, and the link that a person opens.

Imports no web framework: `up` uses it too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shlex
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec
import orjson

from bus.errors import UsageError
from bus.utils.json_text import parse_json, read_limited
from bus.utils.processes import is_running, start_identity
from coordinator.config.telemetry import ListenAddress
from coordinator.runner.child_process import LISTENER_VARIABLE
from coordinator.runner.run_record import DEFAULT_STATE_DIR

PORTS = 50
"""Ports that are tried, beginning with the wanted one."""
BACKLOG = 256
SEND_BUFFER_BYTES = 256 << 10
"""Of each connection: what the kernel holds for a peer that reads nothing."""
TOKEN_FILE = "dashboard.token"  # noqa: S105 - a file name
"""Relative to the state directory."""
SHORTEST = 32
"""Characters of the shortest token that a file may hold: no person invents one that long."""
ADDRESS_FILE = "dashboard.json"
"""Relative to the state directory: where its newest dashboard listens, and the process that keeps that port."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The content of ADDRESS_FILE: an address, and the process that keeps its port."""

    url: str
    pid: int
    started: str


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
        host = "127.0.0.1" if self.host in ("0.0.0.0", "") else "[::1]" if self.host == "::" else self.host  # noqa: S104 - compared
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


def open_port(text: str, where: str, *, others: bool = True) -> OpenPort:
    """Listen at `text` (HOST:PORT), or with `others` at the next free port; `where` is the option or key of `text`.

    Raises:
        UsageError: it is no such address, or no port of this host can be used.
    """
    address = ListenAddress.parse(text, where)
    ports = PORTS if others else 1
    tried = range(address.port, min(address.port + ports, 65536)) if address.port else (0,)
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
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            host, number = listener.getsockname()[:2]
            return OpenPort(listener, host, number, address.port)
    except OSError as error:
        raise UsageError(
            f"{where} {address.url_host}:{address.port}: cannot listen there ({error.strerror or error}); use another "
            "address, such as 127.0.0.1:8080"
        ) from None
    used = f"this port and the {len(tried) - 1} after it are" if others else "this port is"
    raise UsageError(
        f"{where} {address.url_host}:{address.port}: {used} in use; use another one, or port 0 for any free one"
    )


def inherited_port() -> OpenPort | None:
    """The socket that `up` has opened for this process, if it has."""
    number = os.environ.pop(LISTENER_VARIABLE, None)
    return None if number is None else OpenPort.inherited(int(number))


# -- the token


def load_token(state_dir: Path, name: str = TOKEN_FILE) -> str:
    """The token in the file `name` of the state directory, created on the first call.

    A file that others may read or that holds no token is replaced by a new one.

    Raises:
        UsageError: the file cannot be read or written.
    """
    path = state_dir / name
    try:
        return _read(path) or _create(path)
    except OSError as error:
        raise UsageError(
            f"{path}: expected a file for a token, mode 0600 ({error.strerror}); run the command as the "
            "owner of the state directory, or name another one with --state-dir"
        ) from None


def _read(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                return None
            token = file.read(1024).decode("ascii", errors="replace").strip()
    except FileNotFoundError:
        return None
    return token if len(token) >= SHORTEST and token.isascii() and token.isprintable() else None


def _create(path: Path) -> str:
    token = secrets.token_urlsafe(32)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, f"{token}\n".encode())
        temporary.replace(path)
    finally:
        os.close(descriptor)
    return token


def keep_token(state_dir: Path, name: str = TOKEN_FILE) -> str:
    """The token in the file `name` of `state_dir`, which is created where it does not exist.

    Raises:
        UsageError: neither can be read or written.
    """
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--state-dir {state_dir}: cannot be used: {error.strerror}") from None
    return load_token(state_dir, name)


def announce(port: OpenPort, token: str | None, state_dir: Path) -> None:
    """Say on standard error where the dashboard is, and note it for `--link`.

    With the token only on a terminal: what goes into a file or a pipe is a log.
    """
    if token is not None:
        place = Place(url=port.url, pid=os.getpid(), started=start_identity(os.getpid()))
        with contextlib.suppress(OSError):  # the pages work without it
            temporary = state_dir / f"{ADDRESS_FILE}.{os.getpid()}"
            temporary.write_bytes(orjson.dumps(place))
            temporary.replace(state_dir / ADDRESS_FILE)
    if port.remark:
        print(f"signalmesh: {port.remark}", file=sys.stderr)
    if token is None:
        print(f"dashboard: {port.url}", file=sys.stderr, flush=True)
    elif sys.stderr.isatty():
        print(f"dashboard: {port.url}?token={token}", file=sys.stderr, flush=True)
    else:
        print(
            f"dashboard: {port.url} (`{link_command(state_dir)}` prints it with the token)", file=sys.stderr, flush=True
        )


def link_command(state_dir: Path) -> str:
    """The command that prints the link to the dashboard of `state_dir`."""
    named = "" if state_dir == DEFAULT_STATE_DIR else f" --state-dir {shlex.quote(str(state_dir))}"
    return f"signalmesh dashboard --link{named}"


def read_place(state_dir: Path) -> Place | None:
    """Where the dashboard of `state_dir` is; None if none runs."""
    with contextlib.suppress(OSError, ValueError):
        place = msgspec.convert(parse_json(read_limited(state_dir / ADDRESS_FILE)), Place)
        # Not the port: another program that listens there now would receive the token.
        return place if is_running(place.pid, place.started) else None
    return None


def is_private(path: Path) -> bool:
    """Whether only the owner of this file can read it."""
    return not path.stat().st_mode & 0o077


def print_link(state_dir: Path) -> None:
    """Print the link to the dashboard of `state_dir`, with its token.

    Raises:
        UsageError: no dashboard of that state directory runs.
    """
    place = read_place(state_dir)
    if place is None:
        raise UsageError(
            f"--state-dir {state_dir}: no dashboard of it runs; `signalmesh up` and `signalmesh dashboard` start one"
        )
    print(f"{place.url}?token={load_token(state_dir)}")
