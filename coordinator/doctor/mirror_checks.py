"""The checks of `doctor` of the mirror: its file, and its lag."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from bus.errors import BusError, MeshError
from bus.mirror.reader import MIRROR_FILE, MirrorFile
from bus.nats.bus import NatsBus
from coordinator.reporting.findings import Finding, error, ok, skipped, warning

__all__ = ["check_mirror_file", "check_mirror_position"]

CATCH_UP_S = 2.0
"""The mirror should have the current end of the stream within this time."""
POLL_INTERVAL_S = 0.02
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
