"""The last parts of certify's report: health and cost, the clean-up, and what certify waited for."""

from __future__ import annotations

from collections.abc import Iterator

from coordinator.certify_report import Certificate, SandboxRow
from coordinator.formatting import MIB, NONE, cell, figure, table

__all__ = ["cleanup", "health"]


def health(found: Certificate) -> Iterator[str]:
    """By the newest heartbeats before the clean-up."""
    yield "## Health and cost"
    yield ""
    yield from table(
        (
            "sandbox",
            "state",
            "availability",
            "up",
            "processes",
            "CPU",
            "memory, PSS",
            "memory, RSS",
            "network",
            "cost an hour",
            "so far",
        ),
        [_health_row(row) for row in found.sandboxes],
    )
    yield ""
    yield (
        "All of it by the newest heartbeats before the clean-up. Availability: the share of the time since a host's "
        "first heartbeat in which it was known to be alive. CPU: of one processor, since the host's start. PSS, which "
        "a host measures more rarely than the rest, shares pages out among the processes that have them; RSS counts "
        "them for each. Cost so far: the price times the time since the sandbox was made, or since the host's start "
        "where nobody made it."
    )


def _health_row(row: SandboxRow) -> list[str]:
    health = row.health
    network = health.network
    if health.rx_bytes is not None and health.tx_bytes is not None:
        network = f"{health.rx_bytes / MIB:.2f} MiB in, {health.tx_bytes / MIB:.2f} out"
    price = f"${health.price_per_hour:.4f} ({health.price_source})" if health.price_per_hour is not None else ""
    return [
        row.name,
        row.state,
        NONE if health.availability is None else f"{100 * health.availability:.2f} % of {health.seen_s:.1f} s",
        figure(row.uptime_s, "s"),
        NONE if health.processes is None else str(health.processes),
        figure(health.cpu_percent, "%"),
        figure(health.pss_mb, "MiB"),
        figure(health.rss_mb, "MiB"),
        network,
        price or health.price_source,
        health.price_source if health.cost is None else f"${health.cost:.6f}",
    ]


def cleanup(found: Certificate) -> Iterator[str]:
    """What was looked for, and what certify waited for all along."""
    yield "## Clean-up status"
    yield ""
    done = found.cleanup
    yield (
        f"`signalmesh up` ended with exit code {NONE if done.exit_code is None else done.exit_code}; "
        f"the clean-up took {figure(done.took_s, 's')}. What was looked for afterwards:"
    )
    yield ""
    rows = [
        [one.what, one.how, f"{NONE}: {one.why}" if one.left is None else "; ".join(one.left) or "none"]
        for one in done.looked
    ]
    yield from table(("what", "how", "left"), rows, "Nothing was looked for.")
    for text in done.earlier:
        yield ""
        yield f"Of an earlier run: {cell(text)}"
    yield ""
    yield (
        "What certify did and waited for, one after the other. The swarm runs meanwhile: what had come before certify "
        "asked for it took no waiting, however long it took itself. How long agents took to start stands under Agents, "
        "and rounds under Communication, both by the server's clock."
    )
    yield ""
    yield from table(("step of certify", "took certify"), [[step.name, f"{step.took_s:.2f} s"] for step in found.steps])
