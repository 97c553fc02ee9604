"""The machine and versions of a run."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from bus.server.binary import find_binary, server_version


def load() -> str:
    """Load averages of the last 1, 5 and 15 minutes."""
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


def machine() -> dict[str, Any]:
    """Cores, CPU model, memory, kernel, and the present load."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = named[0] if named else model
    return {
        "cores": os.cpu_count(),
        "cpu": model,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "load_at_start": load(),
    }


def file_system(directory: Path) -> str:
    """Type and device of the file system that holds `directory`, as the cost of fsync depends on it."""
    best = ("", "an unknown file system")
    for partition in psutil.disk_partitions(all=True):
        if directory.resolve().is_relative_to(partition.mountpoint) and len(partition.mountpoint) > len(best[0]):
            best = (partition.mountpoint, f"{partition.fstype} ({partition.device})")
    return best[1]


def versions() -> dict[str, str]:
    """Versions of all compared programs."""
    return {
        "python": platform.python_version(),
        "signalmesh": version("signalmesh"),
        "nats-py": version("nats-py"),
        "nats-server": ".".join(map(str, server_version(find_binary()))),
    }
