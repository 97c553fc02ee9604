"""The processes of one sandbox, as envd keeps them: started, read by listeners, signalled, remembered a while.

What it copies of envd's handler, because callers trip over it:

- Output is handed to whoever listens at that moment. Nobody listens: it is read and dropped. One who listens and does
  not read holds the process up, once its pipe is full.
- The end is told when the process has ended *and* its pipes have no writer left, so a child that inherited them delays
  it. SIGKILL and SIGTERM through the API, and the deadline, give the pipes up at once: they are read no further.
- SIGKILL goes to that one process. Who lost its parent lives on in the sandbox.
- An end is remembered for 30 s, so that a late Connect learns the exit code; List names only what runs.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bus.utils.aio import end_tasks
from tests.e2b.standin.connect import RpcError
from tests.e2b.standin.init import PACKET_BYTES

KEPT_S = 30.0
"""How long envd remembers the end of a process (`terminatedRetentionTTL` in its service.go)."""
CHUNK_BYTES = 32 << 10
"""envd reads a pipe in such pieces (`stdChunkSize`)."""
WAITING_CHUNKS = 64
"""So many pieces may wait for one listener (`outputBufferSize`); then the process is held up."""

Event = dict[str, Any]
OnOutput = Callable[["Process", str, bytes], None]
"""Called with each piece of output before the listeners get it: envd logs it."""


@dataclass(eq=False)
class Process:
    pid: int
    config: dict[str, Any]
    tag: str | None
    stdin: int | None
    outputs: dict[str, int]
    """Read ends by their names in the protocol: stdout and stderr, or pty."""
    listeners: set[asyncio.Queue[Event]] = field(default_factory=set)
    ended: asyncio.Future[int] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """The exit code, or minus the signal, once the first process of the sandbox has reaped it."""
    failed: asyncio.Event = field(default_factory=asyncio.Event)
    end: Event | None = None
    overdue: bool = False
    """Killed by the deadline of the call that started it."""

    def listen(self) -> asyncio.Queue[Event]:
        queue: asyncio.Queue[Event] = asyncio.Queue(WAITING_CHUNKS)
        self.listeners.add(queue)
        return queue

    async def tell(self, event: Event) -> None:
        for queue in tuple(self.listeners):
            while queue in self.listeners:  # one that goes away while we wait for it must not hold the others up
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(queue.put(event), 0.05)
                    break

    async def write(self, data: bytes, *, pty: bool) -> None:
        """Back when all of it is in the pipe, as in envd: a process that does not read holds its writer up."""
        if pty != ("pty" in self.outputs):
            raise RpcError("internal", f"error writing: process {self.pid} has {'no' if pty else 'a'} tty")
        loop = asyncio.get_running_loop()
        while data:
            if self.stdin is None:
                raise RpcError("internal", "error writing to stdin: stdin not enabled or closed")
            os.set_blocking(self.stdin, False)
            try:
                data = data[os.write(self.stdin, data) :]
            except BlockingIOError:
                writable, descriptor = asyncio.Event(), os.dup(self.stdin)
                loop.add_writer(descriptor, writable.set)
                try:
                    await writable.wait()
                finally:
                    loop.remove_writer(descriptor)
                    os.close(descriptor)
            except OSError as error:
                raise RpcError("internal", f"error writing to stdin of process '{self.pid}': {error}") from None

    def close_stdin(self) -> None:
        if "pty" in self.outputs:
            raise RpcError("unknown", "error closing stdin: cannot close stdin for PTY process")
        if self.stdin is not None:
            os.close(self.stdin)
            self.stdin = None


def end_event(status: int) -> Event:
    """As Go's ProcessState prints it: -1 and `signal: killed`, or the code and `exit status 3`."""
    if status < 0:
        names = {signal.SIGKILL: "killed", signal.SIGTERM: "terminated", signal.SIGINT: "interrupt"}
        text = f"signal: {names.get(signal.Signals(-status), signal.strsignal(-status))}"
        return {"end": {"exitCode": -1, "status": text, "error": text}}
    end: dict[str, Any] = {"exited": True, "status": f"exit status {status}"}
    if status:
        end |= {"exitCode": status, "error": f"exit status {status}"}
    return {"end": end}


class Processes:
    """All processes of one sandbox; `start` and the rest only between `open` and `kill`."""

    def __init__(self, on_output: OnOutput) -> None:
        self.path = os.environ["PATH"]
        """All that a sandbox's processes get of the environment of the stand-in."""
        self.running: dict[int, Process] = {}
        self.remembered: dict[int, Process] = {}
        self._on_output = on_output
        self._started: dict[int, asyncio.Future[int]] = {}
        self._count = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._early: dict[int, int] = {}

    def open(self) -> None:
        """Start the first process. It inherits its end of a socket, and nothing of our environment but PATH."""
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.init = subprocess.Popen(
                [sys.executable, "-I", str(Path(__file__).with_name("init.py")), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={"PATH": self.path},
                start_new_session=True,
            )
        self._channel.setblocking(False)
        asyncio.get_running_loop().add_reader(self._channel, self._receive)

    async def start(
        self,
        config: dict[str, Any],
        env: dict[str, str],
        cwd: Path,
        *,
        stdin: bool,
        tag: str | None,
        size: Event | None,
    ) -> Process:
        """Raises RpcError where the program does not start."""
        ours: dict[str, int] = {}
        if size is not None:
            master, slave = os.openpty()
            theirs = [slave, slave, slave]
            ours = {"pty": master, "stdin": os.dup(master)}
            resize(master, size)
        else:
            ours["stdout"], stdout = os.pipe()
            ours["stderr"], stderr = os.pipe()
            read, ours["stdin"] = os.pipe() if stdin else (os.open(os.devnull, os.O_RDONLY), -1)
            theirs = [read, stdout, stderr]
        self._count += 1
        started = self._started[self._count] = asyncio.get_running_loop().create_future()
        requested = {
            "start": self._count,
            "argv": [config["cmd"], *config.get("args", [])],
            "env": env,
            "cwd": str(cwd),
            "tty": size is not None,
        }
        given = ours.pop("stdin")
        try:
            socket.send_fds(self._channel, [json.dumps(requested).encode()], theirs)
            pid = await started
        except BaseException as error:
            for descriptor in (*ours.values(), *([given] if given >= 0 else [])):
                os.close(descriptor)
            if isinstance(error, OSError):
                raise RpcError("unavailable", f"the sandbox takes no more processes: {error}") from None
            raise
        finally:
            for descriptor in set(theirs):
                os.close(descriptor)
        process = Process(pid, config, tag, given if given >= 0 else None, ours)
        self.remembered.pop(pid, None)
        self.running[pid] = process
        if pid in self._early:  # it ended before this task had its turn
            process.ended.set_result(self._early.pop(pid))
        task = asyncio.create_task(self._watch(process), name=f"process {pid}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return process

    def find(self, selector: dict[str, Any], *, ended: bool = False) -> Process:
        """By pid or tag; with `ended`, also one whose end is still remembered. Raises RpcError where there is none."""
        known: list[Process] = [*self.running.values(), *(self.remembered.values() if ended else ())]
        for process in known:
            if selector in ({"pid": process.pid}, {"tag": process.tag}):
                return process
        named = " ".join(f"{key} {value}" for key, value in selector.items())
        raise RpcError("not_found", f"process with {named} not found")

    def signal(self, process: Process, number: int) -> None:
        process.failed.set()
        self._channel.send(json.dumps({"signal": number, "pid": process.pid}).encode())

    def alive(self) -> list[psutil.Process]:
        """Every process in the sandbox, of any parent; without the first, which is ours."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.init.pid).children(recursive=True)
        return []

    def stop(self) -> None:
        """SIGSTOP to all, until a check finds none that is not stopped."""
        stopped: set[int] = set()
        while fresh := [process for process in self.alive() if process.pid not in stopped]:
            for process in fresh:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.suspend()
                stopped.add(process.pid)

    def resume(self) -> None:
        for process in self.alive():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    async def kill(self) -> None:
        """SIGKILL to all; back when there is none left. No listener is notified: the machine is gone."""
        asyncio.get_running_loop().remove_reader(self._channel)
        self._channel.close()
        await asyncio.to_thread(self.init.wait)
        await end_tasks(self._tasks)
        for started in self._started.values():
            if not started.done():
                started.set_exception(RpcError("unavailable", "the sandbox is gone"))
        for process in self.running.values():
            for descriptor in (*process.outputs.values(), *([] if process.stdin is None else [process.stdin])):
                os.close(descriptor)
        self.running.clear()

    def _receive(self) -> None:
        while True:
            try:
                data = self._channel.recv(PACKET_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:  # the first process was killed: no request can be answered any more
                asyncio.get_running_loop().remove_reader(self._channel)
                return
            message = json.loads(data)
            if "ended" in message:
                process = self.running.get(message["ended"])
                if process is None or process.ended.done():
                    self._early[message["ended"]] = message["status"]
                else:
                    process.ended.set_result(message["status"])
            else:
                started = self._started.pop(message["started"])
                if "pid" in message:
                    started.set_result(message["pid"])
                else:
                    started.set_exception(RpcError("invalid_argument", f"error starting process: {message['error']}"))

    async def _watch(self, process: Process) -> None:
        async with asyncio.TaskGroup() as group:
            for name, descriptor in process.outputs.items():
                group.create_task(self._pump(process, name, descriptor), name=f"{name} of {process.pid}")
        status = await process.ended
        for descriptor in process.outputs.values():
            os.close(descriptor)
        if process.stdin is not None:
            os.close(process.stdin)
            process.stdin = None
        process.end = end_event(status)
        process.outputs = {}
        del self.running[process.pid]
        self.remembered[process.pid] = process
        asyncio.get_running_loop().call_later(KEPT_S, self._forget, process)
        await process.tell(process.end)

    def _forget(self, process: Process) -> None:
        if self.remembered.get(process.pid) is process:
            del self.remembered[process.pid]

    async def _pump(self, process: Process, name: str, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(descriptor, readable.set)
        failed = asyncio.create_task(process.failed.wait())
        try:
            while not process.failed.is_set():
                try:
                    data = os.read(descriptor, CHUNK_BYTES)
                except BlockingIOError:
                    readable.clear()
                    more = asyncio.create_task(readable.wait())
                    await asyncio.wait({more, failed}, return_when=asyncio.FIRST_COMPLETED)
                    more.cancel()
                    continue
                except OSError:  # EIO: a terminal whose last process is gone
                    return
                if not data:
                    return
                loop.remove_reader(descriptor)  # level-triggered: it would spin while a listener is waited for
                self._on_output(process, name, data)
                reporting = asyncio.create_task(process.tell({"data": {name: base64.b64encode(data).decode()}}))
                await asyncio.wait({reporting, failed}, return_when=asyncio.FIRST_COMPLETED)
                await end_tasks([reporting] if not reporting.done() else [])
                loop.add_reader(descriptor, readable.set)
        finally:
            loop.remove_reader(descriptor)
            failed.cancel()


def resize(terminal: int, size: Event) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", size.get("rows", 0), size.get("cols", 0), 0, 0))
