"""Where an agent's process is when its event loop does not run: its host requests the stack, and shows one line of it.

The stack is written by a signal handler in C (faulthandler), so it comes also from a handler that never returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import re
import signal
import site
import sysconfig
from pathlib import Path
from typing import NamedTuple

from bus.utils.error_text import shorten
from signalmesh import PACKAGES, ROOT

STACK_SIGNAL = signal.SIGUSR2
ANSWER_S = 0.1
"""Limit for the answer: the handler runs as soon as the process has a CPU."""
WRITE_S = 0.01
"""Pause after the first bytes; the handler writes a stack in many small pieces within a millisecond."""
MAX_STACK_BYTES = 65536
MAX_PLACE = 200
_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.*)$')
_LIBRARY = tuple(
    os.path.realpath(path) + os.sep
    for path in (
        sysconfig.get_path("stdlib"),
        sysconfig.get_path("purelib"),
        sysconfig.get_path("platlib"),
        site.getusersitepackages(),
        *(f"{ROOT}/{package}" for package in PACKAGES),
    )
)
_WAITING = ("run_forever", "select", "_run_once", "run_until_complete")
"""Innermost functions of an event loop that has nothing to do."""


def ignore_requests() -> None:
    """Have this process and its children ignore requests until `answer_requests`: the default would end them."""
    signal.signal(STACK_SIGNAL, signal.SIG_IGN)


def answer_requests(descriptor: int) -> None:
    """Have this process write its stacks to the pipe `descriptor` when its host requests them."""
    os.set_blocking(descriptor, False)  # a host that reads nothing must not stop it
    faulthandler.register(STACK_SIGNAL, file=descriptor, all_threads=True, chain=False)


class StackReader:
    """The host's end of the pipe of one process, of its owner."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor

    async def request(self, pid: int) -> str | None:
        """Where the main thread of `pid` is; None if it waits for events, is stopped, or does not answer."""
        self._read()  # the rest of an earlier answer
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self._descriptor, readable.set)
        try:
            os.kill(pid, STACK_SIGNAL)
            async with asyncio.timeout(ANSWER_S):
                await readable.wait()
        except (TimeoutError, ProcessLookupError):
            return None
        finally:
            loop.remove_reader(self._descriptor)
        await asyncio.sleep(WRITE_S)
        return place_of(self._read())

    def _read(self) -> str:
        with contextlib.suppress(BlockingIOError):
            return os.read(self._descriptor, MAX_STACK_BYTES).decode(errors="replace")
        return ""


class Frame(NamedTuple):
    file: str
    line: str
    function: str

    @property
    def is_users(self) -> bool:
        return not os.path.realpath(self.file).startswith(_LIBRARY) and not self.file.startswith("<")

    def __str__(self) -> str:
        return f"{Path(self.file).name}:{self.line} in {self.function}"


def place_of(stacks: str) -> str | None:
    """One line for the main thread in what faulthandler has written; None for an event loop that waits.

    It is the innermost frame of code of users, and what that has called: `own.py:12 in on_market (in ssl.py:1106 in
    read)`; without such a frame the innermost one.
    """
    frames = _main_thread(stacks)
    if not frames or frames[0].function in _WAITING:
        return None
    users = next((frame for frame in frames if frame.is_users), None)
    if users is None:
        return shorten(str(frames[0]), MAX_PLACE)
    return shorten(str(users) if users is frames[0] else f"{users} (in {frames[0]})", MAX_PLACE)


def _main_thread(stacks: str) -> list[Frame]:
    """The frames of the last thread listed, innermost first: faulthandler begins with the newest thread."""
    frames: list[Frame] = []
    for line in stacks.splitlines():
        if line.startswith(("Thread ", "Current thread ", "Stack ")):
            frames = []
        elif match := _FRAME.match(line):
            frames.append(Frame(**match.groupdict()))
    return frames
