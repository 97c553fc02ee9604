"""The role `mirror`: copies the stream into its SQLite file until a signal ends it; replaces a damaged file."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from bus.durable.events import EventPublisher
from bus.errors import EXIT_DONE, MirrorDamaged, MirrorFailing, MirrorUnusable, OtherHistory
from bus.mirror.follower import Mirror, Retention
from bus.mirror.loss_check import events_lost
from bus.mirror.reader import MirrorFile
from bus.mirror.restore import restore_lost
from bus.mirror.writer import MirrorStore
from bus.nats.bus import NatsBus
from bus.nats.streams import StreamLimits
from bus.observability.logging import set_up_logs
from bus.utils.aio import run_to_end
from bus.utils.processes import on_signals
from coordinator.config.loader import load_swarm
from coordinator.config.settings import SwarmConfig

RETRY_S = 1.0
"""Between two attempts to open a file that cannot be written just now."""

log = structlog.get_logger("signalmesh.mirror")


def set_aside(path: Path) -> Path | None:
    """Rename a damaged file (and the files of SQLite next to it), so that a new one can be filled; deletes nothing.

    Returns its new name; None when it was not there.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    aside = path.with_name(f"{path.name}.damaged-{stamp}")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{stamp}-{number}")
    for suffix in ("-wal", "-shm", ""):
        with contextlib.suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(f"{aside}{suffix}")
    return aside if aside.exists() else None


async def restore(bus: NatsBus, file: Path, limits: StreamLimits, writer: str) -> tuple[str, bool]:
    """Restore what the bus has lost from `file`; return a report (empty: none) and whether the file can be used.

    A file that cannot be read is an error only if the bus is empty: continuing would then lose its contents for good.

    Raises:
        MirrorFailing, MirrorUnusable: it cannot be read now, and the bus has nothing.
        UsageError, BusError: as bus.mirror.restore.restore_lost.
    """
    if not await asyncio.to_thread(file.exists):
        return "", True
    try:
        store = await MirrorStore.open(file, bus.subjects.ns)
    except MirrorDamaged as error:
        return (f"{error}; the bus is empty, so the swarm starts from scratch" if await events_lost(bus) else ""), True
    except MirrorUnusable as error:
        if await events_lost(bus) and await asyncio.to_thread(_is_ours, file, bus.subjects.ns):
            raise
        return f"{error}; no mirror is started", False
    except MirrorFailing:
        if await events_lost(bus):
            raise
        return "", True
    try:
        result = await restore_lost(bus, store, limits, writer)
        return ("" if result is None else str(result)), True
    except OtherHistory as error:
        return str(error), True
    finally:
        await store.close()


def _is_ours(file: Path, swarm: str) -> bool:
    try:
        with MirrorFile(file) as found:
            return found.swarm == swarm
    except MirrorUnusable:
        return True


def run_mirror(
    url: str, config_file: Path | None, swarm: str, file: Path, log_level: str, *, rebuild_first: bool = False
) -> int:
    """Mirror the swarm into `file`; with `rebuild_first`, first restore what the bus has lost.

    Raises:
        MirrorUnusable: another mirror writes it, or it is not a mirror of this swarm.
    """
    set_up_logs(log_level)
    config = load_swarm(config_file)
    retention = config.mirror.retention()

    async def follow() -> int:
        stop = asyncio.Event()
        bus = await NatsBus.connect(url, swarm, "mirror", wait_s=None)
        on_signals(stop.set)  # until here there is nothing to close
        notices: tuple[str, ...] = ()
        try:
            if rebuild_first:
                await _restore_and_report(bus, file, config)
            while not stop.is_set():
                try:
                    await _one_file(bus, file, retention, notices, stop)
                    notices = ()
                except MirrorDamaged as error:
                    aside = await asyncio.to_thread(set_aside, file)
                    kept = "" if aside is None else f"it is kept as {aside}, "
                    notice = f"mirror {file}: it is damaged ({error.problem}); {kept}a new one is filled"
                    log.warning(
                        "mirror_file_replaced", problem=error.problem, aside=None if aside is None else str(aside)
                    )
                    notices = (*notices, notice)
        finally:
            await bus.close()
        return EXIT_DONE

    return run_to_end(follow())


def run_rebuild(url: str, config_file: Path | None, swarm: str, file: Path, log_level: str) -> int:
    """Restore what the bus has lost from `file`, as `up` does before it starts its children, and end.

    Raises:
        MirrorFailing, MirrorUnusable, UsageError, BusError: as restore.
    """
    set_up_logs(log_level)
    config = load_swarm(config_file)

    async def once() -> int:
        bus = await NatsBus.connect(url, swarm, "mirror", wait_s=None)
        try:
            await _restore_and_report(bus, file, config)
        finally:
            await bus.close()
        return EXIT_DONE

    return run_to_end(once())


async def _restore_and_report(bus: NatsBus, file: Path, config: SwarmConfig) -> None:
    report, _ = await restore(bus, file, config.stream.limits(), "mirror")
    log.warning("restore", text=report or "the bus has lost nothing that the mirror contains")


async def _one_file(
    bus: NatsBus, file: Path, retention: Retention, notices: tuple[str, ...], stop: asyncio.Event
) -> None:
    store = await _open(file, bus.subjects.ns, stop)
    if store is None:
        return
    try:
        mirror = Mirror(bus, store, await EventPublisher.open(bus, "mirror"), retention, notices)
        stopping = asyncio.create_task(_when(stop, mirror.stop), name="mirror-stop")
        try:
            await mirror.run()
        finally:
            stopping.cancel()
    finally:
        await store.close()


async def _open(file: Path, swarm: str, stop: asyncio.Event) -> MirrorStore | None:
    """The file, once it can be written; None if `stop` is set before."""
    while not stop.is_set():
        try:
            return await MirrorStore.open(file, swarm)
        except MirrorFailing as error:
            log.warning("mirror_failing", problem=str(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_S):
                    await stop.wait()
    return None


async def _when(event: asyncio.Event, act: Callable[[], None]) -> None:
    await event.wait()
    act()
