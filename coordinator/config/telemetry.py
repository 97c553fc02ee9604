"""Settings of the pages and alerts: [metrics], [alerts], [dashboard] and the environment; checked before a start."""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from bus.errors import UsageError
from bus.observability.logging import hide
from bus.observability.otel_env import read_exporting
from coordinator.config.secrets import read_secret
from coordinator.config.settings import SwarmConfig

DEFAULT_LISTEN = "127.0.0.1:9464"
"""The port that OpenTelemetry's Prometheus exporters use."""
EVERYWHERE = "0.0.0.0"  # noqa: S104 - only if configured


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where to listen; port 0 is any free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, where: str) -> ListenAddress:
        """`HOST:PORT`, `[::1]:PORT`, or `:PORT` for every interface; `where` is the option or key that contains it.

        Raises:
            UsageError: it is none of these.
        """
        host, colon, port = text.rpartition(":")
        if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
            raise UsageError(f"{where} {text!r}: expected HOST:PORT, such as {DEFAULT_LISTEN}")
        return cls(host.removeprefix("[").removesuffix("]") or EVERYWHERE, int(port))

    @property
    def url_host(self) -> str:
        """The host as written in a URL."""
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
                f"{where} {self.url_host}:{self.port}: cannot listen there ({error.strerror or error}); use another "
                "address, or port 0 for any free one"
            ) from None


WEBHOOK_VARIABLE = "SIGNALMESH_WEBHOOK"
NOWHERE = "off"
"""Instead of an address: no page."""


def check_webhook(url: str, where: str) -> str:
    """Return `url` if alerts can be posted there; `where` is the setting that names it.

    Raises:
        UsageError: they cannot; the message does not show the URL, which may hold a secret.
    """
    try:
        parsed = urlsplit(url)
        if parsed.scheme in ("http", "https") and parsed.hostname and parsed.port != 0 and url.isprintable():
            return url
    except ValueError:
        pass
    raise UsageError(
        f"{where}: expected an http:// or https:// URL; the value is not shown, because it may contain a secret"
    )


def check_page_url(url: str, where: str) -> str:
    """Return `url` if a page can link to it; `where` is the setting that names it.

    Raises:
        UsageError: it is no http:// or https:// URL.
    """
    with contextlib.suppress(ValueError):
        parsed = urlsplit(url)
        if parsed.scheme in ("http", "https") and parsed.hostname and url.isprintable() and " " not in url:
            return url
    raise UsageError(f"{where}: expected an http:// or https:// URL, such as http://localhost:16686, not {url!r}")


def webhook_of(config: SwarmConfig) -> str:
    """The URL that alerts are posted to, "" for none: the environment's, else the configuration's.

    Blocks while a command of [secrets.webhook] runs.

    Raises:
        UsageError: it is none.
    """
    if url := os.environ.get(WEBHOOK_VARIABLE, ""):
        check_webhook(url, WEBHOOK_VARIABLE)
    elif (source := config.secrets.webhook) is not None:
        key = "secrets.webhook"
        url = check_webhook(read_secret(source, config.file, key), f"{config.file}: {key}")
    else:
        url = config.alerts.webhook
    hide(url)
    return url


def metrics_arguments(config: SwarmConfig, webhook: str) -> list[str]:
    """The command line of the role that `up` is to run, without the options of all roles; empty if it is not needed.

    `webhook` is that of `webhook_of`.

    Raises:
        UsageError: the address cannot be listened on.
    """
    listen = config.metrics.listen
    if listen:
        where = f"{config.file}: metrics.listen:"
        ListenAddress.parse(listen, where).check_free(where)
    needed = listen or webhook or read_exporting(os.environ, "metrics")
    return ["metrics", "--listen", listen or NOWHERE] if needed else []
