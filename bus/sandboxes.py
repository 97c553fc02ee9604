"""What heartbeats say of sandboxes: what a host's processes use, and the account that the watchdog keeps of each."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SandboxAccount", "SandboxUsage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxUsage:
    """What a sandbox host and its descendants use: processor seconds since its start, those of ended ones included,
    and MiB of physical memory. `rss_mb` counts pages that several have for each of them; `pss_mb` shares these out
    among all that have them, so that it adds up: measured more rarely, and None where this system does not tell it.

    `rx_bytes` and `tx_bytes` have passed through the interfaces that they see, loopback left out; `network` tells that
    network from all others, so that two who say the same share it, and its figures. None: this system does not tell.
    """

    processes: int
    cpu_s: float
    rss_mb: float
    pss_mb: float | None = None
    network: str | None = None
    rx_bytes: int | None = None
    tx_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxAccount:
    """A sandbox since the leading watchdog first heard its host: seconds in which it could be heard (the bus was not
    ill), and those of them in which it was.

    `price_per_hour` (USD) and where that figure is from are the configuration's; None: no price is set.
    """

    seen_s: float
    alive_s: float
    price_per_hour: float | None = None
    price_source: str | None = None
