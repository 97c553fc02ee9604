"""The share of CPUs that a container or a service may use."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

__all__ = ["cpu_quota"]


def cpu_quota(root: Path = Path("/sys/fs/cgroup"), of: Path = Path("/proc/self/cgroup")) -> float | None:
    """CPUs that this process may use, 0.5 for half of one; None without a limit, or where there are no cgroups."""
    try:
        lines = of.read_text("ascii", "replace").splitlines()
    except OSError:
        return None
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        place = path.strip("/")
        if not controllers:
            found += _quotas(root, place, _version_2)
        elif "cpu" in controllers.split(","):
            for name in (controllers, "cpu"):
                found += _quotas(root / name, place, _version_1)
    return min(found, default=None)


def _quotas(root: Path, place: str, read: Callable[[Path], float | None]) -> list[float]:
    """The quotas of a group and of those around it: the smallest one counts."""
    found = []
    directory = root / place
    while True:
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quota = read(directory)
            if quota is not None:
                found.append(quota)
        if directory == root or root not in directory.parents:
            return found
        directory = directory.parent


def _version_2(directory: Path) -> float | None:
    quota, period = (directory / "cpu.max").read_text("ascii").split()
    return None if quota == "max" else int(quota) / int(period)


def _version_1(directory: Path) -> float | None:
    quota = int((directory / "cpu.cfs_quota_us").read_text("ascii"))
    return None if quota <= 0 else quota / int((directory / "cpu.cfs_period_us").read_text("ascii"))
