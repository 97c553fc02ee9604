"""What `chaos` reports, and how it is printed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from coordinator.reporting.percentiles import Percentiles, percentiles_of
from coordinator.reporting.tables import Column, console, print_table

__all__ = [
    "Chaos",
    "FaultKind",
    "FaultSeen",
    "ReceivedDecisions",
    "Verification",
    "line_of",
    "print_chaos",
    "summarised",
]

NOT_OBSERVED = "not observed"


@dataclass(slots=True, kw_only=True)
class FaultSeen:
    """One fault. Times count from its first signal or request until the message about it was received; None: none was.

    `outcome`: recovered, not recovered, or not applicable (there was no target; `note` has the reason). `overlapping`:
    another fault was under way. A fault that lasts `fault_s` seconds can recover only afterwards.
    """

    number: int
    kind: str
    targets: list[str]
    at_s: float
    fault_s: float
    overlapping: bool
    outcome: str
    detected_ms: float | None = None
    recovered_ms: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultKind:
    """All faults of a kind; overlapping ones are separate."""

    kind: str
    overlapping: bool
    count: int
    recovered: int
    not_applicable: int
    detected_ms: Percentiles
    recovered_ms: Percentiles


@dataclass(slots=True, kw_only=True)
class ReceivedDecisions:
    """Decisions that an outside core subscriber received, compared with those stored over the same range.

    `gaps` are holes between two received ones, by `Nats-Last-Sequence`; `missed` decisions were stored in them. Gaps
    are expected only while the subscriber's own connection is broken: `gaps_in_one_connection` must be 0.
    """

    received: int = 0
    stored: int | None = None
    missed: int = 0
    gaps: int = 0
    gaps_in_one_connection: int = 0
    rounds_duplicated: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The result of the audit or replay after the faults. `ok` is None if nothing could be compared."""

    name: str
    ok: bool | None
    text: str


@dataclass(slots=True, kw_only=True)
class Chaos:
    """`chaos --json`. `problems` is empty if the swarm passed; the same `seed` gives the same order of faults."""

    ok: bool
    swarm: str
    seed: int
    for_s: float
    duration_s: float
    faults: list[FaultSeen] = field(default_factory=list)
    kinds: list[FaultKind] = field(default_factory=list)
    decisions: ReceivedDecisions
    verifications: list[Verification] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def summarised(faults: Iterable[FaultSeen]) -> list[FaultKind]:
    """Percentiles for each kind, kinds in the order of their first fault."""
    groups: dict[tuple[str, bool], list[FaultSeen]] = {}
    for fault in faults:
        groups.setdefault((fault.kind, fault.overlapping), []).append(fault)
    return [
        FaultKind(
            kind=kind,
            overlapping=overlapping,
            count=len(group),
            recovered=sum(fault.outcome == "recovered" for fault in group),
            not_applicable=sum(fault.outcome == "not applicable" for fault in group),
            detected_ms=percentiles_of(fault.detected_ms for fault in group if fault.detected_ms is not None),
            recovered_ms=percentiles_of(fault.recovered_ms for fault in group if fault.recovered_ms is not None),
        )
        for (kind, overlapping), group in groups.items()
    ]


def line_of(fault: FaultSeen) -> str:
    """One fault on one line, printed when it is over."""
    times = (
        f"{name} {NOT_OBSERVED if value is None else f'{value:.0f} ms'}"
        for name, value in (("detected", fault.detected_ms), ("recovered", fault.recovered_ms))
    )
    duration = f" for {fault.fault_s:.1f} s" if fault.fault_s else ""
    result = ", ".join(times) if fault.outcome == "recovered" else f"{fault.outcome}: {fault.note}"
    overlapping = ", overlapping" if fault.overlapping else ""
    return (
        f"{fault.at_s:7.1f} s  #{fault.number} {fault.kind} {','.join(fault.targets)}{duration}: {result}{overlapping}"
    )


def print_chaos(found: Chaos) -> None:
    """The summary; each fault was printed when it was over."""
    out = console()
    columns = (
        Column("fault"), Column("n", right=True), Column("recovered", 1, right=True),
        Column("detection p50", right=True),
        Column("p99", 3, right=True), Column("max, ms", 2, right=True), Column("recovery p50", right=True),
        Column("p99", 3, right=True), Column("max, ms", 2, right=True),
    )  # fmt: skip
    rows = []
    for kind in found.kinds:
        name = f"{kind.kind} (overlapping)" if kind.overlapping else kind.kind
        recovered = f"{kind.recovered} of {kind.count - kind.not_applicable}"
        times = [*_percentile_cells(kind.detected_ms), *_percentile_cells(kind.recovered_ms)]
        rows.append([name, str(kind.count), recovered, *times])
    print_table(out, columns, rows)
    received = found.decisions
    stored = "the stream could not be read back" if received.stored is None else f"{received.stored} stored"
    out.print(
        f"\ndecisions: {received.received} received, {stored}, {received.missed} missed in {received.gaps} gaps "
        f"while the connection "
        f"was broken, {received.gaps_in_one_connection} gaps otherwise, {received.rounds_duplicated} rounds "
        f"received twice",
        soft_wrap=True,
    )
    for verification in found.verifications:
        verdict = {True: "ok", False: "FAILED", None: "nothing to compare"}[verification.ok]
        out.print(f"{verification.name}: {verdict}: {verification.text}", soft_wrap=True)
    for problem in found.problems:
        out.print(f"PROBLEM: {problem}", soft_wrap=True)
    verdict = "the swarm recovered from every fault" if found.ok else "the swarm FAILED"
    if found.ok and not found.faults:
        verdict = "no fault was injected, so nothing was tested"
    out.print(f"{verdict}; {len(found.faults)} faults in {found.duration_s:.0f} s; --seed {found.seed}", soft_wrap=True)


def _percentile_cells(percentiles: Percentiles) -> list[str]:
    if percentiles.n == 0:
        return [NOT_OBSERVED, "", ""]
    return ["" if value is None else f"{value:.0f}" for value in (percentiles.p50, percentiles.p99, percentiles.max)]
