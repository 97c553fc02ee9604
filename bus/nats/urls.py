"""Addresses of NATS servers: one, or several of a cluster with commas between them; redacted for logs."""

from __future__ import annotations

import ipaddress
import itertools
from urllib.parse import urlsplit

from bus.errors import UsageError

__all__ = ["check_url", "is_loopback", "is_same_server", "is_websocket", "redacted_url", "urls_of"]

DEFAULT_PORT = 4222
WEBSOCKET = ("ws", "wss")


def urls_of(url: str) -> list[str]:
    """The addresses in `url`: of one server, or several of a cluster with commas between them."""
    return [one.strip() for one in url.split(",")]


def is_websocket(url: str) -> bool:
    """Whether `url` names a server's WebSocket port."""
    return any(one.partition("://")[0] in WEBSOCKET for one in urls_of(url))


def is_loopback(host: str) -> bool:
    """Whether `host` is a name or address of this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_same_server(one: str, other: str) -> bool:
    """Whether two addresses without a user are of the same server or cluster; `localhost` is 127.0.0.1.

    `nats://` and `tls://` do not differ: it is the server that decides about TLS.
    """
    return "@" not in one + other and _places(one) == _places(other)


def _places(url: str) -> set[tuple[str, str, int]]:
    parts = [urlsplit(each if "://" in each else f"nats://{each}") for each in urls_of(url)]
    return {
        (
            "nats" if part.scheme == "tls" else part.scheme,
            "127.0.0.1" if part.hostname == "localhost" else str(part.hostname),
            part.port or DEFAULT_PORT,
        )
        for part in parts
    }


def redacted_url(url: str) -> str:
    """`url` without user, password or token, for logs and errors."""
    if _divides_user(url):
        return "***"  # the bounds of the password are unknown
    return ",".join(map(_redacted, urls_of(url)))


def _divides_user(url: str) -> bool:
    """Whether a comma seems to be part of a user or password: an address without a user, and a rest with one."""
    return any(
        "://" in one and "@" not in one and "@" in rest and "://" not in rest
        for one, rest in itertools.pairwise(urls_of(url))
    )


def _redacted(url: str) -> str:
    scheme, there, rest = url.partition("://")
    if not there:
        scheme, rest = "nats", url
    return f"{scheme}://{rest.rpartition('@')[2]}"  # not parsed: a malformed URL must not show its password either


def check_url(url: str, option: str = "--nats") -> str:
    """Return `url` if it can be a NATS address, or several of one cluster with commas between them.

    `option` names its source in the message.

    Raises:
        UsageError: it is not.
    """
    if _divides_user(url):
        raise UsageError(f"{option} ***: write a comma in a user or password as %2C, and an @ as %40")
    schemes = {_check(one, option) for one in urls_of(url)}
    if len({scheme in WEBSOCKET for scheme in schemes}) > 1:
        raise UsageError(f"{option} {redacted_url(url)}: expected either WebSocket addresses (ws, wss) only, or none")
    return url


def _check(url: str, option: str) -> str:
    """The scheme of one address.

    Raises:
        UsageError: it is not an address.
    """
    parts = None
    try:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        ok = parts.scheme in ("nats", "tls", "ws", "wss") and bool(parts.hostname) and (parts.port or 1) > 0
        ok = ok and url.isprintable() and " " not in url
    except ValueError:
        ok = False
    if not ok:
        raise UsageError(
            f"{option} {redacted_url(url) if '@' in url else url}: expected nats://HOST:PORT (or tls, ws, wss), "
            "or several of one cluster with commas between them"
        )
    assert parts is not None
    return parts.scheme
