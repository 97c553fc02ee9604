"""The recovery times of a report."""

from __future__ import annotations

from coordinator.chaos.report import FaultSeen, summarised
from coordinator.reporting.percentiles import percentiles_of


def seen(kind: str, recovered_ms: float | None, *, overlapping: bool = False) -> FaultSeen:
    return FaultSeen(
        number=1, kind=kind, targets=["a"], at_s=0, fault_s=0, overlapping=overlapping,
        outcome="not applicable" if recovered_ms is None else "recovered", recovered_ms=recovered_ms,
    )  # fmt: skip


def test_percentiles_are_of_each_kind_with_overlapping_ones_apart():
    faults = [seen("kill-agent", value) for value in (10.0, 30.0, 20.0)]
    faults += [seen("kill-agent", 99.0, overlapping=True), seen("kill-agent", None)]
    alone, overlapping = summarised(faults)
    assert (alone.count, alone.recovered, alone.not_applicable) == (4, 3, 1)
    assert (alone.recovered_ms.n, alone.recovered_ms.p50, alone.recovered_ms.max) == (3, 20.0, 30.0)
    assert alone.detected_ms == percentiles_of([])
    assert (overlapping.overlapping, overlapping.recovered_ms.p99) == (True, 99.0)
