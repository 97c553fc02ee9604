"""The zygote: a process with the imports of every role, from which `up` has its children forked.

A forked role starts in milliseconds, where a new interpreter takes half a second of CPU time, and shares the memory of
the imports. It is a child of `up`, and not of the zygote: the zygote forks twice, and the kernel makes the orphan a
child of `up`. So it ends with `up`, its exit status is that of any child, and it survives the zygote.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import fcntl
import functools
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
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from agents.host.stack_probe import STACK_SIGNAL
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
FIRST_REPLY_S = 10.0
"""Limit for the imports and the first fork."""
REPLY_S = 3.0
"""Limit for each later fork, which takes some milliseconds. Without an answer the process starts without the zygote."""
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
        connection.setblocking(False)
        self._connection = connection
        self.pid = pid
        self._turn = asyncio.Lock()
        self._answered = False

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
    def start(cls) -> Zygote:
        """Start it as a new interpreter.

        Raises:
            OSError: the system has no room for another process.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            command = module_command(__name__, str(theirs.fileno()))
            # Not asyncio's, which reaps its children itself. From this thread, with which it is to end.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
                start_new_session=True, preexec_fn=functools.partial(die_with_parent, os.getpid()),  # noqa: PLW1509
            )  # fmt: skip
        return cls(ours, process.pid)

    async def spawn(
        self, args: Sequence[str], env: Mapping[str, str], output: int, pass_fds: Sequence[int] = ()
    ) -> ForkedProcess:
        """Run signalmesh with `args` and `env` in a new child of this process; `output` is its stdout and stderr.

        Raises:
            ZygoteGone: it has ended, or did not answer in time. Nothing was started.
            OSError: the system has no room for another process.
        """
        request = Request(args=list(args), env=dict(env), targets=list(pass_fds), parent=os.getpid())
        async with self._turn:
            gate, opener = os.pipe()
            adopt_orphans(True)
            try:
                reply = await self._exchange(request, [output, gate, *pass_fds])
                if "error" in reply:
                    raise OSError(reply["errno"], reply["error"])
                os.write(opener, b"1")  # it is our child now, and may begin
            finally:
                # Without that write the other end reads the end of the file, and ends.
                os.close(opener)
                os.close(gate)
        return ForkedProcess(int(reply["pid"]))

    async def _exchange(self, request: Request, descriptors: list[int]) -> dict[str, Any]:
        if self._connection.fileno() < 0:
            raise ZygoteGone("an earlier request was not answered")
        answered, limit_s = False, REPLY_S if self._answered else FIRST_REPLY_S
        try:
            async with asyncio.timeout(limit_s):
                await _send(self._connection, request, descriptors)
                reply = await _receive_reply(self._connection)
            answered = self._answered = True
        except (OSError, EOFError) as error:  # TimeoutError is an OSError
            raise ZygoteGone(str(error) or f"it did not answer within {limit_s:g} s") from None
        finally:
            if not answered:  # the next request would take a late answer for its own
                self._connection.close()
        return reply

    async def wait(self) -> None:
        """Return when it has ended."""
        await wait_pid_exit(self.pid)

    def stop(self) -> None:
        """End it, and reap it."""
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        if not self._turn.locked():  # otherwise the request must see the end of the connection first
            self._connection.close()


# -- messages between `up` and the zygote


async def _send(connection: socket.socket, request: Request, descriptors: list[int]) -> None:
    # json, and not orjson: variables that are no UTF-8 hold lone surrogates.
    data = json.dumps(msgspec.to_builtins(request)).encode()
    socket.send_fds(connection, [len(data).to_bytes(4)], descriptors)  # there is room: no other request is under way
    await asyncio.get_running_loop().sock_sendall(connection, data)


def _receive(connection: socket.socket) -> tuple[Request, list[int]] | None:
    size, descriptors, _, _ = socket.recv_fds(connection, 4, MAX_DESCRIPTORS)
    if not size:
        return None
    left = int.from_bytes(size)
    data = b""
    while left > len(data):
        if not (piece := connection.recv(left - len(data))):
            return None
        data += piece
    return msgspec.convert(json.loads(data), Request), descriptors


def _send_reply(connection: socket.socket, reply: dict[str, Any]) -> None:
    data = json.dumps(reply).encode()
    connection.sendall(len(data).to_bytes(4) + data)


async def _receive_reply(connection: socket.socket) -> dict[str, Any]:
    size = await _receive_exactly(connection, 4)
    reply: dict[str, Any] = json.loads(await _receive_exactly(connection, int.from_bytes(size)))
    return reply


async def _receive_exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (piece := await asyncio.get_running_loop().sock_recv(connection, size - len(data))):
            raise EOFError("it has ended")
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
    signal.signal(STACK_SIGNAL, signal.SIG_DFL)  # the imports of agents have it ignored, which children inherit
    os.environ.clear()  # it may hold keys, and each child gets its own
    gc.collect()
    gc.freeze()  # what is loaded now is never collected, so that its pages stay shared between all children
    while (received := _receive(connection)) is not None:
        request, descriptors = received
        reply = _fork(request, descriptors, connection)
        for descriptor in descriptors:
            os.close(descriptor)
        _send_reply(connection, reply)
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
    # Not os.closerange: some builds of Python try each number that the limit allows, which can be a billion.
    for number in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        if number != 0 and number not in wanted:
            with contextlib.suppress(OSError):  # that of the listing itself
                os.close(number)


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
    with _exiting():
        _serve(socket.socket(fileno=int(sys.argv[1])))
