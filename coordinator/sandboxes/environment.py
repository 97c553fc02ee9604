"""Environment variables for E2B: API key, endpoint, and the bus URL for sandboxes. Does not import the SDK."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bus.errors import UsageError
from bus.nats.urls import redacted_url, urls_of
from bus.observability.logging import hide
from bus.utils.proxies import proxy_note
from coordinator.config.loader import load_swarm
from coordinator.config.secrets import export_secret
from coordinator.config.settings import SwarmConfig

KEY_VARIABLE = "E2B_API_KEY"
DEBUG_VARIABLE = "E2B_DEBUG"
SECRET_VARIABLES = (KEY_VARIABLE, "E2B_ACCESS_TOKEN")
PUBLIC_URL_VARIABLE = "SIGNALMESH_PUBLIC_NATS"
"""Passes the bus URL to the provider role: it may contain credentials, and command lines are public."""
AT_E2B = "E2B at "
"""Prefix of the label of E2B's own service, and of no other endpoint."""
_KEY = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The service that the SDK connects to, from the variables that the SDK reads."""

    api_url: str
    sandbox_url: str | None = None

    @classmethod
    def of(cls, environ: MutableMapping[str, str] | None = None) -> Endpoint:
        environ = os.environ if environ is None else environ
        domain = environ.get("E2B_DOMAIN") or "e2b.app"
        return cls(environ.get("E2B_API_URL") or f"https://api.{domain}", environ.get("E2B_SANDBOX_URL") or None)

    @property
    def is_e2b(self) -> bool:
        """Whether both API and sandboxes are at E2B's own service."""
        host = urlsplit(self.api_url).hostname or ""
        return (host == "e2b.app" or host.endswith(".e2b.app")) and self.sandbox_url is None

    @property
    def label(self) -> str:
        """Text for logs and tables, without the user and password of the URL."""
        url = redacted_url(self.api_url) if "://" in self.api_url else self.api_url.rpartition("@")[2]
        return f"{AT_E2B}{url}" if self.is_e2b else f"custom endpoint {url}"

    def failure(self, problem: str) -> str:
        """`problem` of a request, with the proxy that the environment names for it."""
        return f"{problem}{proxy_note(self.api_url)}"


def provider_text(provider: str | None, endpoint: str | None) -> str:
    """A sandbox's provider for a table, from its host's heartbeat; a custom endpoint is never labelled plain `e2b`."""
    if provider != "e2b":
        return provider or ""
    if endpoint is None:
        return "e2b, endpoint not known"
    return "e2b" if endpoint.startswith(AT_E2B) else "e2b, custom endpoint"


def drop_key(environ: MutableMapping[str, str] | None = None) -> None:
    """Remove E2B's secrets from the environment, so that child processes do not inherit them."""
    environ = os.environ if environ is None else environ
    for name in SECRET_VARIABLES:
        environ.pop(name, None)


def export_key(config: SwarmConfig) -> None:
    """Put the API key into the environment from its source in `config`, unless it is there.

    Blocks while a command runs.

    Raises:
        ConfigError: the source has no key.
    """
    export_secret(config.secrets.e2b_api_key, config.file, "secrets.e2b_api_key", KEY_VARIABLE)


def export_key_of(config_file: Path | None) -> None:
    """As `export_key`, from `config_file` (--config), which is not read where the environment has the key."""
    if not os.environ.get(KEY_VARIABLE):
        export_key(load_swarm(config_file))


def take_key(environ: MutableMapping[str, str] | None = None) -> str:
    """Return the API key and remove it from the environment.

    Raises:
        UsageError: the key is missing or malformed (the message does not contain it), or E2B_DEBUG or an endpoint
            variable is invalid.
    """
    environ = os.environ if environ is None else environ
    key = environ.get(KEY_VARIABLE, "").strip()
    drop_key(environ)
    if not key:
        raise UsageError(
            f'{KEY_VARIABLE} is not set, and a sandbox has provider = "e2b": set it to a key from '
            "https://e2b.dev/dashboard?tab=keys, name its source in [secrets.e2b_api_key] of swarm.toml, or write "
            'provider = "local" there'
        )
    if not _KEY.fullmatch(key):  # not a valid header value; the SDK's error would contain the key
        raise UsageError(
            f"{KEY_VARIABLE}: expected only the key, in printable ASCII without spaces or line breaks; the value "
            f"has {len(key)} characters in {len(key.splitlines())} lines. Copy it again from "
            "https://e2b.dev/dashboard?tab=keys"
        )
    hide(key)
    _check_endpoint(environ)
    return key


def _check_endpoint(environ: Mapping[str, str]) -> None:
    if environ.get(DEBUG_VARIABLE, "").lower() == "true":
        raise UsageError(
            f"{DEBUG_VARIABLE}=true is not supported: the SDK would use a debug server and report sandboxes as deleted "
            "without checking. Unset it. E2B_API_URL and E2B_SANDBOX_URL set a custom endpoint"
        )
    for name in ("E2B_API_URL", "E2B_SANDBOX_URL"):
        url = environ.get(name)
        if url and not _is_http(url):
            raise UsageError(
                f"{name}={url.rpartition('@')[2]}: expected a URL such as https://api.example.org; unset it to use E2B"
            )


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return (
            parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0 and url.isprintable()
        )
    except ValueError:
        return False


def public_url(public_nats: str | None, nats: str | None, endpoint: Endpoint) -> str:
    """The bus URL for sandboxes: `--public-nats`, else `--nats` if it is reachable from the internet.

    Raises:
        UsageError: neither is set, or E2B cannot reach it.
    """
    for option, url in (("--public-nats", public_nats), ("--nats", nats)):
        if url is None:
            continue
        private = [one for one in urls_of(url) if _is_private(one)]
        if not private:
            return url
        if option == "--public-nats":
            if endpoint.is_e2b:
                raise UsageError(
                    f"--public-nats {redacted_url(url)}: a sandbox at E2B cannot reach "
                    f"{redacted_url(private[0])}; expected "
                    "a URL that is reachable from the internet, such as wss://broker.example.org:443"
                )
            return url
    raise UsageError(
        '--public-nats: a sandbox with provider = "e2b" needs a URL at which it can reach the bus, '
        "such as --public-nats wss://broker.example.org:443"
    )


def _is_private(url: str) -> bool:
    host = urlsplit(url if "://" in url else f"nats://{url}").hostname or ""
    try:
        address: Any = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or "." not in host or host.endswith((".local", ".internal", ".localhost"))
    return not address.is_global
