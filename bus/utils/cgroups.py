"""The share of CPUs that a container or a service may use, and the time for which it was held back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

__all__ = ["Throttling", "cpu_quota", "throttling"]

T = TypeVar("T")
ROOT = Path("/sys/fs/cgroup")


def cpu_quota(root: Path = ROOT, of: Path = Path("/proc/self/cgroup")) -> float | None:
    """CPUs that this process may use, 0.5 for half of one; None without a limit, or where there are no cgroups."""
    return min(_values(root, of, _version_2, _version_1), default=None)


@dataclass(frozen=True, slots=True)
class Throttling:
    """How long the kernel has held back a process's control groups, as their CPU quota was used up: it only ever grows.

    `seconds` grows when it is over, on several CPUs by more than the time that passes; `periods` of the quota (mostly
    100 ms) already meanwhile.
    """

    seconds: float = 0.0
    periods: int = 0


def throttling(of: Path, root: Path = ROOT) -> Throttling:
    """Of the process whose /proc/PID/cgroup is `of`; zeros without a quota."""
    found = _values(root, of, _throttled_2, _throttled_1)
    return Throttling(sum(one.seconds for one in found), sum(one.periods for one in found))


def _values(
    root: Path, of: Path, version_2: Callable[[Path], T | None], version_1: Callable[[Path], T | None]
) -> list[T]:
    """A value of each group of a process, and of those around it."""
    try:
        lines = of.read_text("ascii", "replace").splitlines()
    except OSError:
        return []
    found: list[T] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        place = path.strip("/")
        if not controllers:
            found += _upwards(root, place, version_2)
        elif "cpu" in controllers.split(","):
            for name in dict.fromkeys((controllers, "cpu")):
                if (root / name).is_dir():
                    found += _upwards(root / name, place, version_1)
                    break  # the other name is a link to this one
    return found


def _upwards(root: Path, place: str, read: Callable[[Path], T | None]) -> list[T]:
    found: list[T] = []
    directory = root / place
    while True:
        with contextlib.suppress(OSError, ValueError, LookupError, ZeroDivisionError):
            value = read(directory)
            if value is not None:
                found.append(value)
        if directory == root or root not in directory.parents:
            return found
        directory = directory.parent


def _version_2(directory: Path) -> float | None:
    quota, period = (directory / "cpu.max").read_text("ascii").split()
    return None if quota == "max" else int(quota) / int(period)


def _version_1(directory: Path) -> float | None:
    quota = int((directory / "cpu.cfs_quota_us").read_text("ascii"))
    return None if quota <= 0 else quota / int((directory / "cpu.cfs_period_us").read_text("ascii"))


def _throttled_2(directory: Path) -> Throttling:
    found = _statistics(directory)
    return Throttling(found["throttled_usec"] / 1e6, found["nr_throttled"])


def _throttled_1(directory: Path) -> Throttling:
    found = _statistics(directory)
    return Throttling(found["throttled_time"] / 1e9, found["nr_throttled"])


def _statistics(directory: Path) -> dict[str, int]:
    lines = (directory / "cpu.stat").read_text("ascii").splitlines()
    return {name: int(value) for name, value in map(str.split, lines)}
