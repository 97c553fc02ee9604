"""`signalmesh audit`: is the stream (or a mirror's file) complete, and do snapshots, registry and mirror agree with it?

The order of reading makes it correct while the swarm runs: first the snapshots, the registry and the mirror's cursor,
then the stream's end, then the stream up to there. So everything that the former count must be in what is read.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import TypeVar

from bus.durable.registry import read_record
from bus.durable.snapshots import read_snapshot
from bus.durable.stream_scan import kept_from, scan
from bus.errors import MeshError
from bus.interface import EVERYTHING
from bus.mirror.reader import MirrorFile
from bus.nats.bus import NatsBus
from coordinator.audit.mirror_checks import (
    MirrorComparison,
    check_file,
    open_comparison,
    stored_of,
    values_at,
    why_gone,
)
from coordinator.audit.models import Audit, Findings, MirrorAudit
from coordinator.audit.stream_checks import Checks

ATTEMPTS = 3
"""Passes over a stream whose retention overtakes the reading."""
Progress = Callable[[int, int], None]
"""Called at intervals with (sequence reached, last sequence)."""
PROGRESS_EVERY = 1000
T = TypeVar("T")


async def audit_bus(bus: NatsBus, mirror: Path | None = None, progress: Progress | None = None) -> Audit:
    """Audit the swarm of `bus`, running or not, and the mirror's file, if there is one.

    Raises:
        BusError: the bus does not answer.
        MirrorUnusable, MirrorDamaged: the file exists, but cannot be read.
    """
    started_at = time.monotonic()
    attempt = 0
    while True:
        attempt += 1
        checks, comparison = await _pass(bus, mirror, progress)
        if attempt == ATTEMPTS or not await _overtaken(bus, checks):
            return _finish(checks, comparison.audit if comparison else MirrorAudit(), bus.subjects.ns, started_at)


async def _pass(bus: NatsBus, mirror: Path | None, progress: Progress | None) -> tuple[Checks, MirrorComparison | None]:
    subjects, findings = bus.subjects, Findings()
    snapshots = await _bucket_values(bus, subjects.state_bucket)
    records = await _bucket_values(bus, subjects.registry_bucket)
    created = (await bus.api(f"STREAM.INFO.{subjects.stream}"))["created"]
    comparison = open_comparison(mirror, subjects.ns, created, findings) if mirror is not None else None
    try:
        bounds = await bus.bounds()
        checks = Checks(
            subjects,
            bus.url,
            bounds.first,
            bounds.last,
            _readable(snapshots, "snapshots", read_snapshot, findings),
            _readable(records, "registry", lambda _, data: read_record(data), findings),
            findings,
        )
        async with aclosing(scan(bus, EVERYTHING, bounds.first, bounds.last)) as messages:
            async for stored in messages:
                checks.take(stored)
                if comparison is not None:
                    comparison.take(stored)
                report_progress(progress, stored.sequence, bounds.last)
        if comparison is not None and comparison.audit.cursor > bounds.last:
            text = f"the mirror is at message {comparison.audit.cursor}, but the stream ends at {bounds.last}"
            findings.problem(
                "mirror",
                text,
                sequences=[bounds.last, comparison.audit.cursor],
                expected=f"at most {bounds.last}",
                found=comparison.audit.cursor,
            )
    finally:
        if comparison is not None:
            comparison.close()
    return checks, comparison


def audit_file(path: Path, progress: Progress | None = None) -> Audit:
    """Audit a mirror's file instead of the stream, with the bus up or down.

    Raises:
        MirrorUnusable, MirrorDamaged: it cannot be read.
    """
    started_at = time.monotonic()
    while (found := _audit_file(path, progress, started_at)) is None:
        pass
    return found


def _audit_file(path: Path, progress: Progress | None, started_at: float) -> Audit | None:
    """None: its mirror has removed rows, by its settings, before they were read here."""
    with MirrorFile(path) as file:
        findings = Findings()
        file.freeze()
        check_file(file, findings)
        cursor, (oldest_kept, newest_kept) = file.cursor(), file.bounds()
        last = max(cursor, newest_kept)
        newest = file.message(newest_kept)
        before_ns = newest.row.stored_ns if newest is not None else 0
        subjects = file.subjects
        snapshots = values_at(file, subjects.state_bucket, before_ns)
        records = values_at(file, subjects.registry_bucket, before_ns)
        gone = _joined((max(gap.first, 1), min(gap.last, last)) for gap in file.gaps())
        first = gone[0][1] + 1 if gone and gone[0][0] == 1 else 1
        checks = Checks(
            subjects,
            str(path),
            min(first, oldest_kept) if oldest_kept else first,
            last,
            _readable(snapshots, "snapshots", read_snapshot, findings),
            _readable(records, "registry", lambda _, data: read_record(data), findings),
            findings,
            gone=gone,
            gone_by=why_gone(file),
        )
        mirror = MirrorAudit(file=str(path), cursor=cursor)
        rows = file.messages(last=last)
        oldest = next(rows, None)
        file.thaw()  # page by page from here on: a mirror that runs must be able to shorten the file's log
        expected = oldest_kept
        for mirrored in () if oldest is None else itertools.chain((oldest,), rows):
            if mirrored.row.sequence > expected and file.bounds()[0] > expected:
                return None
            expected = mirrored.row.sequence + 1
            mirror.compared += 1
            report_progress(progress, mirrored.row.sequence, last)
            if mirrored.intact:
                checks.take(stored_of(mirrored))
                continue
            mirror.damaged += 1
            checks.damaged(mirrored.row.sequence, mirrored.row.subject)
        if newest_kept > cursor:
            text = f"the file holds message {newest_kept}, but its cursor is {cursor}: it was changed"
            findings.problem("mirror", text, sequences=[newest_kept], expected=f"at most {cursor}", found=newest_kept)
        findings.note(f"read from a mirror at message {cursor}: later messages are unchecked")
        return _finish(checks, mirror, file.swarm, started_at)


def _joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges (first, last) in order, without empty ones; those that touch or overlap are joined."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(one for one in ranges if one[0] <= one[1]):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(joined[-1][1], last)
        else:
            joined.append((first, last))
    return joined


def report_progress(progress: Progress | None, at: int, last: int) -> None:
    """Call `progress` after every PROGRESS_EVERY messages, and after the last."""
    if progress is not None and (at % PROGRESS_EVERY == 0 or at >= last):
        progress(at, last)


def _finish(checks: Checks, mirror: MirrorAudit, swarm: str, started_at: float) -> Audit:
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
        duration_s=round(time.monotonic() - started_at, 2),
    )


async def _bucket_values(bus: NatsBus, bucket: str) -> dict[str, bytes]:
    return {key: entry.value for key, entry in (await bus.kv_all(bucket)).items()}


def _readable(
    values: Mapping[str, bytes], check: str, read: Callable[[str, bytes], T], findings: Findings
) -> dict[str, T]:
    """The values of a bucket, decoded; a value that cannot be decoded is a problem."""
    found: dict[str, T] = {}
    for key, data in values.items():
        try:
            found[key] = read(key, data)
        except (MeshError, ValueError) as error:
            findings.problem(
                check,
                f"{key}: its value in the bucket cannot be read: {error}",
                agent=key,
                sequences=[],
                expected="readable",
                found=data[:100].decode(errors="replace"),
            )
    return found


async def _overtaken(bus: NatsBus, checks: Checks) -> bool:
    """Whether retention has meanwhile reached a hole that seemed unexplained."""
    holes = [hole for hole in checks.stream.holes if not hole.explained]
    if not holes:
        return False
    return await kept_from(bus) > holes[0].first
