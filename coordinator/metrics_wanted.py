"""What the configuration and the environment ask of the metrics role; checked before it is started. Imports no HTTP."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from bus.errors import UsageError
from bus.exporting import read_exporting
from coordinator.listening import Address
from coordinator.settings import SwarmConfig

__all__ = ["NOWHERE", "WEBHOOK_VARIABLE", "check_webhook", "metrics_arguments", "webhook_of"]

WEBHOOK_VARIABLE = "SIGNALMESH_WEBHOOK"
NOWHERE = "off"
"""In the place of an address: no page."""


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
    raise UsageError(f"{where}: expected an http:// or https:// URL; it is not shown, for it may hold a secret")


def webhook_of(config: SwarmConfig) -> str:
    """The URL that alerts are posted to, "" for none: the environment's, else the configuration's.

    Raises:
        UsageError: it is none.
    """
    url = os.environ.get(WEBHOOK_VARIABLE, "")
    return check_webhook(url, WEBHOOK_VARIABLE) if url else config.alerts.webhook


def metrics_arguments(config: SwarmConfig) -> list[str]:
    """The command line of the role that `up` is to run, without the options of all roles; empty where none is wanted.

    Raises:
        UsageError: nobody can listen at its address, or the webhook is no URL.
    """
    listen = config.metrics.listen
    if listen:
        where = f"{config.file}: metrics.listen:"
        Address.parse(listen, where).check_free(where)
    wanted = listen or webhook_of(config) or read_exporting(os.environ, "metrics")
    return ["metrics", "--listen", listen or NOWHERE] if wanted else []
