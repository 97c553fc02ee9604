"""The checks of `doctor` of the state directory: permissions, locks, and leftovers of earlier runs."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import psutil

from bus.errors import UsageError
from coordinator.doctor.file_locks import describe_holder, lock_holders
from coordinator.reporting.findings import Finding, error, ok, skipped, warning
from coordinator.runner.run_record import RECORD, Run, read_run

__all__ = ["check_leftovers", "check_locks", "check_permissions", "check_record"]

MOST_FILES = 20_000
MAX_NAMED_FILES = 3
"""In one finding."""


def check_record(state_dir: Path) -> tuple[Run | None, Finding]:
    """The record of the run, if there is one, and the finding about it."""
    try:
        run = read_run(state_dir)
    except UsageError as problem:
        remedy = f"rm {state_dir / RECORD} if no swarm runs here"
        return None, error("run record", str(problem), remedy)
    if run is None:
        if not (state_dir / "lock").exists():
            return None, ok("run record", f"none: no swarm was ever started in {state_dir}")
        return None, ok("run record", "none: no swarm runs here, and the last one ended in order")
    if run.alive():
        return run, ok("run record", f"swarm {run.swarm} on {run.url}, `up` has pid {run.pid}")
    return run, warning(
        "run record",
        f"stale: `up` (pid {run.pid}, swarm {run.swarm}) ended without removing it, so it was killed",
        f"nothing is lost: the next `signalmesh up` recovers the state; or rm {state_dir / RECORD}",
    )


def check_leftovers(run: Run | None) -> Finding:
    """By the record: processes that outlived their `up`, and those of a running `up` that ended or are stopped."""
    if run is None:
        return skipped("processes", "there is no run record that lists them")
    if run.alive():
        gone = [child for child in run.children if not child.alive()]
        if gone:
            names = ", ".join(f"{child.name} (pid {child.pid})" for child in gone)
            return warning("processes", f"ended and not restarted yet: {names}", "run doctor again in a second")
        if stopped := [child for child in run.children if _is_stopped(child.pid)]:
            names = ", ".join(f"{child.name} (pid {child.pid})" for child in stopped)
            pids = " ".join(str(child.pid) for child in stopped)
            return error("processes", f"stopped by a signal: {names}", f"kill -CONT {pids}")
        return ok("processes", f"all {len(run.children)} recorded children belong to the running `up`")
    orphans = [child for child in run.children if child.alive()]
    if not orphans:
        return ok("processes", f"all {len(run.children)} recorded children of pid {run.pid} have ended")
    names = ", ".join(f"{child.kind} {child.name} (pid {child.pid})" for child in orphans)
    return error(
        "processes",
        f"still running after their `up` (pid {run.pid}) has ended: {names}",
        f"kill -9 {' '.join(str(child.pid) for child in orphans)}",
    )


def _is_stopped(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_STOPPED
    except psutil.Error:
        return False


def check_locks(state_dir: Path, run: Run | None) -> list[Finding]:
    """Which processes hold the locks of the directory and of the store, and whether they should."""
    alive = run is not None and run.alive()
    found = []
    for check, path, wanted in (
        ("lock of the directory", state_dir / "lock", alive),
        ("lock of the store", state_dir / "nats" / "lock", alive and run is not None and run.child("nats-server")),
    ):
        try:
            holders = lock_holders(path)
        except OSError as problem:
            found.append(skipped(check, f"{problem.filename}: {problem.strerror}"))
            continue
        if holders is None:
            found.append(skipped(check, "this system does not list locks (/proc/locks)"))
        elif bool(holders) == bool(wanted):
            found.append(ok(check, f"held by pid {', '.join(map(str, holders))}" if holders else "free"))
        elif holders:
            pids = ", ".join(describe_holder(pid) for pid in holders)
            remedy = f"end it if it is a leftover: kill -9 {' '.join(map(str, holders))}"
            found.append(error(check, f"{path} is held by {pids}, though no recorded `up` runs here", remedy))
        else:
            remedy = "the file was removed or replaced; end the swarm with `signalmesh down` and start it again"
            found.append(
                error(check, f"{path} is not held, though a swarm runs here: a second one could start", remedy)
            )
    return found


def check_permissions(state_dir: Path) -> Finding:
    """Whether every file is usable for this user and for no other user writable; skipped if nothing can be stored."""
    check = "permissions"
    try:
        about = state_dir.stat()
    except FileNotFoundError:
        return ok(check, f"{state_dir} does not exist yet; `up` creates it")
    except OSError as problem:
        return error(check, f"{state_dir}: {problem.strerror}", "chown or chmod it, or choose another --state-dir")
    if not stat.S_ISDIR(about.st_mode):
        return error(check, f"{state_dir} is no directory", "remove or rename it, or choose another --state-dir")
    if _is_never_written(state_dir):
        return skipped(check, f"{state_dir} is empty, on a read-only file system: nothing is stored here")
    unusable: list[str] = []
    open_to_all: list[str] = []
    seen = 0
    for path, trouble in _walk(state_dir):
        seen += 1
        usable, closed, mode = _judge(path)
        if trouble or not usable:
            unusable.append(f"{path} ({trouble or mode})")
        elif not closed:
            open_to_all.append(f"{path} ({mode})")
    if unusable:
        return error(
            check, f"not readable and writable for this user: {_some(unusable)}", f"chown or chmod {state_dir}"
        )
    if open_to_all:
        text = f"writable for other users: {_some(open_to_all)}"
        return warning(check, text, f"chmod -R go-w {state_dir}, and umask 022 before `up`")
    more = "" if seen < MOST_FILES else f"; only the first {MOST_FILES} were checked"
    return ok(check, f"{seen} files and directories are usable, and not writable for other users{more}")


def _is_never_written(directory: Path) -> bool:
    """As in a container with a read-only root, if its role stores nothing."""
    try:
        return bool(os.statvfs(directory).f_flag & os.ST_RDONLY) and not any(directory.iterdir())
    except OSError:
        return False


def _judge(path: Path) -> tuple[bool, bool, str]:
    """Whether it is usable for this user, whether no other user may write it, and its mode as `ls` prints it."""
    try:
        about = path.lstat()
    except FileNotFoundError:
        return True, True, ""  # the running swarm removes files
    except OSError as problem:
        return False, True, problem.strerror or ""
    mode = stat.filemode(about.st_mode)
    if stat.S_ISLNK(about.st_mode):
        return True, True, mode
    need = os.R_OK | os.W_OK | (os.X_OK if stat.S_ISDIR(about.st_mode) else 0)
    shared = about.st_mode & (stat.S_IWOTH | stat.S_IWGRP) and not about.st_mode & stat.S_ISVTX
    return os.access(path, need), not shared, mode


def _walk(top: Path) -> Iterator[tuple[Path, str]]:
    problems: list[tuple[Path, str]] = []
    yield top, ""
    left = MOST_FILES
    walk = os.walk(top, onerror=lambda e: problems.append((Path(e.filename), e.strerror or "")))
    for directory, directories, files in walk:
        for name in (*directories, *files):
            left -= 1
            if left <= 0:
                return
            yield Path(directory) / name, ""
    yield from ((path, problem) for path, problem in problems if path.exists())


def _some(names: list[str]) -> str:
    more = len(names) - MAX_NAMED_FILES
    return ", ".join(names[:MAX_NAMED_FILES]) + (f" and {more} more" if more > 0 else "")
