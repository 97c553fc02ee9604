"""Health and cost of a sandbox follow from heartbeats; what they do not contain is not reported."""

from __future__ import annotations

import pytest

from agents.host.probe import network_of_here
from bus.messages import Heartbeat, SandboxAccount, SandboxUsage
from coordinator.monitor.status_table import health_cells
from coordinator.sandboxes.health import HERE, SandboxHealth, health_of, shared_with

USAGE = SandboxUsage(processes=5, cpu_s=9.0, rss_mb=120.0, pss_mb=40.4, network="n", rx_bytes=1 << 20, tx_bytes=2 << 20)


def host(**more: object) -> Heartbeat:
    fields: dict[str, object] = {
        "agent": "base", "agent_id": "h", "epoch": 0, "sequence": 1, "progress": 1, "status": "live",
        "interval_ms": 200, "sandbox": "base", "pid": 1, "role": "sandbox", "uptime_s": 90.0,
    }  # fmt: skip
    return Heartbeat(**fields | more)  # type: ignore[arg-type]


def test_all_of_it_is_reported():
    account = SandboxAccount(seen_s=100.0, alive_s=90.0, price_per_hour=0.4, price_source="a bill of May")
    found = health_of(host(usage=USAGE), account, {"base": USAGE})
    assert found == SandboxHealth(
        processes=5, cpu_s=9.0, cpu_percent=10.0, rss_mb=120.0, pss_mb=40.4, network="its own", rx_bytes=1 << 20,
        tx_bytes=2 << 20, age_s=90.0, seen_s=100.0, availability=0.9, price_per_hour=0.4,
        price_source="a bill of May", cost=0.01,
    )  # fmt: skip
    assert health_cells(found) == ["90.00 %", "5", "10.0 %", "40", "1.0, 2.0 MiB", "$0.0100 at $0.4/h"]


def test_what_was_made_costs_since_it_was_made():
    account = SandboxAccount(seen_s=100.0, alive_s=90.0, price_per_hour=0.4)
    found = health_of(host(usage=USAGE, age_s=180.0), account, {"base": USAGE})
    assert (found.age_s, found.cost, found.cpu_percent) == (180.0, 0.02, 10.0), "what it uses is since its host's start"


def test_memory_of_which_only_the_sum_of_processes_is_known_is_called_so():
    usage = SandboxUsage(processes=5, cpu_s=9.0, rss_mb=120.0)
    assert health_cells(health_of(host(usage=usage), None, {"base": usage}))[3] == "RSS 120"


def test_nothing_is_made_up():
    found = health_of(host(uptime_s=None), None, {"base": None})
    assert found.network.startswith("not measured")
    assert found.price_source == "not known: no leading watchdog reports it"
    assert [getattr(found, name) for name in ("cpu_percent", "availability", "cost", "rx_bytes")] == [None] * 4
    unpriced = health_of(host(), SandboxAccount(seen_s=0.0, alive_s=0.0), {})
    assert (unpriced.availability, unpriced.cost, unpriced.price_source) == (None, None, "no price is set")
    assert health_cells(unpriced)[-2:] == ["not its own", "no price is set"]


def test_a_price_of_nothing_is_a_price():
    found = health_of(host(), SandboxAccount(seen_s=1.0, alive_s=1.0, price_per_hour=0.0, price_source="a gift"), {})
    assert (found.price_per_hour, found.cost) == (0.0, 0.0)


@pytest.mark.parametrize("network", [network_of_here(), "n"])
def test_bytes_of_a_shared_network_are_attributed_to_no_sandbox(network):
    mine = SandboxUsage(processes=1, cpu_s=0.0, rss_mb=1.0, network=network, rx_bytes=7, tx_bytes=8)
    found = health_of(host(usage=mine), None, {"base": mine, "python": mine})
    assert (found.rx_bytes, found.tx_bytes) == (None, None)
    assert found.network.endswith(", ".join([*([HERE] if network != "n" else []), "python"]))


def test_a_network_is_own_only_if_it_is_not_shared():
    def usage(network: str | None) -> SandboxUsage:
        return SandboxUsage(processes=1, cpu_s=0.0, rss_mb=1.0, network=network, rx_bytes=1, tx_bytes=1)

    usages = {"a": usage("n1"), "b": usage("n1"), "c": usage("n2"), "d": usage(network_of_here()), "e": usage(None)}
    assert shared_with("a", usages) == ["b"]
    assert shared_with("c", usages) == []
    assert shared_with("d", usages) == [HERE]
    assert shared_with("e", usages) is None
