"""The table [sandboxes.NAME] with provider = "e2b": its fields and their checks."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from bus.errors import ConfigError

__all__ = ["E2bSettings", "check_settings", "files_of"]

PRICE_PER_VCPU_HOUR, PRICE_PER_GIB_HOUR = 0.0504, 0.0162
"""USD. The list has them per second: 0.000014 for a vCPU, 0.0000045 for a GiB of memory."""
PRICE_LIST = "E2B's price list (https://e2b.dev/pricing)"
LONGEST_NAME = 40
"""Of a sandbox: the id that E2B gives is added to it, and a name has 64 characters at most."""
HAND_OVER_S = 20
"""What must be left of a sandbox's age when another is to take over: that is installed in some ten seconds, and the
agents of the old one may take nine to drain."""
ALL_ADDRESSES = "0.0.0.0/0"
_PACKAGE = re.compile(r"[A-Za-z0-9@][A-Za-z0-9._/@\[\],=<>!~^+-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LABEL = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN = re.compile(rf"(\*|{_LABEL})\.({_LABEL}\.)*(?![0-9]+$){_LABEL}", re.IGNORECASE)
_KINDS_OF_PACKAGES = ("pip", "npm")

Lifetime = Annotated[int, Meta(ge=3, le=86_400)]


@dataclass(frozen=True, slots=True, kw_only=True)
class E2bSettings:
    """How a sandbox of E2B is created and kept."""

    template: str = "base"
    """Name or id of a template of E2B. The template decides about CPUs and memory."""
    python: str = "python3"
    """An interpreter of the template, 3.11 or newer. Nothing is installed if it has this very version of signalmesh."""
    packages: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """`{ pip = ["..."], npm = ["..."] }`, installed besides. A name may be one of `files`. `up` imports agents where it
    runs, so import inside a handler what only the sandbox has."""
    env: dict[str, str] = field(default_factory=dict)
    """Environment variables of its processes. They can be read at E2B, so no secrets."""
    metadata: dict[str, str] = field(default_factory=dict)
    """Metadata of the sandbox, besides our own `pool`, `swarm`, `sandbox`, `version` and `settings`."""
    files: tuple[str, ...] = ()
    """Files and directories beside `swarm.toml` that your own agents need there."""
    allow: tuple[str, ...] = ()
    """Addresses that it may reach: IPs, CIDRs, and domains (ports 80 and 443 only). E2B accepts domains only with `deny
    = ["0.0.0.0/0"]`."""
    deny: tuple[str, ...] = ()
    """IPs and CIDRs that it may not reach, such as `0.0.0.0/0`: all but the allowed ones."""
    cpu: Annotated[int, Meta(ge=1)] | None = None
    """Refused if the template has another number of CPUs: a check, for the API takes no size."""
    memory_mb: Annotated[int, Meta(ge=1)] | None = None
    """Refused if the template has another memory, in MiB."""
    timeout_s: Lifetime = 600
    """Lifetime in seconds, renewed every third of it. A sandbox whose launcher is dead costs money for so long."""
    max_age_s: Lifetime = 3600
    """Longest time in seconds that your plan lets a sandbox run. More than `timeout_s`."""
    replace_at: Annotated[float, Meta(gt=0, le=1)] = 0.8
    """Share of `max_age_s` after which another sandbox takes over. It must leave 20 s: some 10 to install the other
    one, up to 9 to drain."""
    price_per_hour: Annotated[float, Meta(ge=0)] | None = None
    """USD an hour. By default, with `cpu` and `memory_mb`, E2B's list price of that size."""
    price_source: str = ""
    """Where that price is from. Required with it."""

    def price(self) -> tuple[float | None, str]:
        """USD an hour, and where that is from: as configured, else E2B's list price of the configured size."""
        if self.price_per_hour is not None or self.cpu is None or self.memory_mb is None:
            return self.price_per_hour, self.price_source
        price = self.cpu * PRICE_PER_VCPU_HOUR + self.memory_mb / 1024 * PRICE_PER_GIB_HOUR
        return round(price, 6), f"{PRICE_LIST}: ${PRICE_PER_VCPU_HOUR} a vCPU and ${PRICE_PER_GIB_HOUR} a GiB"


def check_settings(file: str, key: str, name: str, settings: E2bSettings) -> None:
    """Check what the types cannot express.

    Raises:
        ConfigError: a setting is invalid; names its key.
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
                "expected the name of a variable that starts neither with E2B_ nor with SIGNALMESH_",
            )
        if "\0" in settings.env[variable]:
            raise ConfigError(file, f"{key}.env.{variable}", "expected text without a null character")
    for own in ("swarm", "sandbox", "pool", "version", "settings"):
        if own in settings.metadata:
            raise ConfigError(file, f"{key}.metadata.{own}", "this name is reserved; choose another one")
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
    """Check the rules of the API: domains only in `allow`, and only if all other addresses are denied."""
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
                f"the domain {address!r} is accepted only if all else is denied: add deny = [{ALL_ADDRESSES!r}]",
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
        ConfigError: a file does not exist, or is outside that directory.
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
