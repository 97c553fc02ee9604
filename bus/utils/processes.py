"""Children that end with their parent, orphans that become children, the end of any process, signals, titles.

The guarantee of `die_with_parent` is Linux's
(PR_SET_PDEATHSIG); on other systems it does nothing, and a parent that is SIGKILLed leaves its children behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import platform
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
from setproctitle import setproctitle

__all__ = [
    "MACHINE",
    "OrphanReaper",
    "adopt_orphans",
    "die_with_parent",
    "end_orphans",
    "is_running",
    "on_signals",
    "set_title",
    "start_identity",
    "wait_pid_exit",
]

MACHINE = platform.node()
"""The name of this machine; in a container that of the container. With a pid it identifies a process."""
POLL_S = 0.02
"""Pause between two checks of a process, in seconds, where the system has no pidfd."""
MAX_GENERATIONS = 50
"""Of children that become orphans when their parent is ended: against one that starts others without end."""
RESOURCE_TRACKER = "multiprocessing.resource_tracker"
_TASKS = Path("/proc/self/task")
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
"""From Linux's <sys/prctl.h>, as the one above."""

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
# Loaded here rather than in the function: between fork and exec a child should only make system calls.


def die_with_parent(parent: int | None = None, signal_number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process `signal_number` when its parent ends, however the parent ends.

    Call it first thing in the child, or between fork and exec: `preexec_fn=partial(die_with_parent, os.getpid())`.
    `parent` is the expected parent's pid: if the parent had already ended before the call, this process
    ends at once. The setting survives exec (but not that of a setuid program), and is not inherited by children.

    The kernel's "parent" is the thread that forked: spawn such children from a thread that lives as long as they
    do, in practice the main thread. Outside of Linux this does nothing.

    Raises:
        OSError: the kernel refused.
    """
    if _libc is None:
        return
    if _libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_PDEATHSIG): {os.strerror(number)}")
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal_number)


def adopt_orphans(enabled: bool) -> bool:
    """Make descendants of this process its children when their parent ends, or no longer.

    Returns whether the kernel can do that. The caller must reap them: see `OrphanReaper`.
    """
    return _libc is not None and _libc.prctl(_PR_SET_CHILD_SUBREAPER, int(enabled), 0, 0, 0) == 0


class OrphanReaper:
    """Reaps the orphans that `adopt_orphans` has made children of this process, and that no other code waits for."""

    def __init__(self) -> None:
        self._seen: int | None = None

    def check(self) -> int | None:
        """Reap one that has ended; returns its pid. Call it periodically, on the event loop of this process."""
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            ended = None
        pid = None if ended is None else ended.si_pid
        # A child that other code waits for is reaped before the next check.
        if pid is None or pid != self._seen:
            self._seen = pid
            return None
        self._seen = None
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        return pid


async def end_orphans() -> None:
    """End the orphans that `adopt_orphans` has made children of this process, with all that they have started.

    Orphans are the children that are of another process group than this process: it must start its own children in its
    group, and their children must have left it.
    """
    for _ in range(MAX_GENERATIONS):
        if not (orphans := _orphans()):
            return
        for pid in orphans:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # it is not reaped yet, so the pid is its own
        for pid in orphans:
            await wait_pid_exit(pid)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)  # noqa: ASYNC222 - it is a zombie


def _orphans() -> list[int]:
    found = []
    for pid in _children():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            # A tracker of multiprocessing ends by itself, after it has removed what the others had shared.
            if os.getpgid(pid) != os.getpgid(0) and RESOURCE_TRACKER not in " ".join(psutil.Process(pid).cmdline()):
                found.append(pid)
    return found


def _children() -> list[int]:
    """The kernel's list where it has one: psutil reads the state of every process on the machine, for milliseconds."""
    if not (_TASKS / str(os.getpid()) / "children").exists():  # no CONFIG_PROC_CHILDREN, or another system
        return [child.pid for child in psutil.Process().children()]
    found: list[int] = []
    for task in _TASKS.iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
            found += map(int, (task / "children").read_text("ascii").split())
    return found


def set_title(*arguments: str) -> None:
    """Have `ps` show this process as signalmesh with these arguments. It also clears /proc/PID/environ."""
    setproctitle(" ".join(("signalmesh", *arguments)))


def start_identity(pid: int) -> str:
    """When the process `pid` was started, as a text that no other process of that pid has.

    On Linux it is the boot and the clock ticks since then. The time of day will not do: psutil computes it from the
    time since the boot, so that it moves when the clock is set, and a container has a boot time of its own. It is the
    same in every time namespace.

    Raises:
        psutil.NoSuchProcess: it has ended.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except (FileNotFoundError, ProcessLookupError):
        return str(psutil.Process(pid).create_time())
    ticks = int(stat.rpartition(")")[2].split()[19])  # field 22, starttime: the name before may hold anything
    return f"{boot}:{ticks - _boot_time_offset()}"


def _boot_time_offset() -> int:
    """By how many clock ticks the kernel shifts the times since boot that this process reads, in its time namespace."""
    try:
        offsets = Path("/proc/self/timens_offsets").read_text("ascii")
    except OSError:  # a kernel before 5.5 has no time namespaces
        return 0
    for clock, seconds, nanoseconds in map(str.split, offsets.splitlines()):
        if clock == "boottime":
            return (int(seconds) * 10**9 + int(nanoseconds)) * os.sysconf("SC_CLK_TCK") // 10**9
    return 0


def is_running(pid: int, started: str) -> bool:
    """Whether the process `pid` that has this `start_identity` still runs, and is no other one with that pid."""
    try:
        return start_identity(pid) == started and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def on_signals(stop: Callable[[], None]) -> None:
    """Have SIGTERM, SIGINT and the end of the terminal (SIGHUP, unless nohup has it ignored) call `stop`."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            loop.add_signal_handler(number, stop)


def restore_signals() -> None:
    """Undo `on_signals`: these signals end the process again."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.remove_signal_handler(number)


async def wait_pid_exit(pid: int) -> None:
    """Return when the process `pid`, a child or not, has ended; at once if it does not exist.

    A zombie (ended, not yet reaped by its parent) counts as ended. Without a pidfd the process is
    checked every POLL_S seconds, and its start time distinguishes it from a later one with the same pid.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except (AttributeError, OSError):  # not Linux; a kernel older than 5.3 or a sandbox that forbids the call
        await _poll_pid_exit(pid)
        return
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def readable() -> None:
        loop.remove_reader(descriptor)
        if not ended.done():
            ended.set_result(None)

    try:
        loop.add_reader(descriptor, readable)
        await ended
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def _poll_pid_exit(pid: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process = await asyncio.to_thread(psutil.Process, pid)
        while await asyncio.to_thread(_lives, process):  # noqa: ASYNC110 - no other process can set an event here
            await asyncio.sleep(POLL_S)


def _lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
