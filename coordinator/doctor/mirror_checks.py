"""The checks of `doctor` of the mirror: its file, and its lag."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from bus.errors import BusError, MeshError
from bus.mirror.reader import MIRROR_FILE, MirrorFile
from bus.mirror.writer import WAL_KEPT_BYTES
from bus.nats.bus import NatsBus
from coordinator.doctor.file_locks import describe_holder, lock_holders
from coordinator.reporting.findings import Finding, error, ok, skipped, warning

__all__ = ["check_mirror_file", "check_mirror_log", "check_mirror_position"]

CATCH_UP_S = 2.0
"""The mirror should have the current end of the stream within this time."""
POLL_INTERVAL_S = 0.02
WAL_LIMIT_BYTES = 4 * WAL_KEPT_BYTES
"""A longer log of SQLite is reported: the mirror keeps it at WAL_KEPT_BYTES if no reader prevents it."""
WAL_READ_LOCKS = (123, 127)
"""First and last byte of SQLite's shared memory that a read transaction locks (https://sqlite.org/walformat.html)."""
NO_MIRROR = "there is no mirror here"
REPLACE = "end the swarm and move the file away: the mirror fills a new one from the bus"


def check_mirror_file(state_dir: Path) -> Finding:
    """Whether the file is intact."""
    path = state_dir / MIRROR_FILE
    try:
        if not path.exists():
            return skipped("mirror's file", NO_MIRROR)
        with MirrorFile(path) as mirror:
            problems, (first, last) = mirror.problems(), mirror.bounds()
            gaps = len(mirror.gaps())
    except OSError as problem:
        return skipped("mirror's file", f"{path}: {problem.strerror}")
    except MeshError as problem:
        return error("mirror's file", str(problem), REPLACE)
    if problems:
        return error("mirror's file", f"{path} is damaged: {problems[0]}", REPLACE)
    return ok("mirror's file", f"{path} is intact: messages {first} to {last}, {gaps} known gaps")


def check_mirror_log(state_dir: Path) -> Finding:
    """Whether SQLite's log beside the file is bounded: a read transaction that stays open lets it grow without end."""
    check, path = "mirror's log", state_dir / MIRROR_FILE
    log = path.with_name(f"{path.name}-wal")
    try:
        if not path.exists():
            return skipped(check, NO_MIRROR)
        size = log.stat().st_size if log.exists() else 0
        if size <= WAL_LIMIT_BYTES:
            return ok(check, f"{log.name} has {size / 2**20:,.1f} MiB")
        readers = lock_holders(path.with_name(f"{path.name}-shm"), *WAL_READ_LOCKS)
        writers = lock_holders(path.with_name(f"{path.name}.lock"))
    except OSError as problem:
        return skipped(check, f"{problem.filename}: {problem.strerror}")
    text = f"{log} has grown to {size / 2**20:,.1f} MiB (more than {WAL_LIMIT_BYTES / 2**20:,.0f})"
    holders = sorted({*(readers or ())} - {*(writers or ())})
    if holders:
        names = ", ".join(describe_holder(pid) for pid in holders)
        remedy = f"end that transaction, or the process: kill {' '.join(map(str, holders))}; the mirror then empties it"
        return warning(check, f"{text}: a reader holds a transaction open: {names}", remedy)
    if writers == []:
        return warning(check, f"{text}: no mirror runs that would empty it", "start it (signalmesh mirror)")
    remedy = "end the programs that read it, in other containers too; then run doctor again"
    return warning(check, f"{text}: a reader held a transaction open, or a process that is not seen here does", remedy)


async def check_mirror_position(bus: NatsBus, state_dir: Path) -> Finding:
    """Whether the mirror reaches the current end of the stream within CATCH_UP_S."""
    check, path = "mirror", state_dir / MIRROR_FILE
    if not await asyncio.to_thread(path.exists):
        return skipped(check, NO_MIRROR)
    try:
        last = (await bus.bounds()).last
        started_at = time.monotonic()
        while (cursor := await asyncio.to_thread(_cursor, path)) < last:
            if time.monotonic() - started_at > CATCH_UP_S:
                text = f"at {cursor}, {last - cursor} behind the stream ({last}) after {CATCH_UP_S:.0f} s"
                return warning(check, text, "start it (signalmesh mirror), or read its log")
            await asyncio.sleep(POLL_INTERVAL_S)
        duration_ms = (time.monotonic() - started_at) * 1000
        now = (await bus.bounds()).last
    except BusError as problem:
        return skipped(check, str(problem))
    except MeshError as problem:
        return error(check, str(problem), REPLACE)
    if cursor > now:
        text = f"at {cursor}, ahead of the stream, which ends at {now}: the stream was lost and recreated"
        remedy = "keep the file: it has the lost messages (docs/runbooks/restore-after-total-loss.md)"
        return error(check, text, remedy)
    return ok(check, f"has the stream up to {last}, within {duration_ms:.0f} ms")


def _cursor(path: Path) -> int:
    with MirrorFile(path) as mirror:
        return mirror.cursor()
