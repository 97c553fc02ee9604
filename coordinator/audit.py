"""`signalmesh audit`: is what the stream (or a mirror's file) holds whole, and do snapshots, registry, mirror fit it?

The order of looking makes it sound while the swarm lives: first the snapshots, the registry and the mirror's cursor,
then the stream's end, then the stream up to there. So whatever those count must be among what is read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from bus import headers as h
from bus.bus import Bounds, Bus, Kept, Stored
from bus.errors import MeshError
from bus.registry import read_record
from bus.scan import scan
from bus.snapshots import read_snapshot
from coordinator.audit_checks import Checks
from coordinator.audit_report import Audit, Findings, MirrorAudit

ATTEMPTS = 3
"""Passes over a stream whose retention overtakes the reading, before that is given up."""
Progress = Callable[[int, int], None]
"""Called now and then with (sequence reached, last sequence)."""
PROGRESS_EVERY = 1000
T = TypeVar("T")


async def audit_bus(bus: Bus, progress: Progress | None = None) -> Audit:
    """Audit the swarm of `bus`, live or at rest.

    Raises:
        BusError: the bus does not answer.
    """
    began = time.monotonic()
    subjects = bus.subjects
    attempt = 0
    while True:
        attempt += 1
        findings = Findings()
        snapshots = await _kept(bus, subjects.state_bucket, "snapshots", read_snapshot, findings)
        records = await _kept(bus, subjects.registry_bucket, "registry", lambda _, data: read_record(data), findings)
        bounds = await bus.bounds()
        checks = Checks(subjects, bus.url, bounds.first, bounds.last, snapshots, records, findings)
        await scan(bus, (f"{subjects.ns}.>",), bounds.first, bounds.last, counting(checks.take, bounds, progress))
        if attempt == ATTEMPTS or not await _overtaken(bus, checks):
            return conclude(checks, MirrorAudit(), subjects.ns, began)


def counting(take: Callable[[Stored], None], bounds: Bounds, progress: Progress | None) -> Callable[[Stored], None]:
    """`take`, telling `progress` now and then where it is."""
    if progress is None:
        return take
    told = progress

    def counted(stored: Stored) -> None:
        take(stored)
        if stored.sequence % PROGRESS_EVERY == 0 or stored.sequence >= bounds.last:
            told(stored.sequence, bounds.last)

    return counted


def conclude(checks: Checks, mirror: MirrorAudit, swarm: str, began: float) -> Audit:
    """The finished audit of what `checks` has taken."""
    agents, snapshots = checks.finish()
    findings = checks.findings
    return Audit(
        ok=not findings.problems_total,
        swarm=swarm,
        stream=checks.stream,
        agents=agents,
        rounds=checks.rounds.audit,
        mirror=mirror,
        snapshots=snapshots,
        poison=findings.poison,
        poison_total=findings.poison_total,
        problems=findings.problems,
        problems_total=findings.problems_total,
        notes=findings.notes,
        took_s=round(time.monotonic() - began, 2),
    )


async def _kept(
    bus: Bus, bucket: str, check: str, read: Callable[[str, bytes], T], findings: Findings
) -> Mapping[str, T]:
    return readable(await bus.kv_all(bucket), bucket, check, read, findings)


def readable(
    kept: Mapping[str, Kept], bucket: str, check: str, read: Callable[[str, bytes], T], findings: Findings
) -> Mapping[str, T]:
    """What a bucket holds, decoded; what cannot be is a problem."""
    found: dict[str, T] = {}
    for key, value in kept.items():
        try:
            found[key] = read(key, value.value)
        except (MeshError, ValueError) as error:
            findings.problem(
                check,
                f"{key}: what bucket {bucket} holds for it cannot be read: {error}",
                agent=key,
                sequences=[value.revision],
                expected="readable",
                found=value.value[:100].decode(errors="replace"),
            )
    return found


async def _overtaken(bus: Bus, checks: Checks) -> bool:
    """Whether retention has meanwhile come as far as a hole that looked unexplained."""
    holes = [hole for hole in checks.stream.holes if not hole.retention]
    if not holes:
        return False
    bounds = await bus.bounds()
    kept_from = bounds.last + 1

    def take(stored: Stored) -> bool:
        nonlocal kept_from
        if stored.headers.get(h.TTL) == "never":
            return False
        kept_from = stored.sequence
        return True

    await scan(bus, (f"{bus.subjects.ns}.>",), bounds.first, bounds.last, take)
    return kept_from > holes[0].first
