"""What a run with sandboxes of E2B takes from the environment: key, endpoint, the address of the bus.

Reads the environment for E2B, in one place. Imports no SDK: that costs a second, and is the provider role's alone.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from bus.errors import UsageError
from bus.nats.urls import redacted_url, urls_of

KEY_VARIABLE = "E2B_API_KEY"
DEBUG_VARIABLE = "E2B_DEBUG"
SECRET_VARIABLES = (KEY_VARIABLE, "E2B_ACCESS_TOKEN")
PUBLIC_URL_VARIABLE = "SIGNALMESH_PUBLIC_NATS"
"""How the provider role gets the address: it may hold credentials, and arguments are public."""
AT_E2B = "E2B at "
"""What the text of E2B's own endpoint begins with, and no other's."""
_KEY = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Which service the SDK talks to, by the variables that it reads."""

    api_url: str
    sandbox_url: str | None = None

    @classmethod
    def of(cls, environ: MutableMapping[str, str] | None = None) -> Endpoint:
        environ = os.environ if environ is None else environ
        domain = environ.get("E2B_DOMAIN") or "e2b.app"
        return cls(environ.get("E2B_API_URL") or f"https://api.{domain}", environ.get("E2B_SANDBOX_URL") or None)

    @property
    def is_e2b(self) -> bool:
        """Whether it is E2B's own service, for the sandboxes as well."""
        host = urlsplit(self.api_url).hostname or ""
        return (host == "e2b.app" or host.endswith(".e2b.app")) and self.sandbox_url is None

    @property
    def shown(self) -> str:
        """In words, without a user and password that its address may hold."""
        url = redacted_url(self.api_url) if "://" in self.api_url else self.api_url.rpartition("@")[2]
        return f"{AT_E2B}{url}" if self.is_e2b else f"another endpoint than E2B's, {url}"


def provider_text(provider: str | None, endpoint: str | None) -> str:
    """A sandbox's provider for a table, by what its host says: nothing is called E2B that is not known to be."""
    if provider != "e2b":
        return provider or ""
    if endpoint is None:
        return "e2b, endpoint not known"
    return "e2b" if endpoint.startswith(AT_E2B) else "e2b, another endpoint"


def drop_key(environ: MutableMapping[str, str] | None = None) -> None:
    """Forget E2B's secrets, so that no process started from here inherits them."""
    environ = os.environ if environ is None else environ
    for name in SECRET_VARIABLES:
        environ.pop(name, None)


def take_key(environ: MutableMapping[str, str] | None = None) -> str:
    """The API key; the environment has it no more.

    Raises:
        UsageError: there is none, it cannot be one (the message does not show it), or the SDK is told to go elsewhere
            than we would say.
    """
    environ = os.environ if environ is None else environ
    key = environ.get(KEY_VARIABLE, "").strip()
    drop_key(environ)
    if not key:
        raise UsageError(
            f'{KEY_VARIABLE} is not set, and a sandbox has provider = "e2b": set it to a key from '
            'https://e2b.dev/dashboard?tab=keys, or write provider = "local" in swarm.toml'
        )
    if not _KEY.fullmatch(key):  # a header cannot carry it, and who tries says in the error what it was
        raise UsageError(
            f"{KEY_VARIABLE}: expected the key alone, in signs of ASCII without a space or a line break; what is set "
            f"has {len(key)} characters in {len(key.splitlines())} lines. Copy it anew from "
            "https://e2b.dev/dashboard?tab=keys"
        )
    _check_endpoint(environ)
    return key


def _check_endpoint(environ: Mapping[str, str]) -> None:
    if environ.get(DEBUG_VARIABLE, "").lower() == "true":
        raise UsageError(
            f"{DEBUG_VARIABLE}=true: with it E2B's SDK asks another server than E2B's and says of sandboxes that they "
            "were ended without asking; unset it. Another endpoint is named by E2B_API_URL and E2B_SANDBOX_URL"
        )
    for name in ("E2B_API_URL", "E2B_SANDBOX_URL"):
        url = environ.get(name)
        if url and not _is_http(url):
            raise UsageError(
                f"{name}={url.rpartition('@')[2]}: expected an address such as https://api.example.org; without one "
                "it is E2B's own"
            )


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return (
            parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0 and url.isprintable()
        )
    except ValueError:
        return False


def public_url(asked: str | None, nats: str | None, endpoint: Endpoint) -> str:
    """The address of the bus that sandboxes are given: `--public-nats`, else `--nats` where the world can reach it.

    Raises:
        UsageError: there is none, or E2B cannot reach it.
    """
    for option, url in (("--public-nats", asked), ("--nats", nats)):
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
                    "an address that is reachable from the internet, such as wss://broker.example.org:443"
                )
            return url
    raise UsageError(
        '--public-nats: a sandbox with provider = "e2b" needs an address at which it can reach the bus from where it '
        "runs, such as --public-nats wss://broker.example.org:443"
    )


def _is_private(url: str) -> bool:
    host = urlsplit(url if "://" in url else f"nats://{url}").hostname or ""
    try:
        address: Any = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or "." not in host or host.endswith((".local", ".internal", ".localhost"))
    return not address.is_global
