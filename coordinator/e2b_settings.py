"""What a table [sandboxes.NAME] with provider = "e2b" says, and what a run needs besides: key, endpoint, address.

Reads the environment for E2B, in one place. Imports no SDK: that costs a second, and is the provider role's alone.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from msgspec import Meta

from bus.errors import ConfigError, UsageError
from bus.urls import shown_url, urls_of

__all__ = [
    "KEY_VARIABLE",
    "PUBLIC_URL_VARIABLE",
    "E2bSettings",
    "Endpoint",
    "check_settings",
    "drop_key",
    "files_of",
    "provider_text",
    "public_url",
    "take_key",
]

KEY_VARIABLE = "E2B_API_KEY"
DEBUG_VARIABLE = "E2B_DEBUG"
SECRET_VARIABLES = (KEY_VARIABLE, "E2B_ACCESS_TOKEN")
PUBLIC_URL_VARIABLE = "SIGNALMESH_PUBLIC_NATS"
"""How the provider role gets the address: it may hold credentials, and arguments are public."""
AT_E2B = "E2B at "
"""What the text of E2B's own endpoint begins with, and no other's."""
PRICE_PER_VCPU_HOUR, PRICE_PER_GIB_HOUR = 0.0504, 0.0162
"""USD. The list has them per second: 0.000014 for a vCPU, 0.0000045 for a GiB of memory."""
PRICE_LIST = "E2B's price list (https://e2b.dev/pricing)"
LONGEST_NAME = 40
"""Of a sandbox: the id that E2B gives is added to it, and a name has 64 characters at most."""
HAND_OVER_S = 20
"""What must be left of a sandbox's age when another is to take over: that is installed in some ten seconds, and the
agents of the old one may take nine to drain."""
ALL_ADDRESSES = "0.0.0.0/0"
_KEY = re.compile(r"[!-~]+")
_PACKAGE = re.compile(r"[A-Za-z0-9@][A-Za-z0-9._/@\[\],=<>!~^+-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LABEL = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN = re.compile(rf"(\*|{_LABEL})\.({_LABEL}\.)*(?![0-9]+$){_LABEL}", re.IGNORECASE)
_KINDS_OF_PACKAGES = ("pip", "npm")

Lifetime = Annotated[int, Meta(ge=3, le=86_400)]


@dataclass(frozen=True, slots=True, kw_only=True)
class E2bSettings:
    """How a sandbox of E2B is made and kept. `packages` maps "pip" and "npm" to names.

    `python` is an interpreter of the template, which need not have signalmesh. `cpu` and `memory_mb` are the template's
    to give: what is written here is only compared with them. `timeout_s` is its lifetime, renewed every third of it;
    at the share `replace_at` of `max_age_s` it is replaced by a new one.
    """

    template: str = "base"
    python: str = "python3"
    packages: dict[str, tuple[str, ...]] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    cpu: Annotated[int, Meta(ge=1)] | None = None
    memory_mb: Annotated[int, Meta(ge=1)] | None = None
    timeout_s: Lifetime = 600
    max_age_s: Lifetime = 3600
    replace_at: Annotated[float, Meta(gt=0, le=1)] = 0.8
    price_per_hour: Annotated[float, Meta(ge=0)] | None = None
    price_source: str = ""

    def price(self) -> tuple[float | None, str]:
        """USD an hour, and where that is from: as configured, else E2B's list price of the configured size."""
        if self.price_per_hour is not None or self.cpu is None or self.memory_mb is None:
            return self.price_per_hour, self.price_source
        price = self.cpu * PRICE_PER_VCPU_HOUR + self.memory_mb / 1024 * PRICE_PER_GIB_HOUR
        return round(price, 6), f"{PRICE_LIST}: ${PRICE_PER_VCPU_HOUR} a vCPU and ${PRICE_PER_GIB_HOUR} a GiB"


def check_settings(file: str, key: str, name: str, settings: E2bSettings) -> None:
    """What the types do not say.

    Raises:
        ConfigError: by its key.
    """
    if len(name) > LONGEST_NAME:
        raise ConfigError(file, key, f"expected a name of {LONGEST_NAME} characters at most: E2B's id is added to it")
    for field_name, text in (("template", settings.template), ("python", settings.python)):
        if not text.strip() or "\0" in text or text.startswith("-"):
            default = E2bSettings.__dataclass_fields__[field_name].default
            raise ConfigError(
                file, f"{key}.{field_name}", f"expected a name, such as the default {default!r}, not {text!r}"
            )
    _check_packages(file, key, settings.packages)
    _check_addresses(file, key, settings)
    for variable in settings.env:
        if not _VARIABLE.fullmatch(variable) or variable.startswith(("E2B_", "SIGNALMESH_")):
            raise ConfigError(
                file,
                f"{key}.env.{variable}",
                "expected the name of a variable that begins neither with E2B_ nor with SIGNALMESH_",
            )
        if "\0" in settings.env[variable]:
            raise ConfigError(file, f"{key}.env.{variable}", "expected text without a null character")
    for own in ("swarm", "sandbox", "pool", "version", "settings"):
        if own in settings.metadata:
            raise ConfigError(file, f"{key}.metadata.{own}", "this one is ours; choose another name")
    if any(not name.strip() for name in settings.metadata):
        raise ConfigError(file, f"{key}.metadata", "expected names that are not empty")
    _check_ages(file, key, settings)


def _check_ages(file: str, key: str, settings: E2bSettings) -> None:
    if settings.max_age_s <= settings.timeout_s:
        raise ConfigError(
            file, f"{key}.max_age_s", f"expected more than timeout_s ({settings.timeout_s}), not {settings.max_age_s}"
        )
    left_s = round(settings.max_age_s * (1 - settings.replace_at), 6)
    if left_s < HAND_OVER_S:
        raise ConfigError(
            file,
            f"{key}.replace_at",
            f"expected {HAND_OVER_S} s of max_age_s ({settings.max_age_s}) or more to be left for the hand-over, and "
            f"{settings.replace_at:g} leaves {left_s:g}: a smaller share, or a longer age if your plan has it",
        )


def _check_addresses(file: str, key: str, settings: E2bSettings) -> None:
    """As the API takes them: names of domains are for what is allowed, and only where all the rest is denied."""
    for index, address in enumerate(settings.deny):
        if not _is_network(address):
            raise ConfigError(
                file,
                f"{key}.deny[{index}]",
                f"expected an IP address or a CIDR, such as {ALL_ADDRESSES!r}, not {address!r}: E2B denies no domains",
            )
    for index, address in enumerate(settings.allow):
        if _is_network(address):
            continue
        if not _DOMAIN.fullmatch(address):
            raise ConfigError(
                file,
                f"{key}.allow[{index}]",
                "expected an IP address, a CIDR or a domain ('203.0.113.7', '203.0.113.0/24', 'example.org', "
                f"'*.example.org'), not {address!r}",
            )
        if ALL_ADDRESSES not in settings.deny:
            raise ConfigError(
                file,
                f"{key}.allow[{index}]",
                f"the domain {address!r} is taken only where all else is denied: add deny = [{ALL_ADDRESSES!r}]",
            )


def _is_network(address: str) -> bool:
    """An IP address or a CIDR; Python also knows netmasks and zones, which no CIDR has."""
    try:
        ipaddress.ip_network(address, strict=False)
    except ValueError:
        return False
    return "%" not in address and "." not in address.partition("/")[2]


def _check_packages(file: str, key: str, packages: Mapping[str, tuple[str, ...]]) -> None:
    for kind, names in packages.items():
        if kind not in _KINDS_OF_PACKAGES:
            known = " and ".join(_KINDS_OF_PACKAGES)
            raise ConfigError(file, f"{key}.packages.{kind}", f"unknown kind of packages; expected {known}")
        for index, package in enumerate(names):
            if not _PACKAGE.fullmatch(package):
                raise ConfigError(
                    file, f"{key}.packages.{kind}[{index}]", f"expected the name of a package, not {package!r}"
                )


def files_of(file: str, key: str, names: tuple[str, ...]) -> tuple[tuple[str, Path], ...]:
    """The files that a sandbox gets: name there -> path here. `names` are relative to the directory of `file`.

    Raises:
        ConfigError: one is not there, or lies outside of that directory.
    """
    root = Path(file).resolve().parent
    found: list[tuple[str, Path]] = []
    for index, name in enumerate(names):
        path = (root / name).resolve()
        if not path.exists() or not path.is_relative_to(root):
            raise ConfigError(
                file, f"{key}.files[{index}]", f"expected a file or directory below that of {file}, not {name!r}"
            )
        members = sorted(path.rglob("*")) if path.is_dir() else [path]
        found += [
            (one.relative_to(root).as_posix(), one)
            for one in members
            if one.is_file() and "__pycache__" not in one.parts
        ]
    return tuple(found)


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
        url = shown_url(self.api_url) if "://" in self.api_url else self.api_url.rpartition("@")[2]
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
                    f"--public-nats {shown_url(url)}: a sandbox at E2B cannot reach {shown_url(private[0])}; expected "
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
