"""The first process of a sandbox: parent of all others in it, and their end.

Run by path in an interpreter of its own, one a sandbox. Linux makes it the parent of every process of the sandbox that
loses its own (a "child subreaper"), so that none gets away by forking twice or opening a session, and so that "no
child is left" is the whole truth when it says so. When its socket ends, because the sandbox is killed or because the
stand-in died, however it died, it kills them all, and ends.

Messages are JSON, one a packet. In: `{"start": n, "argv", "env", "cwd", "tty"}` with the descriptors for 0, 1 and 2,
and `{"signal": number, "pid"}`. Out: `{"started": n, "pid"}` or `{"started": n, "error"}`, and
`{"ended": pid, "status"}`.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

PACKET_BYTES = 1 << 20
_PR_SET_CHILD_SUBREAPER = 36
"""From Linux's <sys/prctl.h>."""


def main(descriptor: int) -> None:
    channel = socket.socket(fileno=descriptor)
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        sys.exit(f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(ctypes.get_errno())}")
    woken, wake = socket.socketpair()
    for end in (woken, wake):
        end.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # only the socket's end ends this process; exec resets handlers
    running: dict[int, subprocess.Popen[bytes]] = {}
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while True:
            readable, _, _ = select.select([channel, woken], [], [])
            if woken in readable:
                woken.recv(4096)
                reap(channel, running)
            if channel in readable:
                data, descriptors, _, _ = socket.recv_fds(channel, PACKET_BYTES, 3)
                if not data:
                    break
                serve(channel, json.loads(data), descriptors, running)
    kill_all()
    os._exit(0)  # nothing of ours is left to tidy up, and the killer of the sandbox waits


def serve(
    channel: socket.socket, message: dict[str, Any], descriptors: list[int], running: dict[int, subprocess.Popen[bytes]]
) -> None:
    if "signal" in message:
        if message["pid"] in running:  # not yet reaped, so the number is still that process's
            os.kill(message["pid"], message["signal"])
        return
    reply: dict[str, Any] = {"started": message["start"]}
    try:
        process = subprocess.Popen(
            message["argv"],
            stdin=descriptors[0],
            stdout=descriptors[1],
            stderr=descriptors[2],
            cwd=message["cwd"],
            env=message["env"],
            start_new_session=True,
            preexec_fn=(lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)) if message["tty"] else None,  # noqa: PLW1509
        )
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        reply["error"] = str(error)
    else:
        running[process.pid] = process
        reply["pid"] = process.pid
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    channel.send(json.dumps(reply).encode())


def reap(channel: socket.socket, running: dict[int, subprocess.Popen[bytes]]) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            process = running.pop(pid, None)
            if process is not None:  # not one of the orphans
                process.returncode = os.waitstatus_to_exitcode(status)
                channel.send(json.dumps({"ended": pid, "status": process.returncode}).encode())


def kill_all() -> None:
    """SIGKILL to every descendant, until there is none: a fork meanwhile only adds to the next round."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with contextlib.suppress(ChildProcessError):
        while True:
            for pid in descendants(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            os.waitpid(-1, 0)


def descendants(pid: int) -> list[int]:
    """All below a process. (psutil has it too; importing it costs more than all else that this program does.)"""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for one in found:  # it grows while it is gone through
        found += children.get(one, [])
    return found[1:]


if __name__ == "__main__":
    main(int(sys.argv[1]))
