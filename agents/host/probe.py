"""Probes of the sandbox that a process runs in, and the resource usage of a sandbox host's processes.

It only measures. Isolation is judged by comparing two probes, one of them from outside
(coordinator/sandboxes/isolation.py).
"""

from __future__ import annotations

import contextlib
import os
import platform
import pwd
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import psutil

from bus import __version__
from bus.messages import SandboxUsage
from bus.utils.cgroups import throttling
from bus.utils.json_text import parse_json, read_limited

__all__ = ["INSTALLATION", "Installation", "Probe", "measure_memory", "measure_usage", "probe_sandbox"]

PROC = Path("/proc")
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
"""The namespaces of Linux, by their names in /proc/self/ns."""
LOOPBACK = "lo"
MEBIBYTE = 1 << 20
LISTS_CHILDREN = (PROC / "self" / "task" / str(os.getpid()) / "children").exists()
"""Whether this kernel has the children of a process in a file."""
INSTALLATION = "signalmesh-installed.json"
"""The file with the `Installation`, beside the environment that was created for a sandbox."""
VERSION_S = 5.0
"""How long a program may take to print its version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """How signalmesh was installed in the sandbox `sandbox_id`: `by` which tool, `why` not by uv, and the seconds.

    A sandbox from a template has the record of the sandbox that the template was created from.
    """

    sandbox_id: str
    by: str
    why: str
    duration_s: float
    steps: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What a process sees of its surroundings; None where this system does not provide it.

    `boot_id` identifies the running kernel. `namespaces` maps the kinds of /proc/self/ns to their identifiers, which
    mean something under one kernel only. `processes` are those that can be seen, `own_processes` the probing one and
    its descendants, and `own_memory_bytes` what these take with shared pages shared out (PSS). `versions` names what is
    installed: python, signalmesh, node; `installed` is what the launcher of a sandbox has noted where it had to install
    the program.
    """

    kernel: str
    machine: str
    hostname: str
    user: str
    uid: int
    pid: int
    processes: int
    own_processes: int
    cpus: int
    memory_bytes: int
    memory_available_bytes: int
    own_memory_bytes: int | None = None
    boot_id: str | None = None
    cgroup: str | None = None
    namespaces: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    installed: Installation | None = None


def probe_sandbox() -> Probe:
    """Probe now. Takes milliseconds for each process of our own, and longer where a program is run for its version."""
    memory = psutil.virtual_memory()
    own = list(_own_processes())
    return Probe(
        kernel=f"{platform.system()} {platform.release()}",
        machine=platform.machine(),
        hostname=socket.gethostname(),
        user=_user_name(),
        uid=os.getuid(),
        pid=os.getpid(),
        processes=len(psutil.pids()),
        own_processes=len(own),
        cpus=os.cpu_count() or 1,
        memory_bytes=memory.total,
        memory_available_bytes=memory.available,
        own_memory_bytes=_shared_out(own),
        boot_id=_read(PROC / "sys/kernel/random/boot_id"),
        cgroup=_read(PROC / "self/cgroup"),
        namespaces=dict(_namespaces()),
        versions=_versions(),
        installed=_installation(),
    )


def measure_usage() -> SandboxUsage:
    """What this process and its descendants use, and what has passed through the network that they see."""
    processes, cpu_s, rss = 0, 0.0, 0
    for process in _own_processes():
        with contextlib.suppress(psutil.NoSuchProcess), process.oneshot():
            times = process.cpu_times()
            # Of ended children too, once their parent has reaped them: so the sum only ever grows.
            cpu_s += times.user + times.system + times.children_user + times.children_system
            rss += process.memory_info().rss
            processes += 1
    counters = psutil.net_io_counters(pernic=True) if Path(PROC / "self/net/dev").exists() else {}
    passing = [counter for name, counter in counters.items() if name != LOOPBACK]
    return SandboxUsage(
        processes=processes,
        cpu_s=round(cpu_s, 2),
        rss_mb=round(rss / MEBIBYTE, 1),
        network=network_of_here(),
        rx_bytes=sum(counter.bytes_recv for counter in passing),
        tx_bytes=sum(counter.bytes_sent for counter in passing),
        throttled_periods=throttling(PROC / "self/cgroup").periods,
    )


def measure_memory() -> float | None:
    """MiB that this process and its descendants take, shared pages shared out (PSS); None if unknown on this system.

    For each process a walk of its page tables, several times what `measure_usage` takes.
    """
    own_bytes = _shared_out(list(_own_processes()))
    return None if own_bytes is None else round(own_bytes / MEBIBYTE, 1)


def network_of_here() -> str | None:
    """Identifies this process's network: its kernel's boot and its network namespace."""
    boot_id = _read(PROC / "sys/kernel/random/boot_id")
    net = dict(_namespaces()).get("net")
    return f"{boot_id} {net}" if boot_id and net else None


def _own_processes() -> Iterator[psutil.Process]:
    own = psutil.Process()
    yield own
    if not LISTS_CHILDREN:
        yield from own.children(recursive=True)  # reads the entry of every process on the machine
        return
    waiting = [own.pid]
    while waiting:
        for pid in _children_of(waiting.pop()):
            with contextlib.suppress(psutil.NoSuchProcess):
                yield psutil.Process(pid)
                waiting.append(pid)


def _children_of(pid: int) -> list[int]:
    """The children of a process, which the kernel lists by the thread that started them."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in (PROC / str(pid) / "task").iterdir():
            with contextlib.suppress(OSError):  # it has ended
                found += map(int, (thread / "children").read_bytes().split())
    return found


def _shared_out(processes: list[psutil.Process]) -> int | None:
    total = 0
    for process in processes:
        try:
            text = (PROC / str(process.pid) / "smaps_rollup").read_text("ascii")
        except ProcessLookupError:
            continue  # it has ended: it is not reaped yet, but its memory is gone
        except FileNotFoundError:
            if psutil.pid_exists(process.pid):
                return None  # this kernel does not provide it
            continue
        except OSError:
            return None
        total += sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:"))
    return total


def _namespaces() -> Iterator[tuple[str, str]]:
    for kind in NAMESPACES:
        with contextlib.suppress(OSError):
            yield kind, os.readlink(PROC / "self/ns" / kind)  # noqa: PTH115 - the link's text is the identifier


def _read(path: Path) -> str | None:
    try:
        return path.read_text("ascii", "replace").strip() or None
    except OSError:
        return None


def _installation() -> Installation | None:
    try:
        return msgspec.convert(parse_json(read_limited(Path(sys.prefix) / INSTALLATION)), Installation)
    except (OSError, ValueError):
        return None


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "signalmesh": __version__}
    if (node := shutil.which("node")) is not None:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            output = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=VERSION_S, check=True)
            found["node"] = output.stdout.strip().removeprefix("v")
    return found
