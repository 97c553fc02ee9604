"""The zygote: a process with the imports of every role, from which `up` has its children forked.

A forked role starts in milliseconds, where a new interpreter takes half a second of CPU time, and shares the memory of
the imports. It is a child of `up`, and not of the zygote: the zygote forks twice, and the kernel makes the orphan a
child of `up`. So it ends with `up`, its exit status is that of any child, and it survives the zygote.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import fcntl
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import msgspec

from bus.observability.tracer import modules_to_preload
from bus.utils.processes import adopt_orphans, die_with_parent, set_title, wait_pid_exit
from signalmesh import FILE, module_command, run_command

PRELOAD = (
    "coordinator.cli.app",
    "coordinator.config.overrides",
    "coordinator.decisions.agent",
    "coordinator.runner.entrypoints",
    "coordinator.runner.mirror_role",
    "coordinator.supervisor.watchdog",
    "agents.host.host",
    "agents.host.preload",
)
"""What the roles of a local swarm import. The last one freezes what is loaded by then."""
TITLE = "zygote"
REPLY_S = 10.0
"""Limit for a fork, which takes some milliseconds, and for the imports before the first one."""
MAX_DESCRIPTORS = 16


class ZygoteGone(Exception):
    """The zygote has ended, or did not answer in time."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One process to be started. Descriptors come with it: of the output, of the gate, and of `targets`."""

    args: list[str]
    env: dict[str, str]
    targets: list[int]
    """The numbers that the further descriptors have in the child."""
    parent: int


class ForkedProcess:
    """A child of this process that the zygote has forked; as far as needed like asyncio's Process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        """Once it has ended and was reaped; negative for a signal."""
        self._exit = asyncio.ensure_future(self._await_exit())

    async def _await_exit(self) -> int:
        await wait_pid_exit(self.pid)
        try:
            _, status = os.waitpid(self.pid, os.WNOHANG)  # noqa: ASYNC222 - it is a zombie
            self.returncode = os.waitstatus_to_exitcode(status)
        except ChildProcessError:
            self.returncode = 255  # reaped by other code, as asyncio has it
        return self.returncode

    async def wait(self) -> int:
        """Its exit code, once it has ended."""
        return await asyncio.shield(self._exit)

    def send_signal(self, number: int) -> None:
        if self.returncode is None:  # not reaped yet, so the pid is its own
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Zygote:
    """A running zygote. Requests are sent one at a time."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self._connection = connection
        self.pid = pid
        # A request blocks for the milliseconds of a fork, or until the imports are done.
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="zygote")

    @classmethod
    def fork(cls) -> Zygote | None:
        """Fork it from this process, which has most of the imports already; None where the system cannot do that.

        For a process with one thread, and no event loop yet.
        """
        if threading.active_count() > 1 or not adopt_orphans(False):
            return None
        ours, theirs = socket.socketpair()
        parent = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            with _exiting():
                die_with_parent(parent)
                ours.close()
                os.setsid()  # Ctrl-C in the terminal is for `up`
                _serve(theirs)
        theirs.close()
        return cls(ours, pid)

    @classmethod
    async def start(cls) -> Zygote:
        """Start it as a new interpreter.

        Raises:
            OSError: the system has no room for another process.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            command = module_command(__name__, str(theirs.fileno()))
            # Not asyncio's: whether it runs is seen by its connection, and `stop` reaps it.
            process = await asyncio.to_thread(
                subprocess.Popen, command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()], start_new_session=True,
            )  # fmt: skip
        return cls(ours, process.pid)

    async def spawn(
        self, args: Sequence[str], env: Mapping[str, str], output: int, pass_fds: Sequence[int] = ()
    ) -> ForkedProcess:
        """Run signalmesh with `args` and `env` in a new child of this process; `output` is its stdout and stderr.

        Raises:
            ZygoteGone: it has ended, or did not answer in REPLY_S. Nothing was started.
            OSError: the system has no room for another process.
        """
        request = Request(args=list(args), env=dict(env), targets=list(pass_fds), parent=os.getpid())
        ask = asyncio.get_running_loop().run_in_executor(self._thread, self._request, request, (output, *pass_fds))
        try:
            pid = await asyncio.shield(ask)
        except asyncio.CancelledError:
            await asyncio.wait({ask})  # its descriptors are those of the caller
            raise
        return ForkedProcess(pid)

    def _request(self, request: Request, descriptors: tuple[int, ...]) -> int:
        gate, opener = os.pipe()
        adopt_orphans(True)
        try:
            output, *passed = descriptors
            self._connection.settimeout(REPLY_S)
            _send(self._connection, request, [output, gate, *passed])
            reply = _receive_text(self._connection)
            if reply is None:
                raise ZygoteGone("it has ended")
            if "error" in reply:
                raise OSError(reply["errno"], reply["error"])
            os.write(opener, b"1")  # it is our child now, and may begin
        except (TimeoutError, ConnectionError, EOFError) as error:
            raise ZygoteGone(str(error)) from None
        else:
            return int(reply["pid"])
        finally:
            # Without that write the other end reads the end of the file, and ends.
            os.close(opener)
            os.close(gate)
            adopt_orphans(False)

    async def wait(self) -> None:
        """Return when it has ended."""
        await wait_pid_exit(self.pid)

    def stop(self) -> None:
        """End it, and reap it."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._connection.close()
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


# -- messages between `up` and the zygote


def _send(connection: socket.socket, request: Request, descriptors: list[int]) -> None:
    # json, and not orjson: variables that are no UTF-8 hold lone surrogates.
    data = json.dumps(msgspec.to_builtins(request)).encode()
    socket.send_fds(connection, [len(data).to_bytes(4)], descriptors)
    connection.sendall(data)


def _receive(connection: socket.socket) -> tuple[Request, list[int]] | None:
    size, descriptors, _, _ = socket.recv_fds(connection, 4, MAX_DESCRIPTORS)
    if not size:
        return None
    return msgspec.convert(json.loads(_receive_exactly(connection, int.from_bytes(size))), Request), descriptors


def _send_text(connection: socket.socket, reply: dict[str, Any]) -> None:
    data = json.dumps(reply).encode()
    connection.sendall(len(data).to_bytes(4) + data)


def _receive_text(connection: socket.socket) -> dict[str, Any] | None:
    size = connection.recv(4)
    return json.loads(_receive_exactly(connection, int.from_bytes(size))) if size else None


def _receive_exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (piece := connection.recv(size - len(data))):
            raise EOFError("the connection ended within a message")
        data += piece
    return data


# -- the process


def _serve(connection: socket.socket) -> NoReturn:
    """Load the imports, then fork a child for each request, until the connection ends."""
    set_title(TITLE)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    for module in (*modules_to_preload(os.environ), *PRELOAD):
        importlib.import_module(module)
    os.environ.clear()  # it may hold keys, and each child gets its own
    gc.collect()
    gc.freeze()  # what is loaded now is never collected, so that its pages stay shared between all children
    while (received := _receive(connection)) is not None:
        request, descriptors = received
        reply = _fork(request, descriptors, connection)
        for descriptor in descriptors:
            os.close(descriptor)
        _send_text(connection, reply)
    os._exit(0)


def _fork(request: Request, descriptors: list[int], connection: socket.socket) -> dict[str, Any]:
    """Fork a process whose parent has ended when this returns."""
    ours, theirs = os.pipe()
    try:
        between = os.fork()
        if between == 0:
            with _exiting():
                try:
                    child = os.fork()
                except OSError as error:
                    os.write(theirs, json.dumps({"error": error.strerror, "errno": error.errno}).encode())
                    os._exit(1)
                if child == 0:
                    connection.detach()
                    _become(request, descriptors)
                os.write(theirs, json.dumps({"pid": child}).encode())
                os._exit(0)
        reply: dict[str, Any] = json.loads(os.read(ours, 4096))  # one write, shorter than a pipe's buffer
        os.waitpid(between, 0)
    except OSError as error:
        return {"error": error.strerror, "errno": error.errno}
    else:
        return reply
    finally:
        os.close(ours)
        os.close(theirs)


def _become(request: Request, descriptors: list[int]) -> NoReturn:
    """Run the command of `request` in this process, as an interpreter of its own would."""
    output, gate, *passed = descriptors
    if not os.read(gate, 1):
        os._exit(0)  # `up` no longer waits for this process
    die_with_parent(request.parent)
    os.setsid()
    _arrange({1: output, 2: output, **dict(zip(request.targets, passed, strict=True))})
    os.environ.clear()
    os.environ.update(request.env)
    set_title(*request.args)
    sys.argv[:] = [FILE, *request.args]
    run_command()
    raise SystemExit


def _arrange(wanted: dict[int, int]) -> None:
    """Have each descriptor under the number that is wanted, /dev/null as stdin, and no other one open."""
    above = max((2, *wanted, *wanted.values())) + 1
    copies = {number: _copy_above(descriptor, above) for number, descriptor in wanted.items()}
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, copy in copies.items():
        os.dup2(copy, number)
    before = 0
    for number in (*sorted({0, *wanted}), os.sysconf("SC_OPEN_MAX")):
        if before < number:  # closerange(0, 0) closes all
            os.closerange(before, number)
        before = number + 1


def _copy_above(descriptor: int, least: int) -> int:
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD, least)


@contextlib.contextmanager
def _exiting() -> Iterator[None]:
    """End this process at the end of the block, as an interpreter ends: below it are the frames of another process."""
    code = 1
    try:
        yield
    except SystemExit as error:
        code = _exit_code(error.code)
    except BaseException:  # noqa: BLE001 - what an interpreter prints
        traceback.print_exc()
    finally:
        for end in (threading._shutdown, atexit._run_exitfuncs, sys.stdout.flush, sys.stderr.flush):  # type: ignore[attr-defined]  # noqa: SLF001 - as multiprocessing does
            with contextlib.suppress(BaseException):
                end()
        os._exit(code)


def _exit_code(value: object) -> int:
    """What an interpreter ends with after SystemExit(value)."""
    if value is None:
        return 0
    if isinstance(value, int):
        return value & 0xFF
    print(value, file=sys.stderr)
    return 1


if __name__ == "__main__":
    with _exiting():  # it ends with its connection, whose other end is in `up` alone
        _serve(socket.socket(fileno=int(sys.argv[1])))
