"""Where a process is that does not answer: from real processes, each of which is stuck in another way."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from agents.host.stack_probe import StackReader, place_of
from tests.support.collecting import GUARD_S

STUCK = """
import asyncio, os, sys, threading, time
from agents.host.stack_probe import answer_requests, ignore_requests
from own import on_market

def sleeps(): time.sleep(600)
def computes():
    while True:
        pass
def holds():  # C code that never gives the interpreter back
    import re
    re.match("(a+)+$", "a" * 60 + "b")
def waits():
    import uvloop
    asyncio.Runner(loop_factory=uvloop.new_event_loop).run(asyncio.sleep(600))
def polls(): asyncio.run(asyncio.sleep(600))

ignore_requests()
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
answer_requests(int(sys.argv[2]))
print("ready", flush=True)
how = globals()[sys.argv[1]]
(how if how in (waits, polls) else lambda: on_market(how))()
"""
OWN = "def on_market(how):\n    how()\n"


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("sleeps", "program.py:6 in sleeps"),
        ("computes", "program.py:"),
        ("holds", "program.py:12 in holds (in "),
        ("waits", None),
        ("polls", None),
        ("stopped", None),
    ],
)
async def test_the_line_of_users_is_named_unless_the_event_loop_waits(tmp_path: Path, how: str, expected: str | None):
    (tmp_path / "program.py").write_text(STUCK)
    (tmp_path / "own.py").write_text(OWN)
    reading, writing = os.pipe()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "program.py", how.replace("stopped", "sleeps"), str(writing), cwd=tmp_path,
        pass_fds=[writing], stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    os.close(writing)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    try:
        if how == "stopped":
            process.send_signal(signal.SIGSTOP)
        reader, place = StackReader(reading), None
        async with asyncio.timeout(GUARD_S):
            for _ in range(3 if expected is None else 1000):
                place = await reader.request(process.pid)
                if expected is not None and place is not None and place.startswith(expected):
                    break  # it may not have come to that line before
        if expected is None:
            # Before it waits, it is on its way there.
            assert place is None or "program.py" in place
        else:
            assert place is not None
            assert place.startswith(expected)
        assert psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE
    finally:
        process.kill()
        await process.wait()
        os.close(reading)


def test_a_text_that_is_no_stack_names_no_place():
    for text in ("", "nonsense", "Current thread 0x01 (most recent call first):\n", "  File broken, line x in y"):
        assert place_of(text) is None


def test_the_line_is_bounded():
    stack = f'Current thread 0x01 (most recent call first):\n  File "/own.py", line 1 in {"x" * 5000}\n'
    assert len(place_of(stack) or "") <= 230
