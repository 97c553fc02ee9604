"""Resource use, availability and cost of a sandbox, from the heartbeats of its host and of the watchdog."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agents.host.probe import network_of_here
from bus.messages import Heartbeat, SandboxAccount, SandboxUsage

__all__ = ["HERE", "SandboxHealth", "availability_of", "health_of", "shared_with"]

NOT_REPORTED = "not measured: not in any heartbeat"


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxHealth:
    """What a sandbox's processes use, how available it was, what it costs.

    `cpu_percent` is of one processor, since the host's start. Of memory, in MiB, `rss_mb` counts pages that processes
    share for each, `pss_mb` shares them out. Bytes are those that have passed through its network, loopback left out;
    None where it has none of its own, see `network`. `availability` is the share of the `seen_s` seconds since
    its first heartbeat, without those in which the bus was unhealthy, in which its host was known to be alive. Money is
    in USD: `cost` is the price times `age_s`, the time since the sandbox was created (since its host's start where no
    provider created it); None where no price is set. `price_source` names the source of the price.
    """

    processes: int | None = None
    cpu_s: float | None = None
    cpu_percent: float | None = None
    rss_mb: float | None = None
    pss_mb: float | None = None
    network: str = NOT_REPORTED
    rx_bytes: int | None = None
    tx_bytes: int | None = None
    age_s: float | None = None
    seen_s: float | None = None
    availability: float | None = None
    price_per_hour: float | None = None
    price_source: str = "no price is set"
    cost: float | None = None


def health_of(
    heartbeat: Heartbeat, account: SandboxAccount | None, usages: Mapping[str, SandboxUsage | None]
) -> SandboxHealth:
    """Health of the sandbox whose host sent `heartbeat`. `usages` are those of all hosts, to find shared networks."""
    usage, uptime_s = heartbeat.usage, heartbeat.uptime_s or 0.0
    network, rx_bytes, tx_bytes = _network(heartbeat.agent, usages)
    price = None if account is None else account.price_per_hour
    age_s = uptime_s if heartbeat.age_s is None else heartbeat.age_s
    return SandboxHealth(
        processes=None if usage is None else usage.processes,
        cpu_s=None if usage is None else usage.cpu_s,
        cpu_percent=100 * usage.cpu_s / uptime_s if usage is not None and uptime_s else None,
        rss_mb=None if usage is None else usage.rss_mb,
        pss_mb=None if usage is None else usage.pss_mb,
        network=network,
        rx_bytes=rx_bytes,
        tx_bytes=tx_bytes,
        age_s=heartbeat.uptime_s if heartbeat.age_s is None else heartbeat.age_s,
        seen_s=None if account is None else account.seen_s,
        availability=availability_of(account),
        price_per_hour=price,
        price_source=_price_source(account),
        cost=None if price is None else price * age_s / 3600,
    )


def availability_of(account: SandboxAccount | None) -> float | None:
    """The share of the time in which the sandbox was alive, 0 to 1; None if not measured or no time has passed."""
    return None if account is None or not account.seen_s else account.alive_s / account.seen_s


def _price_source(account: SandboxAccount | None) -> str:
    if account is None:
        return "not known: no leading watchdog reports it"
    if account.price_per_hour is None:
        return "no price is set"
    return account.price_source or "the configuration"


def _network(name: str, usages: Mapping[str, SandboxUsage | None]) -> tuple[str, int | None, int | None]:
    usage = usages.get(name)
    others = shared_with(name, usages)
    if usage is None:
        return NOT_REPORTED, None, None
    if others is None:
        return "not measured: this system does not report network namespaces", None, None
    if others:
        return f"not measured: it shares the network of {', '.join(others)}", None, None
    return "its own", usage.rx_bytes, usage.tx_bytes


HERE = "this machine"


def shared_with(name: str, usages: Mapping[str, SandboxUsage | None]) -> list[str] | None:
    """Others that use the network of `name`: HERE, or sandboxes; None if its network was not reported."""
    usage = usages.get(name)
    if usage is None or usage.network is None:
        return None
    others = [other for other, theirs in usages.items() if other != name and theirs and theirs.network == usage.network]
    return [*([HERE] if usage.network == network_of_here() else []), *others]
