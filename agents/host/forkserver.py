"""Agent processes as children of a fork server: started in milliseconds, watched by pidfd, ended with their host.

multiprocessing's fork server imports what agents need once (agents/host/preload.py) and forks from there. The child
fixes two of its problems: it inherits the write end of the server's alive pipe and would keep the server alive after
the host's death, and it must end with the fork server, which ends with the host. The host fixes a third one: a SIGKILL
of the host would leave the directory of the server's socket behind. The host therefore creates that directory itself
and locks a file in it; the next host removes the directories that nothing locks.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import fcntl
import gc
import importlib
import multiprocessing.process
import multiprocessing.util
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import psutil

from agents.host.stack_probe import StackReader, answer_requests, ignore_requests
from agents.runtime.process import Incarnation, run_incarnation
from bus.errors import MeshError
from bus.utils.cgroups import throttling
from bus.utils.processes import die_with_parent, set_title, start_identity, wait_pid_exit
from signalmesh import importable

PRELOAD = "agents.host.preload"
EXIT_STATUS_S = 0.2
"""How long after a process's end the fork server may take to report its exit status."""
UNKNOWN_EXIT_CODE = 255
"""What multiprocessing reports of a process if its fork server has ended before."""
_FORKS = sys.platform == "linux" and sys.version_info < (3, 14)
"""Whether `fork` can do what multiprocessing's start of its server does: 3.14 has another protocol."""
CLOCK_TICKS_S = os.sysconf("SC_CLK_TCK")
DIRECTORY_PREFIX = "mesh-fork-"
LOCK_FILE = "lock"
MAX_ERROR_BYTES = 16384
"""A text of MAX_ERROR_TEXT characters (bus/utils/error_text.py) is shorter, and no pipe blocks for it."""
LONGEST_TMPDIR = 64
"""Bytes; the path of a socket in a directory of ours has 37 more, and may have 103 (macOS), or 107."""
CREATION_S = 10.0
"""A directory without a lock file is removed if it is older than this."""


def _child(data: bytes, errors: Connection, stacks: Connection) -> None:
    from agents.host.preload import FORK_SERVER  # loaded in the fork server, whose pid it therefore holds

    die_with_parent(FORK_SERVER)
    os.setpgid(0, 0)  # the host knows what a handler has forked by its group, and ends it after this process
    answer_requests(stacks.fileno())
    server: Any = forkserver._forkserver  # noqa: SLF001 - there is no other way
    with contextlib.suppress(OSError):
        os.close(server._forkserver_alive_fd)  # noqa: SLF001
    _release_tracker()
    current: Any = multiprocessing.process.current_process()
    current._config["daemon"] = False  # noqa: SLF001 - an agent may use multiprocessing: the host ends what it leaves
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    incarnation = Incarnation.from_json(data)
    set_title("agent", incarnation.spec.name)
    code = run_incarnation(incarnation, lambda text: _write_error(errors, text))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # nothing of the fork server's is ours to clean up


def _write_error(errors: Connection, text: str) -> None:
    """Without multiprocessing's framing: a reader would wait for the rest of a message that was cut off."""
    os.write(errors.fileno(), text.encode()[:MAX_ERROR_BYTES])


def _release_tracker() -> None:
    """Close this process's end of the pipe of the host's resource tracker, which ends when nobody has it open.

    What a handler forks would have it open for as long as it lives. An agent's own use of multiprocessing starts
    another tracker.
    """
    tracker: Any = resource_tracker._resource_tracker  # noqa: SLF001
    if tracker._fd is not None:  # noqa: SLF001
        os.close(tracker._fd)  # noqa: SLF001
    tracker._fd = tracker._pid = None  # noqa: SLF001


def _loaded(pipe: Any) -> None:
    pipe.send(PRELOAD in sys.modules)


def probe_process(pid: int) -> dict[str, Any]:
    """The kernel's values: `state` (one letter, or "gone"), seconds of CPU time used, and spent waiting for a CPU.

    The wait is that of the main thread, which may itself wait for a thread that the CPU quota holds back: hence
    `throttled_s` and `throttled_periods`, which are about all of the process's control group.
    """
    try:
        proc = Path(f"/proc/{pid}")
        fields = (proc / "stat").read_text("ascii", "replace").rpartition(")")[2].split()
        waited_ns = int((proc / "schedstat").read_text("ascii").split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return _probe_portably(pid)
    cpu_s = (int(fields[11]) + int(fields[12])) / CLOCK_TICKS_S
    throttled = throttling(proc / "cgroup")
    return {
        "state": fields[0],
        "cpu_s": cpu_s,
        "waited_s": waited_ns / 1e9,
        "throttled_s": throttled.seconds,
        "throttled_periods": throttled.periods,
    }


def _probe_portably(pid: int) -> dict[str, Any]:
    try:
        process = psutil.Process(pid)
        times = process.cpu_times()
        stopped = process.status() == psutil.STATUS_STOPPED
        return {"state": "T" if stopped else "S", "cpu_s": times.user + times.system, "waited_s": 0.0}
    except psutil.NoSuchProcess:
        return {"state": "gone", "cpu_s": 0.0, "waited_s": 0.0}


class AgentProcess:
    """One agent's process. Several tasks may call `wait`."""

    def __init__(self, process: Any, errors: Connection, stacks: Connection) -> None:
        self._process, self._errors, self._stacks = process, errors, stacks
        self._probing = asyncio.Lock()
        self.pid: int = process.pid
        self.started: str | None = None
        with contextlib.suppress(psutil.NoSuchProcess):
            self.started = start_identity(self.pid)
        self.error: str | None = None
        """Once it has ended: the exception that ended it, if one did."""
        self._exit = asyncio.ensure_future(self._await_exit())

    async def _await_exit(self) -> int:
        await wait_pid_exit(self.pid)
        self._read_error()
        async with self._probing:
            self._stacks.close()
        code = await asyncio.to_thread(self._exit_code)
        return code if code is not None else -signal.SIGKILL

    def _read_error(self) -> None:
        """Read what the pipe holds now. Its end may never come: processes that a handler has forked have it open."""
        with self._errors, contextlib.suppress(OSError):  # it was killed, or ended without an error
            os.set_blocking(self._errors.fileno(), False)
            self.error = os.read(self._errors.fileno(), MAX_ERROR_BYTES).decode(errors="replace") or None

    def _exit_code(self) -> int | None:
        self._process.join(EXIT_STATUS_S)
        code: int | None = self._process.exitcode
        if code == UNKNOWN_EXIT_CODE:
            # The fork server may have ended first: then this process is a child of the host, if that adopts orphans.
            with contextlib.suppress(ChildProcessError):
                _, status = os.waitpid(self.pid, os.WNOHANG)
                code = os.waitstatus_to_exitcode(status)
        return code

    async def find_place(self) -> str | None:
        """Where its main thread is, as one line; None if that waits for events, or does not answer."""
        async with self._probing:
            return None if self._stacks.closed else await StackReader(self._stacks.fileno()).request(self.pid)

    async def wait(self) -> int:
        """Exit code once it has ended, negative for a signal."""
        return await asyncio.shield(self._exit)

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if not self._exit.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def probe(self) -> dict[str, Any]:
        """See `probe_process`."""
        return probe_process(self.pid)


class ForkServer:
    """Starts agent processes from a process that has their imports loaded already."""

    def __init__(self, preload: tuple[str, ...] = ()) -> None:
        """`preload` are further modules that its agents will need."""
        self._preload = preload
        self._context = multiprocessing.get_context("forkserver")
        # signalmesh first: it orders the import path. Ours last: it freezes what is loaded by then.
        self._context.set_forkserver_preload(["signalmesh", *preload, PRELOAD])
        self._lock = _create_directory()
        # One thread: starting blocks for a few milliseconds, and the order of starts is the order of requests.
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="fork")
        # Otherwise every child would run the host's main script once more before its own work.
        main: Any = sys.modules["__main__"]
        main.__file__ = None
        main.__spec__ = None

    def fork(self) -> None:
        """Start the server as a fork of this process, which shares its imports; without this call `start` starts a new
        interpreter.

        For a process with one thread, and no event loop yet. A server that dies is started as a new interpreter.
        """
        if not _FORKS or threading.active_count() > 1:
            return
        _fork_tracker(self._lock)
        server: Any = forkserver._forkserver  # noqa: SLF001
        with socket.socket(socket.AF_UNIX) as listener:
            address = connection.arbitrary_address("AF_UNIX")  # type: ignore[attr-defined]
            listener.bind(address)
            Path(address).chmod(0o600)
            listener.listen()
            alive, kept = os.pipe()  # the server ends when the end that is kept is closed
            host = os.getpid()
            pid = os.fork()
            if pid == 0:
                os.close(kept)
                if self._lock is not None:
                    os.close(self._lock)
                _release_tracker()
                _run_server(host, listener.detach(), alive, self._preload)
            os.close(alive)
        server._forkserver_address = address  # noqa: SLF001
        server._forkserver_alive_fd = kept  # noqa: SLF001
        server._forkserver_pid = pid  # noqa: SLF001

    async def start(self) -> None:
        """Start the server, unless it was forked, and check that its imports succeeded.

        Raises:
            MeshError: they did not.
        """
        if not await asyncio.get_running_loop().run_in_executor(self._thread, self._check_preload):
            raise MeshError(f"the fork server could not import {PRELOAD}; `python -c 'import {PRELOAD}'` shows why")

    def _check_preload(self) -> bool:
        ours, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_loaded, args=(theirs,), daemon=True)
        with importable():
            process.start()
        theirs.close()
        try:
            loaded: bool = ours.recv()
        except EOFError:
            loaded = False
        process.join()
        return loaded

    async def spawn(self, incarnation: Incarnation, stopping: Callable[[], bool]) -> AgentProcess:
        """Start a process for `incarnation`.

        Raises:
            MeshError: the host is ending, the server died, or the system has no room for another process.
        """
        if stopping():
            raise MeshError("this sandbox host is ending")

        def start() -> tuple[Any, Connection, Connection]:
            ours, theirs = self._context.Pipe(duplex=False)
            reading, writing = self._context.Pipe(duplex=False)
            with theirs, writing:
                arguments = (incarnation.to_json(), theirs, writing)
                process = self._context.Process(target=_child, args=arguments, daemon=True)
                with importable():  # the server may have to be started again
                    process.start()
            return process, ours, reading

        try:
            process, errors, stacks = await asyncio.get_running_loop().run_in_executor(self._thread, start)
        except EOFError:
            raise MeshError(
                "the fork server ended before it had started a process; the next spawn restarts it"
            ) from None
        except OSError as error:
            raise MeshError(f"cannot start a process: {error}") from None
        return AgentProcess(process, errors, stacks)

    async def stop(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def _run_server(host: int, listener: int, alive: int, preload: tuple[str, ...]) -> NoReturn:
    """What multiprocessing runs in a new interpreter (forkserver.ForkServer.ensure_running), in a fork."""
    try:
        signal.signal(
            signal.SIGTERM, signal.SIG_IGN
        )  # it reports the ends of the agents, which a signal to all ends too
        die_with_parent(host)  # the end of `alive` is nothing to a stopped process
        set_title("fork-server")
        ignore_requests()
        for module in (*preload, PRELOAD):
            importlib.import_module(module)
        sys.modules[PRELOAD].FORK_SERVER = os.getpid()  # type: ignore[attr-defined]
        gc.collect()
        gc.freeze()
        forkserver.main(listener, alive, [])
    except SystemExit:  # the host has ended
        pass
    except BaseException:  # noqa: BLE001 - the frames below are those of the host
        traceback.print_exc()
    finally:
        os._exit(1)


def _fork_tracker(lock: int | None) -> None:
    """Start multiprocessing's resource tracker, which it needs beside the server, as a fork too."""
    tracker: Any = resource_tracker._resource_tracker  # noqa: SLF001
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(writing)
            if lock is not None:
                os.close(lock)
            set_title("resource-tracker")
            resource_tracker.main(reading)
        finally:
            os._exit(0)
    os.close(reading)
    tracker._fd, tracker._pid = writing, pid  # noqa: SLF001


def _create_directory() -> int | None:
    """Have multiprocessing use a directory of ours, in TMPDIR if that is short enough, until this process ends.

    Returns the descriptor that locks it; None if there is one already.
    """
    current: Any = multiprocessing.process.current_process()
    if current._config.get("tempdir") is not None:  # noqa: SLF001 - there is no other way
        return None
    there = tempfile.gettempdir()
    base = Path(there if len(os.fsencode(there)) <= LONGEST_TMPDIR else "/tmp")  # noqa: S108 - the name is random
    for directory in base.glob(f"{DIRECTORY_PREFIX}*"):
        with contextlib.suppress(OSError):  # of another user, or removed just now
            if _is_left(directory):
                shutil.rmtree(directory)
    created = Path(tempfile.mkdtemp(prefix=DIRECTORY_PREFIX, dir=base))
    lock = os.open(created / LOCK_FILE, os.O_CREAT | os.O_RDWR, 0o600)  # closed by the end of this process alone
    fcntl.flock(lock, fcntl.LOCK_SH)
    current._config["tempdir"] = str(created)  # noqa: SLF001
    multiprocessing.util.Finalize(
        None, shutil.rmtree, args=(created,), kwargs={"ignore_errors": True}, exitpriority=-100
    )
    return lock


def _is_left(directory: Path) -> bool:
    young = time.time() - directory.stat().st_mtime < CREATION_S
    try:
        lock = os.open(directory / LOCK_FILE, os.O_RDWR)
    except FileNotFoundError:
        return not young
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return not young  # or its creator is about to take the lock
